"""The scores of replays, worked out a few rows at a time, are those of the formulas, one entry after another."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from leakaudit.attacks import _likelihood
from leakaudit.attacks._likelihood import Noise, Replays, certain, noise_of, scores_of

WIDTHS, SENT = (20, 1, 12, 9), 7
Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def scene(draws: int, offset: float, *, bare: bool, seed: int = 0) -> tuple[Tensor, Replays]:
    """Return rows (7, F) that were sent, in double precision, and replays of nine candidates.

    The first is one candidate's draw to the bit, the second in one part alone, the third but for rounding, the fourth
    what two candidates send, the fifth zeros, the sixth a bare update, the last noise. One part of all is constant.
    """
    g, count = torch.Generator().manual_seed(seed), sum(WIDTHS)
    noise = torch.rand(count, generator=g, dtype=torch.float64) * (draws > 1)
    noise[-9:] = 0
    rows = torch.randn(9, 1, count, generator=g, dtype=torch.float64).expand(-1, draws, -1)
    rows = rows + noise * torch.randn(9, draws, count, generator=g, dtype=torch.float64) + offset
    rows[4], rows[5:8, :, ::3], rows[:, :, 20] = rows[3], 0, offset
    alone = torch.randn(9, count, generator=g, dtype=torch.float64) + offset
    alone[4] = alone[3]
    seen = torch.randn(SENT, count, generator=g, dtype=torch.float64) + offset
    seen[0], seen[1, -9:], seen[2] = rows[0, -1], rows[1, 0, -9:], rows[2, 0] * (1 + 1e-7)
    seen[3], seen[4], seen[5] = rows[3, 0], 0, alone[5]
    runs = [noise * torch.randn(12, count, generator=g, dtype=torch.float64) for _ in range(4)]
    return seen, Replays(rows, alone if bare else None, noise_of(runs), WIDTHS, draws)


def variance_of(replays: Replays) -> Doubles:
    known, rows = replays.noise.variance.numpy(), replays.rows.numpy()
    return known if rows.shape[1] < 2 else np.maximum(known, rows.var(1, ddof=1).mean(0))


def plainly(seen: Tensor, replays: Replays) -> dict[str, Doubles]:
    """Return all scores, candidate by candidate."""
    rows, mean, k = replays.rows.numpy(), replays.rows.numpy().mean(1), replays.draws
    ends = np.cumsum((0, *replays.widths))
    parts = [slice(a, b) for a, b in pairwise(ends)]
    loud = np.concatenate([np.full(p.stop - p.start, (mean[:, p] ** 2).mean()) for p in parts])
    tiny = 1e-12 * np.maximum(np.maximum(loud, 1e-6 * (mean**2).mean()), 1e-18)
    variance, between, centre = variance_of(replays), mean.var(0), mean.mean(0)
    spread = variance * (1 + 1 / k) + 1e-3 * between + tiny
    e = replays.noise.residuals.numpy()
    rest = 1e-2 * (e**2).mean(1).sum() / len(e) + 1e-30
    inverse = np.linalg.inv(e.T @ e / len(e) + rest * np.eye(e.shape[1])) * rest

    def along(u: Doubles, m: Doubles, weight: Doubles) -> float:
        length = ((m - centre) @ weight @ (m - centre)) ** 0.5
        return float((u - centre) @ weight @ (m - centre) / length) if length > 0 else 0.0

    def part(u: Doubles, m: Doubles, p: slice) -> float:
        size = np.linalg.norm((u - centre)[p])
        here = np.diag((np.arange(len(u)) >= p.start) & (np.arange(len(u)) < p.stop)).astype(float)
        return along(u, m, here) / max(size, 1e-20)

    found: dict[str, list[list[float]]] = {name: [] for name in scores_of(seen, replays)}
    for u in seen.numpy():
        line: dict[str, list[float]] = {name: [] for name in found}
        for j, m in enumerate(mean):
            each = [*rows[j], *([] if replays.bare is None else [replays.bare.numpy()[j]])]
            off = [np.minimum((u - x) ** 2 / (variance + between + tiny), 1e4).sum() for x in each]
            line["likelihood"].append(-np.minimum((u - m) ** 2 / spread, 1e4).sum())
            line["nearest draw"].append(-min(off))
            line["equal entries"].append(max(((abs(u - x) <= 1e-5 * abs(x)) & (x != 0)).sum() for x in each))
            line["matched filter"].append(along(u, m, np.diag(1 / spread)))
            line["by part"].append(sum(part(u, m, p) for p in parts))
            if "whitened" in found:
                line["whitened"].append(along(u, m, inverse))
        for name, scores in line.items():
            found[name].append(scores)
    return {name: np.array(scores) for name, scores in found.items()}


def plainly_certain(seen: Tensor, replays: Replays, places: Tensor) -> list[int]:
    """Return what `certain` does, for one row, part and candidate after another."""
    ends, found = np.cumsum((0, *replays.widths)), [-1] * len(seen)
    variance, rows = variance_of(replays), replays.rows.numpy()
    for n, u in enumerate(seen.numpy()):
        for p in (slice(a, b) for a, b in pairwise(ends)):
            drawn = variance[p].mean() > 1e-6 * (rows[..., p] ** 2).mean()
            told = [[] if drawn else list(rows[j, :, p]) for j in range(len(rows))]
            if replays.bare is not None:
                told = [[*each, alone[p]] for each, alone in zip(told, replays.bare.numpy(), strict=True)]
            shown, size = sorted(set(places[n].tolist())), np.linalg.norm(u[p])
            if found[n] >= 0 or not told[0] or size == 0 or len(set(abs(u[p]))) < 8:
                continue
            gap = [min(float(np.linalg.norm(x - u[p])) for x in told[j]) for j in shown]
            usual = sorted(gap)[(len(gap) - 1) // 2]
            if min(gap) <= min(1e-3 * usual, 1e-4 * size) and sum(each <= 5e-2 * usual for each in gap) == 1:
                found[n] = places[n].tolist().index(shown[gap.index(min(gap))])
    return found


CASES = [(1, 0.0, False), (1, 3.0, True), (4, 0.0, True), (4, 3.0, False), (4, 1e3, True), (3, -1e3, False)]


@pytest.mark.parametrize(("draws", "offset", "bare"), CASES)
def test_scores_are_those_of_the_formulas(draws: int, offset: float, bare: bool) -> None:
    seen, replays = scene(draws, offset, bare=bare)
    wanted, found = plainly(seen, replays), scores_of(seen, replays)
    assert list(found) == list(wanted)
    for name, scores in found.items():
        torch.testing.assert_close(scores.double(), torch.from_numpy(wanted[name]).double(), rtol=1e-6, atol=1e-6)
        assert torch.equal(scores[:, 3], scores[:, 4]), name  # two that send the same score the same, to the bit
        assert torch.equal(scores, scores_of(seen, replays, (name,))[name])


@pytest.mark.parametrize(("draws", "offset", "bare"), CASES)
def test_what_is_certain_is_what_comparing_one_by_one_finds(draws: int, offset: float, bare: bool) -> None:
    seen, replays = scene(draws, offset, bare=bare)
    g = torch.Generator().manual_seed(1)
    places = torch.stack([torch.randperm(9, generator=g) for _ in range(SENT)])
    places[:, 7:] = places[:, :1]  # a short line-up
    found = certain(seen, replays, places).tolist()
    assert found == plainly_certain(seen, replays, places)
    whole = certain(seen, replays, torch.arange(9).expand(SENT, -1)).tolist()
    assert whole[1] == 1  # a part is enough, that of the buffers, say, which no noise is added to
    assert whole[3:] == [-1, -1, 5 if bare else -1, -1]  # of two alike it is neither


@pytest.mark.parametrize("draws", [1, 4])
def test_numbers_do_not_depend_on_how_many_rows_are_worked_on_at_once(
    draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide, replays = scene(draws, 3.0, bare=True)
    noise = Noise(replays.noise.variance.float(), replays.noise.residuals.float(), replays.noise.steady)
    assert replays.bare is not None
    seen, replays = wide.float(), replace(replays, rows=replays.rows.float(), bare=replays.bare.float(), noise=noise)
    places = torch.arange(9).expand(SENT, -1)
    whole, sure = scores_of(seen, replays), certain(seen, replays, places)
    for block in (1, 100):
        monkeypatch.setattr(_likelihood, "BLOCK", (block, block))
        again = scores_of(seen, replays)
        assert all(torch.equal(scores, again[name]) for name, scores in whole.items())
        assert torch.equal(certain(seen, replays, places), sure)


def test_what_is_the_same_to_the_bit_is_off_by_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    for offset in (0.0, 1e6):
        rows = torch.randn(9, 1, 42, generator=g) + offset
        found = scores_of(rows[:, 0], Replays(rows, None, noise_of([rows[:, 0] * 0]), WIDTHS, 1))
        off = found["likelihood"]
        assert not off.diagonal().any()
        assert bool((off + torch.eye(9).double() < 0).sum() == 72)
        assert found["equal entries"].diagonal().tolist() == [42] * 9
