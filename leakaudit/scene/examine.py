"""What a fitted defense does, found out by trying it: what it changes, and whether anything of a record is left."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leakaudit.protocol.client import release, sent
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Mode
from leakaudit.protocol.stages import TRIED, apart, later_changes, model_changed, records_changed
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.rules import BESIDES
from leakaudit.scene.scene import Scene
from leakaudit.work.progress import expired
from leakaudit.work.seeding import derive, generator_for, seeded

AGAIN, SAME = 3, 1e-3  # records whose update is made twice; relative: the same, but for a device's rounding
PAIRS = 48  # of records of one class, each under another seed: what happens to one update in ten is missed once in 150


@dataclass(frozen=True)
class Subject:
    """A defense that is attacked."""

    spec: str
    defense: Defense  # fitted
    released: Records  # what it made of all private records; the attacked ones passed it client by client
    changes: frozenset[str]  # names of `stages.CHANGES`
    independent: bool | None  # whether all that is shared is the same whichever record of a class it is of
    repeats: bool | None  # whether it is the same again for one record under one seed

    @property
    def replaced(self) -> bool:
        """Whether the model sees other pictures than the private ones."""
        return "records" in self.changes


def mode_of(scene: Scene) -> Mode:
    """Return the mode that the clients' models are in."""
    return "train" if scene.plan.mode == "train" else "eval"


def examine(scene: Scene, spec: str, defense: Defense) -> Subject:
    """Pass the private records through a fitted defense, and compare what its stages give with what they get."""
    with seeded(scene.plan.seed, spec, "examine"):
        return _examine(scene, spec, defense)


def _examine(scene: Scene, spec: str, defense: Defense) -> Subject:
    seed, target = scene.plan.seed, scene.target
    released = released_by(scene, spec, defense)
    changes = records_changed(target.private, released)
    model = defense.transform_model(copy.deepcopy(target.model), generator_for(seed, spec, "model"))
    if model_changed(target.model, model, target.private[:4]):
        changes |= {"model"}
    size, sender = scene.plan.own, scene.plan.sender()
    batches = [released[scene.victims[i * size : (i + 1) * size]] for i in range(min(TRIED, scene.plan.victims))]
    changes |= later_changes(model, target.loss, batches, copy.deepcopy(defense), mode_of(scene), seed, sender)
    if not changes - BESIDES:
        return Subject(spec, defense, released, changes, False, None)
    again = _repeats(scene, spec, copy.deepcopy(defense), model)
    return Subject(spec, defense, released, changes, _independent(scene, spec, copy.deepcopy(defense), model), again)


def released_by(scene: Scene, spec: str, defense: Defense) -> Records:
    """Return what the record stage makes of the private records.

    Those that are attacked pass client by client, as they do in a federation, unless the defense mixes records: then
    they pass with all others of their client's.
    """
    with seeded(scene.plan.seed, spec, "release"):  # for those that draw from a global generator
        return _released_by(scene, spec, defense)


def _released_by(scene: Scene, spec: str, defense: Defense) -> Records:
    private, seed = scene.target.private, scene.plan.seed
    released = release(defense, private, generator_for(seed, spec, "release"))
    if records_changed(private, released) and apart(defense, private, generator_for(seed, spec, "apart")):
        images, labels = released.images.clone(), released.labels.clone()
        size = scene.plan.own
        for start in range(0, len(scene.asked), size):
            rows = scene.asked[start : start + size]
            own = release(defense, private[rows], generator_for(seed, spec, "release", start))
            images[rows], labels[rows] = own.images, own.labels
        released = Records(images, labels)
    return replace(released, units=private.units)


def _independent(scene: Scene, spec: str, defense: Defense, model: PixelModel) -> bool | None:
    """Return whether under one seed two records of a class make a client send the same, bit for bit.

    None where no class has two records, the defense does not bear these batches, or the time ended it.
    """
    seed, alike = scene.plan.seed, None
    for k, (one, other) in enumerate(_pairs(scene)):
        if expired():
            return None
        try:
            gave = [_sent(scene, defense, model, batch, derive(seed, spec, "pair", k)) for batch in (one, other)]
        except Exception:  # the user's own code
            return None
        if any(not torch.equal(_bits(a), _bits(b)) for a, b in zip(*gave, strict=True)):
            return False
        alike = True
    return alike


def _repeats(scene: Scene, spec: str, defense: Defense, model: PixelModel) -> bool | None:
    """Return whether one record makes a client send the same again under the same seed, but for rounding.

    One that does not keeps a state, or draws what no seed governs: what it sends of a candidate then tells little of
    what it sent of a victim. None where nothing could be tried.
    """
    found = None
    for k, (batch, _) in zip(range(AGAIN), _pairs(scene), strict=False):
        if expired():
            return None
        seed = derive(scene.plan.seed, spec, "again", k)
        try:
            first, second = (_sent(scene, defense, model, batch, seed) for _ in range(2))
        except Exception:  # the user's own code
            return None
        gaps = [float((a - b).norm()) > SAME * float(a.norm()) for a, b in zip(first, second, strict=True)]
        if any(gaps):
            return False
        found = True
    return found


def _bits(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor: zeros of either sign are equal numbers, and may still tell a gradient's signs."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _pairs(scene: Scene) -> Iterator[tuple[Records, Records]]:
    """Yield two batches that differ in one record, at every place in turn: a victim's and another of its class."""
    generator = generator_for(scene.plan.seed, "pairs")
    every = scene.candidates
    everyone = Records(every.pictures, every.labels, targets=every.targets)
    size, lined = scene.plan.batch_size, scene.candidates.lined.nonzero()[:, 0]
    for k in range(max(PAIRS, 3 * size) if len(lined) else 0):
        row = int(lined[k % len(lined)])
        rest = torch.randint(len(scene.target.private), (size - 1,), generator=generator)
        length, at = int(scene.candidates.sizes[row]), k % size
        step = 1 + int(torch.randint(length - 1, (1,), generator=generator))
        place = (int(scene.candidates.position[row]) + step) % length
        chosen = (int(scene.victims[row]), int(scene.candidates.indices[row, place]))
        one, other = (everyone[torch.cat([rest[:at], torch.tensor([i]), rest[at:]])] for i in chosen)
        yield one, other


def _sent(scene: Scene, defense: Defense, model: PixelModel, batch: Records, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with seeded(seed, "sent"):
        shown = release(defense, batch, generator).to(scene.target.device)
        client, loss = scene.plan.sender(), scene.target.loss
        gradients, buffers = sent(model, loss, shown.images, shown.labels, defense, mode_of(scene), generator, client)
    return [*gradients, *buffers.values()]
