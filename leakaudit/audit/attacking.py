"""One attack on one defense: tuned on the adversary's own records, run on the victims, scored. A crash is a status."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leakaudit.audit.taking import taken
from leakaudit.errors import NotApplicable, OutOfTime, TooLittleMemory, UserError, first_line
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import settings_values
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.rules import scored_statuses
from leakaudit.result.schema import AttackResult, Value
from leakaudit.scene.naming import Kind
from leakaudit.scene.scene import Scene
from leakaudit.scene.told import claimed
from leakaudit.scene.updates import Updates, asked_by
from leakaudit.score.baselines import mean_pictures
from leakaudit.score.pictures import unfolded
from leakaudit.score.scoring import LEAST, Truth, failed, score
from leakaudit.score.tuning import SCORED, tuned_in_time
from leakaudit.units import desk
from leakaudit.units.packing import Values
from leakaudit.units.unit import Unit
from leakaudit.work.memory import Memory, bounded, exhausted, held
from leakaudit.work.progress import Course, current, expired, followed, note_passing, note_untuned, stage
from leakaudit.work.seeding import generator_for, seeded


@dataclass(frozen=True)
class Attacked(Values):
    """What is kept of an attack that was run and scored."""

    result: AttackResult


@dataclass(frozen=True)
class Tuned(Values):
    """What is kept of the tuning of an attack: the settings that it ran with, and their score."""

    values: dict[str, Value]
    untuned: bool  # whether it did not end in time

    def of(self, attack: Attack) -> Attack:
        """Return the attack with these settings."""
        settings: dict[str, Any] = {name: value for name, value in self.values.items() if name != SCORED}
        return replace(attack, **settings)


def attacked(updates: Updates, attack: Attack, role: str, too_long: str = "") -> AttackResult:
    """Run one attack within the plan's memory, or take up what came of it; the result notes what the memory took.

    `too_long` says why it is not begun: its share of a time budget would end it before it made a tenth of its steps.
    Raises `Elsewhere` where another participant runs it.
    """
    unit = updates.unit("attack", attack.name, attack, role)

    def run() -> Attacked:
        found = _bounded(updates, attack, role, too_long)
        if not {"failed", "out-of-memory"}.isdisjoint(found.statuses):
            note_passing()  # the next scan may have more memory, or whatever else was missing
        return Attacked(found)

    return desk.done(unit, Attacked, run, begin=not too_long).result


def _bounded(updates: Updates, attack: Attack, role: str, too_long: str) -> AttackResult:
    with bounded(Memory(updates.scene.plan.memory)) as memory:
        result = _attacked(updates, attack, role, memory, too_long)
    asked: dict[str, Value] = {key: value for key, value in settings_values(attack).items() if key in result.tuned}
    return replace(result, asked=asked, notes=(*result.notes, *memory.notes()))


def lacking(scene: Scene, attack: Attack, role: str) -> list[str]:
    """Return which facts an attack requires that are not exposed to it."""
    return sorted(attack.requires - replace(scene.exposure, released=role == "bound").facts())


def _attacked(updates: Updates, attack: Attack, role: str, memory: Memory, too_long: str) -> AttackResult:
    scene, subject = updates.scene, updates.subject
    spec, seed, victims = subject.spec, scene.plan.seed, scene.plan.victims
    bound = role == "bound"
    tuned: dict[str, Value] = {}
    if updates.scored and (bound or attack.plants()):
        told = "what the client put in place of its records" if bound else "an update of the model that it plants"
        return failed(attack, role, tuned, victims, "not-applicable", f"{told} was not captured")
    if lacks := lacking(scene, attack, role):
        return failed(attack, role, tuned, victims, "not-applicable", f"needs {', '.join(lacks)}, not exposed")
    if too_long or expired():
        return failed(attack, role, tuned, victims, "budget", too_long or "the time budget was spent before it began")

    def within(kind: Kind) -> Unit | None:
        # Memory that is bounded is told of in notes, and what was learned of it serves the next step.
        return updates.unit(kind, f"{attack.name}: {kind}", attack, role) if scene.plan.memory is None else None

    try:
        with seeded(seed, spec, attack.name), followed() as course:
            # The attack gets copies: one that changes the model or its knowledge must not change the next one's.
            sent = updates.sent_to(attack)
            if attack.grid and scene.exposure.auxiliary and len(scene.rehearsal):
                best = desk.done(within("tune"), Tuned, lambda: _tuned(sent, attack, bound))
                if best.untuned:
                    note_untuned()
                attack, tuned = best.of(attack), best.values
                if memory.refusal and not tuned:  # its default settings may be weaker, and nobody would know
                    raise TooLittleMemory(memory.refusal)
            guess: object = desk.done(within("run"), Reconstruction, lambda: _run(sent, attack, bound))
            guess = claimed(attack, guess, scene.plan.images)
            made = taken(updates, attack, sent.model(), guess)
        if memory.refusal and isinstance(guess, Reconstruction) and "out-of-memory" in guess.statuses:
            guess = replace(guess, reason=memory.refusal)  # it knows more than the attack does
        guess = in_time(guess, course, attack)
    except NotApplicable as reason:
        return failed(attack, role, tuned, victims, "not-applicable", first_line(reason))
    except OutOfTime as reason:
        return failed(attack, role, tuned, victims, "budget", first_line(reason))
    except UserError:
        raise
    except Exception as error:  # an attack that crashes must be shown as that, whatever it raised
        if exhausted(error):
            return failed(attack, role, tuned, victims, "out-of-memory", first_line(error))
        return failed(attack, role, tuned, victims, "failed", first_line(error))
    stage("scoring")
    try:
        return replace(score(attack, role, tuned, guess, _truth(updates, attack), scene.plan.images), captured=made)
    except Exception as error:  # what the attack returned is not what it must return
        return failed(attack, role, tuned, victims, "failed", f"its output cannot be scored: {first_line(error)}")


def _tuned(sent: Updates, attack: Attack, bound: bool) -> Tuned:
    rehearsal, own = sent.rehearsal(released=bound)
    _show(sent.scene, own)
    generator = generator_for(sent.scene.plan.seed, sent.subject.spec, attack.name, "tune")
    with followed() as course:
        _, values = tuned_in_time(attack, sent.model(), rehearsal, own, generator)
    return Tuned(values, course.untuned)


def _run(sent: Updates, attack: Attack, bound: bool) -> Reconstruction:
    scene = sent.scene
    update, model = sent.victims(attack, released=bound), sent.model()
    _show(scene, scene.target.private, asked_by(scene, attack))
    stage("attacking")
    return _guess(scene, attack, model, update, generator_for(scene.plan.seed, sent.subject.spec, attack.name, "run"))


def _show(scene: Scene, records: Records, who: Tensor | None = None) -> None:
    """Tell whoever watches which records are attacked, by default all of these; only where they may be shown."""
    size, among = scene.plan.batch_size, torch.arange(len(records)) if who is None else who

    def original(victim: int) -> Tensor:
        first = victim % (len(among) // size) * size  # where settings are tuned together, every one has all victims
        return unfolded(records.images[among[first : first + size]], scene.target.model.depth)

    if scene.plan.images == "full":
        current().originals(original)


def in_time(guess: object, course: Course, attack: Attack) -> object:
    """Return what an attack claims with what the time left of it: untuned, or hardly begun, it did not finish."""
    if not isinstance(guess, Reconstruction) or not isinstance(guess.statuses, tuple | list):
        return guess
    least = torch.tensor([course.least if s == "budget" else 1.0 for s in guess.statuses])
    made = least if guess.progress is None else torch.minimum(guess.progress.cpu().to(least), least)
    statuses, reason, untuned = guess.statuses, guess.reason, ""
    if course.least < 1 and "budget" not in statuses:  # the time ended one of its loops, and it did not look
        statuses = tuple("budget" if s == "converged" else s for s in statuses)
        made = made.clamp(max=course.least)
    if course.untuned:
        ended = torch.tensor([s == "converged" for s in statuses])  # what ran to its end made all of its steps
        made = torch.where(ended, torch.ones_like(made), made)
        statuses = tuple("budget" if s == "converged" else s for s in statuses)
        untuned = "its tuning did not end within half of its time, so it ran at its default settings"
    few = sum(s == "budget" and p < LEAST for s, p in zip(statuses, made.tolist(), strict=True))
    if few and "budget" in scored_statuses(attack.kind):
        told = f"{few} of {len(statuses)} victims have no score: fewer than a tenth of the steps were made"
        reason = told if few == len(statuses) else _joined([reason, told])
    return replace(guess, statuses=statuses, reason=_joined([untuned, reason]) or None, progress=made)


def _joined(parts: Sequence[str | None]) -> str:
    return "; ".join(part for part in parts if part)


def _guess(
    scene: Scene, attack: Attack, model: PixelModel, update: SharedUpdate, generator: torch.Generator
) -> Reconstruction:
    """Run an attack. One that links is asked about every record: a batch's update stands once for each of them."""
    if attack.kind != "linkage":
        return attack(model, update, generator)
    count = update.victims * update.batch_size
    shown = scene.line_ups[:count]
    if update.batch_size > 1:
        update = repeated(update, update.batch_size)
    labels = shown.image_labels().to(scene.target.device)
    targets = shown.image_targets()
    targets = None if targets is None else targets.to(scene.target.device)
    update = replace(update, candidate_labels=labels, candidate_targets=targets)
    size = 2 * 4 * shown.indices.numel() * math.prod(scene.target.input_shape)  # and the attack's own copy
    with held(size, f"the line-ups of {len(shown)} records", "candidates", scene.target.device):
        claim = attack.link(model, update, shown.images().to(scene.target.device), generator)
    return replace(claim, labels=None) if update.batch_size > 1 and isinstance(claim, Reconstruction) else claim


def repeated(update: SharedUpdate, times: int) -> SharedUpdate:
    """Return an update in which every victim stands once for each of so many records, asked about one after another."""

    def each(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.repeat_interleave(times, 0)

    gradients = tuple(g.repeat_interleave(times, 0) for g in update.gradients)
    buffers = None if update.buffers is None else tuple(b for b in update.buffers for _ in range(times))
    return replace(
        update,
        gradients=gradients,
        buffers=buffers,
        labels=each(update.labels),
        released=each(update.released),
        released_labels=each(update.released_labels),
        places=tuple(i % times for i in range(update.victims * times)),
    )


def _truth(updates: Updates, attack: Attack) -> Truth:
    scene, subject = updates.scene, updates.subject
    who, target = asked_by(scene, attack), scene.target
    records = target.private[who]
    return Truth(
        records=records,
        released=subject.released[who] if subject.replaced and not updates.scored else None,
        classes=target.classes,
        candidates=scene.line_ups[: len(who)],
        class_means=mean_pictures(target.auxiliary, records.labels),
        lpips=scene.lpips,
        batch_size=scene.plan.batch_size,
        guesses=updates.guesses() if attack.kind == "reconstruction" else None,
        units=records.units,
        depth=target.model.depth,
    )
