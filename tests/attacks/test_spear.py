"""SPEAR: a batch that fires no row alone is told apart exactly; where it cannot be, nothing is claimed."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.attacks._rows import rows_of
from leakaudit.attacks._spear import factored, separated
from leakaudit.attacks.peeling import Peeling
from leakaudit.attacks.spear import Spear
from leakaudit.errors import UserError
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from leakaudit.work.progress import Monitor, monitored
from tests.attacks.attack_scenes import conv_model, records, seeded, shared_update

SHAPE, CLASSES, EXACT = (1, 8, 8), 10, 60.0


def net(units: int = 80, act: type[nn.Module] = nn.ReLU) -> PixelModel:
    """A dense net of three layers whose first fires on about half of all pictures."""
    network = seeded(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(64, units), act(), nn.Linear(units, units), act(), nn.Linear(units, CLASSES)
        )
    )
    return PixelModel(network, [0.5], [0.29])


def pictures(count: int, seed: int) -> Records:
    """Return pictures of independent pixels: none is a mixture of the others."""
    drawn = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return Records(drawn, torch.arange(count) % CLASSES)


def attacked(model: PixelModel, private: Records, batch: int, spec: str = "none") -> Reconstruction:
    update = shared_update(
        model, private, defense=parse_defense(spec), exposure=Exposure(), batch_size=batch, classes=CLASSES
    )
    return Spear(samples=100_000)(model, update, torch.Generator().manual_seed(5))


def scores(found: Reconstruction, private: Records) -> tuple[Tensor, Tensor]:
    """Return the PSNR (N,) of each record's picture, and whether the label beside it is right, of one victim."""
    assert found.images is not None
    assert found.labels is not None
    order = assign(private.images, found.images[0])
    return psnr(private.images, found.images[0, order]), found.labels[0, order] == private.labels


@pytest.mark.parametrize("spec", ["none", "clip:max_norm=0.01"])
def test_a_batch_that_does_not_peel_is_told_apart_with_its_labels(spec: str) -> None:
    model, private = net(), pictures(12, seed=3)
    update = shared_update(model, private, exposure=Exposure(), batch_size=12, classes=CLASSES)
    before = Peeling()(model, update, torch.Generator().manual_seed(5))
    assert before.certified is not None
    assert not before.certified.all()
    found = attacked(model, private, 12, spec)
    quality, right = scores(found, private)
    assert float(quality.min()) > EXACT
    assert bool(right.all())
    assert found.certified is not None
    assert bool(found.certified.all())
    assert found.notes[0].startswith("12 of 12 records told apart")


def test_slopes_and_inputs_are_those_of_autograd_in_double_precision() -> None:
    model, private = net().double(), pictures(9, seed=2)
    flat = ((private.images.double() - model.mean) / model.std).flatten(1)
    network = model.network
    assert isinstance(network, nn.Sequential)
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    before = layer(flat)
    (slopes,) = torch.autograd.grad(nn.functional.cross_entropy(network[2:](before), private.labels), before)
    rows = rows_of(slopes.T @ flat, slopes.sum(0))
    generator = torch.Generator().manual_seed(3)
    found = separated(factored(rows, 9, float(rows.weight.norm()), generator), layer, 50_000, generator)
    assert found is not None
    order = torch.cdist(flat, found.flat).argmin(1)
    assert sorted(order.tolist()) == list(range(9))
    assert torch.allclose(found.flat[order], flat, atol=1e-8)
    assert torch.allclose(found.slopes.T[order], slopes, atol=1e-10)
    assert found.agree > 0.999


@pytest.mark.parametrize(
    ("act", "spec"), [(nn.Sigmoid, "none"), (nn.ReLU, "gaussian:std=0.01"), (nn.ReLU, "prune:sparsity=0.9")]
)
def test_without_zeros_or_behind_a_defense_nothing_is_certified(act: type[nn.Module], spec: str) -> None:
    found = attacked(net(act=act), pictures(8, seed=4), 8, spec)
    assert found.certified is not None
    assert not found.certified.any()
    assert found.statuses == ("converged",)


def test_the_same_record_twice_is_two_slots() -> None:
    private = pictures(10, seed=6)[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]]
    quality, right = scores(attacked(net(), private, 11), private)
    assert float(quality.min()) > EXACT
    assert bool(right.all())


def test_time_that_is_up_is_a_status() -> None:
    model = net()
    update = shared_update(model, pictures(12, seed=3), exposure=Exposure(), batch_size=12, classes=CLASSES)
    with monitored(Monitor(deadline=time.monotonic() - 1)):
        found = Spear()(model, update, torch.Generator().manual_seed(5))
    assert found.statuses == ("budget",)


def test_settings_and_models_it_cannot_use_are_refused() -> None:
    with pytest.raises(UserError, match="samples must be at least 1"):
        Spear(samples=0)
    update = shared_update(conv_model(), replace(records(4, SHAPE, 3, seed=1)), batch_size=2)
    with pytest.raises(Exception, match="the first layer is Conv2d, not dense"):
        Spear()(conv_model(), update, torch.Generator())
