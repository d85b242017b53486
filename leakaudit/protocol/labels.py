"""Labels as class indices (N,), as probabilities (N, K), or as targets of another kind (`leakaudit.protocol.task`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.protocol.target import LossFunction
from leakaudit.protocol.task import CLASSES, Task


def hard(labels: Tensor, task: Task = CLASSES) -> Tensor:
    """Return class indices or label groups (...,): as they are, or the likeliest class of probabilities (..., K).

    Of targets (..., *shape) of another kind it is the label group that they are nearest to.
    """
    if not labels.is_floating_point():
        return labels
    return task.groups_of(labels) if task.own_targets else labels.argmax(-1)


def task_loss(loss: LossFunction, task: Task) -> LossFunction:
    """Return the loss of an audit: it takes whole numbers (N,), and targets (N, *shape) or probabilities (N, K).

    Label groups are looked up in the task's table; the user's loss is given what the user's data gives.
    """
    if task.table is None:
        return expected_loss(loss)
    table = task.table

    def looked_up(logits: Tensor, labels: Tensor) -> Tensor:
        if not labels.is_floating_point():
            labels = table.to(logits.device)[labels]
        return loss(logits, labels.to(task.dtype))

    return looked_up if task.own_targets else expected_loss(looked_up)


def soft(labels: Tensor, classes: int) -> Tensor:
    """Return probabilities (..., K): as they are, or one-hot rows of class indices."""
    return labels if labels.is_floating_point() else F.one_hot(labels, classes).to(torch.get_default_dtype())


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean (K, D) of the flattened rows (N, ...) of each of K classes; that of all for a class without."""
    flat = rows.flatten(1)
    sums = torch.zeros(classes, flat.shape[1], device=flat.device).index_add_(0, labels, flat)
    counts = torch.bincount(labels, minlength=classes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), flat.mean(0))


def expected_loss(loss: LossFunction) -> LossFunction:
    """Return the loss that also takes probabilities: then its expectation over labels drawn from them, E_{y~p} ℓ.

    Cross-entropy is linear in the label and takes probabilities itself. Any other loss is averaged over the classes,
    record by record, so it must be the mean over a batch's records, as every loss of an audit must be. Class indices go
    to `loss` unchanged.
    """
    if loss is F.cross_entropy or (isinstance(loss, nn.CrossEntropyLoss) and loss.weight is None):
        return loss

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        if not labels.is_floating_point():
            return loss(logits, labels)
        rows = []
        for z, p in zip(logits, labels, strict=True):
            each = [loss(z[None], torch.full((1,), k, device=z.device)) for k in range(p.shape[-1])]
            rows.append((p * torch.stack(each)).sum())
        return torch.stack(rows).mean()

    return expected
