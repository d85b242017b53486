"""Gaussian, Laplace and DP-SGD: identity at zero, the right standard deviation at every batch size, ε by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from leakaudit.defenses.dp_sgd import DPSGD
from leakaudit.defenses.gaussian import Gaussian
from leakaudit.defenses.laplace import Laplace
from leakaudit.protocol.accounting import epsilon
from leakaudit.protocol.client import defended_gradient
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel


def zeros() -> tuple[torch.Tensor, ...]:
    return torch.zeros(300, 200), torch.zeros(7), torch.zeros(())


@pytest.mark.parametrize("defense", [Gaussian(std=0), Laplace(scale=0), DPSGD(noise_multiplier=0, max_norm=1e9)])
def test_no_noise_is_the_identity(defense: Defense, generator: torch.Generator) -> None:
    gradients = (torch.randn(3, 4, 5, generator=generator), torch.randn(3, 6, generator=generator))
    mean = tuple(g.mean(0) for g in defense.transform_example_gradients(gradients, generator))
    after = defense.transform_update(mean, 3, generator)
    for before, now in zip(gradients, after, strict=True):
        assert torch.equal(before.mean(0), now)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("defense", "expected"),
    [
        (Gaussian(std=0.003), lambda batch: 0.003),
        (Gaussian(std=2.0), lambda batch: 2.0),
        (Laplace(scale=0.003), lambda batch: 0.003 * math.sqrt(2)),
        (Laplace(scale=2.0), lambda batch: 2.0 * math.sqrt(2)),
        (DPSGD(noise_multiplier=1.5, max_norm=0.4), lambda batch: 1.5 * 0.4 / batch),
        (DPSGD(noise_multiplier=0.1, max_norm=7.0), lambda batch: 0.1 * 7.0 / batch),
    ],
)
def test_empirical_standard_deviation(defense, expected, batch: int, generator: torch.Generator) -> None:
    noise = defense.transform_update(zeros(), batch, generator)
    sample = noise[0].flatten()
    # 60 000 draws: the standard error of a Laplace sample's deviation is 0.5 %, of a normal one's 0.3 %.
    assert float(sample.std()) == pytest.approx(expected(batch), rel=0.025)
    assert abs(float(sample.mean())) < 5 * expected(batch) / math.sqrt(sample.numel())
    assert [n.shape for n in noise] == [z.shape for z in zeros()]


def test_laplace_has_heavier_tails_than_gaussian(generator: torch.Generator) -> None:
    def kurtosis(x: torch.Tensor) -> float:
        return float((x**4).mean() / (x**2).mean() ** 2)

    assert kurtosis(Gaussian(std=1).transform_update(zeros(), 1, generator)[0]) == pytest.approx(3, abs=0.2)
    assert kurtosis(Laplace(scale=1).transform_update(zeros(), 1, generator)[0]) == pytest.approx(6, abs=1)


def test_noise_keeps_the_type_of_the_gradient(generator: torch.Generator) -> None:
    for defense in (Gaussian(), Laplace(), DPSGD()):
        (noisy,) = defense.transform_update((torch.zeros(4, dtype=torch.float64),), 1, generator)
        assert noisy.dtype == torch.float64


def test_dp_sgd_clips_each_example_as_a_float64_loop_does(generator: torch.Generator) -> None:
    gradients = tuple(torch.randn(5, *shape, generator=generator) for shape in ((4, 3), (6,), ()))
    gradients[0][2] *= 1e-3  # one example stays below the norm
    gradients[1][2] *= 1e-3
    gradients[2][2] = 0
    clipped = DPSGD(max_norm=0.7).transform_example_gradients(gradients, generator)
    for i in range(5):
        norm = math.sqrt(sum(float(v) ** 2 for g in gradients for v in g[i].double().flatten()))
        factor = min(1.0, 0.7 / norm)
        for before, after in zip(gradients, clipped, strict=True):
            torch.testing.assert_close(after[i].double(), before[i].double() * factor, rtol=1e-5, atol=1e-9)
    assert torch.equal(clipped[0][2], gradients[0][2])


def test_dp_sgd_of_a_zero_gradient_is_zero(generator: torch.Generator) -> None:
    (clipped,) = DPSGD().transform_example_gradients((torch.zeros(2, 3),), generator)
    assert torch.equal(clipped, torch.zeros(2, 3))


def test_dp_sgd_through_the_client_is_the_mean_of_clipped_gradients(generator: torch.Generator) -> None:
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)))
    loss = nn.CrossEntropyLoss()
    images, labels = torch.rand(4, 3, 2, 2, generator=generator), torch.tensor([0, 1, 2, 0])
    found = defended_gradient(model, loss, images, labels, DPSGD(noise_multiplier=0, max_norm=0.1), generator)
    expected = [torch.zeros_like(g) for g in found]
    for i in range(4):
        each = mean_gradient(model, loss, images[i : i + 1], labels[i : i + 1])
        norm = math.sqrt(sum(float(g.double().pow(2).sum()) for g in each))
        for total, g in zip(expected, each, strict=True):
            total += g * min(1.0, 0.1 / norm) / 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_epsilon_is_what_opacus_accounts() -> None:
    from opacus.accountants import PRVAccountant, RDPAccountant

    facts = DPSGD(noise_multiplier=1.1, delta=1e-6).facts(records=400, batch_size=8, steps=60)
    stated = {}
    for name, kind in (("RDP", RDPAccountant), ("PRV", PRVAccountant)):
        accountant = kind()
        for _ in range(60):
            accountant.step(noise_multiplier=1.1, sample_rate=0.02)
        stated[name] = accountant.get_epsilon(1e-6)
    assert facts["epsilon"] == pytest.approx(stated["PRV"], rel=1e-9)
    assert stated["PRV"] < stated["RDP"]
    assert "PRV accountant" in str(facts["epsilon assumes"])
    assert facts["delta"] == 1e-6


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8, 1e-10, 1e-14])
@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (2.0, 50), (10.0, 3), (0.4, 2), (50.0, 10), (0.1, 2)])
def test_epsilon_is_never_below_the_exact_one_of_the_gaussian_mechanism(sigma: float, steps: int, delta: float) -> None:
    # δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) with μ = √T/σ without subsampling: Balle and Wang 2018, theorem 8.
    mu = math.sqrt(steps) / sigma

    def beyond(e: float) -> float:
        return float(norm.cdf(mu / 2 - e / mu) - math.exp(min(700.0, e + norm.logcdf(-mu / 2 - e / mu)))) - delta

    exact = brentq(beyond, 0, 1000, xtol=1e-6) if beyond(0) > 0 else 0.0
    found, by = epsilon(sigma, 1.0, steps, delta)
    assert exact <= found <= 1.6 * exact + 0.12
    assert by == ("PRV" if delta >= 1e-10 else "RDP")


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "composed"),
    [  # by Google's dp-accounting 0.6, which composes the loss's distribution another way, pessimistically
        (1.0, 0.01, 1000, 1e-5, 1.82824),
        (2.0, 0.016, 1000, 1e-8, 1.46675),
        (0.5, 0.05, 300, 1e-10, 47.45989),
        (4.0, 0.00033, 10000, 1e-10, 0.04963),
        (0.8, 0.001, 100000, 1e-5, 2.57556),
    ],
)
def test_epsilon_of_subsampled_steps_by_another_library(
    sigma: float, rate: float, steps: int, delta: float, composed: float
) -> None:
    assert composed <= epsilon(sigma, rate, steps, delta)[0] <= 1.001 * composed + 0.015


def test_epsilon_grows_with_rate_and_steps_and_is_never_negative() -> None:
    assert epsilon(2.0, 0.01, 10, 1e-5)[0] < epsilon(2.0, 1.0, 10, 1e-5)[0]
    assert epsilon(2.0, 0.5, 20, 1e-5)[0] > epsilon(2.0, 0.5, 10, 1e-5)[0]
    assert epsilon(50.0, 1.0, 1, 0.1)[0] == 0.0  # opacus states a negative one


@pytest.mark.parametrize("sigma", [1e-3, 0.05, 1e6])
def test_where_a_tight_epsilon_takes_gigabytes_or_minutes_the_loose_one_is_stated(sigma: float) -> None:
    assert epsilon(sigma, 0.1, 5, 1e-5)[1] == "RDP"


def test_facts_without_noise_promise_nothing() -> None:
    assert "unbounded" in str(DPSGD(noise_multiplier=0).facts(100, 10, 10)["epsilon"])


def test_a_batch_of_all_records_has_sampling_rate_one() -> None:
    assert DPSGD().facts(4, 8, 3)["epsilon"] == pytest.approx(epsilon(1.0, 1.0, 3, 1e-5)[0])
