"""Nulls: what needs no update of a record is no leak of it, and what is exact is so beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import Records
from leakaudit.result.rules import EXACT, SHARP, rebuilds
from leakaudit.result.schema import Baseline, Estimate, RecordScore
from leakaudit.score.baselines import baselines, guesses
from leakaudit.score.metrics import psnr
from leakaudit.score.nulls import best_guess, public_forms, swapped
from leakaudit.score.scoring import score
from tests.leakaudit.results import attack, some
from tests.leakaudit.test_scoring import NO_LPIPS, Case, Drawing, Labelling, Linking, case, claim, noisy, scored


def test_the_swapped_null_is_what_others_of_the_class_were_drawn_as() -> None:
    """Against a plain loop, in batches, with a victim that was not scored."""
    c = case(6, 2)
    guess = noisy(c.truth.images, 0.2)
    found = scored(c, claim(guess.reshape(6, 2, 3, 8, 8), ("converged",) * 5 + ("diverged",)))
    expected = {}
    for i in range(10):
        others = [j for j in range(10) if j // 2 != i // 2 and c.truth.labels[j] == c.truth.labels[i]]
        told = [float(psnr(c.truth.images[i : i + 1], guess[j : j + 1])) for j in others]
        if told:
            expected[i] = float(torch.tensor(told, dtype=torch.float64).quantile(0.5))
    assert len(expected) == 10
    assert found.swapped.n == 10
    assert found.swapped.value == pytest.approx(float(torch.tensor(list(expected.values())).quantile(0.5)), abs=1e-4)
    assert found.gain.n == 10
    assert found.gain.value is not None
    assert found.psnr.value is not None
    assert found.swapped.value is not None
    assert found.gain.value < found.psnr.value - 3


def test_records_of_the_same_unit_or_victim_are_no_others() -> None:
    x, labels = torch.rand(4, 1, 4, 4), torch.zeros(4, dtype=torch.long)
    rows, victims = torch.arange(4), torch.tensor([0, 0, 1, 1])
    assert set(swapped(x, x, labels, victims, rows)) == {0, 1, 2, 3}
    assert set(swapped(x, x, labels, victims, rows[:2])) == set()
    assert set(swapped(x, x, labels, victims, rows, torch.tensor([5, 6, 5, 5]))) == {1, 2, 3}
    assert swapped(x, x, labels, victims, rows, torch.tensor([5, 6, 5, 5]))[2] == pytest.approx(
        float(psnr(x[2:3], x[1:2]))
    )
    assert swapped(x, x, torch.arange(4), victims, rows) == {}


def test_a_picture_of_the_class_alone_gains_nothing_and_one_of_the_record_all() -> None:
    """Templates with small marks: the template is close to every record, and says nothing of any."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(16) % 2
    templates = torch.rand(2, 3, 8, 8, generator=generator)
    records = Records((templates[labels] + 0.02 * torch.randn(16, 3, 8, 8, generator=generator)).clamp(0, 1), labels)
    c = case(16, 1)  # whose class means are of other pictures
    own, pictures = c.candidates.indices[torch.arange(16), c.candidates.position], c.candidates.pictures.clone()
    pictures[own] = records.images
    c = replace(c, truth=records, candidates=replace(c.candidates, pictures=pictures))
    form = scored(c, claim(templates[labels][:, None], ("converged",) * 16))
    whole = scored(c, claim(records.images[:, None], ("converged",) * 16))
    far = (Baseline("class-mean", "", Estimate(0.0, n=16), Estimate(8.0, n=16), NOTHING, NOTHING),)
    assert form.psnr.low is not None
    assert form.psnr.low > 25
    assert not rebuilds(form, far)
    assert rebuilds(replace(form, gain=Estimate()), far)  # as an older result was judged
    assert rebuilds(whole, far)
    assert (form.exact, whole.exact) == (0, 16)
    assert form.gain.value == pytest.approx(0, abs=1)


NOTHING = Estimate(reason="not measured")


def test_the_gain_must_be_large_at_its_lower_bound() -> None:
    far = (Baseline("class-mean", "", Estimate(0.0, n=40), Estimate(10.0, n=40), NOTHING, NOTHING),)
    a = attack(some(0), psnr=[20.0] * 40)
    for gain, expected in (
        (Estimate(), True),
        (Estimate(SHARP, SHARP, 9.0, 40), True),
        (Estimate(8.0, SHARP - 0.1, 9.0, 40), False),
        (Estimate(8.0, n=4), False),
    ):
        assert rebuilds(replace(a, gain=gain), far) is expected


def test_further_guesses_count_and_are_paired_like_reconstructions() -> None:
    c = case(4, 3)
    told = noisy(c.truth.images).reshape(4, 3, 3, 8, 8)
    mixed = told[:, torch.tensor([1, 2, 0])].flatten(0, 1)
    assert best_guess(c.truth.images, mixed[None], 3).tolist() == pytest.approx(
        psnr(c.truth.images, told.flatten(0, 1)).tolist()
    )
    guessed = replace(c.scene(), guesses=torch.stack([mixed, torch.zeros_like(mixed)]))
    found = score(Drawing(), "standard", {}, claim(told, ("converged",) * 4), guessed)
    assert found.gain.value is not None
    assert found.gain.value <= 0
    assert found.exact == 0
    assert scored(c, claim(told, ("converged",) * 4)).gain.value > 10  # type: ignore[operator]


