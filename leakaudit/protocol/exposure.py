"""What the adversary knows or may do, as facts. An attack names the facts it requires.

In words they stand in `leakaudit.result.adversary`, where those find them who read a result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from leakaudit.errors import UserError
from leakaudit.result import adversary


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Facts about the adversary. Every `True` makes it stronger."""

    labels: bool = False  # told the labels; otherwise it infers them from the update
    buffers: bool = False  # sees BatchNorm statistics
    defense: bool = False  # knows the defense's code and parameters: an adaptive adversary
    auxiliary: bool = False  # owns records of the same distribution
    released: bool = False  # is handed the data-replacing defense's output itself, which nobody sees: for bounds
    model_control: bool = False  # may change the model: a malicious server

    def facts(self) -> frozenset[str]:
        """Return the names of the facts that hold."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name))


PRESETS = {name: Exposure(**dict.fromkeys(facts, True)) for name, facts in adversary.PRESETS.items()}


def preset(name: str) -> Exposure:
    """Return a named preset; raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"unknown exposure {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]
