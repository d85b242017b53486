"""A defense at a share of its strength: the defense at 1, the identity at 0, in between a line; for every defense."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from leakaudit.protocol.client import defended_gradient, release
from leakaudit.protocol.defense import Chain, Defense, chain, replaces_records
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import soft
from leakaudit.protocol.registry import defenses, parse_defense
from leakaudit.protocol.target import Records
from leakaudit.protocol.weakened import weakened
from leakaudit.scene.provenance import settings
from tests.defenses.test_every_defense import NAMES, fitted, target

CHAINS = ("mixup,clip:max_norm=0.1", "prune,gaussian")
CLASSES = 4


def made(spec: str) -> Defense:
    return fitted(spec) if spec in NAMES else parse_defense(spec).fit(target(), rng())


def rng(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(left: Gradients, right: Gradients) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def update(defense: Defense, released: Records, batch: int = 3) -> Gradients:
    loss = nn.CrossEntropyLoss()
    return defended_gradient(target().model, loss, released.images[:batch], released.labels[:batch], defense, rng())


def stage_inputs(count: int = 3) -> tuple[Gradients, Gradients]:
    """Return an update and gradients of `count` records as a client computes them, of the target's shapes."""
    g = rng(9)
    shapes = [p.shape for p in target().model.parameters()]
    return tuple(torch.randn(s, generator=g) for s in shapes), tuple(
        torch.randn(count, *s, generator=g) for s in shapes
    )


@pytest.mark.parametrize("spec", [*NAMES, *CHAINS])
def test_the_whole_share_is_the_defense_and_none_lets_everything_pass(spec: str) -> None:
    defense, private = made(spec), target().private
    assert weakened(defense, 1) is defense
    off = weakened(defense, 0)
    passed = release(off, private, rng())
    assert torch.equal(passed.images, private.images)
    assert torch.equal(passed.labels, private.labels)
    assert same(update(off, private), update(Defense(), private))
    mean, each = stage_inputs()
    assert same(off.transform_update(mean, 3, rng()), mean)
    assert same(off.transform_example_gradients(each, rng()), each)


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("spec", [*NAMES, *CHAINS])
def test_in_between_every_stage_is_on_the_line(spec: str, share: float) -> None:
    defense, private = made(spec), target().private
    half = weakened(defense, share)
    full = release(defense, private, rng())
    found = release(half, private, rng())
    torch.testing.assert_close(found.images, private.images + share * (full.images - private.images))
    if full.labels.is_floating_point():
        wanted = soft(private.labels, CLASSES) * (1 - share) + share * full.labels
        torch.testing.assert_close(found.labels, wanted)
        torch.testing.assert_close(found.labels.sum(1), torch.ones(len(private)))
    mean, each = stage_inputs()
    for before, after, between in (
        (mean, defense.transform_update(mean, 3, rng()), half.transform_update(mean, 3, rng())),
        (each, defense.transform_example_gradients(each, rng()), half.transform_example_gradients(each, rng())),
    ):
        for b, a, m in zip(before, after, between, strict=True):
            torch.testing.assert_close(m, b + share * (a - b))


@pytest.mark.parametrize("spec", [*NAMES, *CHAINS])
def test_it_says_of_itself_what_the_defense_says_and_proves_nothing(spec: str) -> None:
    defense = made(spec)
    half = weakened(defense, 0.5)
    assert half.needs_example_gradients == defense.needs_example_gradients
    assert replaces_records(half) == replaces_records(defense)
    pictures = target().private.images[:2]
    assert half.touched(target().model, pictures) == defense.touched(target().model, pictures)
    assert not half.renewable
    assert half.facts(24, 1, 100) == {}
    assert {g.kind for g in half.guarantees(24, 1, 100, 50)} == {"not-bounded"}
    assert settings(half) == {"share": 0.5}
    assert half.name not in defenses()
    again = copy.deepcopy(half)
    assert (again.adaptive, replaces_records(again)) == (half.adaptive, replaces_records(half))
    parts = defense.parts if isinstance(defense, Chain) else (defense,)
    assert half.adaptive == tuple(spec for part in parts for spec in part.adaptive)


def test_a_batch_that_is_observed_stays_observed() -> None:
    defense, private = made("soteria"), target().private
    full, none, half = (update(weakened(defense, share), private) for share in (1, 0, 0.5))
    assert not same(full, none)
    for a, b, m in zip(full, none, half, strict=True):
        torch.testing.assert_close(m, (a + b) / 2)


@dataclass(frozen=True, kw_only=True)
class Wild(Defense):
    """Breaks everything, and calls each record by the next class's name."""

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.full_like(images, torch.nan), (labels + 1) % CLASSES

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(torch.full_like(g, torch.inf) for g in gradients)


def test_what_is_not_finite_passes_none_of_it_on_at_no_share() -> None:
    off, (mean, _) = weakened(chain(Wild(), made("gaussian")), 0), stage_inputs()
    private = target().private
    assert torch.equal(release(off, private, rng()).images, private.images)
    assert same(off.transform_update(mean, 1, rng()), mean)


def test_labels_that_become_others_are_taken_over_as_often_as_the_share_says() -> None:
    labels = torch.arange(4000) % CLASSES
    _, found = weakened(Wild(), 0.3).transform_records(torch.zeros(4000, 1, 1, 1), labels, rng())
    taken = found == (labels + 1) % CLASSES
    assert bool((taken | (found == labels)).all())
    assert abs(float(taken.float().mean()) - 0.3) < 0.03


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        weakened(Defense(), share)
