"""One attack on one defense: tuned on the adversary's own records, run on the victims, scored. A crash is a status."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from leakaudit.audit.examine import Subject, mode_of
from leakaudit.audit.scene import Scene
from leakaudit.errors import NotApplicable, UserError, first_line
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import settings_values
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.schema import AttackResult, Value
from leakaudit.score.baselines import guesses, mean_pictures
from leakaudit.score.nulls import public_forms
from leakaudit.score.scoring import Truth, failed, score
from leakaudit.score.tuning import tune
from leakaudit.work.memory import Memory, bounded, exhausted
from leakaudit.work.progress import expired
from leakaudit.work.seeding import generator_for, seeded


def attacked(scene: Scene, subject: Subject, attack: Attack, role: str) -> AttackResult:
    """Run one attack within the plan's memory; the result notes what was done to stay there."""
    with bounded(Memory(scene.plan.memory)) as memory:
        result = _attacked(scene, subject, attack, role, memory)
    asked: dict[str, Value] = {key: value for key, value in settings_values(attack).items() if key in result.tuned}
    return replace(result, asked=asked, notes=(*result.notes, *memory.notes()))


def _attacked(scene: Scene, subject: Subject, attack: Attack, role: str, memory: Memory) -> AttackResult:
    spec, seed, victims = subject.spec, scene.plan.seed, scene.plan.victims
    exposure = replace(scene.exposure, released=True) if role == "bound" else scene.exposure
    tuned: dict[str, Value] = {}
    lacking = sorted(attack.requires - exposure.facts())
    if lacking:
        return failed(attack, role, tuned, victims, "not-applicable", f"needs {', '.join(lacking)}, not exposed")
    if expired():
        return failed(attack, role, tuned, victims, "budget", "the time budget was spent before it began")
    try:
        with seeded(seed, spec, attack.name):
            # The attack gets copies: one that changes the model or its knowledge must not change the next one's.
            client = subject.defense.transform_model(
                copy.deepcopy(scene.target.model), generator_for(seed, spec, "model")
            )
            model, known = copy.deepcopy(client), replace(subject, defense=copy.deepcopy(subject.defense))
            if attack.grid and exposure.auxiliary and len(scene.rehearsal):
                own = scene.target.auxiliary[scene.rehearsal]
                generator = generator_for(seed, spec, attack.name, "tune")
                rehearsed = release(subject.defense, own, generator)
                rehearsal = _share(scene, known, client, rehearsed, exposure, "rehearsal")
                attack, tuned = tune(attack, model, rehearsal, own, generator)
            who = asked_by(scene, attack)
            update = _share(scene, known, client, subject.released[who], exposure, "victims")
            guess = _guess(scene, attack, model, update, generator_for(seed, spec, attack.name, "run"))
        if memory.refusal and isinstance(guess, Reconstruction) and "out-of-memory" in guess.statuses:
            guess = replace(guess, reason=memory.refusal)  # it knows more than the attack does
    except NotApplicable as reason:
        return failed(attack, role, tuned, victims, "not-applicable", str(reason))
    except UserError:
        raise
    except Exception as error:  # an attack that crashes must be shown as that, whatever it raised
        if exhausted(error):
            return failed(attack, role, tuned, victims, "out-of-memory", first_line(error))
        return failed(attack, role, tuned, victims, "failed", first_line(error))
    try:
        return score(attack, role, tuned, guess, _truth(scene, subject, attack), scene.plan.images)
    except Exception as error:  # what the attack returned is not what it must return
        return failed(attack, role, tuned, victims, "failed", f"its output cannot be scored: {first_line(error)}")


def asked_by(scene: Scene, attack: Attack) -> Tensor:
    """Return the indices of the private records behind the updates that an attack is given."""
    return scene.asked[: max(len(scene.victims), attack.asks)] if attack.asks else scene.victims


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
    update = replace(update, candidate_labels=labels)
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


def _truth(scene: Scene, subject: Subject, attack: Attack) -> Truth:
    who, target = asked_by(scene, attack), scene.target
    records = target.private[who]
    return Truth(
        records=records,
        released=subject.released[who] if subject.replaced else None,
        classes=target.classes,
        candidates=scene.line_ups[: len(who)],
        class_means=mean_pictures(target.auxiliary, records.labels),
        lpips=scene.lpips,
        batch_size=scene.plan.batch_size,
        guesses=_guesses(scene, subject, records) if attack.kind == "reconstruction" else None,
        units=records.units,
    )


def _guesses(scene: Scene, subject: Subject, records: Records) -> Tensor:
    """Return what anybody would draw without the update (G, V·B, C, H, W).

    Those of `baselines`, and what the defense puts in place of another record of the class.
    """
    own, seed = scene.target.auxiliary, scene.plan.seed
    found = list(guesses(records, own, generator_for(seed, "baselines")).values())
    if subject.replaced and len(own):
        try:
            generator = generator_for(seed, subject.spec, "forms")
            found.append(public_forms(subject.defense, own, records.labels, generator).to(records.images))
        except Exception:  # a record stage that only bears some records: then nobody else can draw it either
            pass
    return torch.stack([each for each in found if each is not None])


def _share(
    scene: Scene, subject: Subject, model: PixelModel, records: Records, exposure: Exposure, who: str
) -> SharedUpdate:
    device, seed = scene.target.device, scene.plan.seed
    with seeded(seed, subject.spec, who, "client"):  # dropout draws from the global generator, some defenses too
        return share(
            model,
            scene.target.loss,
            records.to(device),
            subject.defense,
            exposure,
            batch_size=scene.plan.batch_size,
            classes=len(scene.target.classes),
            mode=mode_of(scene),
            generator=generator_for(seed, subject.spec, who, "update"),
            auxiliary=copy.deepcopy(scene.own),
        )
