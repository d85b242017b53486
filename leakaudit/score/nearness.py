"""How near pictures lie to others, and whether one set lies nearer than another: what copies are found by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leakaudit.result.schema import Estimate
from leakaudit.stats import intervals

_TOGETHER = 100  # 100 × 50,000 distances are 20 MB


def nearest(pictures: Tensor, others: Tensor, *, mirrored: bool = False, exact: bool = False) -> Tensor:
    """Return the root mean square difference (N,) of pictures (N, C, H, W) to the nearest of others (M, C, H, W).

    `mirrored` takes the mirror images of them, too. `exact` takes differences, not products: products are several
    times as fast and may round the distance of a copy up to some 1e-3 in [0, 1].
    """
    flat, pixels = others.flatten(1), others[0].numel()
    mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist_if_necessary"
    found = []
    for part in torch.split(pictures, _TOGETHER):
        sides = (part, part.flip(3)) if mirrored else (part,)
        gaps = [torch.cdist(side.flatten(1), flat, compute_mode=mode).amin(1) for side in sides]
        found.append(torch.stack(gaps).amin(0))
    return torch.cat(found) / math.sqrt(pixels)


def rank_auc(lower: Tensor, higher: Tensor) -> Estimate:
    """Return P(a < b) for a of `lower` (n,) and b of `higher` (m,), ties half, with a 95 % interval.

    The interval is that of min(n, m) disjoint pairs, which vary more than the mean over all pairs does: it is wider
    than need be, and holds at 0 and 1 too.
    """
    ordered = lower.sort().values
    below, upto = (torch.searchsorted(ordered, higher, right=right) for right in (False, True))
    value = int((below + upto).sum()) / (2 * len(lower) * len(higher))
    pairs = min(len(lower), len(higher))
    ends = intervals.rate(round(value * pairs), pairs)
    return Estimate(value, ends.low, ends.high, pairs)