def test_what_baselines_guess_is_what_they_are_scored_by() -> None:
    c = case(12, 1)
    drawn = guesses(c.truth, c.auxiliary, torch.Generator().manual_seed(4))
    for b in baselines(c.truth, c.auxiliary, c.candidates, NO_LPIPS, torch.Generator().manual_seed(4)):
        assert b.psnr.value == pytest.approx(float(psnr(c.truth.images, drawn[b.name]).quantile(0.5)))
    assert list(guesses(c.truth, c.auxiliary[:0], torch.Generator())) == ["random"]


@pytest.mark.parametrize(
    ("noise", "exact"), [(0.0, True), (0.004, True), (0.02, False)], ids=["equal", "48 dB", "34 dB"]
)
def test_exact_is_within_a_hundredth_of_the_range(noise: float, exact: bool) -> None:
    c = case(8, 1)
    found = scored(c, claim(noisy(c.truth.images, noise)[:, None], ("converged",) * 8))
    assert found.psnr.value is not None
    assert (found.psnr.value >= EXACT) is exact
    assert [r.exact for r in found.records] == [exact] * 8
    assert found.exact == 8 * exact
    rounded = scored(c, claim(noisy(c.truth.images, noise)[:, None], ("converged",) * 8), images="none")
    assert ([r.exact for r in rounded.records], rounded.exact) == ([exact] * 8, 8 * exact)


def test_a_copy_of_another_candidate_is_not_exact() -> None:
    """Candidates that differ by less than `EXACT`: the picture is another's."""
    c = case(8, 1)
    first = c.candidates.indices[:, 0].where(c.candidates.position != 0, c.candidates.indices[:, 1])
    pictures = c.candidates.pictures.clone()
    pictures[first] = (c.truth.images + 0.002).clamp(0, 1)
    near: Case = replace(c, candidates=replace(c.candidates, pictures=pictures))
    found = scored(near, claim(pictures[first][:, None], ("converged",) * 8))
    assert all((r.psnr or 0) > EXACT for r in found.records)
    assert found.exact == sum(bool(r.identified) for r in found.records) < 8


def test_a_linkage_attack_confirms_where_it_is_certain_and_right() -> None:
    c = case(4, 1)
    scores = torch.zeros(4, 10)
    scores[torch.arange(4), c.candidates.position] = 1.0
    scores[1] = -scores[1]
    told = replace(claim(None, ("converged", "converged", "converged", "diverged")), linkage=scores)
    unsure = scored(c, told, attack=Linking())
    assert ([r.exact for r in unsure.records], unsure.exact) == ([None] * 4, 0)
    sure = scored(c, replace(told, certain=torch.tensor([True, True, False, True])), attack=Linking())
    assert ([r.exact for r in sure.records], sure.exact) == ([True, False, False, None], 1)
    for wrong in (torch.ones(4), torch.ones(3, dtype=torch.bool)):
        assert scored(c, replace(told, certain=wrong), attack=Linking()).statuses == {"failed": 4}


def test_who_draws_no_picture_has_no_null_and_says_why() -> None:
    c = case(4, 1)
    labels = scored(c, claim(None, ("converged",) * 4, c.truth.labels[:, None]), attack=Labelling())
    nobody = scored(c, claim(c.truth.images[:, None], ("diverged",) * 4))
    alone = scored(case(1, 1), claim(case(1, 1).truth.images[:, None], ("converged",)))
    for found in (labels, nobody):
        assert found.exact == 0
        assert all(e.value is None and e.reason for e in (found.swapped, found.gain))
    assert alone.swapped.reason == "no other victim's record is of the same class or label group"
    assert alone.gain.n == 1
    assert alone.exact == 1


@dataclass(frozen=True, kw_only=True)
class Form(Defense):
    """Puts a grey of the class in place of a record, and remembers what it was shown."""

    name: ClassVar[str] = "form"

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return images * 0 + labels.view(-1, 1, 1, 1) / 10, labels


@dataclass(frozen=True, kw_only=True)
class Same(Defense):
    name: ClassVar[str] = "same"


def test_public_forms_are_of_the_victims_labels_and_of_other_records() -> None:
    c = case(12, 1)
    generator = torch.Generator().manual_seed(0)
    forms = public_forms(Form(), c.auxiliary, c.truth, generator)
    assert torch.equal(forms[:, 0, 0, 0], c.truth.labels / 10)
    asked = torch.cat([c.truth.labels, torch.tensor([9])])
    shown = public_forms(Same(), c.auxiliary, Records(c.auxiliary.images[:0], asked), generator)
    for picture, label in zip(shown[:-1], c.truth.labels, strict=True):
        same = c.auxiliary.images[c.auxiliary.labels == label]
        assert (same == picture).flatten(1).all(1).any()
    assert (c.auxiliary.images == shown[-1]).flatten(1).all(1).any()  # a class that the adversary has no record of
    with pytest.raises(ValueError):
        public_forms(Same(), c.auxiliary[:0], c.truth, generator)


def test_records_of_older_results_are_not_said_to_be_inexact() -> None:
    assert RecordScore(0, 0, "cat", "converged").exact is None
