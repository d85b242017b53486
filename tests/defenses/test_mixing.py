"""MixUp and InstaHide are the sums they claim to be, of distinct records, with labels mixed by the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from leakaudit.defenses.instahide import InstaHide, flipped
from leakaudit.defenses.mixup import Mixup, components, mixed, mixing_weights, room
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import chain
from leakaudit.protocol.target import Records


def one_hot_records(count: int) -> tuple[Tensor, Tensor]:
    """Return records whose pixel i is 1 in record i alone, and whose label is their own: mixtures show weights."""
    return torch.eye(count).view(count, 1, 1, count), torch.eye(count)


@pytest.mark.parametrize(("parts", "most"), [(2, 1.0), (4, 0.65), (4, 0.4), (1, 1.0)])
def test_weights_are_uniform_on_the_capped_simplex(parts: int, most: float, generator: torch.Generator) -> None:
    weights = mixing_weights(20_000, parts, most, generator)
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000))
    assert float(weights.min()) >= 0
    assert float(weights.max()) <= most
    torch.testing.assert_close(weights.mean(0), torch.full((parts,), 1 / parts), atol=0.01, rtol=0)
    if parts == 2:  # Beta(1, 1): the variance of a uniform number
        assert float(weights[:, 0].var()) == pytest.approx(1 / 12, rel=0.03)


@pytest.mark.parametrize("most", [0.65, 0.4, 0.3])
def test_room_is_the_share_of_draws_that_fit(most: float, generator: torch.Generator) -> None:
    free = mixing_weights(50_000, 4, 1.0, generator)
    assert room(4, most) == pytest.approx(float((free.amax(1) <= most).float().mean()), abs=0.01)


@pytest.mark.parametrize("count", [4, 5, 40])
def test_a_record_comes_first_and_its_partners_are_others(count: int, generator: torch.Generator) -> None:
    found = components(count, 4, generator)
    assert torch.equal(found[:, 0], torch.arange(count))
    assert all(len(set(row)) == 4 for row in found.tolist())
    assert set(found.flatten().tolist()) == set(range(count))


def test_partners_repeat_where_there_are_too_few(generator: torch.Generator) -> None:
    assert components(2, 4, generator).tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert components(1, 4, generator).tolist() == [[0, 0, 0, 0]]


def test_every_partner_is_as_likely(generator: torch.Generator) -> None:
    counts = torch.stack([components(6, 3, generator)[0, 1:] for _ in range(3000)]).flatten().bincount(minlength=6)
    assert counts[0] == 0
    torch.testing.assert_close(counts[1:] / 6000, torch.full((5,), 0.2), atol=0.02, rtol=0)


def test_pictures_and_labels_are_mixed_by_the_same_weights(generator: torch.Generator) -> None:
    images, labels = one_hot_records(12)
    pictures, told = mixed(images, labels, parts=4, most=0.65, generator=generator)
    torch.testing.assert_close(pictures.view(12, 12), told)
    assert ((told > 0).sum(1) == 4).all()
    assert float(told.max()) <= 0.65
    assert (told.diagonal() > 0).all()  # the record that is replaced is in its mixture


def test_mixing_is_linear_and_stays_in_range(generator: torch.Generator) -> None:
    images, labels = torch.rand(9, 3, 4, 5, generator=generator), torch.arange(9) % 3
    defense = Mixup(classes=3)
    pictures, told = defense.transform_records(images, labels, torch.Generator().manual_seed(1))
    doubled, again = defense.transform_records(images / 2, labels, torch.Generator().manual_seed(1))
    torch.testing.assert_close(pictures / 2, doubled)
    assert torch.equal(told, again)
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1


def test_instahide_is_mixup_with_fair_random_signs(generator: torch.Generator) -> None:
    images, labels = torch.rand(40, 3, 8, 8, generator=generator), torch.arange(40) % 3
    plain, told = Mixup(classes=3).transform_records(images, labels, torch.Generator().manual_seed(1))
    hidden, also = InstaHide(classes=3).transform_records(images, labels, torch.Generator().manual_seed(1))
    assert torch.equal(told, also)
    torch.testing.assert_close((hidden - 0.5).abs(), (plain - 0.5).abs())
    turned = ((hidden - 0.5) * (plain - 0.5) < 0).float()
    assert float(turned.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(turned.mean((0, 2, 3)).sub(0.5).abs().max()) < 0.05  # every channel by itself
    assert 0 <= float(hidden.min()) <= float(hidden.max()) <= 1


def test_signs_alone_leave_the_labels(generator: torch.Generator) -> None:
    images, labels = torch.rand(5, 1, 4, 4, generator=generator), torch.tensor([0, 1, 2, 1, 0])
    hidden, told = InstaHide(k=1, max_weight=1.0, classes=3).transform_records(images, labels, generator)
    assert torch.equal(told, torch.eye(3)[labels])
    torch.testing.assert_close((hidden - 0.5).abs(), (images - 0.5).abs())
    assert flipped(torch.full((2, 1, 3, 3), 0.5), generator).eq(0.5).all()


@pytest.mark.parametrize("cls", [Mixup, InstaHide])
def test_an_unfitted_one_says_so(cls: type[Mixup] | type[InstaHide], generator: torch.Generator) -> None:
    with pytest.raises(RuntimeError, match="call fit"):
        cls().transform_records(torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), generator)
    assert cls().renewable


def test_mixing_twice_takes_mixed_labels(generator: torch.Generator) -> None:
    twice = chain(Mixup(classes=3), InstaHide(classes=3))
    found = release(twice, Records(torch.rand(8, 1, 4, 4, generator=generator), torch.arange(8) % 3), generator)
    torch.testing.assert_close(found.labels.sum(1), torch.ones(8))
    assert twice.renewable


def test_the_settings_that_leave_no_room_are_refused() -> None:
    assert room(4, 0.25) == pytest.approx(0, abs=1e-9)
    for settings in ({"max_weight": 0.0}, {"max_weight": 0.26}, {"k": 2, "max_weight": 0.5}):
        with pytest.raises(ValueError, match="max_weight"):
            replace(Mixup(), **settings)  # type: ignore[arg-type]
