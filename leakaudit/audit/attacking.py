"""One attack on one defense: tuned on the adversary's own records, run on the victims, scored. A crash is a status."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch

from leakaudit.audit.scene import Scene
from leakaudit.errors import NotApplicable, UserError, first_line
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.registry import settings_values
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.schema import AttackResult, Value
from leakaudit.score.scoring import Truth, failed, score
from leakaudit.score.tuning import tune
from leakaudit.work.memory import Memory, bounded, exhausted
from leakaudit.work.progress import expired
from leakaudit.work.seeding import derive, generator_for


@dataclass(frozen=True)
class Subject:
    """A defense that is attacked."""

    spec: str
    defense: Defense  # fitted
    released: Records  # what it made of all private records


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, spec, attack.name))
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
            update = _share(scene, known, client, subject.released[scene.victims], exposure, "victims")
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
        return score(attack, role, tuned, guess, _truth(scene, subject), scene.plan.images)
    except Exception as error:  # what the attack returned is not what it must return
        return failed(attack, role, tuned, victims, "failed", f"its output cannot be scored: {first_line(error)}")


def _guess(
    scene: Scene, attack: Attack, model: PixelModel, update: SharedUpdate, generator: torch.Generator
) -> Reconstruction:
    if attack.kind != "linkage":
        return attack(model, update, generator)
    shown = scene.candidates.first_of_each(scene.plan.batch_size).images()
    return attack.link(model, update, shown.to(scene.target.device), generator)


def _truth(scene: Scene, subject: Subject) -> Truth:
    return Truth(
        records=scene.target.private[scene.victims],
        released=subject.released[scene.victims] if replaces_records(subject.defense) else None,
        classes=scene.target.classes,
        candidates=scene.candidates,
        class_means=scene.means,
        lpips=scene.lpips,
        batch_size=scene.plan.batch_size,
    )


def _share(
    scene: Scene, subject: Subject, model: PixelModel, records: Records, exposure: Exposure, who: str
) -> SharedUpdate:
    mode: Mode = "train" if scene.plan.mode == "train" else "eval"
    device, seed = scene.target.device, scene.plan.seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, subject.spec, who, "client"))  # dropout draws from the global generator
        return share(
            model,
            scene.target.loss,
            records.to(device),
            subject.defense,
            exposure,
            batch_size=scene.plan.batch_size,
            classes=len(scene.target.classes),
            mode=mode,
            generator=generator_for(seed, subject.spec, who, "update"),
            auxiliary=copy.deepcopy(scene.target.auxiliary),
        )
