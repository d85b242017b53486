"""Which records are of one unit of privacy (one person, one site): as the user says, else by near-duplicates.

Somebody whose thirty near-identical shots are among the records is found out by any of them, so the unit is what may
not be identified.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.protocol.target import Records, Target

LOOK = 8  # pictures are compared averaged to 8×8: noise goes, what tells two scenes apart stays
APART = 0.5  # a cluster is at most so wide, as a share of its distance to the nearest other picture of its class
NEAR = 0.7  # such distances are looked for up to this share of what is usual in the class
USUAL = 0.75  # which quantile of the distances in a class is usual: half of them may lie within two persons
SAMPLE = 1000  # pictures of a class from which that quantile is taken
MOST = 8000  # pictures of a class that are looked through; 64 million distances take seconds
PAIRS = 500_000  # near pairs of a class that are looked through, the nearest ones
_TOGETHER = 500  # 500 × 8,000 distances are 16 MB


def with_units(target: Target) -> Target:
    """Return the target with a unit for every private and test record: no −1 is left there.

    What the user said stands. Records of which nothing was said belong to the unit of their near-duplicates, where
    those are of one; else they are a unit of their own. A target that has them already is returned as it is.
    """
    if all(
        records.units is not None and not bool((records.units < 0).any()) for records in (target.private, target.test)
    ):
        return target
    both = Records(
        torch.cat([target.private.images, target.test.images]).cpu(),
        torch.cat([target.private.labels, target.test.labels]).cpu(),
    )
    said = torch.cat([_said(target.private), _said(target.test)])
    # A line-up of the nearest labels holds records of several label groups: near-duplicates are looked for in all.
    labels = torch.zeros_like(both.labels) if target.task.own_targets else both.labels
    clusters = near_duplicates(both.images, labels) if bool((said < 0).any()) else torch.arange(len(said))
    units = _joined(said, clusters)
    private, test = units[: len(target.private)], units[len(target.private) :]
    found = _several(clusters)
    return replace(
        target,
        private=replace(target.private, units=private),
        test=replace(target.test, units=test),
        near_duplicates=found if found[0] else None,
    )


def _several(clusters: Tensor) -> tuple[int, int]:
    """Return how many clusters hold more than one record, and how many records those hold."""
    counts = torch.unique(clusters, return_counts=True)[1]
    several = counts[counts > 1]
    return len(several), int(several.sum())


def count_units(units: Tensor) -> int:
    """Return how many different units there are among `units` (N,)."""
    return len(set(units.tolist()))


def near_duplicates(images: Tensor, labels: Tensor) -> Tensor:
    """Return each picture's cluster (N,), the index of its first picture; one without a near-duplicate is its own.

    Clusters lie within a class, averaged to `LOOK` and without their mean brightness: sets of pictures all of which
    are nearer to each other than `APART` times the distance of any of them to any other picture of the class. A chain
    of pictures is none, since its ends are far apart, nor is a whole class, which lies apart from nothing.
    """
    looked = F.adaptive_avg_pool2d(images.float().cpu(), (min(LOOK, images.shape[2]), min(LOOK, images.shape[3])))
    flat = looked.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    clusters = torch.arange(len(labels))
    for label in torch.unique(labels.cpu()):
        members = (labels.cpu() == label).nonzero()[:MOST, 0]
        clusters[members] = members[_clusters(flat[members])]
    return clusters


def _said(records: Records) -> Tensor:
    return torch.full((len(records),), -1) if records.units is None else records.units.cpu().clone()


def _joined(said: Tensor, clusters: Tensor) -> Tensor:
    """Return units without −1: those said, that of a cluster's only said unit, else a new number per cluster."""
    units = said.tolist()
    told: dict[int, set[int]] = {}
    for unit, cluster in zip(units, clusters.tolist(), strict=True):
        told.setdefault(cluster, set()).update({unit} - {-1})
    new = max([*units, -1]) + 1
    for index, cluster in enumerate(clusters.tolist()):
        if units[index] < 0:
            units[index] = next(iter(told[cluster])) if len(told[cluster]) == 1 else new + cluster
    return torch.tensor(units, dtype=torch.long)


def _clusters(points: Tensor) -> Tensor:
    """Return the cluster (n,) of every point (n, D) of a class, as the index of its first point.

    Pairs are joined from the nearest on; before a set is joined to another it is a cluster if it is tight enough for
    the gap. Later, larger clusters hold earlier ones.
    """
    found, reach = list(range(len(points))), NEAR * _usual(points)
    if reach == 0:
        return torch.tensor(found)
    group = {i: _Set([i]) for i in found}
    pairs, reach = _near_pairs(points, reach)
    for i, j, distance in pairs:
        a, b = group[i], group[j]
        if a is b:
            a.pairs, a.width = a.pairs + 1, distance
            continue
        for one in (a, b):
            one.settle(found, distance)
        a, b = (a, b) if len(a.members) >= len(b.members) else (b, a)
        a.pairs, a.width = a.pairs + b.pairs + 1, distance
        a.members += b.members
        group.update(dict.fromkeys(b.members, a))
    for one in {id(s): s for s in group.values()}.values():
        if len(one.members) < len(points):
            one.settle(found, reach)
    return torch.tensor(found)


class _Set:
    """Points joined so far, how many pairs of them were met, and the distance of the last one."""

    def __init__(self, members: list[int]) -> None:
        self.members, self.pairs, self.width = members, 0, 0.0

    def settle(self, found: list[int], gap: float) -> None:
        """Note the set as a cluster where all its pairs were met and are near beside the gap."""
        size = len(self.members)
        if self.pairs == math.comb(size, 2) and size > 1 and self.width <= APART * gap:
            first = min(self.members)
            for member in self.members:
                found[member] = first


def _usual(points: Tensor) -> float:
    """Return the usual distance of two points (n, D) of a class, 0 where there is none."""
    some = points[torch.linspace(0, len(points) - 1, min(len(points), SAMPLE)).round().long()]
    if len(some) < 3:  # two can only be the whole class
        return 0.0
    gaps = torch.pdist(some)
    return float(gaps.kthvalue(max(1, round(USUAL * len(gaps)))).values)


def _near_pairs(points: Tensor, reach: float) -> tuple[list[tuple[int, int, float]], float]:
    """Return the pairs of points at most `reach` apart with their distances, the nearest first, and how far they reach.

    That is less than was asked for where there are more than `PAIRS`.
    """
    found = []
    for start in range(0, len(points), _TOGETHER):
        part = points[start : start + _TOGETHER]
        gaps = torch.cdist(part, points[start:], compute_mode="donot_use_mm_for_euclid_dist")
        rows, columns = ((gaps <= reach) & torch.ones_like(gaps, dtype=torch.bool).triu(1)).nonzero().unbind(1)
        found.append((rows + start, columns + start, gaps[rows, columns]))
    rows, columns, gaps = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = gaps.argsort(stable=True)[:PAIRS]
    reached = reach if len(order) == len(gaps) else float(gaps[order[-1]])
    return list(zip(rows[order].tolist(), columns[order].tolist(), gaps[order].tolist(), strict=True)), reached
