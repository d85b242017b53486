"""What attacks made of captured updates of which nobody says whose records are behind them."""

from __future__ import annotations

from dataclasses import dataclass, field

from leakaudit.files.typed import Bulk


@dataclass(frozen=True)
class Attempt:
    """What one attack made of one captured update. It has no score: there is no truth to lay beside it."""

    update: int  # which of the captured ones
    status: str  # converged | diverged | not-applicable | out-of-memory | budget | failed
    reason: str = ""  # why, where it did not converge
    objective: float | None = None  # of the attack itself, smaller is better; None where it has none
    usual: float | None = None  # the median of the same on records sent the same way, on which it is scored
    labels: tuple[str, ...] = ()  # classes that it read off the update, one for each record
    certified: int = 0  # pictures that it proves to be behind the update
    pictures: tuple[Bulk, ...] = field(default=(), repr=False)  # base64 PNG of what it drew; none where none is shown
