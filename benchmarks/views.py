"""Line-ups whose candidates are shared, and views of a record pooled into one: what attackers of a benchmark need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leakaudit.attacks._linking import standard
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import Records
from leakaudit.result.schema import AttackResult
from leakaudit.score.identification import CandidateSets, candidate_sets


def class_line_ups(victims: Records, others: Records, size: int, generator: torch.Generator) -> CandidateSets:
    """Return a line-up for each victim in which the same `size` records of its class stand, in an order of its own.

    These are the victims of the class themselves and as many of `others` as are missing. What an attack computes of a
    candidate it then computes once, however many victims it is asked about.
    """
    chosen = []
    for label in torch.unique(victims.labels).tolist():
        missing = max(0, size - int((victims.labels == label).sum()))
        own = (others.labels == label).nonzero()[:, 0]
        chosen.append(own[torch.randperm(len(own), generator=generator)[:missing]])
    pool = others[torch.cat(chosen)] if chosen else others[:0]
    return candidate_sets(victims, torch.arange(len(victims)), pool, size, generator)


def taken(update: SharedUpdate, rows: list[int]) -> SharedUpdate:
    """Return the updates of some victims."""
    return replace(update, gradients=tuple(g[rows] for g in update.gradients))


def averaged(updates: list[SharedUpdate]) -> SharedUpdate:
    """Return the mean update of every victim over several rounds."""
    columns = zip(*(update.gradients for update in updates), strict=True)
    return replace(updates[0], gradients=tuple(torch.stack(column).mean(0) for column in columns), buffers=None)


def joined(updates: list[SharedUpdate]) -> SharedUpdate:
    """Return all victims of several stacks as one, in order."""
    columns = zip(*(update.gradients for update in updates), strict=True)
    shown = [update.released for update in updates if update.released is not None]
    told = [update.released_labels for update in updates if update.released_labels is not None]
    return replace(
        updates[0],
        gradients=tuple(torch.cat(column) for column in columns),
        released=torch.cat(shown) if shown else None,
        released_labels=torch.cat(told) if told else None,
        buffers=None,
    )


def pooled(guess: Reconstruction, records: int) -> Reconstruction:
    """Return one claim per record out of those of K views of it, view after view: scores summed, pictures averaged."""
    views = len(guess.statuses) // records
    if views == 1:
        return guess
    done = ("converged", "budget")
    ended = [guess.statuses[i::records] for i in range(records)]

    def apart(tensor: Tensor) -> Tensor:
        return tensor.reshape(views, records, *tensor.shape[1:])

    images = None if guess.images is None else apart(guess.images).mean(0)
    linkage = None if guess.linkage is None else standard(apart(guess.linkage)).sum(0)
    return replace(
        guess,
        images=images,
        labels=None if guess.labels is None else guess.labels[:records],
        objective=apart(guess.objective).mean(0),
        statuses=tuple(next((s for s in statuses if s not in done), statuses[0]) for statuses in ended),
        linkage=linkage,
        certain=None,  # of one view alone
        progress=None if guess.progress is None else apart(guess.progress).amin(0),
    )


def part_of(guess: Reconstruction, rows: Sequence[int]) -> Reconstruction:
    """Return the claims about some of the records."""
    index = torch.tensor(list(rows), dtype=torch.long)

    def cut(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[index]

    return replace(
        guess,
        images=cut(guess.images),
        labels=cut(guess.labels),
        objective=guess.objective[index],
        statuses=tuple(guess.statuses[i] for i in index.tolist()),
        linkage=cut(guess.linkage),
        certain=cut(guess.certain),
        progress=cut(guess.progress),
    )


def above_guessing(result: AttackResult) -> float | None:
    """Return by how many of its standard deviations the mean reciprocal rank lies above that of guessing.

    A mean alone would let an attack win that was lucky with the one record it was asked about.
    """
    ranks = [record.rank for record in result.records if record.rank is not None]
    if not ranks:
        return None
    sizes = [r.candidates or result.candidates for r in result.records if r.rank is not None]
    guessed = [1 / torch.arange(1, size + 1, dtype=torch.float64) for size in sizes]
    gap = sum(1 / rank for rank in ranks) - sum(float(g.mean()) for g in guessed)
    return gap / sum(float(g.var(correction=0)) for g in guessed) ** 0.5
