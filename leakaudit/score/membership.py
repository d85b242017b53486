"""Who was in a set: how sure a network is of a record, and how many members are told at few false alarms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leakaudit.result.schema import Estimate
from leakaudit.stats import intervals


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p_y − log(1 − p_y) (N,) of logits (N, K) and labels (N,): near normal over training runs.

    Carlini et al. 2022 (arXiv 2112.03570), section VI.A. It is computed as z_y − log Σ_{k ≠ y} exp z_k, which no sure
    network saturates.
    """
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    rest = logits.masked_fill(own, -math.inf).logsumexp(1)
    return logits[own] - rest


def threshold(others: Tensor, false_alarms: float) -> float | None:
    """Return the ⌊false_alarms · m⌋-th highest score of the others (m,); None with fewer than 1 / false_alarms."""
    allowed = math.floor(false_alarms * len(others) + 1e-9)
    return float(others.sort(descending=True).values[allowed - 1]) if allowed else None


def caught(members: Tensor, others: Tensor, false_alarms: float) -> Estimate:
    """Return the share of members (n,) who score above all but so many of the others (m,); larger means a member.

    Only what lies above the `threshold` counts: where nothing tells them apart the share is as large as `false_alarms`.
    The interval (Clopper and Pearson) takes the threshold as given and the members as independent. No value where there
    is no threshold.
    """
    limit = threshold(others, false_alarms)
    if limit is None:
        return Estimate(reason=f"that takes {math.ceil(1 / false_alarms)} others")
    return intervals.rate(int((members > limit).sum()), len(members))
