"""TOML, read behind the same limits as everything else."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from leakaudit.errors import UserError, first_line
from leakaudit.files.reading import TOML, reading, text_of

MEND = "mend that"


def table_of(path: Path) -> dict[str, Any]:
    """Return the table of a TOML file; raises UserError where it cannot be read."""
    return parsed(text_of(path, TOML), str(path))


def parsed(text: str, source: str) -> dict[str, Any]:
    """Return the table of a TOML text; raises UserError naming `source`: also for what nests deep or counts high."""
    try:
        with reading(source, "TOML", MEND):
            return tomllib.loads(text)
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, tomllib.TOMLDecodeError):
            raise UserError(f"{source} cannot be read: {first_line(cause).partition(': ')[2]}.") from cause
        raise
