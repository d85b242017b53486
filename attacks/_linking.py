"""What linkage attacks share: scores of candidates, and which of them to trust."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from leakaudit.attacks._attacking import reason_of
from leakaudit.attacks._labels import known_labels
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.attack import Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients, fast_example_gradients, mean_gradient
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import LossFunction, PixelModel, Records
from leakaudit.work.memory import bearable, in_pieces

WORDS = {
    "diverged": "the scores were not finite",
    "budget": "the time budget was spent before the candidates were compared",
}

Scores = dict[str, Tensor]  # by name, (N, M) each: N updates against M candidates, larger is likelier


def standard(scores: Tensor) -> Tensor:
    """Return scores (..., M) with mean 0 and deviation 1 over the candidates; all zero where they do not differ."""
    first = scores[..., :1]
    same = (scores == first).all(-1, keepdim=True) & first.isfinite()  # a mean may be off by its rounding
    centred = (scores - scores.mean(-1, keepdim=True)).masked_fill(same, 0)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)


def linked(update: SharedUpdate, labels: Tensor, scores: Tensor, done: list[bool]) -> Reconstruction:
    """Return the claim of a linkage attack: scores (V, M), with labels (V, 1) beside them."""
    # A victim whose scores are not finite is diverged, one that the time did not suffice for is budget.
    statuses: tuple[Status, ...] = tuple(
        "budget" if not d else "converged" if bool(row.isfinite().all()) else "diverged"
        for d, row in zip(done, scores, strict=True)
    )
    return Reconstruction(
        images=None,
        labels=labels,
        objective=-scores.nan_to_num(0, 0, 0).max(1).values,
        statuses=statuses,
        reason=reason_of(statuses, WORDS),
        linkage=scores.nan_to_num(0, 0, 0),
    )


def known_defense(update: SharedUpdate) -> Defense:
    """Return the defense; raises NotApplicable where it is not exposed or an update is not one record's."""
    if update.batch_size != 1:
        raise NotApplicable(f"it needs one record per update, here there are {update.batch_size}")
    return exposed_defense(update)


def exposed_defense(update: SharedUpdate) -> Defense:
    """Return the defense; raises NotApplicable where it is not exposed."""
    if update.defense is None:
        raise NotApplicable("the defense is not exposed")
    return update.defense


def labels_shown(model: PixelModel, update: SharedUpdate, candidates: Tensor, generator: torch.Generator) -> Tensor:
    """Return the candidates' labels (V, M), or their label groups: known with them, else what the update says."""
    if update.candidate_labels is not None:
        return update.candidate_labels
    return hard(known_labels(model, update, generator), update.task)[:, :1].expand(-1, candidates.shape[1]).cpu()


def claimed_labels(update: SharedUpdate, labels: Tensor, scores: Tensor) -> Tensor:
    """Return labels (V, B) of what is claimed: those of the candidates of the largest scores (V, M), of `labels`."""
    best = scores.nan_to_num(-torch.inf).argmax(1, keepdim=True)
    return labels.gather(1, best.to(labels.device)).expand(-1, update.batch_size)


def line_ups_shown(candidates: Tensor, labels: Tensor, targets: Tensor | None) -> Records:
    """Return line-ups (V, M, C, H, W) with labels (V, M), and targets (V, M, *shape) if any, as records of one row.

    They lie where the candidates do.
    """
    told = None if targets is None else targets.flatten(0, 1).to(candidates.device)
    return Records(candidates.flatten(0, 1), labels.flatten().to(candidates.device), targets=told)


