"""A generator's range is searched: exactly where it is linear, through its features, better than without it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.attacks.generative_prior import GenerativePrior, feature_cuts, into_ball
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.errors import NotApplicable
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import PictureGenerator, PixelModel, Records
from leakaudit.score.metrics import assign, psnr
from tests.attacks.attack_scenes import conv_model, seeded, shared_update

SHAPE, LATENT, CLIENTS = (3, 8, 8), 8, 3


def linear(seed: int = 5) -> nn.Module:
    """Return a linear map from 8 latents to pictures around grey; four deviations out they are still in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(LATENT, 192)
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn((192, LATENT), generator=generator))[0]
        layer.weight.copy_(basis * 0.5)
        layer.bias.fill_(0.5)
    return nn.Sequential(layer, nn.Unflatten(1, SHAPE)).requires_grad_(False)


def deep() -> nn.Module:
    """Return a generator of three layers with parameters."""
    layers = (nn.Linear(LATENT, 48), nn.LeakyReLU(0.2), nn.Linear(48, 96), nn.LeakyReLU(0.2), nn.Linear(96, 192))
    return seeded(lambda: nn.Sequential(*layers, nn.Sigmoid(), nn.Unflatten(1, SHAPE)), 3).requires_grad_(False)


def scene(
    make: nn.Module, batch: int = 1, defense: str = "none", shift: float = 0.0
) -> tuple[PixelModel, SharedUpdate, Tensor]:
    """Return a model, updates of what the generator draws (each entry moved by up to `shift`), and these pictures."""
    generator = torch.Generator().manual_seed(11)
    drawn = make(torch.randn((CLIENTS * batch, LATENT), generator=generator))
    drawn = (drawn + shift * (2 * torch.rand(drawn.shape, generator=generator) - 1)).clamp(0, 1)
    labels = torch.arange(CLIENTS * batch) % 3
    model = conv_model(SHAPE)
    others = Records(torch.rand((40, *SHAPE), generator=generator), torch.arange(40) % 3)
    update = shared_update(
        model, Records(drawn, labels), defense=parse_defense(defense), batch_size=batch, auxiliary=others
    )
    return model, dataclasses.replace(update, prior=PictureGenerator(make, (LATENT,))), drawn


def quality(found: Tensor | None, truth: Tensor) -> Tensor:
    """Return the PSNR of every record, in the order in which the batch fits best."""
    assert found is not None
    batches = zip(found, truth.split(found.shape[1]), strict=True)
    return torch.cat([psnr(true, drawn[assign(true, drawn)]) for drawn, true in batches])


@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_linear_generator_draws_is_found(batch: int, generator: torch.Generator) -> None:
    model, update, truth = scene(linear(), batch)
    found = GenerativePrior(steps=200, restarts=2, weight=0.0)(model, update, generator)
    assert found.statuses == ("converged",) * CLIENTS
    assert float(quality(found.images, truth).min()) > 35


@pytest.mark.parametrize("defense", ["none", "gaussian:std=0.003"])
def test_it_is_better_than_inversion_where_the_range_holds_the_pictures(
    defense: str, generator: torch.Generator
) -> None:
    model, update, truth = scene(linear(), 1, defense)
    found = GenerativePrior(steps=100, restarts=2)(model, update, generator)
    plain = [InvertingGradients(steps=100, tv=tv)(model, update, generator) for tv in (1e-5, 1e-2)]
    best = max(float(quality(each.images, truth).median()) for each in plain)
    assert float(quality(found.images, truth).median()) > best + 3


def test_features_reach_what_latents_do_not(generator: torch.Generator) -> None:
    model, update, truth = scene(deep(), shift=0.1)
    make = update.prior.make if update.prior else None
    assert isinstance(make, nn.Sequential)
    assert feature_cuts(make) == [2, 4]
    only = dataclasses.replace(update, prior=PictureGenerator(lambda z: make(z), (LATENT,)))
    deeper, shallow = (GenerativePrior(steps=200, restarts=2, radius=1.0)(model, u, generator) for u in (update, only))
    assert bool((deeper.objective < 0.9 * shallow.objective).all())
    assert float(quality(deeper.images, truth).median()) > float(quality(shallow.images, truth).median())


def test_the_nearest_point_of_the_ball(generator: torch.Generator) -> None:
    gap, radius = torch.randn((6, 20), generator=generator), torch.tensor([0.0, 0.5, 1.0, 3.0, 10.0, 100.0])
    found = into_ball(gap, radius)
    assert bool((found.abs().sum(1) <= radius + 1e-5).all())
    assert torch.equal(found[-1], gap[-1])  # inside already
    assert not found[0].any()
    # The nearest: no point of the ball has a larger product with what was taken off.
    taken = gap - found
    most = radius * taken.abs().amax(1)  # over the ball, attained at a corner
    torch.testing.assert_close((taken * found).sum(1), most, atol=1e-4, rtol=1e-4)


def test_the_latent_prior_holds_where_the_update_tells_nothing(generator: torch.Generator) -> None:
    model, update, _ = scene(linear(), 1, "gaussian:std=10")
    loose, tight = (GenerativePrior(steps=60, weight=w)(model, update, generator).images for w in (0.0, 100.0))
    assert loose is not None
    assert tight is not None
    assert float((tight - 0.5).square().mean()) < 0.25 * float((loose - 0.5).square().mean())


def test_without_a_generator_it_runs_only_if_asked(generator: torch.Generator) -> None:
    model, update, truth = scene(linear())
    bare = dataclasses.replace(update, prior=None)
    with pytest.raises(NotApplicable, match="no `generator` of pictures was given"):
        GenerativePrior()(model, bare, generator)
    own = Records(linear()(torch.randn((60, LATENT), generator=generator)), torch.arange(60) % 3)
    taught = GenerativePrior(steps=60, learned=True)(model, dataclasses.replace(bare, auxiliary=own), generator)
    assert taught.images is not None
    assert F.mse_loss(taught.images[:, 0], truth) < 0.2 * F.mse_loss(torch.full_like(truth, 0.5), truth)
    assert "No `generator` was given" in taught.notes[-1]
