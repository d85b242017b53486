"""Failures planted anew: copies among many pictures, stuffing under augmentation, stale teachers in a pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score import copies, diagnosis
from leakaudit.score.utility import Senders, train, utility

MANY, SIDE = 2000, 32


def fields(count: int, seed: int) -> Tensor:
    """Smooth colour pictures, (N, 3, 32, 32): sums of long waves, and a little that is finer."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(count, 3, 5, 5, generator=generator)
    coarse = F.interpolate(waves, (SIDE, SIDE), mode="bicubic", align_corners=False)
    fine = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return (0.5 + 0.2 * coarse + 0.03 * fine).clamp(0, 1)


PRIVATE, STRANGERS, TEST = fields(300, 1), fields(300, 2), fields(300, 3)


def moved(x: Tensor, down: int, across: int) -> Tensor:
    """Shift by so many pixels, as a client's draws are shifted."""
    padded = F.pad(x, (2, 2, 2, 2), mode="reflect")
    return padded[:, :, 2 + down : 2 + down + SIDE, 2 + across : 2 + across + SIDE]


def noisy(x: Tensor) -> Tensor:
    return (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(9))).clamp(0, 1)


DISGUISES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "mirrored": lambda x: x.flip(3),
    "shifted": lambda x: moved(x, 2, -2),
    "contrast": lambda x: 0.6 * x + 0.25,
    "noise": noisy,
    "all but noise": lambda x: 0.6 * moved(x.flip(3), 1, 2) + 0.25,
}


@pytest.fixture(scope="module")
def honest() -> Tensor:
    return fields(MANY, 4)


def found(pictures: Tensor) -> tuple[list[str], float]:
    findings = diagnosis.copies("s", pictures, PRIVATE, STRANGERS, TEST)
    return [f.severity for f in findings], float(findings[0].evidence["copies"] or 0) if findings else 0.0


@pytest.mark.parametrize("disguise", sorted(DISGUISES))
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_copies_among_many_pictures_are_found(disguise: str, share: float, honest: Tensor) -> None:
    count = round(share * MANY)
    planted = DISGUISES[disguise](PRIVATE[:count])
    severities, called = found(torch.cat([honest[count:], planted]))
    assert severities == ["error"]
    assert 0.4 * share <= called <= 1.2 * share


@pytest.mark.parametrize("disguise", sorted(set(DISGUISES) - {"noise"}))
def test_three_copies_are_enough(disguise: str, honest: Tensor) -> None:
    assert found(torch.cat([honest, DISGUISES[disguise](PRIVATE[:3])]))[0] == ["error"]


@pytest.mark.parametrize("seed", range(10, 13))
def test_honest_pictures_raise_no_alarm(seed: int) -> None:
    assert found(fields(MANY, seed)) == ([], 0.0)
    smooth = F.avg_pool2d(fields(MANY // 4, seed), 5, stride=1, padding=2, count_include_pad=False)
    assert found(smooth) == ([], 0.0)


def test_pictures_of_the_public_are_nobodys_and_few_strangers_prove_nothing() -> None:
    assert found(STRANGERS)[0] == []
    assert not diagnosis.copies("s", fields(MANY, 5), PRIVATE, STRANGERS[:3], TEST[:40])
    flat = torch.full((50, 3, SIDE, SIDE), 0.3)
    assert not diagnosis.copies("s", torch.cat([flat, fields(500, 6)]), torch.cat([PRIVATE, flat[:5]]), STRANGERS, TEST)


def test_the_whole_bank_is_looked_at_and_not_only_what_was_drawn(honest: Tensor) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Banked(Defense):
        replaces_records: ClassVar[bool] = True

        @property
        def bank(self) -> Tensor:
            return torch.cat([honest, PRIVATE[:3]])

        def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
            return honest[: len(images)], labels

    nobody = Records(TEST, torch.zeros(300, dtype=torch.long))
    network = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 2)))
    private, others = replace(nobody, images=PRIVATE), replace(nobody, images=STRANGERS)
    target = Target("fields", network, F.cross_entropy, private, nobody, others, classes=("a", "b"))
    released = release(Banked(), private, torch.Generator().manual_seed(0))
    ids = [f.id for f in diagnosis.inspected("s", Banked(), target, released, 0)]
    assert "copies-private-records" in ids
    assert not diagnosis.copies("s", released.images, PRIVATE, STRANGERS, TEST)
    assert float(copies.relative(PRIVATE[:1], PRIVATE, STRANGERS)) < -3


