"""What the defenses of a scan learned, kept in its output folder only where pictures may be: it tells of records."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from leakaudit.files.folder import LEARNED
from leakaudit.files.writing import owner_only

if TYPE_CHECKING:
    from leakaudit.protocol.defense import Defense
    from leakaudit.result.schema import Images


@dataclass
class Learned:
    """Keeps fitted defenses in an output folder; with redacted or no pictures it does not."""

    output: Path
    images: Images
    left: dict[str, Defense] = field(default_factory=dict)  # by spec, those that the folder did not take yet

    def save(self, spec: str, defense: Defense) -> None:
        """Keep a fitted defense, given by its spec; where that cannot be now, it is tried again at the end."""
        if self.images != "full":
            return
        folder = self.output / LEARNED / "".join(c if c.isalnum() or c in "-_." else "_" for c in spec)
        try:
            with owner_only():
                defense.save(folder)
            self.left.pop(spec, None)
        except Exception:  # an audit of hours does not end for want of room, nor by what a plug-in raises here
            self.left[spec] = defense

    def retry(self, output: Path) -> tuple[str, ...]:
        """Keep in `output` what could not be kept before; return the specs of those that it does not take either."""
        self.output = output
        for spec, defense in tuple(self.left.items()):
            self.save(spec, defense)
        return tuple(self.left)
