"""What comes from outside, read behind limits."""

from __future__ import annotations

from pathlib import Path

from leakaudit.errors import UserError


def text_of(path: Path) -> str:
    """Return a file's text; raises UserError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