# label stuffing, under augmentation and soft labels; stale teachers, alone and in a pool

CLASSES = 3


def classed(count: int, seed: int) -> Records:
    """Pictures of a class's brightness in the middle, and noise: a network learns them, also moved and mirrored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.4 + 0.1 * torch.randn(count, 1, 8, 8, generator=generator)
    images[:, :, 2:6, 2:6] += 0.15 * labels.view(-1, 1, 1, 1)
    return Records(images.clamp(0, 1), labels)


@pytest.fixture(scope="module")
def target() -> Target:
    torch.manual_seed(0)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)))
    made = Target(
        "c", model, F.cross_entropy, classed(150, 1), classed(120, 2), classed(120, 3), classes=("a", "b", "c")
    )
    train(made.model, made.private, made.loss, epochs=30, seed=0)
    return made


@dataclass(frozen=True, kw_only=True)
class Stuffed(Defense):
    """The label as so many bright rows on top, over noise; with probabilities that say it `sure`, or as it is."""

    replaces_records: ClassVar[bool] = True
    sure: float | None = None

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        drawn = 0.3 * torch.rand(images.shape, generator=generator)
        for label in range(CLASSES):
            drawn[labels == label, :, : 2 * label] = 1.0
        if self.sure is None:
            return drawn, labels
        rest = (1 - self.sure) / (CLASSES - 1)
        return drawn, rest + (self.sure - rest) * F.one_hot(labels, CLASSES).float()


@pytest.mark.parametrize("augment", [(), ("crop", "mirror")])
@pytest.mark.parametrize("sure", [None, 0.9, 0.5])
def test_stuffing_is_found_with_soft_labels_and_augmented_training(
    augment: tuple[str, ...], sure: float | None, target: Target
) -> None:
    moving = replace(target, augment=augment)

    def trained(defense: Defense) -> Any:
        released = release(defense, target.private, torch.Generator().manual_seed(0))
        return utility(moving, defense, released, senders=Senders(16), epochs=20, seeds=2, seed=0)

    plain, stuffed = trained(Defense()), trained(Stuffed(sure=sure))
    verdict = diagnosis.label_stuffing("s", stuffed.released, stuffed.estimate, plain.estimate, plain.chance)
    assert [f.id for f in verdict] == ["label-stuffing"]
    assert not diagnosis.label_stuffing("s", plain.released, plain.estimate, plain.estimate, plain.chance)


@dataclass(frozen=True, kw_only=True)
class Pooled(Defense):
    """Other records' pictures, each with what one of several teachers says of it, softened by a temperature."""

    replaces_records: ClassVar[bool] = True
    pictures: Tensor
    teachers: tuple[Any, ...]
    temperature: float = 1.0

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Any:
        chosen = torch.randint(len(self.pictures), (len(images),), generator=generator)
        shown = self.pictures[chosen]
        with torch.no_grad():
            told = torch.stack([(teacher(shown) / self.temperature).softmax(1) for teacher in self.teachers])
        return shown, told[chosen % len(self.teachers), torch.arange(len(shown))]


@pytest.mark.parametrize(
    ("stale", "of", "temperature", "seen"),
    [
        (0, 1, 1.0, False),
        (0, 1, 4.0, False),
        (1, 1, 1.0, True),
        (1, 1, 4.0, True),
        (3, 4, 1.0, True),
        (1, 4, 1.0, False),  # too few to see: agreement is still more than half of what the model knows
        (0, 4, 2.0, False),
    ],
)
def test_stale_teachers_are_found_where_they_are_most_of_a_pool(
    stale: int, of: int, temperature: float, seen: bool, target: Target
) -> None:
    def wrong(pictures: Tensor) -> Tensor:
        return target.model(pictures).roll(1, 1)  # an older state, of when classes were numbered otherwise

    teachers = (wrong,) * stale + (target.model,) * (of - stale)
    defense = Pooled(pictures=target.auxiliary.images, teachers=teachers, temperature=temperature)
    verdict = diagnosis.stale_reference("s", defense, target, torch.Generator().manual_seed(0))
    assert [f.id for f in verdict] == (["stale-reference"] if seen else [])
