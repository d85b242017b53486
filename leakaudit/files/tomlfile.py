"""TOML, read behind the same limits as everything else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from leakaudit.errors import UserError
from leakaudit.files.reading import TOML, reading, text_of

MEND = "mend that"
DOTS = 500  # of a key: parsers take time with the square of their number


def table_of(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file; raises UserError where it cannot be read."""
    return parsed(text_of(path, TOML), str(path))


def parsed(text: str, source: str) -> dict[str, Any]:
    """Return the table of a TOML text; raises UserError naming `source`: also for what nests deep or counts high."""
    if any(line.partition("=")[0].count(".") > DOTS for line in text.splitlines()):
        raise UserError(f"{source} cannot be read as TOML (a key of more than {DOTS} parts): {MEND}.")
    try:
        with reading(source, "TOML", MEND):
            return tomllib.loads(text)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, tomllib.TOMLDecodeError):
            raise UserError(f"{source} cannot be read: {cause}.") from cause
        raise
