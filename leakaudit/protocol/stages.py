"""What of an exchange a defense changes, found by comparing what its stages give with what they were given."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from leakaudit.protocol.client import release, sent, trained_update
from leakaudit.protocol.defense import Defense, parts_of, replaces_records
from leakaudit.protocol.federation import FEDSGD, Client
from leakaudit.protocol.gradients import Gradients, Mode, example_gradients, in_mode, mean_gradient
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from leakaudit.work.seeding import generator_for, seeded

CHANGES: dict[str, str] = {  # what can differ from an undefended exchange, in the order of the stages
    "records": "the pictures that the model sees",
    "labels": "the labels beside them",
    "model": "the network",
    "examples": "the gradient of each record",
    "update": "the update of the batch",
    "buffers": "BatchNorm statistics, shared beside the update",
}
TRIED = 8  # batches on which the later stages are compared
BESIDE, CLASSES = 8, 3  # records that stand beside one while it is tried whether they matter; of how many classes


def declared(defense: Defense) -> frozenset[str]:
    """Return what a defense may change as far as its code tells before it is fitted: for plans and forecasts."""
    ways = {
        "transform_records": "records",
        "transform_model": "model",
        "transform_update": "update",
        "observe": "update",  # what it makes of a batch acts on the update
    }
    found = {change for part in parts_of(defense) for way, change in ways.items() if not _inherits(type(part), way)}
    found |= {"records"} if replaces_records(defense) else set()
    return frozenset(found | ({"examples"} if defense.needs_example_gradients else set()))


def _inherits(cls: type[Defense], way: str) -> bool:
    return getattr(cls, way) is getattr(Defense, way)


def records_changed(private: Records, released: Records) -> frozenset[str]:
    """Return "records" where any picture differs from what it was made of, "labels" where any label does."""
    pictures = released.images.shape != private.images.shape or not torch.equal(released.images, private.images)
    given = private.taught
    labels = released.labels.dtype != given.dtype or not torch.equal(released.labels, given)
    return frozenset(({"records"} if pictures else set()) | ({"labels"} if labels else set()))


def later_changes(
    model: PixelModel,
    loss: LossFunction,
    batches: Iterable[Records],
    defense: Defense,
    mode: Mode,
    seed: int,
    client: Client = FEDSGD,
) -> frozenset[str]:
    """Return what of "examples", "update" and "buffers" the stages after the record stage change, tried on batches.

    The update is that of one client: its mean gradient, or what its weights lost in its training.
    """
    found: set[str] = set()
    before = {n: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()}
    for k, batch in enumerate(batches):
        images, labels = batch.images.to(model.mean), batch.labels.to(model.mean.device)
        generator = generator_for(seed, "changes", k)
        with in_mode(model, mode), seeded(k, "changes"):
            shown = defense.observe(model, images, labels, generator)
            if shown.needs_example_gradients:
                each = example_gradients(model, loss, images, labels)
                found |= {"examples"} if _differ(shown.transform_example_gradients(each, generator), each) else set()
            if client.local:
                lost = trained_update(model, loss, images, labels, Defense(), generator, client)
                gradient = tuple(g * client.moved(len(labels)) for g in lost)
            else:
                gradient = mean_gradient(model, loss, images, labels)
            update = shown.transform_update(gradient, len(labels), generator)
            found |= {"update"} if _differ(update, gradient) else set()
            _, buffers = sent(model, loss, images, labels, Defense(), mode, generator)
        found |= {"buffers"} if any(not torch.equal(buffers[n], b) for n, b in before.items()) else set()
    return frozenset(found)


def model_changed(given: PixelModel, made: PixelModel, pictures: Records) -> bool:
    """Return whether the model stage made another network: by its parameters, or by what it says of pictures."""
    if type(given.network) is not type(made.network):
        return True
    own, other = dict(given.named_parameters()), dict(made.named_parameters())
    if own.keys() != other.keys() or any(not torch.equal(own[n], other[n]) for n in own):
        return True
    images = pictures.images.to(given.mean)
    said = []
    for model in (given, made):
        with torch.no_grad(), seeded(0, "model"), in_mode(model, "eval"):
            said.append(model(images))
    return not torch.equal(*said)


def apart(defense: Defense, records: Records, generator: torch.Generator) -> bool:
    """Return whether what the record stage makes of a record depends on no other record that passes with it.

    Then every client's records pass by themselves, as they do in a federation. Tried on records of several classes,
    beside others of their class and of any; one that cannot be tried, as it needs many records, depends on others.
    """
    try:
        groups = _groups(records, generator)
        return bool(groups) and all(_alone(defense, records, group, generator) for group in groups)
    except Exception:  # the record stage of the user's own may raise anything on few records
        return False


def _groups(records: Records, generator: torch.Generator) -> list[list[int]]:
    """Return groups of records: one that is tried and at most 2·`BESIDE` others, of any class and of its own."""
    order = torch.randperm(len(records), generator=generator).tolist()
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(int(records.labels[i]), []).append(i)
    groups = [order[: 1 + 2 * BESIDE], *(members[: 1 + 2 * BESIDE] for members in list(by_class.values())[:CLASSES])]
    return [group for group in groups if len(group) >= 3]


def _alone(defense: Defense, records: Records, group: list[int], generator: torch.Generator) -> bool:
    """Return whether the first of a group becomes the same by itself, and beside either half of the others."""
    first, others, seed = group[0], group[1:], int(torch.randint(2**62, (1,), generator=generator))
    half = len(others) // 2
    made = [
        release(defense, records[[first, *beside]], torch.Generator().manual_seed(seed))
        for beside in (others[:half], others[half : 2 * half])
    ]
    release(defense, records[[first]], torch.Generator().manual_seed(seed))  # it must bear one alone
    return torch.equal(made[0].images[0], made[1].images[0]) and torch.equal(made[0].labels[0], made[1].labels[0])


def _differ(made: Gradients, given: Gradients) -> bool:
    return any(not torch.equal(a.to(b), b) for a, b in zip(made, given, strict=True))
