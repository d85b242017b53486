"""Reconstructions are paired by the assignment, not by its inverse."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leakaudit.score.metrics import assign, mse


def test_a_cycle_of_three_is_undone_and_not_repeated(generator: torch.Generator) -> None:
    truth = torch.rand(3, 3, 8, 8, generator=generator)
    cycle = torch.tensor([1, 2, 0])
    guess = truth[cycle]
    found = assign(truth, guess)
    assert torch.equal(guess[found], truth)
    assert found.tolist() == [2, 0, 1]
    assert not torch.equal(guess[found.argsort()], truth)  # the inverse, which swaps could not tell apart


@settings(derandomize=True, max_examples=25, deadline=None)
@given(order=st.permutations(range(4)), noise=st.floats(0, 1), seed=st.integers(0, 99))
def test_no_other_pairing_is_better(order: list[int], noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(4, 1, 5, 5, generator=generator)
    guess = (truth + noise * torch.rand(truth.shape, generator=generator))[torch.tensor(order)]
    found = assign(truth, guess)
    assert sorted(found.tolist()) == [0, 1, 2, 3]
    best = min(float(mse(truth, guess[torch.tensor(p)]).sum()) for p in itertools.permutations(range(4)))
    assert float(mse(truth, guess[found]).sum()) <= best + 1e-12
