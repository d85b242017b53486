"""What sign and QSGD share: the formulas, unbiasedness, the levels, the published bound on the variance."""

from __future__ import annotations

import math

import pytest
import torch

from leakaudit.defenses.qsgd import Qsgd, quantise
from leakaudit.defenses.sign import Sign
from leakaudit.protocol.registry import parse_defense

DRAWS = 4000


def test_sign_shares_the_sign_and_nothing_else(generator: torch.Generator) -> None:
    gradients = (torch.tensor([[0.3, -1e-30], [0.0, -7.0]]), torch.tensor(5.0), torch.zeros(2))
    shared = Sign().transform_update(gradients, 1, generator)
    assert [s.tolist() for s in shared] == [[[1, -1], [0, -1]], 1, [0, 0]]
    assert [s.dtype for s in shared] == [torch.float32] * 3
    scaled = Sign().transform_update(tuple(1e-6 * g for g in gradients[1:]), 1, generator)
    assert [s.tolist() for s in scaled] == [1, [0, 0]]


@pytest.mark.parametrize("levels", [1, 2, 16, 255])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e6])
def test_every_entry_is_one_of_the_two_levels_around_it(levels: int, scale: float, generator: torch.Generator) -> None:
    gradient = scale * torch.randn(40, 50, generator=generator)
    shared = quantise(gradient, levels, generator)
    step = float(gradient.double().norm()) / levels
    places = shared.double() / step
    assert float((places - places.round()).abs().max()) < 1e-4
    gap = places - gradient.double() / step
    assert float(gap.abs().max()) < 1 + 1e-4
    assert float(gap.abs().max()) > 0.4  # it rounds at random, not to the nearest
    assert bool((places.round() * gradient >= 0).all())


@pytest.mark.parametrize("levels", [1, 4, 16])
def test_the_expectation_is_the_gradient(levels: int, generator: torch.Generator) -> None:
    gradient = torch.tensor([3.0, -2.0, 0.5, 0.01, 0.0, -0.3])
    draws = torch.stack([quantise(gradient, levels, generator) for _ in range(DRAWS)])
    step = float(gradient.norm()) / levels
    assert float((draws.mean(0) - gradient).abs().max()) < 5 * 0.5 * step / math.sqrt(DRAWS)  # five standard errors


@pytest.mark.parametrize("levels", [1, 4, 16, 64])
@pytest.mark.parametrize("entries", [4, 100, 2000])
def test_the_variance_keeps_to_the_published_bound(entries: int, levels: int, generator: torch.Generator) -> None:
    gradient = torch.randn(entries, generator=generator)
    errors = torch.stack([(quantise(gradient, levels, generator) - gradient).square().sum() for _ in range(200)])
    bound = min(entries / levels**2, math.sqrt(entries) / levels) * float(gradient.square().sum())
    spread = 5 * float(errors.std()) / math.sqrt(len(errors))
    assert float(errors.mean()) < bound + spread
    fraction = gradient.abs() * (levels / gradient.norm()) % 1
    exact = float((fraction * (1 - fraction)).sum()) * float(gradient.norm() / levels) ** 2
    assert float(errors.mean()) == pytest.approx(exact, abs=spread + 1e-6)


def test_every_tensor_has_its_own_norm(generator: torch.Generator) -> None:
    small, large = 1e-6 * torch.randn(300, generator=generator), 1e6 * torch.randn(300, generator=generator)
    shared = Qsgd().transform_update((small, large), 1, generator)
    for before, after in zip((small, large), shared, strict=True):
        assert float(after.abs()[after != 0].min()) == pytest.approx(float(before.norm()) / 16, rel=1e-4)


def test_one_entry_and_no_length_are_exact(generator: torch.Generator) -> None:
    gradients = (torch.tensor([-0.7]), torch.tensor(3.0), torch.zeros(4), torch.zeros(0))
    for before, after in zip(gradients, Qsgd().transform_update(gradients, 1, generator), strict=True):
        torch.testing.assert_close(after, before)


def test_a_gradient_that_is_not_finite_stays_so(generator: torch.Generator) -> None:
    (shared,) = Qsgd().transform_update((torch.tensor([1.0, torch.nan]),), 1, generator)
    assert bool(shared.isnan().any())


def test_the_generator_alone_decides(generator: torch.Generator) -> None:
    gradient = (torch.randn(500, generator=generator),)
    first, again, other = (Qsgd().transform_update(gradient, 1, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_an_entry_tells_at_most() -> None:
    assert parse_defense("sign").facts(10, 1, 5)["bits per parameter, at most"] == 1.58
    assert parse_defense("qsgd:levels=1").facts(10, 1, 5)["bits per parameter, at most"] == 1.58
    assert parse_defense("qsgd").facts(10, 1, 5)["bits per parameter, at most"] == 5.04
