"""What a label is: a class, or a target of another kind, of which a few stand for all where classes are asked for.

Attacks and defenses think in classes. Where labels are something else (14 findings, a mask), every record also has a
*label group*: the one of K targets of auxiliary records that its own is nearest to. So a label is written in two ways:
whole numbers (N,) are classes or label groups, and floats (N, *shape) are the targets themselves, of class labels the
probabilities (N, K). A loss takes both (`leakaudit.protocol.labels.task_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.result.tasks import KINDS, MEASURES, Measure

SIDE = 8  # masks are compared averaged to so many blocks a side
_TOGETHER = 2**26  # numbers of differences that are held at once


@dataclass(frozen=True, repr=False)
class Task:
    """What the labels of a target are. `kind` is a name of `result.tasks.KINDS`.

    Where labels are no classes, `shape` and `dtype` are those of one record's target as the user's loss takes it, and
    `table` (K, *shape), float32, holds the targets that stand for the K classes or label groups: real targets of
    auxiliary records, so that they tell nothing of private ones. `values` is how many classes a mask's numbers run to,
    0 where numbers are no classes. `own_targets`: records carry targets beside their groups, which only stand for them.
    """

    kind: str = "classes"
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.long
    table: Tensor | None = None
    values: int = 0
    own_targets: bool = False

    @property
    def measure(self) -> Measure:
        """By what a model is judged."""
        return MEASURES[KINDS[self.kind].measure]

    @property
    def described(self) -> str:
        """What is learned, in a few words that begin with the kind: `multi-label, 14 outputs`."""
        if not self.own_targets:
            return self.kind
        if self.kind == "segmentation":
            size = f"{self.values} classes of pixels" if self.values else f"{self.shape[0]} planes"
        elif self.kind == "soft labels":
            size = f"{self.shape[0]} classes"
        else:
            size = f"{'×'.join(map(str, self.shape)) or 1} output{'s' * (prod(self.shape) != 1)}"
        return f"{self.kind}, {size}"

    @property
    def by_class(self) -> bool:
        """Whether the model has one output for each class, as the loss of a classifier takes them."""
        return self.kind in ("classes", "soft labels")

    @property
    def grouped(self) -> bool:
        """Whether labels are no classes, so that label groups stand where classes are asked for."""
        return self.own_targets and self.kind != "soft labels"

    @property
    def mixes(self) -> bool:
        """Whether the mean of two targets is a target: not where numbers are classes of pixels, or must be whole."""
        return not self.own_targets or (not self.values and self.dtype.is_floating_point)

    @property
    def binary(self) -> bool:
        """Whether every number of the table is 0 or 1, and so likely of every target: findings, not amounts."""
        return self.table is not None and bool(((self.table == 0) | (self.table == 1)).all())

    def targets_of(self, labels: Tensor) -> Tensor:
        """Return the targets (..., *shape) of labels: those that stand for label groups (...,), floats as they are."""
        if labels.is_floating_point() or self.table is None or not self.own_targets:
            return labels
        return self.table.to(labels.device)[labels]

    def features(self, targets: Tensor) -> Tensor:
        """Return rows (N, D) whose squared distances say how far targets (N, *shape) are from each other."""
        width = max(1, self.values) * max(1, prod(self.shape))
        parts = [self._features(part) for part in torch.split(targets, max(1, _TOGETHER // width))]
        return torch.cat(parts) if parts else targets.reshape(0, 1).float()

    def _features(self, targets: Tensor) -> Tensor:
        flat = targets.float()
        if self.values:  # classes of pixels: how much of each block every class takes; what has none takes nothing
            flat = torch.stack([flat.round() == k for k in range(self.values)], 1).float()
        if flat.dim() >= 3:
            planes = flat.reshape(len(flat), -1, *flat.shape[-2:])
            flat = F.adaptive_avg_pool2d(planes, (min(SIDE, planes.shape[-2]), min(SIDE, planes.shape[-1])))
        return flat.reshape(len(flat), -1)

    def groups_of(self, targets: Tensor) -> Tensor:
        """Return the label groups (...,) of targets (..., *shape): the nearest row of the table, the first of ties."""
        assert self.table is not None
        lead = targets.shape[: targets.dim() - len(self.shape)]
        rows, known = self.features(targets.reshape(-1, *self.shape)), self.features(self.table.to(targets.device))
        step = max(1, _TOGETHER // max(1, known.numel()))
        found = [_nearest(rows[start : start + step], known) for start in range(0, len(rows), step)]
        return torch.cat(found).reshape(lead) if found else torch.zeros(lead, dtype=torch.long, device=targets.device)

    def expected(self, chances: Tensor) -> Tensor:
        """Return what is taught of records whose chances (N, K) of the classes, or label groups, are known.

        The chances themselves where labels are classes; else the mean target, or the likeliest where targets have none.
        """
        if self.table is None or not self.own_targets or self.kind == "soft labels":
            return chances
        table = self.table.to(chances.device)
        return torch.tensordot(chances.to(table), table, 1) if self.mixes else table[chances.argmax(1)]

    @property
    def mirrors(self) -> bool:
        """Whether a mirrored picture may keep its label: a mask would have to be mirrored with it."""
        return self.kind != "segmentation"


CLASSES = Task()


def _nearest(rows: Tensor, known: Tensor) -> Tensor:
    gaps = torch.cdist(rows.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist")
    return gaps.argmin(1)
