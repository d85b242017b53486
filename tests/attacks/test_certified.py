"""What `peeling` and `spear` certify is a record of the batch, behind every defense and of nearly equal pictures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leakaudit.attacks.peeling import Peeling
from leakaudit.attacks.spear import Spear
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import shared_update

SHAPE, CLASSES, EXACT = (1, 8, 8), 10, 60.0  # dB: no better than an eighth of a grey level


def net(act: type[nn.Module], units: int, kind: torch.dtype, seed: int = 0) -> PixelModel:
    """A dense net of three layers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(64, units), act(), nn.Linear(units, units), act(), nn.Linear(units, CLASSES)]
    return PixelModel(nn.Sequential(*layers), [0.5], [0.29]).to(kind)


def near(count: int, noise: float, seed: int) -> Records:
    """Return so many pictures that are one picture and a little noise of their own."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.rand((1, *SHAPE), generator=generator)
    pictures = (one + noise * torch.randn((count, *SHAPE), generator=generator)).clamp(0, 1)
    return Records(pictures, torch.arange(count) % CLASSES)


def certified_and_false(
    attack: Peeling, model: PixelModel, private: Records, batch: int, spec: str = "none"
) -> tuple[int, int]:
    """Return how many pictures are certified, and how many of these are no record of their batch."""
    update = shared_update(
        model, private, defense=parse_defense(spec), exposure=Exposure(), batch_size=batch, classes=CLASSES
    )
    found = attack(model, update, torch.Generator().manual_seed(5))
    assert found.images is not None
    assert found.certified is not None
    said = false = 0
    for v, (pictures, certain) in enumerate(zip(found.images, found.certified, strict=True)):
        own = private.images[v * batch : (v + 1) * batch].to(pictures)
        nearest = torch.cdist(pictures.flatten(1), own.flatten(1)).argmin(1)
        said += int(certain.sum())
        false += int((certain & (psnr(own[nearest], pictures) <= EXACT)).sum())
    return said, false


@pytest.mark.parametrize("spec", ["sign", "qsgd", "prune:sparsity=0.9", "prune:sparsity=0.99"])
@pytest.mark.parametrize("batch", [1, 4])
def test_nothing_is_certified_behind_a_defense_that_changes_the_entries(batch: int, spec: str) -> None:
    assert certified_and_false(Peeling(), net(nn.ReLU, 80, torch.float32), near(8, 0.3, 4), batch, spec) == (0, 0)


@pytest.mark.parametrize("spec", ["none", "clip:max_norm=0.01"])
def test_one_record_is_certified_by_the_gradient_that_the_model_predicts_for_it(spec: str) -> None:
    for kind in (torch.float32, torch.float64):
        assert certified_and_false(Peeling(), net(nn.ReLU, 80, kind), near(6, 0.3, 4), 1, spec) == (6, 0)


@pytest.mark.parametrize("spec", ["none", "clip:max_norm=0.01", "gaussian:std=1e-7"])
@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid])
def test_of_nearly_equal_pictures_only_records_are_certified(act: type[nn.Module], spec: str) -> None:
    for seed, units, batch, noise in ((302, 40, 12, 0.02), (303, 80, 8, 0.02), (304, 16, 8, 0.005)):
        for kind in (torch.float32, torch.float64):
            for one in (False, True):
                private = near(batch, noise, seed)
                private = Records(private.images.to(kind), private.labels * (not one))
                assert certified_and_false(Peeling(), net(act, units, kind, seed), private, batch, spec)[1] == 0


def test_pictures_that_were_proved_are_not_moved_when_the_batch_is_solved_again() -> None:
    private = near(12, 0.02, 303)
    private = Records(private.images.double(), private.labels)
    said, false = certified_and_false(Peeling(), net(nn.ReLU, 40, torch.float64, 303), private, 12)
    assert said >= 1
    assert false == 0


@pytest.mark.parametrize("spec", ["none", "clip:max_norm=0.01", "sign"])
def test_what_spear_certifies_is_a_record(spec: str) -> None:
    model = net(nn.ReLU, 80, torch.float32)
    for noise in (0.02, 0.3):
        assert certified_and_false(Spear(samples=8192), model, near(6, noise, 4), 6, spec)[1] == 0
