"""Which reconstruction belongs to which record: a batch is an unordered bag, so the best pairing is scored."""

from __future__ import annotations

import torch
from torch import Tensor


def assign(truth: Tensor, guess: Tensor) -> Tensor:
    """Return a permutation (B,) such that `guess[assign(truth, guess)]` is aligned with `truth`, both (B, C, H, W).

    The pairing minimises the summed MSE (linear sum assignment). Its inverse would align `truth` with `guess`; the two
    are equal for swaps and differ from a 3-cycle on.
    """
    from scipy.optimize import linear_sum_assignment

    if truth.shape != guess.shape:
        raise ValueError(f"a pairing needs two batches of one shape, got {tuple(truth.shape)}, {tuple(guess.shape)}")
    cost = torch.cdist(
        truth.double().flatten(1), guess.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    ).square()
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.as_tensor(columns, dtype=torch.long, device=truth.device)
