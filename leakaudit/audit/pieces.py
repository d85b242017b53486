"""The pieces of an audit's work in their order, and what each is worth of its time: for audit, clock and forecast."""

from __future__ import annotations

from dataclasses import dataclass

from leakaudit.audit.plan import Plan, attacks_for
from leakaudit.errors import Setting, UserError
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.stages import BESIDES, declared
from leakaudit.work.progress import Work

FIT, ACCURACY = 2.0, 3.0  # what a generator's training and the training runs are worth; an attack says it of itself
WEAKENED = "weakened"  # what the work is called in which a defense is turned down until an attack is seen to work


@dataclass(frozen=True)
class Piece:
    """One piece of an audit's work."""

    work: Work
    weight: float  # as the time budget is split
    attack: Attack | None = None
    role: str = ""  # of the attack


def chosen(plan: Plan) -> tuple[tuple[str, Defense], ...]:
    """Return the defenses of a plan by their specs, the control first. Raises UserError for one unknown or repeated."""
    specs = [spec for spec in plan.defenses if spec != "none"]
    if len(set(specs)) != len(specs):
        raise UserError("a ", Setting("defense"), " is given twice: give each once.")
    return tuple((spec, parse_defense(spec)) for spec in ("none", *specs))


def pieces_of(spec: str, defense: Defense, plan: Plan, changes: frozenset[str] | None = None) -> tuple[Piece, ...]:
    """Return what is done with one defense: fitted first, then attacked, then its accuracy measured.

    `changes` are what it was seen to change; before it is fitted, what its code declares.
    """
    seen = declared(defense) if changes is None else changes
    fit = Piece(Work("fit", spec), FIT if "records" in seen else 0.0)
    pairs = attacks_for(defense, plan.effort(), seen)
    attacks = (Piece(Work(a.name, spec), a.time_weight, a, role) for a, role in pairs)
    weaker = (
        (Piece(Work(WEAKENED, spec), 0.5, role=WEAKENED),) if seen - BESIDES and preset(plan.exposure).defense else ()
    )
    return (fit, *attacks, *weaker, *((Piece(Work("accuracy", spec), ACCURACY),) if plan.utility else ()))


def outline(plan: Plan) -> tuple[Piece, ...]:
    """Return all that a scan will do, in its order. Raises UserError for a spec that names nothing."""
    return tuple(piece for spec, defense in chosen(plan) for piece in pieces_of(spec, defense, plan))
