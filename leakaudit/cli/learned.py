"""What the defenses of a scan learned, kept in its output folder only where pictures may be: it tells of records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leakaudit.errors import UserError
from leakaudit.result.schema import Finding, Images

if TYPE_CHECKING:
    from leakaudit.protocol.defense import Defense


def saver(output: Path, images: Images) -> Callable[[str, Defense], None]:
    """Return what keeps a fitted defense, given by its spec, in `output`; with redacted or no pictures it does not."""

    def save(spec: str, defense: Defense) -> None:
        if images != "full":
            return
        folder = output / "defenses" / "".join(c if c.isalnum() or c in "-_." else "_" for c in spec)
        try:
            defense.save(folder)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}; choose another --output.") from error

    return save


def left_behind(output: Path, images: Images) -> tuple[Finding, ...]:
    """Return a warning where an earlier scan left private records in a folder that is now to hold none."""
    kept = output / "defenses"
    if images == "full" or not kept.is_dir() or not any(kept.iterdir()):
        return ()
    message = (
        "The output folder still holds what defenses learned in an earlier scan with --images full: "
        "the folder defenses tells of private records."
    )
    mend = f"Delete {kept} before you pass the output folder on, or give another --output."
    return (Finding("private-files-left", "warning", message, {"folder": str(kept)}, mend),)
