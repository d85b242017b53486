"""What was claimed of an update and what was measured of it, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Judged = Literal["holds", "broken", "cannot be told"]


@dataclass(frozen=True, kw_only=True)
class ClaimRow:
    """One claim beside its measurement. None stands for what was not claimed, or cannot be measured."""

    what: str  # "noise", "norm", "largest entry", "epsilon", "canary"
    mechanism: str  # whose claim it is: "LocalDpMod", "dp-sgd"
    claimed: float | None = None
    measured: float | None = None  # inf for an ε that nothing bounds; None in a result, which holds no infinity
    low: float | None = None  # what the measurement leaves possible, at the confidence that `reason` names
    high: float | None = None
    unit: str = ""
    verdict: Judged = "cannot be told"
    reason: str = ""  # one sentence: how it was measured, and under which neighbours an ε is meant
