"""A learned start reads an update whatever its size, beats the mean picture, and matching goes on from it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leakaudit.attacks._optimise import signs
from leakaudit.attacks._residual import residuals
from leakaudit.attacks.learned_start import (
    MOST,
    POOR,
    LearnedStart,
    Regression,
    chosen,
    fit,
    kernel,
    learned,
    standardised,
)
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.registry import parse_defense
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import batchnorm_model, conv_model, records, shared_update

SHAPE = (1, 8, 8)
AUXILIARY, PRIVATE = records(160, SHAPE, 3, seed=31), records(8, SHAPE, 3, seed=32)


def test_the_kernel_is_one_of_records_that_are_the_same_and_has_no_negative_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    features, directions = torch.randn(20, 30, generator=generator), torch.randn(20, 4, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    found = kernel(features, directions, features, directions, torch.tensor(50.0)).double()
    assert torch.allclose(found.diagonal(), torch.full((20,), 1.3, dtype=torch.float64), atol=1e-4)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-4


def test_features_have_no_unit() -> None:
    """Scaled columns of features, as another model's would be, give the same standardised ones."""
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    scale = torch.tensor([1e-9, 1e-3, 1.0, 10.0, 1e6, 1e12])
    fits = []
    for each in (rows, rows * scale):
        found = fit(each, torch.ones(50, 1), rows[:, :2])
        assert isinstance(found, Regression)
        fits.append(standardised(each, found.middle, found.mean, found.spread))
    assert torch.allclose(*fits, atol=1e-4)


def test_what_the_features_tell_is_learned_and_what_they_do_not_is_near_the_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    features, turned = torch.randn(600, 8, generator=generator), torch.sign(torch.randn(600, generator=generator))
    directions = torch.stack([turned, torch.zeros(600)], 1)
    told = features[:, :3] * turned[:, None]  # turns with the residual, as an update does
    pictures = torch.cat([told, torch.randn(600, 3, generator=generator)], 1)
    found = fit(features[:500], directions[:500], pictures[:500])
    error = (found(features[500:], directions[500:]) - pictures[500:]).square().mean(0)
    assert bool((error[:3] < 0.3).all())
    assert bool((error[3:] < 1.6).all())


def test_an_update_is_read_alike_whatever_its_size() -> None:
    model = batchnorm_model(SHAPE)
    update = shared_update(model, PRIVATE, auxiliary=AUXILIARY)
    generator = torch.Generator().manual_seed(3)
    fixed = residuals(model, update, generator)[:, 0]
    _, reader = learned(40, model, update, AUXILIARY, generator, "test")
    gradients = tuple(g[0] for g in update.gradients)
    whole, direction = reader(gradients, fixed[0])
    small, same = reader(tuple(g * 1e-9 for g in gradients), fixed[0] * 1e-9)
    assert torch.allclose(whole, small, rtol=1e-3, atol=1e-5)
    assert torch.allclose(direction, same, atol=1e-5)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-5)


def test_the_least_objective_is_kept_and_only_a_poor_match_is_given_more_contrast() -> None:
    update = shared_update(conv_model(SHAPE), PRIVATE[:2])
    own = torch.full((50, 3), 0.1), torch.ones(50, 1), torch.rand((50, 64), generator=torch.Generator().manual_seed(6))
    regression = fit(*own)
    pictures = (regression.centre.view(SHAPE) + 0.05 * torch.sign(torch.randn((2, 2, 1, *SHAPE)))).clamp(0, 1)
    values = torch.tensor([[POOR / 2, 0.5], [POOR, 0.3]])
    runs = [Reconstruction(x, None, v, ("converged",) * 2) for x, v in zip(pictures, values, strict=True)]
    found = chosen(runs, regression, update)
    assert found.images is not None
    assert torch.equal(found.objective, torch.tensor([POOR / 2, 0.3]))
    assert torch.equal(found.images[0], pictures[0, 0])  # a good match has its contrast
    centre = regression.centre.view(SHAPE)
    assert torch.allclose(found.images[1], (centre + MOST * (pictures[1, 1] - centre)).clamp(0, 1), atol=1e-5)


def test_matching_goes_on_from_a_guess_that_beats_the_mean_picture() -> None:
    model = batchnorm_model(SHAPE)
    update = shared_update(model, PRIVATE, auxiliary=AUXILIARY)
    mean = AUXILIARY.images.mean(0, keepdim=True).expand_as(PRIVATE.images)
    before = float(psnr(PRIVATE.images, mean).median())
    scores = []
    for steps in (1, 60):
        found = LearnedStart(steps=steps, restarts=1, tv=1e-3)(model, update, torch.Generator().manual_seed(4))
        assert found.statuses == ("converged",) * len(PRIVATE)
        assert found.images is not None
        scores.append(float(psnr(PRIVATE.images, found.images[:, 0]).median()))
    assert scores[0] > before + 2
    assert scores[1] > scores[0]


def test_it_says_why_it_cannot_run() -> None:
    model, generator = conv_model(SHAPE), torch.Generator().manual_seed(5)
    noisy = shared_update(model, PRIVATE, defense=parse_defense("gaussian:std=0.1"), auxiliary=AUXILIARY)
    with pytest.raises(NotApplicable, match="residual"):
        LearnedStart()(model, noisy, generator)
    with pytest.raises(NotApplicable, match="one record per update"):
        LearnedStart()(model, shared_update(model, PRIVATE, batch_size=2, auxiliary=AUXILIARY), generator)
    with pytest.raises(NotApplicable, match="auxiliary"):
        LearnedStart()(model, dataclasses.replace(noisy, auxiliary=AUXILIARY[:4]), generator)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (2, 1, 1)])
def test_a_coarse_step_is_one_that_areas_agree_on(shape: tuple[int, int, int]) -> None:
    """Where all slopes agree it is the plain sign; a whole picture moves where its mean slope points."""
    none, most = torch.zeros(2), torch.full((2,), 0.7)
    up = torch.full((2, 1, *shape), 0.3)
    assert torch.allclose(signs(up, most), torch.ones_like(up))
    noise = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0))
    assert torch.equal(signs(noise, none), noise.sign())
    assert float(signs(noise, most).abs().max()) <= 1 + 1e-6
    sparse = torch.where(torch.rand(noise.shape, generator=torch.Generator().manual_seed(1)) < 0.2, noise, 0.0)
    if shape != (2, 1, 1):
        assert bool((signs(sparse, most)[sparse == 0] != 0).any())  # pixels that say nothing go with their neighbours
