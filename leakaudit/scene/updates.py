"""What the clients of one defense send, computed once and handed to every attack on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.protocol.attack import Attack, Beforehand
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, parameters_of
from leakaudit.protocol.received import Received
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.scene.examine import Subject, mode_of
from leakaudit.scene.naming import Kind
from leakaudit.scene.scene import Scene
from leakaudit.score.baselines import guesses
from leakaudit.score.nulls import public_forms
from leakaudit.units.unit import Unit
from leakaudit.work.memory import Memory, bounded
from leakaudit.work.seeding import generator_for, seeded


@dataclass
class Updates:
    """The updates of a defense's victims, and of the auxiliary records that play victim while an attack is tuned.

    Each is computed when it is first asked for. What an attack writes into is computed anew for the next one. `most`
    is how many of `scene.asked` any attack is going to be given, where it is known: attacks that are given fewer get
    the first of them.
    """

    scene: Scene
    subject: Subject
    most: int = 0
    planter: Attack | None = None  # who changed the model that these clients were sent
    asked: Defense | None = None  # the defense before its fit, by which the outcomes of attacks are named
    _kept: dict[str, tuple[SharedUpdate, tuple[float, ...]]] = field(default_factory=dict)
    _rehearsed: Records | None = None
    _model: PixelModel | None = None
    _guesses: Tensor | None = None

    def sent_to(self, attack: Attack) -> Updates:
        """Return what the clients send whom `attack` sent a model of its own; these where it sends none.

        The same victims, records and random numbers. Nobody else gets these updates, so that they go with the attack.
        """
        return Updates(self.scene, self.subject, planter=attack, asked=self.asked) if attack.plants() else self

    def unit(self, kind: Kind, work: str, attack: Attack, role: str) -> Unit | None:
        """Return the name of what an attack comes to; None where none is kept."""
        if self.asked is None:
            return None
        asked, tuned = (self.subject.spec, self.asked), self.scene.plan.effort().tuning_victims
        work = f"{self.subject.spec}: {work}"
        return self.scene.unit(kind, work, defense=asked, attack=attack, role=role, tuning_victims=tuned)

    def model(self) -> PixelModel:
        """Return a copy of the clients' model: an attack may change it."""
        if self._model is None:
            seed, spec = self.scene.plan.seed, self.subject.spec
            own = copy.deepcopy(self.scene.target.model)
            if self.planter is not None:
                own = planted(self.scene, self.planter, own)
            with seeded(seed, spec, "client"):
                self._model = self.subject.defense.transform_model(own, generator_for(seed, spec, "model"))
        return copy.deepcopy(self._model)

    def compute(self) -> None:
        """Compute the victims' updates now. Where it cannot be done the attacks will say so, each for itself."""
        try:
            self._computed("victims", self._asked)
        except UserError:
            raise
        except Exception:
            pass

    def _asked(self) -> Records:
        return self.subject.released[self.scene.asked[: max(len(self.scene.victims), self.most)]]

    def victims(self, attack: Attack, *, released: bool) -> SharedUpdate:
        """Return what an attack is given; `released`: with what a record stage put in place.

        Raises OutOfTime where the time budget ends it.
        """
        count = len(asked_by(self.scene, attack))
        self.most = max(self.most, attack.asks)
        held = self._kept.get("victims")
        if held is not None and held[0].victims * held[0].batch_size < count:
            del self._kept["victims"]  # somebody asks for more than was known
        update = self._computed("victims", self._asked)
        shown = first(update, count // update.batch_size)
        return shown if released else hidden(shown)

    def rehearsal(self, *, released: bool) -> tuple[SharedUpdate, Records]:
        """Return updates of auxiliary records, and these records. Raises OutOfTime where the time budget ends it."""
        scene, subject = self.scene, self.subject
        own = scene.target.auxiliary[scene.rehearsal]

        def made() -> Records:
            if self._rehearsed is None:
                generator = generator_for(scene.plan.seed, subject.spec, "rehearsal", "release")
                with seeded(scene.plan.seed, subject.spec, "rehearsal", "release"):
                    self._rehearsed = release(subject.defense, own, generator)
            return self._rehearsed

        update = self._computed("rehearsal", made)
        return (update if released else hidden(update)), own

    def guesses(self) -> Tensor:
        """Return what anybody would draw of the victims without the update (G, V·B, C, H, W).

        Those of `baselines`, and what the defense puts in place of another record of the class.
        """
        if self._guesses is None:
            self._guesses = _guesses(self.scene, self.subject)
        return self._guesses

    def _computed(self, who: str, records: Callable[[], Records]) -> SharedUpdate:
        held = self._kept.get(who)
        if held is None or state_of(held[0]) != held[1]:
            update = self._shared(records(), who)
            held = self._kept[who] = update, state_of(update)
        return self._knowing(held[0])

    def _knowing(self, update: SharedUpdate) -> SharedUpdate:
        """Return an update with what the exposure grants beside it."""
        scene, knows = self.scene, self.scene.exposure
        return replace(
            update,
            defense=copy.deepcopy(self.subject.defense) if knows.defense else None,
            auxiliary=copy.deepcopy(scene.own) if knows.auxiliary else None,
            prior=copy.deepcopy(scene.target.generator) if knows.auxiliary else None,
        )

    @property
    def taken(self) -> Received | None:
        """The captured updates that these are, where such are audited; None where a client's are computed."""
        found = self.scene.target.received
        return found if found is not None and found.spec == self.subject.spec and self.planter is None else None

    @property
    def scored(self) -> bool:
        """Whether captured updates stand in place of the victims'."""
        return self.taken is not None and self.taken.known

    def captured(self) -> SharedUpdate:
        """Return captured updates as an attack is given them. Raises AssertionError where there are none."""
        assert self.taken is not None
        return self._knowing(self._received(self.taken))

    def simulated(self, run: str) -> Gradients:
        """Return what the clients would send of the victims' records in another run, whatever was captured."""
        return self._shared(self._asked(), f"simulated {run}").gradients

    def _received(self, taken: Received) -> SharedUpdate:
        scene, where = self.scene, self.scene.target.device
        return SharedUpdate(
            gradients=tuple(g.to(where, copy=True) for g in taken.gradients),  # an attack may write into them
            names=parameters_of(scene.target.model)[0],
            batch_size=taken.batch_size,
            input_shape=scene.target.input_shape,
            classes=len(scene.target.classes),
            loss=scene.target.loss,
            mode=mode_of(scene),
            exposure=replace(scene.exposure, labels=False, released=False),
            buffers=taken.buffers
            and tuple({n: b.to(where, copy=True) for n, b in own.items()} for own in taken.buffers),
            client=scene.plan.sender(),
            task=scene.target.task,
        )

    def _shared(self, records: Records, who: str) -> SharedUpdate:
        scene, subject, seed = self.scene, self.subject, self.scene.plan.seed
        if who == "victims" and self.taken is not None and self.taken.known:
            return self._received(self.taken)  # as they are, whatever would be computed
        # The updates are what is audited, as the records are: no part of what a step may take.
        # Dropout draws from the global generator, some defenses too.
        with bounded(Memory()), seeded(seed, subject.spec, who, "client"):
            return share(
                self.model(),
                scene.target.loss,
                records.to(scene.target.device),
                copy.deepcopy(subject.defense),
                replace(scene.exposure, released=True),
                batch_size=scene.plan.batch_size,
                classes=len(scene.target.classes),
                mode=mode_of(scene),
                generator=generator_for(seed, subject.spec, who, "update"),
                client=scene.plan.sender(),
                task=scene.target.task,
            )


def planted(scene: Scene, attack: Attack, model: PixelModel) -> PixelModel:
    """Return the model that an attack sends to clients, made of `model` and of what a server knows beforehand.

    It is the same whatever the defense, and no private record takes part in it. Raises TypeError for what is no model.
    """
    target, seed = scene.target, scene.plan.seed
    known = Beforehand(
        input_shape=target.input_shape,
        classes=len(target.classes),
        batch_size=scene.plan.batch_size,
        loss=target.loss,
        mode=mode_of(scene),
        auxiliary=copy.deepcopy(scene.own) if scene.exposure.auxiliary else None,
        task=target.task,
    )
    with seeded(seed, attack.name, "plant"):
        made: object = attack.plant(model, known, generator_for(seed, attack.name, "plant"))
    if not isinstance(made, PixelModel):
        raise TypeError(f"it planted a {type(made).__name__}, not a PixelModel")
    return made


def asked_by(scene: Scene, attack: Attack) -> Tensor:
    """Return the indices of the private records behind the updates that an attack is given."""
    return scene.asked[: max(len(scene.victims), attack.asks)] if attack.asks else scene.victims


def first(update: SharedUpdate, victims: int) -> SharedUpdate:
    """Return the update of the first so many victims, without a copy."""
    if victims == update.victims:
        return update

    def of(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[:victims]

    return replace(
        update,
        gradients=tuple(g[:victims] for g in update.gradients),
        buffers=None if update.buffers is None else update.buffers[:victims],
        labels=of(update.labels),
        released=of(update.released),
        released_labels=of(update.released_labels),
    )


def hidden(update: SharedUpdate) -> SharedUpdate:
    """Return the update without what a record stage put in place."""
    return replace(update, exposure=replace(update.exposure, released=False), released=None, released_labels=None)


def state_of(update: SharedUpdate) -> tuple[float, ...]:
    """Return numbers that change when somebody writes into an update: torch's own count, and weighted sums."""
    beside = [t for t in (update.labels, update.released, update.released_labels) if t is not None]
    tensors = [*update.gradients, *beside, *(b for own in update.buffers or () for b in own.values())]
    sums = torch.stack([_weighed(t.detach()) for t in tensors]).tolist()
    return (*sums, *(float(t._version) for t in tensors))


def _weighed(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's entries, weighed by their place, so that it tells where they are exchanged."""
    rows = tensor.reshape(tensor.shape[0] if tensor.dim() else 1, -1)
    sums = (rows.sum(1).float(), rows.sum(0).float())
    ramps = (torch.linspace(1, 2, len(each), device=each.device) for each in sums)
    return torch.stack([each @ ramp for each, ramp in zip(sums, ramps, strict=True)]).sum().nan_to_num()


def _guesses(scene: Scene, subject: Subject) -> Tensor:
    own, seed = scene.target.auxiliary, scene.plan.seed
    records = scene.target.private[scene.victims]
    found = list(guesses(records, own, generator_for(seed, "baselines")).values())
    if subject.replaced and len(own):
        try:
            generator = generator_for(seed, subject.spec, "forms")
            found.append(public_forms(subject.defense, own, records, generator).to(records.images))
        except Exception:  # a record stage that only bears some records: then nobody else can draw it either
            pass
    return torch.stack([each for each in found if each is not None])
