"""Captured updates: what an attack makes of them where nobody knows their records, and whether they can be of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leakaudit.errors import NotApplicable, OutOfTime, UserError, first_line
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.target import PixelModel
from leakaudit.result.attempts import Attempt
from leakaudit.result.numbers import significant
from leakaudit.result.schema import Finding, Value
from leakaudit.scene.told import claimed
from leakaudit.scene.updates import Updates
from leakaudit.score.pictures import encode, unfolded
from leakaudit.work.memory import exhausted
from leakaudit.work.progress import Course, current, followed, stage
from leakaudit.work.seeding import generator_for

UNLIKE = "captured-unlike"
ALIKE = 0.5  # the cosine from which on two runs are alike
NEAR, LONGER = 0.8, 2.0  # what share of it the captured update must have, and how much longer it may be
HANDED = "released"  # the fact that the replaced records are handed to an attack, for a bound


def taken(updates: Updates, attack: Attack, model: PixelModel, scored: object) -> tuple[Attempt, ...]:
    """Return what an attack, tuned already, makes of every captured update; empty where none waits for it.

    `scored` is what the same attack claimed of records sent in the same way, whose objective is told beside. None waits
    for attacks that link, who have nobody to look for, that plant a model or are handed replaced records. What an
    attack raises is a status.
    """
    received, scene = updates.taken, updates.scene
    if received is None or received.known or attack.kind == "linkage" or attack.plants() or HANDED in attack.requires:
        return ()
    stage("attacking what was captured")
    unknown = torch.full((received.batch_size, *scene.target.input_shape), 0.5)
    current().originals(lambda victim: unfolded(unknown, scene.target.model.depth))
    generator = generator_for(scene.plan.seed, updates.subject.spec, attack.name, "captured")
    try:
        with followed() as course:  # of its own: how far this came says nothing of the scored ones
            claim: object = claimed(attack, attack(model, updates.captured(), generator), scene.plan.images)
        claim = _in_time(claim, course)
    except UserError:
        raise
    except Exception as error:  # an attack that crashes must be shown as that, whatever it raised
        status = "not-applicable" if isinstance(error, NotApplicable) else "failed"
        status = "budget" if isinstance(error, OutOfTime) else "out-of-memory" if exhausted(error) else status
        return tuple(Attempt(v, status, first_line(error)) for v in range(received.victims))
    if not isinstance(claim, Reconstruction) or len(claim.statuses) != received.victims:
        return tuple(Attempt(v, "failed", "it returned no Reconstruction of these") for v in range(received.victims))
    return tuple(_attempt(updates, claim, v, _usual(scored)) for v in range(received.victims))


def _in_time(claim: object, course: Course) -> object:
    """Return a claim in which nothing converged where the time ended a loop of the attack."""
    if not isinstance(claim, Reconstruction) or course.least == 1:
        return claim
    return replace(claim, statuses=tuple("budget" if s == "converged" else s for s in claim.statuses))


def _usual(scored: object) -> float | None:
    if not isinstance(scored, Reconstruction):
        return None
    finite = scored.objective.detach().double().flatten()
    finite = finite[finite.isfinite()]
    return float(finite.median()) if len(finite) else None


def _told(value: float, level: str) -> float:
    return value if level == "full" else float(f"{value:.4g}")


def _attempt(updates: Updates, claim: Reconstruction, victim: int, usual: float | None) -> Attempt:
    target, level = updates.scene.target, updates.scene.plan.images
    drawn = None if claim.images is None else claim.images[victim].detach().cpu()
    status, reason = claim.statuses[victim], claim.reason or ""
    if drawn is not None and not bool(drawn.isfinite().all()):
        drawn, status, reason = None, "diverged", reason or "it ended in values that are not finite"
    value = float(claim.objective[victim]) if victim < len(claim.objective) else float("nan")
    labels = [] if claim.labels is None else claim.labels[victim].flatten().tolist()
    names = [target.classes[i] if 0 <= i < len(target.classes) else str(i) for i in map(int, labels)]
    shown = drawn is not None and level == "full" and status in ("converged", "budget")
    known = math.isfinite(value) and (value, usual) != (0.0, 0.0)  # zeros are those of an attack that has none
    return Attempt(
        update=victim,
        status=status,
        reason="" if status == "converged" else reason,
        objective=_told(value, level) if known else None,
        usual=_told(usual, level) if known and usual is not None else None,
        labels=tuple(names),
        certified=0 if claim.certified is None else int(claim.certified[victim].sum()),
        pictures=tuple(encode(picture, target.model.depth) or "" for picture in drawn)
        if shown and drawn is not None
        else (),
    )


def unlike(updates: Updates) -> tuple[Finding, ...]:
    """Return an error where captured updates are not what their client would send of the records behind them.

    By the median over updates of the cosine between what was captured and what is computed, beside that between two
    runs of the computed one, and by their lengths. Where two runs are unlike each other (noise), only the lengths tell,
    if that is not noise of every step, which frameworks divide in ways of their own. Where records are replaced at
    random, or the time ended it, nothing does.
    """
    received, subject = updates.taken, updates.subject
    if received is None or not received.known or subject.replaced:
        return ()
    try:
        first, second = (_flat(updates.simulated(run)) for run in ("once", "twice"))
    except OutOfTime:
        return ()
    sent = _flat(received.gradients).to(first)
    usual = float(torch.cosine_similarity(first, second).median())
    found = float(torch.cosine_similarity(sent, first).median())
    longer = float((sent.norm(dim=1) / first.norm(dim=1).clamp(min=1e-30)).median())
    alike, as_long = found >= NEAR * usual, 1 / LONGER <= longer <= LONGER
    if usual < ALIKE:
        alike, as_long = True, as_long or subject.defense.needs_example_gradients
    if alike and as_long:
        return ()
    message = (
        f"{subject.spec}: what was captured is unlike what its client sends of these records: a cosine of "
        f"{significant(found)}, where two of its runs have {significant(usual)}, and {significant(longer)} times as "
        "long. The records behind it are others, or it trained otherwise."
    )
    about: dict[str, Value] = {"defense": subject.spec, "cosine": found, "usual": usual, "length": longer}
    return (Finding(UNLIKE, "error", message, about),)


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.reshape(len(g), -1).double() for g in gradients], 1)
