"""What a defense changes is seen by comparing, whatever it says of itself; what changes nothing is not seen."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from leakaudit.audit.canary import KeyedPermutation
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.federation import parse_client
from leakaudit.protocol.gradients import Gradients, Mode
from leakaudit.protocol.registry import defenses, parse_defense
from leakaudit.protocol.stages import CHANGES, apart, declared, later_changes, model_changed, records_changed
from leakaudit.protocol.target import PixelModel, Records
from tests import leaky
from tests.attacks.attack_scenes import batchnorm_model, conv_model, records
from tests.defenses.test_every_defense import fitted

SHAPE = (1, 8, 8)
PRIVATE = records(12, SHAPE, 3, seed=1)
FREE = sorted(name for name, cls in defenses().items() if cls.fit is Defense.fit)  # they learn nothing


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loud(logits: Tensor, labels: Tensor) -> Tensor:
    """A loss whose gradients are long enough to be clipped."""
    return 30 * nn.functional.cross_entropy(logits, labels)


def seen(defense: Defense, model: PixelModel | None = None, mode: Mode = "eval") -> frozenset[str]:
    """Return all that an audit would see a defense change."""
    given = model or conv_model(SHAPE)
    made = defense.transform_model(copy.deepcopy(given), rng())
    released = release(defense, PRIVATE, rng())
    found = records_changed(PRIVATE, released)
    found |= {"model"} if model_changed(given, made, PRIVATE[:4]) else set()
    batches = [released[torch.arange(2 * i, 2 * i + 2)] for i in range(3)]
    return found | later_changes(made, loud, batches, defense, mode, 0)


class Twice(Defense):
    """Every record's own gradient, doubled."""

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        return tuple(2 * g for g in gradients)


class OtherLabels(Defense):
    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images, (labels + 1) % 3


class Watching(Defense):
    """It overrides no stage that changes anything, but becomes another defense before a batch."""

    def observe(self, model: PixelModel, images: Tensor, labels: Tensor, generator: torch.Generator) -> Defense:
        return leaky.KeyedSigns()


class Moved(Defense):
    """One weight is another."""

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-4
        return model


class OtherLayer(Defense):
    """The same parameters, used otherwise."""

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        network = model.network
        assert isinstance(network, nn.Sequential)
        network[1] = nn.Tanh()
        return model


class Idle(Defense):
    """It overrides every stage, says that it replaces records, and lets everything pass."""

    replaces_records: ClassVar[bool] = True

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.clone(), labels.clone()

    def transform_model(self, model: PixelModel, generator: torch.Generator) -> PixelModel:
        return copy.deepcopy(model)

    def transform_example_gradients(self, gradients: Gradients, generator: torch.Generator) -> Gradients:
        return tuple(g.clone() for g in gradients)

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g.clone() for g in gradients)


SEEN: list[tuple[Defense, set[str]]] = [
    (Defense(), set()),
    (Idle(), set()),
    (leaky.Negative(), {"records"}),
    (leaky.Distilled(), {"records", "labels"}),
    (OtherLabels(), {"labels"}),
    (Twice(), {"examples"}),
    (KeyedPermutation(), {"update"}),
    (leaky.LastLayerNoise(), {"update"}),
    (Watching(), {"update"}),
    (Moved(), {"model"}),
    (OtherLayer(), {"model"}),
    (chain(leaky.Negative(), leaky.KeyedSigns()), {"records", "update"}),
    (chain(OtherLabels(), Idle(), Twice()), {"labels", "examples"}),
]


@pytest.mark.parametrize(("defense", "changes"), SEEN, ids=[str(i) for i in range(len(SEEN))])
def test_each_change_is_seen_and_no_other(defense: Defense, changes: set[str]) -> None:
    assert seen(defense) == changes
    assert changes <= set(CHANGES)


def test_a_change_that_comes_on_some_batches_is_seen() -> None:
    class Sometimes(Defense):
        def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
            return tuple(-g for g in gradients) if torch.rand((), generator=generator) < 0.5 else gradients

    few = [PRIVATE[:1]] * 20
    assert later_changes(conv_model(SHAPE), loud, few, Sometimes(), "eval", 0) == {"update"}


