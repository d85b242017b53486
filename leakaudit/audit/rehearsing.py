"""What a scan's attacks would do on a target, found out beforehand: each makes one step on auxiliary records.

They play victims in the scene that a scan would set, at the scan's own choice of attacks, so that what is not
applicable or fails there is so here, for the same reason. No private record takes part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from leakaudit.audit.attacking import attacked
from leakaudit.audit.pieces import in_turn, pieces_of
from leakaudit.engine.distances import cosine
from leakaudit.engine.matching import match
from leakaudit.errors import UserError, first_line
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.target import Records, Target
from leakaudit.result.schema import AttackResult
from leakaudit.scene.examine import Subject, mode_of
from leakaudit.scene.plan import EFFORT, Plan
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.scene.updates import Updates
from leakaudit.work.progress import current, monitored
from leakaudit.work.seeding import seeded

VICTIMS, CANDIDATES = 2, 4
LARGE = 1_000_000  # parameters from which one victim does
EACH, ALL = 3.0, 60.0  # seconds that one attack gets, and all of them together
TWICE, WRONG = "double backward", ("second-derivative", "no-slope")  # how it is called here, and what tells of it

Outcome = Literal["works", "not-applicable", "fails", "untried"]


@dataclass(frozen=True)
class Rehearsed:
    """What came of one attack, or of one double backward: `reason` says why where it does not work."""

    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


def rehearsed(target: Target, plan: Plan, tell: Callable[[str], None] = lambda name: None) -> tuple[Rehearsed, ...]:
    """Try one double backward, and every attack that a scan of the undefended model by `plan` would run.

    `tell` is called with the name of what is tried next. Empty where auxiliary records are too few to play victims.
    Random states are restored.
    """
    victims = 1 if sum(p.numel() for p in target.model.parameters()) > LARGE else VICTIMS
    played = _played(target, victims * plan.batch_size)
    if played is None:
        return ()
    small = replace(
        plan,
        defenses=(),
        records=victims * plan.batch_size,
        candidates=CANDIDATES,
        stages=(),
        utility=False,
        budget=None,
    )
    quiet = replace(current(), see=None, show=lambda work, done, total: None, stage=lambda name: None)
    with seeded(plan.seed, "rehearsed"), monitored(quiet):
        try:
            scene = set_scene(played, small, None, "", ())
        except UserError:  # it would end a scan too, and the preflight says so
            return ()
        # Nothing is tuned, and nobody is asked about beside the victims.
        scene = replace(scene, rehearsal=scene.rehearsal[:0], asked=scene.victims, line_ups=scene.candidates)
        return tuple(_all(scene, plan, tell))


def _played(target: Target, wanted: int) -> Target | None:
    """Return a target whose private and test records are auxiliary ones, of the commonest labels; None for too few.

    The adversary keeps all of them: asked is whether an attack runs with so many, not what it finds.
    """
    own = target.auxiliary
    counts = torch.bincount(own.labels, minlength=len(target.classes))
    order = (counts[own.labels] * len(target.classes) + own.labels).argsort(descending=True, stable=True)
    count = min(max(wanted, 4 * VICTIMS), len(order) - 1)
    if count < wanted:
        return None
    return replace(
        target,
        private=_apart(own, order[:count]),
        test=_apart(own, order[count : count + 4 * CANDIDATES]),
        near_duplicates=None,
        received=None,
    )


def _apart(records: Records, rows: Tensor) -> Records:
    """Return records without the units they belong to: whose they are is no matter here."""
    return replace(records[rows], units=None)


def _all(scene: Scene, plan: Plan, tell: Callable[[str], None]) -> Iterator[Rehearsed]:
    subject = Subject("none", Defense(), scene.target.private, frozenset(), False, None)
    updates, begun = Updates(scene, subject), time.monotonic()
    tell(TWICE)
    yield _twice(updates)
    for piece in in_turn(pieces_of("none", Defense(), plan, frozenset(), scene.sizes())):
        if piece.attack is None:
            continue
        if time.monotonic() - begun > ALL:
            yield Rehearsed(piece.attack.name, "untried", f"those before it took more than {ALL:.0f} s")
            continue
        tell(piece.attack.name)
        started = time.monotonic()
        with monitored(replace(current(), deadline=started + EACH)):
            found = _outcome(attacked(updates, brief(piece.attack), piece.role))
        yield replace(found, seconds=time.monotonic() - started)


def _twice(updates: Updates) -> Rehearsed:
    """Match one update by a double backward, as every attack does that seeks pictures by their gradient."""
    scene, started = updates.scene, time.monotonic()
    if wrong := [finding for finding in scene.findings if finding.id in WRONG]:
        return Rehearsed(TWICE, "fails", wrong[0].message.removesuffix("."), time.monotonic() - started)
    try:
        model, sent = updates.model(), updates.simulated("once")
        labels = scene.target.private[scene.victims].labels.to(scene.target.device).view(-1, scene.plan.batch_size)
        shape = (len(labels), scene.plan.batch_size, *scene.target.input_shape)
        with in_mode(model, mode_of(scene)):
            pictures = torch.full(shape, 0.5, device=scene.target.device)
            values, slopes = match(model, scene.target.loss, pictures, labels, sent, cosine)
        if not bool(values.isfinite().all() and slopes.isfinite().all()):
            return Rehearsed(TWICE, "fails", "it gives values that are not finite", time.monotonic() - started)
        if not bool(slopes.any()):
            return Rehearsed(TWICE, "fails", "the gradient's own slope is zero everywhere", time.monotonic() - started)
    except Exception as error:  # user code may raise anything
        return Rehearsed(TWICE, "fails", first_line(error), time.monotonic() - started)
    return Rehearsed(TWICE, "works", seconds=time.monotonic() - started)


def brief(attack: Attack) -> Attack:
    """Return an attack with as little effort as it takes: one step, one restart."""
    own = {f.name for f in fields(attack)}
    for name in EFFORT:
        least: dict[str, Any] = {name: 1}
        if name in own and isinstance(getattr(attack, name), int):
            try:
                attack = replace(attack, **least)
            except Exception:  # it needs more, as two draws for a variance
                continue
    return replace(attack)


def _outcome(result: AttackResult) -> Rehearsed:
    """Return what a scan's own result of an attack says, in a word; one that was cut short works."""
    statuses = set(result.statuses)
    if statuses == {"not-applicable"}:
        return Rehearsed(result.name, "not-applicable", result.reason or "")
    if statuses & {"converged", "budget", "diverged"}:
        return Rehearsed(result.name, "works")
    return Rehearsed(result.name, "fails", result.reason or ", ".join(sorted(statuses)))
