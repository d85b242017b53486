"""Attacks on what rounding left: the distances by formula, and pictures back through sign and QSGD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.quantised import (
    LEAST_VARIANCE,
    QuantisationAware,
    SignMatching,
    rounding_error,
    soft_sign_cosine,
    step_of,
)
from leakaudit.defenses.qsgd import quantise
from leakaudit.engine import matching as engine
from leakaudit.errors import UserError
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import conv_model, records, seeded, shared_update

SHAPE = (3, 16, 16)


def network() -> PixelModel:
    """A small LeNet with sigmoids: undefended, it gives its pictures away."""
    layers = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(12 * 16, 10),
        )
    )
    return PixelModel(layers, [0.4] * 3, [0.25] * 3)


def quality(private: Records, found: Reconstruction) -> float:
    assert found.images is not None
    return float(psnr(private.images, found.images[:, 0]).median())


def constant(private: Records) -> float:
    """Return the median PSNR of the mean picture, the best guess that is the same for every record."""
    return float(psnr(private.images, private.images.mean(0, keepdim=True).expand_as(private.images)).median())


def gradients(generator: torch.Generator) -> Gradients:
    return tuple(scale * torch.randn(20, 5, generator=generator) for scale in (1e-3, 1.0))


def slope(distance: engine.Distance, at: Gradients, shared: Gradients, along: Gradients, size: float) -> float:
    """Return the derivative of the distance along a direction, by a difference quotient in double precision."""
    ends = [distance(tuple(a + sign * size * d for a, d in zip(at, along, strict=True)), shared)[0] for sign in (1, -1)]
    return float(ends[0] - ends[1]) / (2 * size)


def test_the_soft_sign_knows_no_scale_and_prefers_the_right_signs(generator: torch.Generator) -> None:
    found, distance = gradients(generator), soft_sign_cosine(0.1)
    shared = tuple(g.sign() for g in found)
    value, _ = distance(found, shared)
    assert 0 < float(value) < 0.1 < float(engine.cosine(found, shared)[0])
    for scales in ((1e3, 1e3), (1e-3, 10.0)):  # in every tensor by itself
        rescaled = tuple(k * g for k, g in zip(scales, found, strict=True))
        assert float(distance(rescaled, shared)[0]) == pytest.approx(float(value), rel=1e-4)
    assert float(distance(tuple(-g for g in found), shared)[0]) > 1.9
    wrong = (found[0].clone(), found[1])
    wrong[0][:4] *= -1
    assert float(distance(wrong, shared)[0]) > float(value) + 0.05


def test_the_cotangent_of_the_soft_sign(generator: torch.Generator) -> None:
    found = tuple(g.double() for g in gradients(generator))
    shared = tuple(torch.randn(g.shape, generator=generator).double().sign() for g in found)
    _, cotangent = soft_sign_cosine(0.5)(found, shared)
    along = tuple(torch.randn(g.shape, generator=generator).double() * g.abs().mean() for g in found)
    roots = [0.5 * g.square().mean().sqrt() for g in found]

    def fixed(candidate: Gradients, shared: Gradients) -> tuple[torch.Tensor, Gradients]:
        return engine.cosine(tuple((c / r).tanh() for c, r in zip(candidate, roots, strict=True)), shared)

    wanted = slope(fixed, found, shared, along, 1e-5)
    assert float(engine.inner(cotangent, along)) == pytest.approx(wanted, rel=1e-4)


def test_a_dead_units_zero_is_matched(generator: torch.Generator) -> None:
    shared: Gradients = (torch.tensor([1.0, -1.0, 0.0, 0.0]),)
    dead, alive = (torch.tensor([2.0, -1.0, 0.0, 0.0]),), (torch.tensor([2.0, -1.0, 1.5, 1.5]),)
    distance = soft_sign_cosine(0.1)
    assert float(distance(dead, shared)[0]) < 1e-3
    assert float(distance(alive, shared)[0]) > 0.2
    value, (cotangent,) = distance((torch.zeros(4),), shared)  # no candidate gradient at all: no NaN from its scale
    assert bool(value.isfinite())
    assert bool(cotangent.isfinite().all())


def test_the_step_is_read_off_the_update(generator: torch.Generator) -> None:
    gradient = torch.randn(2000, generator=generator)
    shared = quantise(gradient, 16, generator)
    assert float(step_of(shared)) == pytest.approx(float(gradient.norm()) / 16, rel=1e-5)
    assert float(step_of(torch.zeros(3))) == float("inf")
    assert bool(step_of(torch.tensor([torch.nan, 1.0])).isnan())


def test_the_rounding_error_by_hand() -> None:
    shared: Gradients = (torch.tensor([2.0, -2.0, 2.0, 0.0]),)  # of step 2
    candidate: Gradients = (torch.tensor([0.6, -2.6, 1.6, 0.0]),)
    first = (0.3 + 1.3 + 0.8) / (0.09 + 1.69 + 0.64)  # the scale by plain least squares, at which variances are taken
    placed = torch.tensor([0.3, 1.3, 0.8, 0.0])
    fractions = (first * placed).frac()
    weights = 1 / (fractions * (1 - fractions)).clamp_min(LEAST_VARIANCE)
    assert weights.tolist().count(1 / LEAST_VARIANCE) == 1  # the entry that is on a level
    wanted = min(
        float((weights * (k * placed - torch.tensor([1.0, 1.0, 1.0, 0.0])).square()).mean())
        for k in torch.linspace(0.5, 1.5, 10_001)
    )
    assert float(rounding_error(candidate, shared)[0]) == pytest.approx(wanted, rel=1e-5)


def test_the_truth_errs_by_one_variance_and_others_by_more(generator: torch.Generator) -> None:
    truth = gradients(generator)
    shared = tuple(quantise(g, 16, generator) for g in truth)
    value = float(rounding_error(truth, shared)[0])
    assert 0.5 < value < 1.5  # E(g̃ − g)²/v = 1
    assert float(rounding_error(tuple(7 * g for g in truth), shared)[0]) == pytest.approx(value, rel=1e-3)
    small_layer_wrong = (torch.randn(20, 5, generator=generator) * 1e-3, truth[1])
    assert float(rounding_error(small_layer_wrong, shared)[0]) > 2 * value
    assert float(engine.cosine(small_layer_wrong, shared)[0]) == pytest.approx(
        float(engine.cosine(truth, shared)[0]), abs=1e-3
    )  # which plain matching cannot see


def test_the_cotangent_of_the_rounding_error(generator: torch.Generator) -> None:
    # So near to the levels that every variance is the least one, and does not move.
    levels = tuple(torch.randint(-3, 4, (20, 5), generator=generator).double() for _ in range(2))
    shared = tuple(step * q for step, q in zip((1e-3, 2.0), levels, strict=True))
    noise = tuple(0.01 * torch.randn(20, 5, generator=generator).double() for _ in range(2))
    found = tuple(0.7 * step * (q + e) for step, q, e in zip((1e-3, 2.0), levels, noise, strict=True))
    _, cotangent = rounding_error(found, shared)
    for along in ((1e-3 * noise[1], noise[0]), (1e-3 * noise[1], 0 * noise[0])):
        wanted = slope(rounding_error, found, shared, along, 1e-3)
        assert float(engine.inner(cotangent, along)) == pytest.approx(wanted, rel=1e-4)


def test_a_tensor_of_which_nothing_was_shared_counts_nothing(generator: torch.Generator) -> None:
    truth = gradients(generator)
    shared = (torch.zeros(20, 5), quantise(truth[1], 16, generator))
    value, cotangent = rounding_error(truth, shared)
    assert bool(value.isfinite())
    assert float(cotangent[0].abs().max()) == 0
    assert bool(cotangent[1].isfinite().all())


@pytest.mark.parametrize(
    ("spec", "attack"),
    [
        ("sign", SignMatching(steps=80)),
        ("qsgd", QuantisationAware(steps=80)),
        ("qsgd,clip:max_norm=0.1", QuantisationAware(steps=80)),
    ],
    ids=["sign", "qsgd", "qsgd and clip"],
)
def test_it_sees_more_than_plain_matching(spec: str, attack: Attack) -> None:
    model, private = network(), records(3, SHAPE, 10, seed=4)
    update = shared_update(model, private, defense=parse_defense(spec), classes=10)
    found = attack(model, update, torch.Generator().manual_seed(0))
    assert found.statuses == ("converged",) * 3
    assert found.labels is not None
    assert found.labels.flatten().tolist() == private.labels.tolist()
    plain = max(
        quality(private, InvertingGradients(steps=80, tv=tv)(model, update, torch.Generator().manual_seed(0)))
        for tv in (1e-2, 1e-1)
    )
    assert quality(private, found) > plain + 3
    assert quality(private, found) > constant(private) + 3


@pytest.mark.parametrize("spec", ["sign-matching:steps=60", "quantisation-aware:steps=60"])
def test_a_batch_of_two_runs(spec: str, generator: torch.Generator) -> None:
    model, private = conv_model((1, 8, 8)), records(4, (1, 8, 8), 3, seed=2)
    defense = parse_defense("sign" if spec.startswith("sign") else "qsgd")
    found = parse_attack(spec)(model, shared_update(model, private, defense=defense, batch_size=2), generator)
    assert found.statuses == ("converged",) * 2
    assert found.images is not None
    assert found.images.shape == (2, 2, 1, 8, 8)


def test_a_softness_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="softness"):
        parse_attack("sign-matching:softness=0")
