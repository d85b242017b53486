"""`[tool.leakaudit]` of pyproject.toml: options of `scan`, the gate's assertions, waivers; read, and written by init.

Somebody else's file: every byte outside our table stays as it was, or nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.errors import UserError
from leakaudit.files.reading import reading, short
from leakaudit.files.tomlfile import parsed, table_of
from leakaudit.result.plaintext import visible

if TYPE_CHECKING:
    from tomlkit.items import Comment

FILE = Path("pyproject.toml")
BY_HAND = (
    f"{FILE} writes [tool] or [tool.leakaudit] in a way that init cannot edit (inline, dotted, in several places): "
    "write it as one plain table, or take it out by hand."
)


@dataclass(frozen=True)
class Configuration:
    """The table in its three parts, unchecked: who uses a part checks it."""

    path: Path = FILE
    scan: dict[str, Any] = field(default_factory=dict)  # options of `scan` by long name
    assertions: dict[str, Any] = field(default_factory=dict)  # [tool.leakaudit.assert]
    waivers: tuple[Any, ...] = ()  # [[tool.leakaudit.waiver]]


def find(*folders: Path) -> Path | None:
    """Return the nearest pyproject.toml with a table [tool.leakaudit], from the first of the folders that has one.

    From each it is looked for upwards, until a folder that holds `.git`, or the root. One that belongs to somebody else
    is passed over, since what it names is run: anybody may put one into /tmp. Raises UserError where one on the way
    cannot be read.
    """
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        for place in (folder, *folder.parents):
            path = place / FILE
            there = (path.exists() or path.is_symlink()) and _trusted(path, folder)
            if there and _table(path) is not None:
                return _near(path)
            if (place / ".git").exists():
                break
    return None


def _trusted(path: Path, folder: Path) -> bool:
    """Whether a file belongs to this user, to the system's, or to whoever the folder belongs to."""
    owners = {0, getattr(os, "geteuid", lambda: 0)()} | ({folder.stat().st_uid} if folder.exists() else set())
    return not path.exists() or path.stat().st_uid in owners  # whoever reads one that is not there says so


def _near(path: Path) -> Path:
    """Return a path as a reader would write it: from the present folder, if it lies there or right above."""
    short = Path(os.path.relpath(path))
    return path if short.parts[:3] == ("..", "..", "..") else short


def _table(path: Path) -> dict[str, Any] | None:
    tool = table_of(path).get("tool", {})
    if not isinstance(tool, dict):
        raise UserError(f"{path}: tool must be a table, not {short(tool)}.")
    found = tool.get("leakaudit")
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{path}: [tool.leakaudit] must be a table.")
    return found


def holds(path: Path) -> bool:
    """Return whether a file has the table [tool.leakaudit]. Raises UserError where it cannot be read."""
    return _table(path) is not None


def read(path: Path | None) -> Configuration:
    """Read the table; no file and no table are an empty one. Raises UserError where it cannot be read."""
    if path is None:
        return Configuration()
    options = dict(_table(path) or {})
    assertions, waivers = options.pop("assert", {}), options.pop("waiver", [])
    if not isinstance(assertions, dict):
        raise UserError(f"{path}: [tool.leakaudit.assert] must be a table, not {short(assertions)}.")
    if not isinstance(waivers, list):
        raise UserError(f"{path}: waivers are written as [[tool.leakaudit.waiver]], one block each.")
    return Configuration(path, options, assertions, tuple(waivers))


def toml(value: Any) -> str:
    """Return a string, number, truth or list of them as TOML."""
    import tomlkit  # late, here and below: every command reads the table, and `init` alone writes it

    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return tomlkit.item(visible(value) if isinstance(value, str) else value).as_string()


def table(existing: str) -> dict[str, Any]:
    """Return [tool.leakaudit] of pyproject.toml as it stands there, empty where it is no table or absent."""
    tool = parsed(existing, str(FILE)).get("tool")
    ours = tool.get("leakaudit") if isinstance(tool, dict) else None
    return ours if isinstance(ours, dict) else {}


def inserted(existing: str, block: str, force: bool = False) -> str:
    """Return pyproject.toml with the block at its end, or with `force` in the place of a table [tool.leakaudit].

    A comment right above the table that follows stays with that table. Raises UserError where [tool.leakaudit] stands
    already (without `force`), and where it cannot be replaced without touching anything else.
    """
    newline = "\r\n" if "\r\n" in existing else "\n"
    block = block.replace("\n", newline)
    tool = parsed(existing, str(FILE)).get("tool")
    if not isinstance(tool, dict) or "leakaudit" not in tool:
        head = existing.rstrip("\r\n \t")
        text = (head + newline + newline if head else "") + block
    elif force:
        text = _replaced(existing, block, newline)
    else:
        raise UserError(f"{FILE} has a table [tool.leakaudit] already: edit it, or replace it with --force.")
    if not _kept(existing, text, block):
        raise UserError(BY_HAND)
    return text


def _replaced(existing: str, block: str, newline: str) -> str:
    import tomlkit

    place = tomlkit.table().append("block-of-leakaudit", 0)
    try:
        with reading(FILE, "TOML", "edit it by hand"):
            document: Any = tomlkit.parse(existing)
        above = "".join(reversed([item.as_string() for item in _comments_at_end(document["tool"]["leakaudit"])]))
        document["tool"]["leakaudit"] = place
    except (UserError, ValueError, TypeError, LookupError) as error:  # an inline table holds no other
        raise UserError(BY_HAND) from error
    head, _, tail = str(document.as_string()).partition(place.as_string())
    rest = tail.lstrip("\r\n")
    return "".join(head.splitlines(keepends=True)[:-1]) + block + (newline + above + rest if rest else "")


def _comments_at_end(item: Any) -> Iterator[Comment]:
    """Yield the comments that a table ends with, the last one first; TOML counts them in, whatever they speak of."""
    from tomlkit.items import AoT, Comment, Table

    while isinstance(item, AoT | Table):
        body = item.body if isinstance(item, AoT) else [each for _, each in item.value.body]
        if not body:
            return
        item = body[-1]
        for each in reversed(body):
            if not isinstance(each, Comment):
                break
            yield each


def _kept(existing: str, text: str, block: str) -> bool:
    """Return whether the text differs from the existing one by the block in place of one stretch, which was ours."""
    head, found, tail = text.partition(block)
    rest = tail.lstrip("\r\n")
    if not found or not existing.startswith(head.rstrip()) or not existing.endswith(rest):
        return False
    try:
        return _others(text) == _others(existing)
    except UserError:  # an inline table or dotted keys are still there
        return False


def _others(text: str) -> dict[str, Any]:
    """Return what a TOML text holds beside [tool.leakaudit]."""
    found = parsed(text, str(FILE))
    tool = found.get("tool", {})
    if isinstance(tool, dict):
        found["tool"] = {key: value for key, value in tool.items() if key != "leakaudit"}
    return found
