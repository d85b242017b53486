"""What a scan would take on this machine, before it is run, and what a time budget would buy of it: for `doctor`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leakaudit.audit.costs import Costs, sizes_of
from leakaudit.audit.pieces import LATER, outline, rank
from leakaudit.audit.shares import share_of
from leakaudit.protocol.target import Target
from leakaudit.result.batteries import BATTERIES
from leakaudit.scene.plan import Plan

SETTING_UP = 10.0  # seconds on any model: what is loaded, who is attacked, and the planted leak
SAMPLE = ("gaussian", "obscure")  # defenses that `doctor` reckons with: one on the update, and the dearest there is


@dataclass(frozen=True)
class Estimate:
    """What one battery would take, in seconds: the control with all that comes before it, and each defense more."""

    battery: str
    control: float
    more: dict[str, float]


@dataclass(frozen=True)
class Bought:
    """What a time budget buys of a scan: pieces that would end, that would be cut short, and that it leaves out."""

    budget: float
    whole: int
    cut: tuple[str, ...]
    left_out: tuple[str, ...]


def estimates(target: Target, plan: Plan, costs: Costs) -> tuple[Estimate, ...]:
    """Return what every battery would take on this target, the quickest first. Within a factor of two, if all is well.

    Attacks that turn out not to apply take nothing; whether they will, nobody knows here.
    """
    found = []
    for battery in BATTERIES:
        pieces = outline(replace(plan, battery=battery, defenses=SAMPLE), sizes_of(target, plan))
        sums = dict.fromkeys(("none", *SAMPLE), 0.0)
        for piece in pieces:
            sums[piece.work.defense] += costs.seconds(piece.amount)
        control = sums.pop("none") + SETTING_UP
        found.append(Estimate(battery, control, sums))
    return tuple(found)


def bought(target: Target, plan: Plan, costs: Costs, budget: float) -> Bought:
    """Return what a time budget buys of the plan's scan under the dearest of the `SAMPLE`."""
    pieces = outline(replace(plan, defenses=SAMPLE[-1:]), sizes_of(target, plan))
    ahead = sorted(pieces, key=lambda p: (not p.all_or_nothing, rank(p) >= LATER))  # the order of a scan in a hurry
    left, given = budget - SETTING_UP, {}
    while ahead:
        needs = [costs.seconds(p.amount) for p in ahead]
        given[ahead[0]] = share_of(left, ahead, needs)
        left -= min(given[ahead[0]], needs[0])
        ahead = ahead[1:]
    ended = [p for p in pieces if given[p] >= costs.seconds(p.amount)]
    cut = tuple(str(p.work) for p in pieces if 0 < given[p] < costs.seconds(p.amount))
    return Bought(budget, len(ended), cut, tuple(str(p.work) for p in pieces if not given[p]))
