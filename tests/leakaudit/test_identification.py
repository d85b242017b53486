"""Line-ups are fair: right class, no copies of the truth, and whoever knows nothing is right one time in M."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from leakaudit.protocol.target import Records
from leakaudit.protocol.task import Task
from leakaudit.score.identification import CandidateSets, candidate_sets, hidden, identify, identify_by_scores


def world(generator: torch.Generator, n: int = 60, classes: int = 3) -> tuple[Records, Records]:
    images = torch.rand(2 * n, 1, 6, 6, generator=generator)
    labels = torch.arange(2 * n) % classes
    return Records(images[:n], labels[:n]), Records(images[n:], labels[n:])


def test_candidates_are_distinct_records_of_the_class_with_the_truth_in_place(generator: torch.Generator) -> None:
    private, pool = world(generator)
    victims = torch.tensor([5, 0, 17, 30])
    found = candidate_sets(private, victims, pool, 12, generator)
    assert (len(found), found.size, found.chance) == (4, 12, 1 / 12)
    shown = found.images()
    assert shown.shape == (4, 12, 1, 6, 6)
    labels = torch.cat([private.labels, pool.labels])
    for row, victim in enumerate(victims):
        assert torch.equal(shown[row, found.position[row]], private.images[victim])
        assert len(set(found.indices[row].tolist())) == 12
        assert (labels[found.indices[row]] == private.labels[victim]).all()


def test_copies_of_the_truth_are_no_distractors(generator: torch.Generator) -> None:
    private, pool = world(generator, 12)
    pool.images[[0, 3]] = private.images[0]
    private.images[6] = private.images[0]
    found = candidate_sets(private, torch.tensor([0, 6]), pool, 100, generator)
    for row in range(2):
        same = (found.images()[row] == private.images[0]).flatten(1).all(1)
        assert same.nonzero()[:, 0].tolist() == [int(found.position[row])]
    rank, hit = identify(found, private.images[[0, 6]])
    assert rank.tolist() == [1, 1]
    assert hit.all()


def test_a_rare_class_has_a_short_line_up_and_no_other_class_has(generator: torch.Generator) -> None:
    private, pool = world(generator, 10)
    private.labels[:] = torch.tensor([0] * 7 + [1] * 3)
    pool.labels[:] = torch.tensor([0] * 9 + [1])
    found = candidate_sets(private, torch.arange(10), pool, 100, generator)
    assert found.indices.shape == (10, 16)
    assert found.sizes.tolist() == [16] * 7 + [4] * 3  # class 1: itself, two private and one from the pool
    assert (found.size, found.chance) == (16, pytest.approx((7 / 16 + 3 / 4) / 10))
    assert (found.image_labels() == private.labels[:, None]).all()
    for row in range(7, 10):
        assert len(set(found.indices[row, :4].tolist())) == 4
        assert torch.equal(found.indices[row], found.indices[row, :4].repeat(4))  # over and over: it tells nothing
        assert found.position[row] < 4
    alone = candidate_sets(private[[0, 1, 7]], torch.arange(3), pool[:5], 100, generator)
    assert alone.sizes.tolist() == [7, 7, 1]
    assert alone.lined.tolist() == [True, True, False]
    assert (alone.size, alone.chance) == (7, pytest.approx(1 / 7))
    nobody = candidate_sets(private[[7]], torch.arange(1), pool[:0], 100, generator)
    assert (nobody.columns, nobody.size, nobody.chance) == (1, 1, 1.0)


def test_what_fills_a_line_up_is_no_candidate(generator: torch.Generator) -> None:
    scores = torch.rand(400, 9, generator=generator)
    sizes = torch.randint(2, 10, (400,), generator=generator)
    position = (torch.rand(400, generator=generator) * sizes).long()
    rank, hit = identify_by_scores(scores, position, sizes)
    for row in range(400):
        own = scores[row, : sizes[row]]
        assert int(rank[row]) == 1 + int((own > own[position[row]]).sum())
    assert float(hit.float().mean()) == pytest.approx(float((1 / sizes).mean()), abs=0.08)
    filled = torch.stack([row[:size][torch.arange(9) % size] for row, size in zip(scores, sizes, strict=True)])
    assert torch.equal(identify_by_scores(filled, position, sizes)[0], rank)


def test_a_line_up_holds_one_record_of_each_unit_and_none_of_the_victims(generator: torch.Generator) -> None:
    images = torch.rand(120, 1, 4, 4, generator=generator)
    labels, units = torch.arange(120) % 2, torch.randint(0, 15, (120,), generator=generator)
    units[100:] = -1  # of these nobody knows: each its own
    private, pool = (Records(images[part], labels[part], units[part]) for part in (slice(60), slice(60, 120)))
    victims = torch.randperm(60, generator=generator)[:24]
    found = candidate_sets(private, victims, pool, 100, generator, batch_size=2)
    whose = torch.where(units < 0, 1000 + torch.arange(120), units)
    for row, victim in enumerate(victims.tolist()):
        shown = found.indices[row, : found.sizes[row]].tolist()
        theirs = {int(whose[victims[i]]) for i in (row, row ^ 1)}
        assert shown[found.position[row]] == victim
        assert {labels[i].item() for i in shown} == {labels[victim].item()}
        others = [int(whose[i]) for i in shown if i != victim]
        wanted = {int(u) for u in whose[labels == labels[victim]]} - theirs
        assert sorted(others) == sorted(wanted)


def test_members_of_a_batch_are_not_each_others_distractors(generator: torch.Generator) -> None:
    private, pool = world(generator, 12, classes=1)
    victims = torch.tensor([0, 1, 2, 3])
    found = candidate_sets(private, victims, pool, 100, generator, batch_size=2)
    assert found.size == 23
    for row, mate in enumerate([1, 0, 3, 2]):
        assert mate not in found.indices[row].tolist()


def test_the_same_seed_draws_the_same_line_up(generator: torch.Generator) -> None:
    private, pool = world(generator)
    first, again, other = (
        candidate_sets(private, torch.arange(20), pool, 10, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.position, again.position)
    assert not torch.equal(first.indices, other.indices)


@pytest.mark.parametrize("fill", [0.5, None])
def test_whoever_knows_nothing_is_at_chance(generator: torch.Generator, fill: float | None) -> None:
    images = torch.rand(4000, 1, 3, 3, generator=generator)
    private = Records(images[:2000], torch.zeros(2000, dtype=torch.long))
    pool = Records(images[2000:], torch.zeros(2000, dtype=torch.long))
    found = candidate_sets(private, torch.arange(2000), pool, 5, generator)
    shape = private.images.shape
    guess = torch.full(shape, fill) if fill is not None else torch.rand(shape, generator=generator)
    rank, hit = identify(found, guess)
    assert float(hit.float().mean()) == pytest.approx(0.2, abs=4 * (0.16 / 2000) ** 0.5)
    assert float(rank.float().mean()) == pytest.approx(3, abs=4 * (2 / 2000) ** 0.5)


def test_scores_that_all_tie_are_at_chance(generator: torch.Generator) -> None:
    images = torch.rand(3000, 1, 2, 2, generator=generator)
    records = Records(images, torch.zeros(3000, dtype=torch.long))
    found = candidate_sets(records, torch.arange(2000), records[2000:], 4, generator)
    for value in (0.0, float("nan")):
        rank, hit = identify_by_scores(torch.full((2000, 4), value), found.position)
        assert float(hit.float().mean()) == pytest.approx(0.25, abs=0.04)
        assert sorted(set(rank.tolist())) == [1, 2, 3, 4]


def test_ranks_count_whoever_is_likelier() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [float("nan"), 0.2, float("-inf")]])
    rank, hit = identify_by_scores(scores, torch.tensor([2, 0, 1, 1]))
    assert rank.tolist() == [2, 1, 2, 1]
    assert hit.tolist() == [False, True, False, True]


def test_identification_is_by_the_nearest_picture(generator: torch.Generator) -> None:
    private, pool = world(generator)
    found = candidate_sets(private, torch.arange(10), pool, 20, generator)
    noisy = (private.images[:10] + 0.05 * torch.randn(10, 1, 6, 6, generator=generator)).clamp(0, 1)
    rank, hit = identify(found, noisy)
    assert hit.all()
    assert rank.tolist() == [1] * 10
    wrong = found.images()[torch.arange(10), (found.position + 1) % 20]
    rank, hit = identify(found, wrong)
    assert not hit.any()
    assert (rank >= 2).all()
    assert isinstance(found[:3], CandidateSets)
    assert len(found[:3]) == 3


def findings(count: int, seed: int) -> Tensor:
    return torch.randint(0, 2, (count, 3), generator=torch.Generator().manual_seed(seed)).float()


def with_findings(records: Records, seed: int) -> Records:
    """Return records whose labels are findings, in groups by the first of them."""
    own = findings(len(records), seed)
    return replace(records, labels=own[:, 0].long(), targets=own)


TASK = Task("multi-label", (3,), torch.float32, torch.tensor([[0.0, 0, 0], [1, 1, 1]]), own_targets=True)


def test_where_labels_are_no_classes_the_nearest_stand_in_a_line_up() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(90, 1, 4, 4, generator=generator)
    private = with_findings(Records(x[:60], torch.zeros(60).long()), 1)
    pool = with_findings(Records(x[60:], torch.zeros(30).long()), 2)
    found = candidate_sets(private, torch.arange(8), pool, 20, generator, task=TASK)
    every = torch.cat([private.targets, pool.targets])  # type: ignore[list-item]
    assert found.targets is not None
    for row in range(8):
        shown = found.indices[row].tolist()
        assert shown[int(found.position[row])] == row
        assert len(set(shown)) == 20
        gaps = (every - every[row]).square().sum(1)
        others = [i for i in range(90) if i not in shown]
        assert float(gaps[shown].max()) <= float(gaps[others].min())
    again = candidate_sets(private, torch.arange(8), pool, 20, torch.Generator().manual_seed(5), task=TASK)
    same = candidate_sets(private, torch.arange(8), pool, 20, torch.Generator().manual_seed(5), task=TASK)
    assert torch.equal(again.indices, same.indices)
    targets = found.image_targets(slice(0, 2))
    assert targets is not None
    assert torch.equal(targets, every[found.indices[:2]])


def test_of_each_unit_one_stands_in_a_line_up_of_the_nearest_and_none_of_its_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    private = with_findings(Records(torch.rand(40, 1, 4, 4, generator=generator), torch.zeros(40).long()), 1)
    private = replace(private, units=torch.arange(40) // 4)
    found = candidate_sets(private, torch.tensor([0, 8]), private[:0], 100, generator, batch_size=2, task=TASK)
    for row in range(2):
        units = [int(private.units[i]) for i in found.indices[row, : int(found.sizes[row])]]  # type: ignore[index]
        assert len(units) == len(set(units)) == 9
        assert {0, 2} & set(units) == {0 if row == 0 else 2}


def test_a_label_that_nobody_else_has_is_counted_and_a_record_is_hidden_among_its_group() -> None:
    generator = torch.Generator().manual_seed(0)
    private = with_findings(Records(torch.rand(30, 1, 4, 4, generator=generator), torch.zeros(30).long()), 1)
    unique = replace(private, targets=torch.arange(30).float()[:, None].expand(30, 3))
    found = candidate_sets(unique, torch.arange(4), unique[:0], 10, generator, task=TASK)
    assert found.alone() == 4
    rows = zip(found.indices, found.position, strict=True)
    of_group = [int((found.labels[row] == found.labels[row[at]]).sum()) for row, at in rows]
    assert hidden(found, found) == int(4 / sum(1 / count for count in of_group) + 1e-9)
    assert [len(each) for each in found.shown()] == of_group
    alike = candidate_sets(replace(unique, targets=None), torch.arange(4), unique[:0], 10, generator)
    assert hidden(alike, alike) == alike.size
    assert alike.alone() == 0