def similarity(model: PixelModel, loss: LossFunction, shared: Gradients, labels: Tensor, pictures: Tensor) -> Tensor:
    """Return cos(∇ℓ(x_j, y_j), g̃_n), (N, M), of pictures (M, C, H, W) under their labels: (M, ...), or one (1, ...).

    A label is a class, probabilities, or a target. `shared` holds N updates, (N, *parameter.shape) each: a picture's
    gradient is computed once for all of them.
    """
    work = "similarity", pictures.shape[1:], labels.shape[1:]
    labels = labels.expand(len(pictures), *labels.shape[1:])

    def gap_to(one: Gradients, *gradient: Tensor) -> Tensor:
        return engine.cosine(gradient, one)[0]

    def together(start: int, stop: int) -> Tensor:
        columns = fast_example_gradients()(model, loss, pictures[start:stop], labels[start:stop])
        found = (torch.func.vmap(partial(gap_to, one))(*columns) for one in zip(*shared, strict=True))
        return 1 - torch.stack(list(found), 1)

    def alone(x: Tensor, y: Tensor) -> Tensor:
        gradient = mean_gradient(model, loss, x[None], y[None])
        return torch.stack([1 - gap_to(one, *gradient) for one in zip(*shared, strict=True)])

    if engine.vectorises(model):
        return torch.cat(in_pieces(together, len(pictures), model, work, pictures.device)).T
    bearable(lambda: alone(pictures[0], labels[0]), model, work, pictures.device)
    return torch.stack([alone(x, y) for x, y in zip(pictures, labels, strict=True)], 1)


def sum_of(scores: Scores, names: tuple[str, ...]) -> Tensor:
    """Return the sum (..., M) of the standardised scores of these names, of all where none is named."""
    return torch.stack([standard(scores[name]) for name in names or scores]).sum(0)


MARGIN = 0.1  # of a mean reciprocal rank, by which another score must do better than what is preferred


def most_trusted(
    rehearsed: list[tuple[Scores, Tensor]], preferred: Sequence[tuple[str, ...]] = ((),)
) -> tuple[str, ...]:
    """Return the names of the scores to add up: the one that finds most auxiliary records, or all, given as no names.

    `rehearsed` holds scores (N, M) with the position (N,) of the truth. What counts is the mean reciprocal rank: as
    many firsts as possible, and ties settled by the seconds. Sums that are `preferred`, by default that of all, win a
    tie; where several are, any other must do better by `MARGIN` than the first.
    """
    found: dict[tuple[str, ...], float] = {}
    for scores, position in rehearsed:
        for names in dict.fromkeys((*preferred, *((name,) for name in scores))):
            total = sum_of(scores, names).nan_to_num(-torch.inf)
            true = total.gather(1, position[:, None])
            rank = (total >= true).sum(1) - 1  # what ties with the truth tells nothing
            found[names] = found.get(names, 0.0) + float((1 / (1 + rank)).sum())
    if not found:
        return ()
    best, first = max(found, key=lambda names: found[names]), preferred[0]
    asked = sum(len(position) for _, position in rehearsed)
    return first if len(preferred) > 1 and found[best] < found[first] + MARGIN * asked else best


def distinct(candidates: Tensor, labels: Tensor, targets: Tensor | None = None) -> tuple[Records, Tensor]:
    """Return the distinct records of line-ups (N, M, ...) with labels (N, M), and which of them each is, (N, M).

    Line-ups of a class overlap, and so do those of several views of a record: replacing a picture once is enough. Two
    are the same where picture, label and, if there are any, targets (N, M, *shape) are.
    """
    shown = line_ups_shown(candidates, labels, targets)
    known: dict[tuple[int, ...], int] = {}
    told = shown.labels.tolist() if shown.targets is None else map(_hashed, shown.targets.cpu())
    keys = zip(map(_hashed, shown.images.cpu()), told, strict=True)
    places = [known.setdefault(key, i) for i, key in enumerate(keys)]
    order = {first: place for place, first in enumerate(known.values())}
    found = torch.tensor([order[first] for first in places], device=shown.images.device)
    return shown[list(order)], found.view(candidates.shape[:2])


def _hashed(values: Tensor) -> int:
    return hash(values.numpy().tobytes())
