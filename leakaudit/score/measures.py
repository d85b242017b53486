"""By what a model is judged on records it was not trained on: the measure of its task (`result.tasks.MEASURES`)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from leakaudit.protocol.task import Task
from leakaudit.score.nearness import rank_auc

TOGETHER = 2**26  # numbers of outputs that are held at once, a quarter of a gigabyte


def measured(model: PixelModel, records: Records, task: Task, loss: LossFunction) -> float:
    """Return the measure of the task in eval mode; NaN where these records cannot give it (`cannot` says why).

    An output that is not finite is wrong in every class and every rank; of numbers there is no R² then.
    """
    if task.kind == "classes":
        return accuracy(model, records)
    if task.kind == "one logit":
        return _of_one_logit(model, records, task, loss)
    truth = targets_of(records, task)
    if task.measure.name == "mean IoU":
        return _mean_iou(_outputs(model, records), truth, task)
    outputs = torch.cat([part.cpu() for _, part in _outputs(model, records)]) if len(records) else truth
    if task.measure.name == "accuracy":
        wrong = ~outputs.isfinite().all(1)
        return float(((outputs.argmax(1) == truth.argmax(1)) & ~wrong).double().mean())
    return mean_auc(outputs, truth) if task.measure.name == "mean AUC" else r_squared(outputs, truth)


def cannot(records: Records, task: Task) -> str:
    """Return why no model can be measured on these records, empty where one can."""
    if not len(records):
        return "there are no test records"
    if task.measure.name == "accuracy":
        return ""
    truth = targets_of(records, task)
    if task.measure.name == "mean AUC" and not len(_findings(truth)):
        return "no finding has both values among the test records"
    if task.measure.name == "R²" and not float((truth.double() - truth.double().mean(0)).square().sum()):
        return "the test records all have the same label"
    if task.measure.name == "mean IoU" and not chance(records, task):
        return "no pixel of the test records has a class"
    return ""


def chance(records: Records, task: Task) -> float:
    """Return what a model gives that learned nothing: the commonest class (of all pixels) everywhere, ½, or 0."""
    if task.measure.name == "mean AUC":
        return 0.5
    if task.measure.name == "R²":
        return 0.0
    if task.measure.name == "accuracy":
        return majority(records)
    truth = targets_of(records, task)
    if not task.values and not _exclusive(truth):  # planes of their own: each is there everywhere
        shares = truth.transpose(0, 1).flatten(1).double().mean(1)
        return float(shares[shares > 0].mean()) if shares.any() else 0.0
    counts = torch.bincount(_classes(truth, task).flatten() + 1)[1:].double()
    return float(counts.max() / counts.sum() / (counts > 0).sum()) if counts.sum() else 0.0


def targets_of(records: Records, task: Task) -> Tensor:
    """Return the targets (N, *shape) of records: their own, released ones, or those of their label groups."""
    taught = records.taught
    if taught.is_floating_point() or task.table is None:
        return taught
    return task.table.to(taught.device)[taught]


def as_records(images: Tensor, labels: Tensor, task: Task) -> Records:
    """Return records of what a record stage released: by their likeliest class, or by targets and label groups."""
    own = labels if task.own_targets and labels.is_floating_point() else None
    return Records(images, hard(labels, task), targets=own)


def accuracy(model: PixelModel, records: Records, batch_size: int = 256) -> float:
    """Return the share of records classified correctly in eval mode; an output that is not finite is wrong."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(records), batch_size):
            batch = records[start : start + batch_size]
            logits = model.predicted(batch.images.to(device))
            right += int(((logits.argmax(1) == batch.labels.to(device)) & logits.isfinite().all(1)).sum())
    return right / max(1, len(records))


def majority(records: Records) -> float:
    """Return the share of the commonest class: the accuracy of a model that learned nothing."""
    return float(records.labels.bincount().max()) / len(records) if len(records) else 0.0


def mean_auc(outputs: Tensor, truth: Tensor) -> float:
    """Return the area under the ROC curve, the mean over findings (N, K) that have both values; NaN without any.

    By ranks, ties half (Mann and Whitney 1947). A truth above ½ is there, one below 0 is not known and left out. A
    record whose output is not finite ranks last where the finding is there, and first where it is not.
    """
    there, away = _there(truth)
    worst = torch.where(there, -torch.inf, torch.inf).double()
    scores = outputs.reshape(there.shape).double()
    scores = torch.where(scores.isfinite(), scores, worst)
    found = [rank_auc(scores[away[:, k], k], scores[there[:, k], k]).value for k in _findings(truth)]
    values = [value for value in found if value is not None]
    return math.fsum(values) / len(values) if values else math.nan


