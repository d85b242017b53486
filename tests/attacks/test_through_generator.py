"""Matching through what replaces records finds the private ones, where a slope passes, and says so where none does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from leakaudit.attacks._optimise import total_variation
from leakaudit.attacks.inverting_gradients import InvertingGradients
from leakaudit.attacks.through_generator import ThroughGenerator, replaced
from leakaudit.engine.matching import cosine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.gradients import Gradients, mean_gradient
from leakaudit.protocol.registry import parse_defense
from leakaudit.score.metrics import psnr
from tests.attacks.attack_scenes import Shifted, conv_model, dense_model, records, shared_update
from tests.attacks.test_decoder import Unrelated

SHAPE = (1, 8, 8)
PRIVATE = records(4, SHAPE, 3, seed=1)


@dataclass(frozen=True, kw_only=True)
class Faint(Defense):
    """x̃ = share·(1 − x) + (1 − share)·noise, a generator that lets `share` of the record through."""

    name: ClassVar[str] = "faint"
    replaces_records: ClassVar[bool] = True

    share: float = 0.8

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.rand(images.shape, generator=generator)
        return self.share * (1 - images) + (1 - self.share) * noise, labels


def scene(defense: Defense) -> SharedUpdate:
    return shared_update(conv_model(SHAPE), PRIVATE, defense=defense)


def run(attack: InvertingGradients, update: SharedUpdate) -> Reconstruction:
    return attack(conv_model(SHAPE), update, torch.Generator().manual_seed(0))


def median_psnr(found: Reconstruction) -> float:
    assert found.images is not None
    return float(psnr(PRIVATE.images, found.images[:, 0]).median())


@pytest.mark.parametrize("spec", ["none", "gaussian:std=0.001"])
@pytest.mark.parametrize("defense", [Shifted(), Faint()])
def test_it_finds_what_plain_matching_finds_replaced(defense: Defense, spec: str) -> None:
    update = scene(chain(defense, parse_defense(spec)))
    plain = median_psnr(run(InvertingGradients(steps=120), update))
    found = run(ThroughGenerator(steps=120), update)
    assert found.statuses == ("converged",) * 4
    assert median_psnr(found) > plain + 5
    assert median_psnr(found) > 15


def test_value_and_slope_are_those_of_the_expectation(generator: torch.Generator) -> None:
    model, defense = dense_model(SHAPE), Faint()  # smooth: a kink's jump is no slope
    update = shared_update(model, PRIVATE, defense=defense)
    attack = ThroughGenerator(draws=3)
    x = 0.1 + 0.8 * torch.rand((2, 1, *SHAPE), generator=generator)
    labels, rows = PRIVATE.labels[:2, None], torch.arange(2)
    match = attack.matching(model, update, cosine, torch.Generator().manual_seed(5))
    values, slopes = match(x, labels, rows)
    probe = torch.Generator().manual_seed(5)
    seeds = torch.randint(2**62, (3,), generator=probe).tolist()

    def objective(picture: Tensor) -> float:
        shown, told = replaced(defense, picture, labels[0], seeds, probe)
        each = [mean_gradient(model, update.loss, s[None], t[None]) for s, t in zip(shown, told, strict=True)]
        mean: Gradients = tuple(torch.stack(column).mean(0) for column in zip(*each, strict=True))
        return float(cosine(mean, tuple(g[0] for g in update.gradients))[0])

    assert float(values[0]) == pytest.approx(objective(x[0]), abs=1e-5)
    step = 0.01 * torch.randn(x[0].shape, generator=generator)
    change = objective(x[0] + step) - objective(x[0] - step)
    assert change == pytest.approx(2 * float((slopes[0] * step).sum()), rel=0.02)


def test_where_almost_nothing_passes_the_prior_decides() -> None:
    found = run(ThroughGenerator(steps=60), scene(Faint(share=0.0)))
    assert found.statuses == ("converged",) * 4
    assert found.images is not None
    assert float(total_variation(found.images)[0].max()) < 0.2 * float(
        total_variation(PRIVATE.images[:, None])[0].min()
    )


@pytest.mark.parametrize(
    ("defense", "reason"),
    [(Unrelated(), "no slope passes through"), (parse_defense("gaussian"), "does not replace records")],
)
def test_it_says_where_there_is_nothing_to_match_through(defense: Defense, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        run(ThroughGenerator(steps=5), scene(defense))


def test_draws_are_the_same_at_every_step() -> None:
    update = scene(Faint(share=0.5))
    match = ThroughGenerator().matching(conv_model(SHAPE), update, cosine, torch.Generator().manual_seed(5))
    x, labels, rows = PRIVATE.images[:, None], PRIVATE.labels[:, None], torch.arange(4)
    first, again = match(x, labels, rows)[0], match(x[1:3], labels[1:3], rows[1:3])[0]
    torch.testing.assert_close(first[1:3], again)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        replace(ThroughGenerator(), draws=0)
