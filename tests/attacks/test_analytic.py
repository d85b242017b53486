"""The closed form: exact where it applies, a reason where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leakaudit.attacks.analytic import Analytic
from leakaudit.errors import NotApplicable
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import conv_model, dense_model, records, seeded, shared_update


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)], ids=["grey", "cifar"])
def test_a_dense_net_gives_its_input_back(shape: tuple[int, int, int], generator: torch.Generator) -> None:
    model, private = dense_model(shape, 10), records(8, shape, 10, seed=1)
    update = shared_update(model, private, exposure=Exposure(), classes=10)
    found = Analytic()(model, update, generator)
    assert found.images is not None
    assert found.statuses == ("converged",) * 8
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()
    assert float(psnr(private.images, found.images[:, 0]).min()) >= 100
    assert float((private.images - found.images[:, 0]).abs().max()) < 1e-5


def test_noise_is_averaged_over_the_rows(generator: torch.Generator) -> None:
    model, private = dense_model((1, 8, 8), 10), records(4, (1, 8, 8), 10, seed=2)
    update = shared_update(model, private, defense=parse_defense("gaussian:std=0.0001"), classes=10)
    found = Analytic()(model, update, generator)
    clean = Analytic()(model, shared_update(model, private, classes=10), generator)
    assert found.images is not None
    assert 20 < float(psnr(private.images, found.images[:, 0]).min()) < 100
    assert float(found.objective.min()) > 100 * float(clean.objective.max())  # its own sign that the update was spoilt


def other(name: str) -> nn.Module:
    return {
        "no-bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.Linear(8, 3)),
        "pooled": lambda: nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        "squared": lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(64, 3)),
    }[name]()


@pytest.mark.parametrize(
    ("name", "reason"), [("no-bias", "no gradient of a bias"), ("pooled", "not fed"), ("squared", "not fed")]
)
def test_other_first_layers_are_refused(name: str, reason: str, generator: torch.Generator) -> None:
    model = PixelModel(seeded(lambda: other(name)), [0.4], [0.25])
    with pytest.raises(NotApplicable, match=reason):
        Analytic()(model, shared_update(model, records(2, (1, 8, 8), 3, seed=1)), generator)


def test_a_convolution_is_refused_by_name(generator: torch.Generator) -> None:
    model = conv_model()
    with pytest.raises(NotApplicable, match="the first layer is Conv2d, not dense"):
        Analytic()(model, shared_update(model, records(2, (1, 8, 8), 3, seed=1)), generator)


def test_a_frozen_first_layer_is_refused(generator: torch.Generator) -> None:
    model = dense_model()
    for parameter in model.network[1].parameters():  # type: ignore[index, union-attr]
        parameter.requires_grad_(False)
    with pytest.raises(NotApplicable, match="shares no gradient"):
        Analytic()(model, shared_update(model, records(2, (1, 8, 8), 3, seed=1)), generator)
