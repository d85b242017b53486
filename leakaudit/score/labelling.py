"""Labels that an attack guesses, against those of the records: a batch's labels are an unordered bag."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from leakaudit.result.schema import Estimate
from leakaudit.stats import intervals


def labels_found(
    claimed: Tensor | None, labels: Tensor, scored: Tensor, order: Tensor, batch: int, missing: str
) -> tuple[dict[int, int], Estimate]:
    """Return each record's guessed label and the share of labels found; a batch's labels are an unordered bag.

    Pictures carry their own labels along; without pictures a record gets its label if the bag holds it.
    """
    if claimed is None:
        return {}, Estimate(reason="the attack guesses no labels")
    guesses = claimed.detach().cpu().flatten()[order].tolist()
    truth = labels.tolist()
    guessed: dict[int, int] = {}
    found: list[list[bool]] = []
    for v in scored.nonzero()[:, 0].tolist():
        part = range(v * batch, (v + 1) * batch)
        bag = Counter(guesses[i] for i in part)
        common = bag & Counter(truth[i] for i in part)
        found.append([i < common.total() for i in range(batch)])
        aligned = not torch.equal(order[part.start : part.stop], torch.arange(part.start, part.stop))
        guessed |= {i: guesses[i] for i in part} if aligned else _from_bag(bag, [(i, truth[i]) for i in part])
    return guessed, intervals.rate_of_clients(found, missing)


def _from_bag(bag: Counter[int], wanted: list[tuple[int, int]]) -> dict[int, int]:
    left = bag.copy()
    given: dict[int, int] = {}
    for i, label in wanted:
        if left[label]:
            left[label] -= 1
            given[i] = label
    rest = iter(sorted(left.elements()))
    return given | {i: next(rest) for i, _ in wanted if i not in given}
