"""Count sketches: large tensors in few numbers, such that inner products are kept on average."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def widths_within(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Return how many numbers each tensor of these sizes keeps: all of them, or an even share of what is left.

    A width has no divisor in common with its tensor's size, so that entries that differ by whole rows of it do not fall
    together: an update's energy often lies in a few rows or columns, which would all go to the same few numbers.
    """
    widths, left = [0] * len(sizes), most
    for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        widths[i] = max(1, min(sizes[i], left // (len(sizes) - rank)))
        while widths[i] < sizes[i] and math.gcd(widths[i], sizes[i]) > 1:
            widths[i] -= 1
        left -= widths[i]
    return tuple(widths)


def folded(flat: Tensor, signs: Tensor, width: int) -> Tensor:
    """Return `flat` (n,) in `width` numbers: itself, or the sums of every `width`-th entry under random `signs` (n,).

    A count sketch (the feature hashing of Wu et al. 2023): inner products are kept on average.
    """
    if flat.numel() <= width:
        return flat
    return F.pad(flat * signs, (0, -flat.numel() % width)).view(-1, width).sum(0)
