"""Label rules against the labels that made the update."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._labels import counted_labels, infer_labels, one_label
from leakaudit.errors import NotApplicable
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records
from tests.attacks.attack_scenes import conv_model, dense_model, records, seeded, shared_update

SHAPE = (1, 8, 8)
NOTHING = Exposure()


def without_bias(classes: int) -> PixelModel:
    network = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, classes, False)))
    return PixelModel(network, [0.4], [0.25])


def every_class(classes: int, seed: int = 0) -> Records:
    drawn = records(2 * classes, SHAPE, classes, seed)
    return Records(drawn.images, torch.arange(2 * classes) % classes)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("build", [dense_model, conv_model, None], ids=["dense", "conv", "no-bias"])
def test_one_record_is_always_told(build: object, classes: int, generator: torch.Generator) -> None:
    model = without_bias(classes) if build is None else build(SHAPE, classes)  # type: ignore[operator]
    private = every_class(classes)
    update = shared_update(model, private, exposure=NOTHING, classes=classes)
    assert update.labels is None
    assert infer_labels(model, update, generator).flatten().tolist() == private.labels.tolist()


class Tempered(nn.Module):
    """A classifier with a learned temperature: a parameter without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.dense = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.scale * self.dense(x.flatten(1))
        return found


def test_parameters_without_dimensions_do_no_harm(generator: torch.Generator) -> None:
    model, private = PixelModel(seeded(Tempered), [0.4], [0.25]), every_class(4)
    update = shared_update(model, private, exposure=NOTHING, classes=4)
    found = parse_attack("labels")(model, update, generator)
    assert found.labels is not None
    assert found.statuses == ("converged",) * len(private)
    # No dense layer gives the logits themselves, so the classes are guessed from the gradient's direction.
    assert float((found.labels.flatten() == private.labels).float().mean()) > 0.5


@pytest.mark.parametrize(
    "spec", ["prune:sparsity=0.9", "gaussian:std=0.05", "dp-sgd:noise_multiplier=0", "clip", "sign", "qsgd"]
)
def test_one_record_is_told_through_defenses(spec: str, generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE, 10), every_class(10)
    update = shared_update(model, private, defense=parse_defense(spec), exposure=NOTHING, classes=10)
    found = infer_labels(model, update, generator).flatten()
    assert float((found == private.labels).float().mean()) >= 0.9


@pytest.mark.parametrize("classes", [3, 10])
def test_signs_tell_one_record_without_a_bias(classes: int, generator: torch.Generator) -> None:
    model, private = without_bias(classes), every_class(classes)
    update = shared_update(model, private, defense=parse_defense("sign"), exposure=NOTHING, classes=classes)
    assert infer_labels(model, update, generator).flatten().tolist() == private.labels.tolist()


def test_the_sign_rule_on_a_gradient_by_hand() -> None:
    softmax, h = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([1.0, -2.0, 0.5])
    for label in range(3):
        error = softmax - torch.eye(3)[label]
        assert int(one_label(torch.outer(error, h), error, h)) == label
        assert int(one_label(torch.outer(error, h), None, -h)) == label  # without a bias h may point anywhere


@pytest.mark.parametrize(
    ("balance", "batch", "wanted"),
    [
        ([0.5, 0.5], 4, [0, 0, 1, 1]),
        ([0.9, 0.1, 0.0], 2, [0, 0]),
        ([0.34, 0.33, 0.33], 4, [0, 0, 1, 2]),  # the remainder goes to the largest fraction
        ([-0.2, 0.6, 0.6], 2, [1, 2]),  # an estimate below zero counts as none
        ([1.7, 0.3], 2, [0, 0]),  # estimates that do not sum to one are scaled
        ([0.0, 0.0], 5, [0, 0, 0, 1, 1]),  # nothing known: spread
    ],
)
def test_counts_are_rounded_by_the_largest_remainder(balance: list[float], batch: int, wanted: list[int]) -> None:
    assert counted_labels(torch.tensor(balance), batch).tolist() == wanted


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("build", [conv_model, None], ids=["conv", "no-bias"])
def test_a_batch_is_counted_with_repeats(build: object, auxiliary: bool, generator: torch.Generator) -> None:
    classes, batch = 5, 8
    model = without_bias(classes) if build is None else build(SHAPE, classes)  # type: ignore[operator]
    private = records(4 * batch, SHAPE, classes, seed=5)
    update = shared_update(
        model,
        private,
        exposure=Exposure(auxiliary=auxiliary),
        classes=classes,
        batch_size=batch,
        auxiliary=records(40, SHAPE, classes, seed=6),
    )
    found = infer_labels(model, update, generator)
    assert found.shape == (4, batch)
    truth = private.labels.view(4, batch)
    right = sum(sum((Counter(a) & Counter(b)).values()) for a, b in zip(found.tolist(), truth.tolist(), strict=True))
    assert any(max(Counter(row).values()) > 1 for row in truth.tolist())
    assert right >= 0.8 * 4 * batch


class Pooled(nn.Module):
    """A classifier whose last layer is a convolution, as SqueezeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x).mean((2, 3))
        return found


def test_without_a_dense_head_one_label_is_matched_and_a_batch_refused(generator: torch.Generator) -> None:
    model, private = PixelModel(seeded(Pooled), [0.4], [0.25]), every_class(4)
    one = shared_update(model, private, exposure=NOTHING, classes=4)
    assert infer_labels(model, one, generator).flatten().tolist() == private.labels.tolist()
    several = shared_update(model, private, exposure=NOTHING, classes=4, batch_size=2)
    with pytest.raises(NotApplicable, match="no dense layer"):
        infer_labels(model, several, generator)
    with pytest.raises(NotApplicable, match="no dense layer"):
        parse_attack("idlg")(model, several, generator)
    assert parse_attack("dlg:steps=5")(model, several, generator).labels is not None  # it optimises them instead


def test_exposed_labels_are_used_as_they_are(generator: torch.Generator) -> None:
    model, private = conv_model(SHAPE), records(4, SHAPE, 3, seed=0)
    update = shared_update(model, private, exposure=Exposure(labels=True), batch_size=2)
    found = parse_attack("inverting-gradients:steps=2")(model, update, generator)
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()
