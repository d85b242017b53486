"""The transforms do what their names say, and the search picks sequences that score well on records it did not see."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from leakaudit.defenses._augmentations import affine, applied, equalize, library
from leakaudit.defenses.ats import ATS, accuracy_score, privacy_score
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.target import PixelModel, Records, Target


def picture(shape: tuple[int, ...] = (4, 3, 9, 8), seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def target() -> Target:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 3))
    sets = [Records(picture((24, 1, 8, 8), seed), torch.arange(24) % 3) for seed in range(3)]
    return Target("random", PixelModel(network), nn.CrossEntropyLoss(), *sets, classes=("a", "b", "c"))


@pytest.mark.parametrize("shape", [(4, 3, 9, 8), (2, 1, 5, 7), (1, 5, 1, 1)])
@pytest.mark.parametrize("name", list(library()))
def test_every_transform_keeps_shape_and_range_and_treats_records_by_themselves(
    name: str, shape: tuple[int, ...]
) -> None:
    x = picture(shape)
    found = applied((name,), x)
    assert found.shape == x.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    torch.testing.assert_close(applied((name,), x[:1]), found[:1])
    assert applied((name,), x[:0]).shape == x[:0].shape


def test_there_are_fifty_and_each_does_something() -> None:
    assert len(library()) == 50
    x = picture()
    assert all(float((applied((name,), x) - x).abs().max()) > 1e-3 for name in library() if name != "autocontrast")
    assert float(applied(("autocontrast",), 0.2 + x / 2).max()) == pytest.approx(1)


def test_what_the_transforms_are() -> None:
    x = picture((1, 1, 8, 8))
    torch.testing.assert_close(affine(x), x)
    torch.testing.assert_close(affine(x, across=1 / 4)[..., 2:], x[..., :-2])
    assert affine(x, across=1 / 4)[..., :2].eq(0.5).all()
    torch.testing.assert_close(affine(x, angle=90), x.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    wide = picture((1, 1, 5, 9))
    torch.testing.assert_close(affine(wide, angle=180), wide.flip(2, 3), atol=1e-5, rtol=0)
    turned, square = affine(wide, angle=90)[0, 0, :, 2:7], wide[0, 0, :, 2:7]
    torch.testing.assert_close(turned, square.rot90(1), atol=1e-5, rtol=0)  # by pixels, not by shares of the sides
    torch.testing.assert_close(applied(("invert", "invert"), x), x)
    assert len((applied(("posterize 2",), x) * 255).round().unique()) <= 4
    torch.testing.assert_close(applied(("solarize 0.4",), x), torch.where(x >= 0.4, 1 - x, x))
    ranks = equalize(x).flatten().argsort()
    assert torch.equal(ranks, x.flatten().argsort())
    torch.testing.assert_close(equalize(x).flatten().sort().values, torch.linspace(0, 1, 64))
    grey = x.expand(1, 3, 8, 8)
    torch.testing.assert_close(applied(("saturation 0.1",), grey), grey)
    assert float(applied(("contrast 0.3",), x).std()) == pytest.approx(0.3 * float(x.std()), rel=1e-4)
    assert float(applied(("sharpness 0.1",), x).diff().abs().mean()) < float(x.diff().abs().mean())


@pytest.mark.parametrize("name", list(library()))
def test_slopes_pass_through(name: str) -> None:
    x = picture().requires_grad_(True)
    (slope,) = torch.autograd.grad(applied((name,), x).square().sum(), x)
    assert slope.isfinite().all()
    assert slope.abs().sum() > 0


def test_the_privacy_score_is_the_mean_cosine_along_the_path() -> None:
    one = target()
    records, noise = one.private[:1], picture((1, 1, 8, 8), 9)

    def gradient(x: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in mean_gradient(one.model, one.loss, x, records.labels)])

    wanted = gradient(1 - records.images)
    path = [noise, 0.5 * noise + 0.5 * (1 - records.images)]
    by_hand = sum(float(torch.cosine_similarity(gradient(x), wanted, 0)) for x in path) / 2
    assert privacy_score(one, ("invert",), records, noise, 2) == pytest.approx(by_hand, abs=1e-5)


def test_the_accuracy_score_prefers_records_that_a_network_tells_apart() -> None:
    one = target()
    alike = one.private.images[:1] + 0.001 * picture((8, 1, 8, 8), 5)
    assert accuracy_score(one.model, one.private.images[:8]) > accuracy_score(one.model, alike)


def test_the_search_keeps_the_best_and_only_them() -> None:
    """What is kept scores lower than the average candidate, on records and noise that the search did not see."""
    one = target()
    search = ATS(candidates=24, policies=2, pictures=6, points=3, useful=1.0)
    best = search.fit(one, torch.Generator().manual_seed(0))
    everything = replace(search, policies=24).fit(one, torch.Generator().manual_seed(0))
    assert isinstance(best, ATS)
    assert isinstance(everything, ATS)
    assert best.chosen == everything.chosen[:2]  # best first
    noise = picture((12, 1, 8, 8), 11)
    scores = [privacy_score(one, policy, one.test[:12], noise, 3) for policy in everything.chosen]
    assert sum(scores[:2]) / 2 < sum(scores) / 24
    assert best.facts(1, 1, 1)["policies"] == "; ".join(", ".join(p) for p in best.chosen)


def test_useless_candidates_do_not_compete() -> None:
    one = target()
    half = ATS(candidates=10, policies=5, pictures=1, points=1, useful=0.5).fit(one, torch.Generator().manual_seed(3))
    everything = ATS(candidates=10, policies=10, pictures=1, points=1, useful=1.0).fit(
        one, torch.Generator().manual_seed(3)
    )
    assert isinstance(half, ATS)
    assert isinstance(everything, ATS)
    assert set(half.chosen) <= set(everything.chosen)
    assert len(half.chosen) == 5


def test_every_record_is_under_one_of_the_policies_and_labels_stay(generator: torch.Generator) -> None:
    x, labels = picture((40, 1, 8, 8)), torch.arange(40) % 3
    defense = ATS(chosen=(("invert",), ("rotate 30", "contrast 0.3")))
    found, told = defense.transform_records(x, labels, generator)
    assert torch.equal(told, labels)
    each = [applied(policy, x) for policy in defense.chosen]
    mine = torch.stack([(found == e).flatten(1).all(1) for e in each])
    assert (mine.sum(0) == 1).all()
    assert mine.sum(1).min() >= 8
    assert not defense.renewable
    with pytest.raises(RuntimeError, match="not been fitted"):
        ATS().transform_records(x, labels, generator)
