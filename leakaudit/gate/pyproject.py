"""`[tool.leakaudit]` of pyproject.toml: options of `scan`, the gate's assertions, and waivers, as they stand there."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leakaudit.errors import UserError

FILE = Path("pyproject.toml")


@dataclass(frozen=True)
class Configuration:
    """The table in its three parts, unchecked: who uses a part checks it."""

    scan: dict[str, Any] = field(default_factory=dict)  # options of `scan` by long name
    assertions: dict[str, Any] = field(default_factory=dict)  # [tool.leakaudit.assert]
    waivers: tuple[Any, ...] = ()  # [[tool.leakaudit.waiver]]


def read(path: Path = FILE) -> Configuration:
    """Read the table; an absent file or table is an empty one. Raises UserError where it cannot be read."""
    if not (path.exists() or path.is_symlink()):
        return Configuration()
    try:
        tool = tomllib.loads(path.read_text(encoding="utf-8-sig")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(tool, dict):
        raise UserError(f"{path}: tool must be a table, not {tool!r}.")
    table = tool.get("leakaudit", {})
    if not isinstance(table, dict):
        raise UserError(f"{path}: [tool.leakaudit] must be a table.")
    options = dict(table)
    assertions, waivers = options.pop("assert", {}), options.pop("waiver", [])
    if not isinstance(assertions, dict):
        raise UserError(f"{path}: [tool.leakaudit.assert] must be a table, not {assertions!r}.")
    if not isinstance(waivers, list):
        raise UserError(f"{path}: waivers are written as [[tool.leakaudit.waiver]], one block each.")
    return Configuration(options, assertions, tuple(waivers))
