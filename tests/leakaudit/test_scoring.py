"""Scoring: who is scored, against what, after which pairing; and what is never turned into a number."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from leakaudit.protocol.attack import Attack, Reconstruction, Status
from leakaudit.protocol.target import Records
from leakaudit.result.rounding import rounded
from leakaudit.result.schema import AttackResult
from leakaudit.score.baselines import baselines, mean_pictures
from leakaudit.score.identification import CandidateSets, candidate_sets
from leakaudit.score.metrics import Metric, mse, psnr
from leakaudit.score.scoring import Truth, failed, score
from leakaudit.stats.intervals import median_of_clients, rate

CLASSES = ("cat", "dog")
NO_LPIPS = "no weights"


@dataclass(frozen=True, kw_only=True)
class Drawing(Attack):
    name: ClassVar[str] = "drawing"
    requires: ClassVar[frozenset[str]] = frozenset({"labels", "auxiliary"})
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Linking(Attack):
    name: ClassVar[str] = "linking"
    kind: ClassVar[Literal["linkage"]] = "linkage"


@dataclass(frozen=True, kw_only=True)
class Labelling(Attack):
    name: ClassVar[str] = "labelling"
    kind: ClassVar[Literal["labels"]] = "labels"


@dataclass(frozen=True)
class Case:
    truth: Records
    auxiliary: Records
    candidates: CandidateSets
    means: Tensor

    def scene(
        self, released: Records | None = None, lpips: Metric | str = NO_LPIPS, batch_size: int | None = None
    ) -> Truth:
        return Truth(
            records=self.truth,
            released=released,
            classes=CLASSES,
            candidates=self.candidates,
            class_means=self.means,
            lpips=lpips,
            batch_size=batch_size,
        )


def case(victims: int, batch: int, size: int = 10, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.rand(200, 3, 8, 8, generator=generator), torch.arange(200) % 2
    private, pool, auxiliary = (Records(images[i : i + 60], labels[i : i + 60]) for i in (0, 60, 120))
    chosen = torch.randperm(60, generator=generator)[: victims * batch]
    candidates = candidate_sets(private, chosen, pool, size, generator, batch_size=batch)
    truth = private[chosen]
    return Case(truth, auxiliary, candidates, mean_pictures(auxiliary, truth.labels))


def claim(images: Tensor | None, statuses: tuple[Status, ...], labels: Tensor | None = None) -> Reconstruction:
    return Reconstruction(images=images, labels=labels, objective=torch.zeros(len(statuses)), statuses=statuses)


def scored(
    c: Case,
    reconstruction: Reconstruction,
    released: Records | None = None,
    lpips: Metric | str = NO_LPIPS,
    attack: Attack | None = None,
    images: Literal["full", "redacted", "none"] = "full",
    gallery: int = 8,
) -> AttackResult:
    return score(
        attack or Drawing(),
        "standard",
        {"tv": 0.1},
        reconstruction,
        c.scene(released=released, lpips=lpips),
        images,
        gallery,
    )


def noisy(truth: Tensor, scale: float = 0.02) -> Tensor:
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(9))
    return (truth + scale * noise).clamp(0, 1)


def test_good_pictures_in_any_order_of_the_batch_score_as_they_should() -> None:
    c = case(4, 3)
    stacked = noisy(c.truth.images).reshape(4, 3, 3, 8, 8)
    cycle = torch.tensor([1, 2, 0])
    labels = c.truth.labels.reshape(4, 3)
    found = scored(c, claim(stacked[:, cycle], ("converged",) * 4, labels[:, cycle]))
    expected = psnr(c.truth.images, noisy(c.truth.images))
    assert [r.psnr for r in found.records] == pytest.approx(expected.tolist())
    assert found.psnr.value == pytest.approx(float(expected.quantile(0.5)))
    assert (found.identification.value, found.identification.n, found.candidates) == (1.0, 12, 10)
    assert found.label_accuracy.value == 1.0
    assert [r.guessed_label for r in found.records] == [r.label for r in found.records]
    assert found.r2.value is not None
    assert 0.98 < found.r2.value < 1
    assert [(r.victim, r.record) for r in found.records[:4]] == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert found.settings == {"steps": 3}
    assert found.tuned == {"tv": 0.1}
    assert found.requires == ("auxiliary", "labels")
    assert found.psnr_released.value is None
    assert found.lpips.reason == NO_LPIPS


def test_scores_do_not_depend_on_how_many_victims_are_scored_together() -> None:
    c = case(6, 2)
    guess = noisy(c.truth.images, 0.2).reshape(6, 2, 3, 8, 8)
    whole = scored(c, claim(guess, ("converged",) * 6))
    for v in range(6):
        part = slice(2 * v, 2 * v + 2)
        alone = Case(c.truth[part], c.auxiliary, c.candidates[part], c.means[part])
        one = scored(alone, claim(guess[v : v + 1], ("converged",)))
        for a, b in zip(one.records, whole.records[part], strict=True):
            assert a == replace(b, victim=0, gain=a.gain, swapped=None)  # what was drawn for others counts there


def test_victims_that_failed_have_no_score_and_count_nowhere() -> None:
    c = case(5, 1)
    guess = noisy(c.truth.images).reshape(5, 1, 3, 8, 8)
    guess[1], guess[3] = 0.0, float("nan")
    guess[4] = 0.0
    statuses: tuple[Status, ...] = ("converged", "diverged", "budget", "converged", "out-of-memory")
    found = scored(c, claim(guess, statuses))
    assert found.statuses == {"budget": 1, "converged": 1, "diverged": 2, "out-of-memory": 1}
    assert found.identification.n == 2
    assert found.identification.value == 1.0
    assert found.psnr.n == found.ssim.n == found.r2.n == 2
    assert found.r2.value is not None
    assert found.r2.value > 0.98
    for i in (1, 3, 4):
        r = found.records[i]
        assert (r.mse, r.psnr, r.ssim, r.identified, r.rank) == (None,) * 5
    assert found.records[3].status == "diverged"
    assert found.reason is not None
    assert "not finite" in found.reason
    assert len(found.gallery) == 2


def test_when_nobody_is_scored_every_number_is_missing_with_a_reason() -> None:
    c = case(2, 2)
    told = replace(claim(torch.zeros(2, 2, 3, 8, 8), ("diverged", "diverged")), reason="the loss is flat")
    found = scored(c, told)
    crashed = failed(Drawing(), "adaptive", {}, 2, "failed", "ZeroDivisionError: x")
    for result, why in ((found, "the loss is flat"), (crashed, "ZeroDivisionError")):
        for estimate in (result.identification, result.psnr, result.ssim, result.r2):
            assert estimate.value is None
            assert estimate.n == 0
            assert estimate.reason is not None
            assert why in estimate.reason
        assert result.candidates == 0
        assert result.gallery == ()
    assert crashed.statuses == {"failed": 2}


def told(c: Case, claimed: object, batch_size: int | None, attack: Attack | None = None) -> AttackResult:
    return score(attack or Drawing(), "bound", {}, claimed, c.scene(batch_size=batch_size))


def test_what_does_not_fit_the_victims_is_a_failure_not_a_score() -> None:
    c = case(8, 2)
    good = claim(noisy(c.truth.images).reshape(8, 2, 3, 8, 8), ("converged",) * 8, c.truth.labels.reshape(8, 2))
    assert told(c, good, 2).identification.n == 16
    pictures, labels = good.images, good.labels
    assert pictures is not None
    assert labels is not None
    strange: dict[str, object] = {
        "4 statuses": replace(good, statuses=("converged",) * 4),
        "0 statuses": replace(good, statuses=()),
        "'fine'": replace(good, statuses=("fine",) * 8),  # type: ignore[arg-type]
        "images of shape (16, 3, 8, 8)": replace(good, images=pictures.flatten(0, 1)),
        "images of shape (4, 4, 3, 8, 8)": replace(good, images=pictures.reshape(4, 4, 3, 8, 8)),
        "images of shape (8, 2, 1, 8, 8)": replace(good, images=pictures[:, :, :1]),
        "labels of shape (16,)": replace(good, labels=labels.flatten()),
        "labels of type torch.float32": replace(good, labels=labels.float()),
        "ndarray": replace(good, images=pictures.numpy()),
        "a NoneType, not a Reconstruction": None,
        "a tuple, not a Reconstruction": (pictures, labels),
    }
    for words, claimed in strange.items():
        found = told(c, claimed, 2)
        assert found.statuses == {"failed": 8}
        assert found.identification.value is None
        assert found.psnr.value is None
        assert words in (found.reason or "")
    assert told(c, replace(good, statuses=("converged",) * 4), None).statuses == {"failed": 4}
    assert told(c, replace(good, statuses=()), None).statuses == {"failed": 1}


def test_linkage_scores_must_cover_every_candidate_of_every_victim() -> None:
    c = case(4, 1)
    good = replace(claim(None, ("converged",) * 4), linkage=torch.rand(4, 10))
    assert told(c, good, 1, Linking()).identification.n == 4
    for shape in ((4, 9), (3, 10), (40,)):
        found = told(c, replace(good, linkage=torch.rand(shape)), 1, Linking())
        assert found.statuses == {"failed": 4}
        assert "linkage of shape" in (found.reason or "")


def test_one_perfect_picture_does_not_swallow_the_rest() -> None:
    c = case(7, 1)
    guess = noisy(c.truth.images, 0.3)
    guess[0] = c.truth.images[0]
    found = scored(c, claim(guess[:, None], ("converged",) * 7))
    assert found.records[0].psnr == 160.0
    assert found.psnr.value is not None
    assert found.psnr.value < 20
    assert found.psnr.high == 160.0
    assert found.gallery[0].victim == 0


def test_pictures_outside_the_range_are_clamped_as_any_attacker_would() -> None:
    c = case(2, 1)
    wild = torch.where(c.truth.images > 0.5, torch.tensor(7.0), torch.tensor(-7.0))
    found = scored(c, claim(wild[:, None], ("converged",) * 2))
    assert [r.mse for r in found.records] == pytest.approx(mse(c.truth.images, wild.clamp(0, 1)).tolist())


def test_replaced_records_are_scored_against_both_with_a_pairing_each() -> None:
    c = case(3, 3)
    # x̃ is another batch order's pictures: what is near x̃ in one order is near x in another.
    cycle = torch.tensor([1, 2, 0])
    swapped = c.truth.images.reshape(3, 3, 3, 8, 8)[:, cycle].flatten(0, 1)
    released = Records(1 - swapped, c.truth.labels)
    exact = scored(c, claim(released.images.reshape(3, 3, 3, 8, 8).flip(1), ("converged",) * 3), released)
    assert exact.psnr_released.value == 160.0
    assert exact.psnr.value is not None
    assert exact.psnr.value < 20
    assert all(p.shared is not None for p in exact.gallery)
    plain = scored(c, claim(released.images.reshape(3, 3, 3, 8, 8), ("converged",) * 3))
    assert plain.psnr_released.value is None
    assert all(p.shared is None for p in plain.gallery)


def test_the_class_mean_explains_nothing_and_less_than_it_is_negative() -> None:
    c = case(8, 1)
    nothing = scored(c, claim(c.means[:, None], ("converged",) * 8))
    assert nothing.r2.value == pytest.approx(0, abs=1e-6)
    worse = scored(c, claim(torch.zeros(8, 1, 3, 8, 8), ("converged",) * 8))
    assert worse.r2.value is not None
    assert worse.r2.value < -1


def test_labels_are_a_bag() -> None:
    c = case(2, 4)
    truth = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    c = replace(c, truth=Records(c.truth.images, truth.flatten()))
    guess = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]])
    found = scored(c, claim(None, ("converged", "converged"), guess), attack=Labelling())
    assert found.label_accuracy.value == (4 + 2) / 8
    assert [r.guessed_label for r in found.records] == ["cat", "cat", "dog", "dog", "dog", "cat", "cat", "cat"]
    assert found.identification.value is None
    assert found.psnr.reason == "the attack draws no picture"
    half = scored(c, claim(None, ("converged", "diverged"), guess), attack=Labelling())
    assert (half.label_accuracy.value, half.label_accuracy.n) == (1.0, 4)
    assert half.records[5].guessed_label is None


def test_linkage_is_judged_on_every_record_of_a_batch_by_itself() -> None:
    c = case(2, 2)
    position = c.candidates.position
    scores = torch.zeros(4, 10)
    scores[torch.arange(4), position] = 1.0
    scores[1, (position[1] + 1) % 10] = 2.0
    scores[3] = float("nan")
    short: tuple[Status, ...] = ("budget", *("converged",) * 3)
    truth = replace(c.scene(), batch_size=2)
    nothing = score(Linking(), "standard", {}, replace(claim(None, short), linkage=torch.zeros(4, 10)), truth)
    assert nothing.identification.n == 3  # a record that was never compared is no miss
    found = score(Linking(), "standard", {}, replace(claim(None, ("converged",) * 4), linkage=scores), truth)
    assert (found.identification.value, found.identification.n) == (2 / 3, 3)
    assert [(r.victim, r.record, r.rank) for r in found.records] == [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, None)]
    assert found.statuses == {"converged": 3, "diverged": 1}
    assert found.psnr.value is None


def test_a_lone_record_of_its_class_cannot_be_identified() -> None:
    c = case(2, 1, size=1)
    found = scored(c, claim(c.truth.images[:, None], ("converged",) * 2))
    assert found.identification.value is None
    assert found.candidates == 0
    assert found.psnr.value == 160.0


def test_gallery_shows_the_worst_first_and_only_what_is_allowed() -> None:
    c = case(6, 1)
    scale = torch.tensor([0.3, 0.01, 0.2, 0.05, 0.1, 0.4]).view(6, 1, 1, 1)
    noise = torch.randn(c.truth.images.shape, generator=torch.Generator().manual_seed(1))
    told = claim((c.truth.images + scale * noise).clamp(0, 1)[:, None], ("converged",) * 6)
    found = scored(c, told, gallery=4)
    assert [p.victim for p in found.gallery] == [1, 3, 4, 2]
    redacted, none = (scored(c, told, images=images).gallery for images in ("redacted", "none"))
    full = scored(c, told).gallery
    assert all(p.original is None and p.reconstruction is None for p in none)
    assert len(none) == len(full) == 6
    for a, b in zip(full, redacted, strict=True):
        assert a.original not in (None, b.original)
        assert a.reconstruction not in (None, b.reconstruction)
        assert (a.label, a.identified) == (b.label, b.identified)
        assert b.psnr == rounded(a.psnr, 0.5)


def test_redacted_galleries_are_the_same_for_other_pictures_with_the_same_scores() -> None:
    c = case(6, 1)
    noise = 0.05 * torch.randn(c.truth.images.shape, generator=torch.Generator().manual_seed(1))
    other = Case(Records(1 - c.truth.images, c.truth.labels), c.auxiliary, c.candidates, c.means)
    told = (c.truth.images + noise).clamp(0, 1)
    replaced = Records(c.truth.images.flip(3), c.truth.labels)
    galleries = []
    for scene, guess in ((c, told), (other, 1 - told)):  # turned inside out, every error is as large as before
        found = scored(scene, claim(guess[:, None], ("converged",) * 6), replaced, images="redacted")
        assert [r.psnr for r in found.records] == [rounded(v, 0.5) for v in psnr(c.truth.images, told).tolist()]
        assert all(p.shared is None for p in found.gallery)
        galleries.append([(p.original, p.reconstruction) for p in found.gallery])
    assert galleries[0] == galleries[1]
    assert len({drawn for _, drawn in galleries[0]}) == 6


def test_baselines_know_nothing_of_the_update() -> None:
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.rand(1200, 1, 4, 4, generator=generator), torch.arange(1200) % 2
    images[labels == 1] *= 0.5
    private, pool, auxiliary = (Records(images[i : i + 400], labels[i : i + 400]) for i in (0, 400, 800))
    candidates = candidate_sets(private, torch.arange(400), pool, 4, generator)
    flat = mse
    random, mean, prior = baselines(private, auxiliary, candidates, flat, generator)
    assert [b.name for b in (random, mean, prior)] == ["random", "class-mean", "prior"]
    for b in (random, mean, prior):
        assert b.identification.value == pytest.approx(0.25, abs=0.1)
        assert b.identification.n == b.psnr.n == b.ssim.n == b.lpips.n == 400
    assert mean.psnr.value is not None
    assert prior.psnr.value is not None
    assert random.psnr.value is not None
    # Two independent draws differ by twice the variance: the class mean is 3 dB better than another of the class.
    assert mean.psnr.value - prior.psnr.value == pytest.approx(3, abs=0.7)
    assert prior.psnr.value > random.psnr.value


def test_baselines_without_auxiliary_records_are_missing_with_a_reason() -> None:
    c = case(4, 1)
    nobody = c.auxiliary[:0]
    random, mean, prior = baselines(c.truth, nobody, c.candidates, NO_LPIPS, torch.Generator().manual_seed(0))
    assert random.psnr.value is not None
    assert random.lpips.reason == NO_LPIPS
    for b in (mean, prior):
        assert b.identification.value is None
        assert b.identification.reason == "there are no auxiliary records"
    with pytest.raises(ValueError):
        mean_pictures(nobody, c.truth.labels)
    strange = mean_pictures(c.auxiliary, torch.tensor([0, 7]))
    torch.testing.assert_close(strange[1], c.auxiliary.images.mean(0))


def test_records_of_one_client_are_one_unit_of_the_interval() -> None:
    """Six clients of two records, all found: as sure as six records would be, not twelve."""
    known = case(6, 2)
    images, statuses = known.truth.images.view(6, 2, 3, 8, 8), ("converged",) * 6
    drawn = score(Drawing(), "standard", {}, claim(images, statuses), known.scene(batch_size=2))
    told = torch.nn.functional.one_hot(known.candidates.position, known.candidates.columns).float()
    linked = replace(claim(None, ("converged",) * 12), linkage=told)
    found = score(Linking(), "standard", {}, linked, known.scene(batch_size=2))
    for each in (drawn, found):
        assert (each.identification.value, each.identification.n) == (1.0, 12)
        assert each.identification.low == pytest.approx(rate(6, 6).low)
    assert drawn.psnr == median_of_clients([[r.psnr for r in drawn.records if r.victim == v] for v in range(6)])
