"""Auxiliary records of the same kind are not told apart, others are; the classes' shares are no difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.judge.findings import MENDS, OTHERWISE, describe, mend_of
from leakaudit.judge.noticed import FEW, TOLD
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import Finding
from leakaudit.scene.twosample import LEAST, auxiliary_findings, tell_apart

CLASSES = 4


def pictures(count: int, seed: int, channels: int = 3, shares: tuple[float, ...] = (1, 1, 1, 1)) -> Records:
    """Return made pictures 16×16: of each class one pattern, of each record its own smooth one, and some grain."""
    g = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(torch.tensor(shares).float(), count, replacement=True, generator=g)
    coarse = (patterns[labels] + torch.rand(count, channels, 4, 4, generator=g)) / 2
    smooth = F.interpolate(coarse, (16, 16), mode="bilinear")
    return Records((smooth + 0.03 * torch.randn(smooth.shape, generator=g)).clamp(0, 1), labels)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("private", "auxiliary"), [(50, 110), (300, 200)])
def test_records_of_one_kind_are_not_told_apart(private: int, auxiliary: int) -> None:
    found = [tell_apart(pictures(private, 2 * s + 1), pictures(auxiliary, 2 * s + 2), rng(s)) for s in range(10)]
    values = [e.value or 0.0 for e in found]
    assert abs(sum(values) / len(values) - 0.5) < 0.05
    assert sum((e.low or 0.0) >= TOLD for e in found) <= 1


def test_other_shares_of_the_classes_are_no_difference() -> None:
    private = pictures(400, 1, shares=(6, 2, 1, 1))
    found = tell_apart(private, pictures(400, 2, shares=(1, 1, 2, 6)), rng())
    assert 30 < found.n < 400  # what both have of each class
    assert (found.low or 1.0) < TOLD
    one = tell_apart(private, pictures(400, 2, shares=(0, 0, 0, 1)), rng())
    assert one.n == int((private.labels == 3).sum())


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.1,
        lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
        lambda x: x.mean(1, keepdim=True).expand_as(x),
        lambda x: x + 0.05 * torch.randn(x.shape, generator=rng(7)),
        lambda x: 0.5 + 0.7 * (x - 0.5),
        lambda x: 1 - x,
        torch.zeros_like,
    ],
    ids=["brighter", "blurred", "grey", "noisy", "flatter", "inverted", "black"],
)
def test_records_of_another_kind_are(change: Callable[[Tensor], Tensor]) -> None:
    other = pictures(200, 2)
    found = tell_apart(pictures(300, 1), Records(change(other.images).clamp(0, 1), other.labels), rng())
    assert (found.low or 0.0) >= TOLD


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 80), (8, 8)])
def test_any_size_of_picture_will_do_and_the_same_seed_gives_the_same(channels: int, size: tuple[int, int]) -> None:
    sides = [Records(torch.rand(40, channels, *size, generator=rng(s)), torch.arange(40) % 4) for s in (1, 2)]
    first, again = (tell_apart(*sides, rng(5)) for _ in range(2))
    assert first == again
    assert first.value is not None


def test_copies_and_constants_are_told_apart_by_chance() -> None:
    same = pictures(100, 1)
    black = Records(torch.zeros(100, 3, 8, 8), torch.arange(100) % 4)
    assert (tell_apart(same, same, rng()).low or 0.0) < TOLD
    assert tell_apart(black, black, rng()).value == 0.5


def test_of_records_that_belong_together_one_speaks() -> None:
    """Twelve persons a side, twenty shots of each: who learns the persons tells the sides apart, but no kinds."""

    def shots(seed: int) -> tuple[Records, Tensor]:
        persons, units = pictures(20, seed), torch.arange(400) % 20
        grain = 0.01 * torch.randn(400, 3, 16, 16, generator=rng(seed))
        return Records((persons.images[units] + grain).clamp(0, 1), persons.labels[units]), units

    (private, ours), (auxiliary, theirs) = shots(1), shots(2)
    assert (tell_apart(private, auxiliary, rng()).low or 0.0) > TOLD
    found = tell_apart(private, auxiliary, rng(), (ours, theirs))
    assert found.n <= 20
    assert (found.low or 0.0) < TOLD


def test_too_few_are_not_compared() -> None:
    found = tell_apart(pictures(100, 1), pictures(LEAST - 1, 2), rng())
    assert (found.value, found.n < LEAST) == (None, True)
    assert "laid beside private ones" in (found.reason or "")
    none = Records(torch.zeros(0, 3, 16, 16), torch.zeros(0).long())
    assert tell_apart(pictures(20, 1), none, rng()).value is None


def findings(auxiliary: Records) -> dict[str, Finding]:
    private = pictures(200, 1)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)))
    target = Target("made", model, F.cross_entropy, private, private, auxiliary, ("a", "b", "c", "d"))
    told, found = auxiliary_findings(target, rng())
    assert told == tell_apart(private, auxiliary, rng())
    assert all(f.severity == "warning" for f in found)
    return {f.id: f for f in found}


def test_what_is_odd_of_auxiliary_records_is_a_finding_with_a_mend() -> None:
    alike = pictures(120, 2)
    assert findings(alike) == {}
    inverted = findings(replace(alike, images=1 - alike.images))
    assert set(inverted) == {"auxiliary-differs"}
    assert "of pairs" in inverted["auxiliary-differs"].message
    few = findings(pictures(FEW - 1, 2))["auxiliary-few"]
    assert few.evidence["records"] == FEW - 1
    missing = findings(pictures(120, 2, shares=(1, 0, 1, 0)))["auxiliary-few"]
    assert missing.evidence["missing"] == 2
    assert "none of 2 classes of private records, b among them" in missing.message
    assert set(findings(alike[slice(0)])) == {"auxiliary-few"}
    for name in ("auxiliary-differs", "auxiliary-few"):
        assert describe(name) != "Noticed by the audit"
        assert mend_of(name) != OTHERWISE
        assert name in MENDS
