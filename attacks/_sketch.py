"""Count sketches: large tensors in few numbers, such that inner products are kept on average."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def widths_within(sizes: Sequence[int], most: int) -> tuple[int, ...]:
    """Return how many numbers each tensor of these sizes keeps: all of them, or an even share of what is left."""
    widths, left = [0] * len(sizes), most
    for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        widths[i] = max(1, min(sizes[i], left // (len(sizes) - rank)))
        left -= widths[i]
    return tuple(widths)


def folded(flat: Tensor, signs: Tensor, width: int) -> Tensor:
    """Return `flat` (n,) in `width` numbers: itself, or the sums of every `width`-th entry under random `signs` (n,).

    A count sketch (the feature hashing of Wu et al. 2023): inner products are kept on average.
    """
    if flat.numel() <= width:
        return flat
    return F.pad(flat * signs, (0, -flat.numel() % width)).view(-1, width).sum(0)
