"""A table written into a TOML file that is somebody else's: every other byte stays as it is, or nothing is written."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from leakaudit.errors import UserError
from leakaudit.result.plaintext import visible

FILE = "pyproject.toml"
BY_HAND = f"{FILE} writes [tool.leakaudit] in a way that init cannot replace: take it out by hand."
HEADER = re.compile(r"^\s*\[{1,2}[^\[\]]+\]{1,2}\s*(#.*)?$")
OURS = re.compile(r"^\s*\[{1,2}\s*[\"']?tool[\"']?\s*\.\s*[\"']?leakaudit[\"']?\s*[.\]]")


def toml(value: Any) -> str:
    """Return a string, number, truth or list of them as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return json.dumps(visible(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def inserted(existing: str, block: str, force: bool = False) -> str:
    """Return pyproject.toml with the block at its end, everything else byte for byte as it was.

    Raises UserError where a table [tool.leakaudit] stands already; with `force` that table, its sub-tables included, is
    replaced, and UserError raised where it cannot be taken out by lines (an inline table, dotted keys, a string that
    holds its header).
    """
    before = _parsed(existing)
    tool = before.get("tool")
    if isinstance(tool, dict) and "leakaudit" in tool:
        if not force:
            raise UserError(f"{FILE} has a table [tool.leakaudit] already: edit it, or replace it with --force.")
        existing = _without(existing)
        try:
            tomllib.loads(existing)
        except tomllib.TOMLDecodeError:  # a line of a string that looks like a table's, and was taken for one
            raise UserError(BY_HAND) from None
        rest = {key: value for key, value in tool.items() if key != "leakaudit"}
        before = {**before, "tool": rest} if rest else {key: value for key, value in before.items() if key != "tool"}
    newline = "\r\n" if "\r\n" in existing else "\n"
    text = existing.rstrip("\r\n \t")
    text = (text + newline + newline if text else "") + block.replace("\n", newline)
    try:
        after = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # an inline table or dotted keys are still there
        raise UserError(BY_HAND) from None
    after["tool"].pop("leakaudit", None)
    if not after["tool"] and "tool" not in before:
        after.pop("tool")
    if after != before:
        raise UserError(BY_HAND)
    return text


def table(existing: str) -> dict[str, Any]:
    """Return [tool.leakaudit] of pyproject.toml as it stands there, empty where it is no table or absent."""
    tool = _parsed(existing).get("tool")
    ours = tool.get("leakaudit") if isinstance(tool, dict) else None
    return ours if isinstance(ours, dict) else {}


def _without(text: str) -> str:
    """Drop the lines of our tables. A comment right above another table's header stays with that table."""
    kept: list[str] = []
    held: list[str] = []  # comments of ours that may belong to the next table
    ours = False
    for line in text.splitlines(keepends=True):
        if HEADER.match(line):
            if ours and not OURS.match(line):
                kept += held
            ours = bool(OURS.match(line))
            held = []
        if not ours:
            kept.append(line)
        elif line.lstrip().startswith("#"):
            held.append(line)
        else:
            held = []
    return "".join(kept)


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{FILE} cannot be read: {error}.") from error
