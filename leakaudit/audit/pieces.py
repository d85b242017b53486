"""The pieces of an audit's work in their order, and how much work each is: for audit, clock, doctor and forecast."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from leakaudit.audit.costs import NOMINAL, Costs
from leakaudit.errors import Setting, UserError
from leakaudit.judge.proof import REPLAY
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.stages import declared
from leakaudit.result.batteries import TRAINING_BATCH
from leakaudit.result.rules import ACCURACY, BESIDES, FIT, LOCAL, UPDATES, WEAKENED
from leakaudit.scene.plan import Plan, attacks_for
from leakaudit.score.tuning import RUNS
from leakaudit.work.progress import Work

LATER = 2  # the rank from which pieces wait, under a time budget, until those before are done of every defense
TRIED = 110  # updates in which a defense is tried to see what it does
UNKNOWN = Sizes(victims=16, asked=64, candidates=400, line_up=100, private=1000, auxiliary=500)


@dataclass(frozen=True)
class Piece:
    """One piece of an audit's work.

    `least` is the share of it that must be done for anything to come of it; what it says of a time budget in which
    that cannot be is a reason to leave it out.
    """

    work: Work
    amount: Amount
    attack: Attack | None = None
    role: str = ""  # of the attack
    least: float = 1.0

    @property
    def weight(self) -> float:
        """The seconds that it takes on a small network, where nothing was measured yet."""
        return NOMINAL.seconds(self.amount)

    @property
    def all_or_nothing(self) -> bool:
        """Whether it is a fit, without which the defense has no row at all."""
        return self.work.name == FIT


def chosen(plan: Plan) -> tuple[tuple[str, Defense], ...]:
    """Return the defenses of a plan by their specs, the control first. Raises UserError for one unknown or repeated."""
    specs = [spec for spec in plan.defenses if spec != "none"]
    if len(set(specs)) != len(specs):
        raise UserError("a ", Setting("defense"), " is given twice: give each once.")
    return tuple((spec, parse_defense(spec, quick=plan.battery == "quick")) for spec in ("none", *specs))


def pieces_of(
    spec: str, defense: Defense, plan: Plan, changes: frozenset[str] | None = None, sizes: Sizes = UNKNOWN
) -> tuple[Piece, ...]:
    """Return what is done with one defense: fitted and tried, updates computed, attacked, its accuracy measured.

    `changes` are what it was seen to change; before it is fitted, what its code declares.
    """
    seen, effort = declared(defense) if changes is None else changes, plan.effort()
    seen |= {LOCAL} if plan.sender().local else set()
    sizes = replace(sizes, defended=bool(seen - BESIDES))
    tried = Amount(updates=TRIED if seen - BESIDES else 4)
    found = [
        Piece(Work(FIT, spec), tried + _amount(defense, sizes), least=0.35),  # reckoned up to three times too long
        Piece(Work(UPDATES, spec), Amount(updates=sizes.asked)),
    ]
    may = {"planting": preset(plan.exposure).model_control, "generator": sizes.generator}
    for attack, role in attacks_for(defense, effort, seen, **may):
        found.append(_attack(spec, attack, role, plan, sizes))
    if seen - BESIDES and preset(plan.exposure).defense:
        found.append(Piece(Work(WEAKENED, spec), Amount(updates=1000), role=WEAKENED, least=0.2))
    if plan.utility:
        steps = effort.seeds * effort.epochs * max(1, sizes.private // TRAINING_BATCH)
        found.append(Piece(Work(ACCURACY, spec), Amount(training=steps), least=1 / effort.seeds))
    return tuple(found)


def in_turn(pieces: Iterable[Piece], costs: Costs = NOMINAL) -> list[Piece]:
    """Return the pieces of one defense in the order in which they are done: what settles most for least goes first.

    Labels, which no other attack tells; closed forms and `replay`; what links; the rest; last what is handed more than
    an attacker gets. Within each by cost, which is the nominal one unless a time budget measures it: the order decides
    what is skipped, and must not depend on how fast a machine is.
    """

    def turn(piece: Piece) -> tuple[int, float]:
        a = piece.attack
        if a is None:
            return (0 if piece.work.name in (FIT, UPDATES) else 6), 0.0
        ranks = (a.kind == "labels", a.closed_form or a.name == REPLAY, a.kind == "linkage", True)
        return (5 if piece.role == "bound" else 1 + ranks.index(True)), costs.seconds(piece.amount)

    return sorted(pieces, key=turn)


def rank(piece: Piece) -> int:
    """Return how soon a piece gets time where there is too little: 0 is what a verdict rests on.

    That is a fit, the updates, closed forms and `replay`, without which there is no pass and which most leaks are found
    by. Then what else links, and is cheap; whether the attacks work at all; one training run, which is half of what is
    asked; attacks that draw pictures, which say least for most; and what is handed more than an attacker gets.
    """
    a = piece.attack
    if piece.role == "bound":
        return 5
    if a is None:
        return {WEAKENED: 2, ACCURACY: 3}.get(piece.work.name, 0)
    return 0 if a.closed_form or a.name == REPLAY else 1 if a.kind in ("labels", "linkage") else 4


def _attack(spec: str, attack: Attack, role: str, plan: Plan, sizes: Sizes) -> Piece:
    amount, least = _amount(attack, sizes), 1.0 if attack.kind == "linkage" else 0.1
    if attack.grid and preset(plan.exposure).auxiliary:
        runs = RUNS * plan.effort().tuning_victims / plan.victims
        amount, least = amount.times(1 + runs), least / (1 + runs)
    return Piece(Work(attack.name, spec), amount, attack, role, least)


def _amount(part: Attack | Defense, sizes: Sizes) -> Amount:
    """Return how much work somebody's attack or fit says it is; an update of each victim where it says nonsense."""
    try:
        found = part.amount(sizes)
        if all(0 <= n < math.inf for n in (found.updates, found.slopes, found.training, found.own)):
            return found
    except Exception:  # the user's own code: it must not end an audit that needs no shares
        pass
    return Amount(updates=sizes.victims)


def outline(plan: Plan, sizes: Sizes = UNKNOWN) -> tuple[Piece, ...]:
    """Return all that a scan will do, in its order. Raises UserError for a spec that names nothing."""
    return tuple(
        piece for spec, defense in chosen(plan) for piece in in_turn(pieces_of(spec, defense, plan, None, sizes))
    )
