"""The residual read off an update is the loss's slope in the logits, and is believed only where it is exact."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.attacks._residual import residual_loss, residuals
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.engine import matching as engine
from leakaudit.protocol.client import share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from tests.attacks.attack_scenes import EVERYTHING, conv_model, records, seeded, shared_update

SHAPE = (1, 8, 8)


def convolutions(*after: nn.Module, bias: bool = True, classes: int = 4) -> PixelModel:
    network = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(384, classes, bias=bias), *after
        )
    )
    return PixelModel(network, [0.4], [0.25])


def slopes(model: PixelModel, loss: LossFunction, private: Records) -> torch.Tensor:
    """Return ∂ℓ/∂logits of every record (N, K), by autograd in double precision."""
    logits = model(private.images).detach().double().requires_grad_(True)
    total = torch.stack([loss(z[None], y[None]) for z, y in zip(logits, private.labels, strict=True)]).sum()
    return torch.autograd.grad(total, logits)[0]


def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits / 2, labels, label_smoothing=0.1)


@pytest.mark.parametrize("loss", [F.cross_entropy, smoothed])
def test_the_residual_is_the_slope_of_whatever_loss_in_the_logits(
    loss: LossFunction, generator: torch.Generator
) -> None:
    model, private = convolutions(), records(4, SHAPE, 4, seed=5)
    update = share(
        model, loss, private, Defense(), EVERYTHING, batch_size=1, classes=4, mode="eval", generator=generator
    )
    found = residuals(model, update, generator)
    assert torch.allclose(found[:, 0].double(), slopes(model, loss, private), rtol=1e-4, atol=1e-6)


def test_without_a_bias_it_is_known_but_for_its_length(generator: torch.Generator) -> None:
    model, private = convolutions(bias=False), records(4, SHAPE, 4, seed=5)
    found = residuals(model, shared_update(model, private, classes=4), generator)[:, 0]
    alike = F.cosine_similarity(found.double(), slopes(model, F.cross_entropy, private))
    assert torch.allclose(alike, torch.ones_like(alike), atol=1e-5)


def test_it_draws_nothing(generator: torch.Generator) -> None:
    model, private = convolutions(), records(2, SHAPE, 4, seed=5)
    before = generator.get_state()
    residuals(model, shared_update(model, private, classes=4), generator)
    assert torch.equal(generator.get_state(), before)


def test_the_true_picture_explains_the_update_whatever_the_last_bias(generator: torch.Generator) -> None:
    """The candidate's own p − y depends on every layer down to the last bias, the fixed residual on none of them."""
    model, private = convolutions(), records(2, SHAPE, 4, seed=5)
    update = shared_update(model, private, classes=4)
    fixed, pictures = residuals(model, update, generator), private.images[:, None]
    values, _ = engine.match(model, residual_loss, pictures, fixed, update.gradients, engine.cosine)
    assert torch.allclose(values, torch.zeros(2), atol=1e-5)
    last = model.network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias += torch.tensor([8.0, 0.0, 0.0, 0.0])
    moved, _ = engine.match(model, residual_loss, pictures, fixed, update.gradients, engine.cosine)
    own, _ = engine.match(model, F.cross_entropy, pictures, private.labels[:, None], update.gradients, engine.cosine)
    assert torch.allclose(moved, torch.zeros(2), atol=1e-5)
    assert (own > 1e-3).any()


@pytest.mark.parametrize(
    "spec", ["gaussian:std=0.01", "prune:sparsity=0.9", "prune:sparsity=0.999", "sign", "qsgd", "dp-sgd"]
)
def test_what_a_defense_moved_is_given_up(spec: str, generator: torch.Generator) -> None:
    model, private = convolutions(), records(4, SHAPE, 4, seed=5)
    update = shared_update(model, private, classes=4, defense=parse_defense(spec))
    assert residuals(model, update, generator).isnan().all()


@pytest.mark.parametrize("spec", ["clip:max_norm=0.01", "none"])
def test_what_only_scales_leaves_its_direction(spec: str, generator: torch.Generator) -> None:
    model, private = convolutions(), records(4, SHAPE, 4, seed=5)
    update = shared_update(model, private, classes=4, defense=parse_defense(spec))
    found = residuals(model, update, generator)[:, 0].double()
    alike = F.cosine_similarity(found, slopes(model, F.cross_entropy, private))
    assert torch.allclose(alike, torch.ones_like(alike), atol=1e-5)


def test_nothing_is_claimed_of_batches_or_behind_a_softmax(generator: torch.Generator) -> None:
    plain, behind, private = convolutions(), convolutions(nn.Softmax(1)), records(4, SHAPE, 4, seed=5)
    assert residuals(plain, shared_update(plain, private, classes=4, batch_size=2), generator).isnan().all()
    assert residuals(behind, shared_update(behind, private, classes=4), generator).isnan().all()
    two = convolutions(bias=False, classes=2)
    assert residuals(two, shared_update(two, records(4, SHAPE, 2, seed=5), classes=2), generator).isnan().all()


def test_victims_with_and_without_a_residual_are_attacked_side_by_side(generator: torch.Generator) -> None:
    """Each as it would be alone: one update is as it was, of the other all but signs was taken."""
    model, private = conv_model(SHAPE), records(2, SHAPE, 3, seed=1)
    update = shared_update(model, private)
    mixed = replace(update, gradients=tuple(torch.stack([g[0], g[1].sign()]) for g in update.gradients))
    told = residuals(model, mixed, generator).isnan().all(2)[:, 0].tolist()
    assert told == [False, True]
    attack, labels = InvertingGradients(), private.labels[:, None]
    match = attack.matching(model, mixed, engine.cosine, generator)
    values, found = match(torch.full((2, 1, *SHAPE), 0.5), labels, torch.arange(2))
    first, _ = engine.match(
        model,
        residual_loss,
        torch.full((1, 1, *SHAPE), 0.5),
        residuals(model, mixed, generator)[:1],
        tuple(g[:1] for g in mixed.gradients),
        engine.cosine,
    )
    second, slope = engine.match(
        model,
        F.cross_entropy,
        torch.full((1, 1, *SHAPE), 0.5),
        labels[1:],
        tuple(g[1:] for g in mixed.gradients),
        engine.cosine,
    )
    assert torch.allclose(values, torch.cat([first, second]), atol=1e-5)
    assert torch.allclose(found[1:], slope, atol=1e-4)