def test_what_acts_on_weights_is_tried_on_what_weights_lose() -> None:
    model, batch = conv_model(SHAPE), [PRIVATE[:2]]
    client, clip = parse_client("fedavg:steps=4:lr=0.5"), parse_defense("clip:max_norm=1e-3")
    assert later_changes(model, nn.functional.cross_entropy, batch, clip, "eval", 0, client) == {"update"}
    loose = parse_defense("clip:max_norm=1")
    slow = parse_client("fedavg:steps=1:lr=1e-6")
    assert later_changes(model, loud, batch, loose, "eval", 0) == {"update"}  # its gradients are longer
    assert later_changes(model, loud, batch, loose, "eval", 0, slow) == frozenset()


def test_buffers_are_seen_to_change_where_the_model_is_trained() -> None:
    model = batchnorm_model(SHAPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert seen(Defense(), model, "train") == {"buffers"}
    assert seen(Defense(), model, "eval") == frozenset()
    assert seen(Defense(), conv_model(SHAPE), "train") == frozenset()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_dropout_is_no_change() -> None:
    model = conv_model(SHAPE)
    assert isinstance(model.network, nn.Sequential)
    model.network[1] = nn.Dropout(0.5)
    assert seen(Idle(), model, "train") == frozenset()


def test_the_random_state_is_left_alone() -> None:
    model = conv_model(SHAPE)
    assert isinstance(model.network, nn.Sequential)
    model.network[1] = nn.Dropout(0.5)
    state = torch.random.get_rng_state()
    seen(Defense(), model, "train")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", FREE)
def test_a_built_in_defense_changes_no_more_than_its_code_tells(name: str) -> None:
    defense = parse_defense(name)
    found = seen(defense)
    assert found - {"labels"} <= declared(defense)  # what becomes of a label is told with the pictures
    assert bool(found) is (name != "none")


def test_what_code_tells_is_told_before_it_runs() -> None:
    assert declared(Defense()) == frozenset()
    assert declared(Idle()) == {"records", "model", "examples", "update"}
    assert declared(chain(leaky.Negative(), Twice())) == {"records", "examples"}

    @dataclass(frozen=True, kw_only=True)
    class Says(Defense):
        replaces_records: ClassVar[bool] = True

    assert declared(Says()) == {"records"}


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        (replace(PRIVATE, images=PRIVATE.images[:, :, :-1]), {"records"}),
        (replace(PRIVATE, labels=nn.functional.one_hot(PRIVATE.labels, 3).float()), {"labels"}),
        (replace(PRIVATE, units=torch.arange(12)), set()),
    ],
)
def test_shapes_and_kinds_of_labels_are_compared(changed: Records, wanted: set[str]) -> None:
    assert records_changed(PRIVATE, changed) == wanted


def test_records_that_do_not_depend_on_each_other_pass_apart() -> None:
    class Neighbours(Defense):
        def transform_records(
            self, images: Tensor, labels: Tensor, generator: torch.Generator
        ) -> tuple[Tensor, Tensor]:
            return (images + images.roll(-1, 0)) / 2, labels

    for defense in (Defense(), leaky.Negative(), leaky.ReusedRecordNoise(), leaky.NoisyRecords(), leaky.Pseudonyms()):
        assert apart(defense, PRIVATE, rng())
    for defense in (Neighbours(), chain(leaky.Negative(), Neighbours()), fitted("mixup")):
        assert not apart(defense, PRIVATE, rng())
    assert not apart(Defense(), PRIVATE[:2], rng())  # too few to say


class KSame(leaky.Planted):
    """Each record becomes the mean of its own and of the nearest of its class that passes with it."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        far = torch.cdist(images.flatten(1), images.flatten(1)) + 1e9 * (labels[:, None] != labels)
        nearest = far.argsort(1)[:, 1 % len(images)]
        mixed = (images + images[nearest]) / 2
        return torch.where((labels[nearest] == labels)[:, None, None, None], mixed, images), labels


def test_records_that_are_mixed_within_their_class_do_not_pass_apart() -> None:
    by_class = [int((PRIVATE.labels == k).nonzero()[0]) for k in range(3)]
    rest = [i for i in range(12) if i not in by_class]
    assert not apart(KSame(), PRIVATE[[*by_class, *rest]], rng())