def r_squared(outputs: Tensor, truth: Tensor) -> float:
    """Return 1 − Σ(y − ŷ)² / Σ(y − ȳ)² over all outputs, ȳ the mean of each; NaN where that is no number."""
    y = truth.reshape(len(truth), -1).double()
    least = (y - y.mean(0)).square().sum()
    value = float(1 - (y - outputs.reshape(y.shape).double()).square().sum() / least)
    return value if math.isfinite(value) else math.nan


def _findings(truth: Tensor) -> list[int]:
    there, away = _there(truth)
    both: list[int] = (there.any(0) & away.any(0)).nonzero()[:, 0].tolist()
    return both


def _there(truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return which findings (N, K) of a truth (N, K) or (N,) are there, and which are known not to be."""
    rows = truth.reshape(len(truth), -1)
    return rows > 0.5, (rows >= 0) & (rows <= 0.5)


def _of_one_logit(model: PixelModel, records: Records, task: Task, loss: LossFunction) -> float:
    """Return the accuracy where the label of least loss is the answer, 0 of equal ones: no form needs a threshold."""
    right = 0
    for start, part in _outputs(model, records):
        labels = [torch.tensor([label], device=part.device) for label in (0, 1)]
        for k, output in enumerate(part, start):
            no, yes = (float(loss(output[None], label)) for label in labels)
            right += not math.isnan(yes + no) and int(records.labels[k]) == int(yes < no)
    return right / max(1, len(records))


def _outputs(model: PixelModel, records: Records) -> Iterator[tuple[int, Tensor]]:
    """Yield the outputs (n, …) of records in eval mode, with the index of the first of them."""
    device = next(model.parameters()).device
    model.eval()
    start, size = 0, 16
    while start < len(records):
        with torch.no_grad():
            part = model.predicted(records.images[start : start + size].to(device))
        yield start, part
        start += size
        size = max(1, min(256, TOGETHER // max(1, part[0].numel())))


def _mean_iou(parts: Iterator[tuple[int, Tensor]], truth: Tensor, task: Task) -> float:
    """Return intersection over union, of all records together, the mean over the classes that occur.

    One plane is cut at 0 where it gives logits and at ½ where all outputs lie in [0, 1], and so are planes that do not
    exclude each other, of which each has an IoU of its own, what is there against what is not left out.
    """
    several = not task.values and not _exclusive(truth)
    cuts: dict[float, Tensor] = {}
    lies_within = True
    for start, part in ((k, each.cpu()) for k, each in parts):
        own = truth[start : start + len(part)]
        lies_within &= bool(((part >= 0) & (part <= 1)).all())
        for cut in (0.0, 0.5):
            if several:
                found = torch.stack([_crossed(a, b, 2) for a, b in zip(*_planes(part > cut, part, own), strict=True)])
            else:
                found = _crossed(_classes(own, task), _answers(part, cut), max(2, part.shape[1]))
            cuts[cut] = cuts[cut] + found if cut in cuts else found
    table = cuts[0.5 if lies_within else 0.0].double()
    if several:
        occurs = table[:, 1].sum(1) > 0
        return float((table[:, 1, 1] / (table[:, 1].sum(1) + table[:, 0, 1]))[occurs].mean())
    union = table.sum(1) + table[:, :-1].sum(0) - table.diagonal()
    return float((table.diagonal() / union)[table.sum(1) > 0].mean())


def _planes(there: Tensor, outputs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return truth and answers of each plane (K, n): 0 or 1, and 2 for an output that is not finite."""
    answers = torch.where(outputs.isfinite(), there.long(), 2)
    return (truth > 0.5).long().transpose(0, 1).flatten(1), answers.transpose(0, 1).flatten(1)


def _answers(outputs: Tensor, cut: float) -> Tensor:
    """Return the class (n, …) of every pixel of outputs (n, C, …), one too many where they are not finite."""
    classes = max(2, outputs.shape[1])
    found = (outputs[:, 0] > cut).long() if outputs.shape[1] == 1 else outputs.argmax(1)
    return torch.where(outputs.isfinite().all(1), found, classes)


def _classes(truth: Tensor, task: Task) -> Tensor:
    """Return the class (n, …) of every pixel, −1 where it has none: what lies beyond the classes is left out."""
    if not task.values:
        return truth.argmax(1)
    whole = truth.round().long()
    return torch.where((whole >= 0) & (whole < task.values), whole, -1)


def _crossed(truth: Tensor, answers: Tensor, classes: int) -> Tensor:
    """Return how many pixels of each class (rows) were given each answer (columns, one more: none)."""
    known = truth.flatten() >= 0
    pairs = truth.flatten()[known] * (classes + 1) + answers.flatten()[known]
    return torch.bincount(pairs, minlength=classes * (classes + 1)).reshape(classes, classes + 1)


def _exclusive(truth: Tensor) -> bool:
    """Return whether exactly one of several planes (N, K, …) is there at every place."""
    return truth.shape[1] > 1 and bool((truth.sum(1) == 1).all())
