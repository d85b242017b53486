"""What a picture must be better than to tell anything of its record: what needs no update, and swapped updates."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor

from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import Records
from leakaudit.result.rules import EXACT, SHARP
from leakaudit.score.baselines import others_of_class
from leakaudit.score.metrics import assign, psnr


def public_forms(defense: Defense, auxiliary: Records, truth: Records, generator: torch.Generator) -> Tensor:
    """Return what the defense puts in place of another record with each label of N records: pictures (N, C, H, W).

    The other records are auxiliary ones, of the label's class where there are any, else of any; all are released with
    those labels. Whoever knows the defense can draw this without an update, so what an attack draws must be better
    to tell something of a record. Raises ValueError without auxiliary records, and whatever the record stage raises.
    """
    if len(auxiliary) == 0:
        raise ValueError("public forms need auxiliary records")
    chosen = others_of_class(auxiliary, truth.labels, generator)
    device = auxiliary.labels.device
    return release(defense, Records(auxiliary.images[chosen.to(device)], truth.taught.to(device)), generator).images


def best_guess(x: Tensor, guesses: Tensor, batch: int) -> Tensor:
    """Return the PSNR (N,) of the best of G guesses (G, N, C, H, W) at each record of `x` (N, C, H, W).

    Each guess is paired with the records of a batch of `batch` as reconstructions are.
    """
    best = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    for guess in guesses:
        drawn = guess.to(x).clamp(0, 1)
        if batch > 1:
            parts = [slice(start, start + batch) for start in range(0, len(x), batch)]
            drawn = torch.cat([drawn[part][assign(x[part], drawn[part])] for part in parts])
        best = torch.maximum(best, psnr(x, drawn))
    return best


def swapped(
    x: Tensor, pictures: Tensor, labels: Tensor, victims: Tensor, rows: Tensor, units: Tensor | None = None
) -> dict[int, float]:
    """Return by record the median PSNR of what was drawn for other victims' records of its class.

    `x` and `pictures` are (N, C, H, W), paired within batches; `labels` and `victims` (N,) say whose they are, `rows`
    which are scored. A picture counts as drawn for the record that it was paired with in its own batch: it is not
    paired anew. Records of the same unit (N,), a person's say, are no others. Records without others are left out.
    """
    found = {}
    for row in rows.tolist():
        other = (labels[rows] == labels[row]) & (victims[rows] != victims[row])
        if units is not None:
            other &= units[rows] != units[row]
        drawn = pictures[rows[other]]
        if len(drawn):
            found[row] = float(median(psnr(x[row].expand_as(drawn), drawn).tolist()))
    return found


def gained(scores: dict[int, float], guessed: Tensor, null: dict[int, float]) -> dict[int, float]:
    """Return by record its PSNR minus the best that needs no update of its: a guess (N,), or the swapped null."""
    return {row: score - max(float(guessed[row]), null.get(row, -torch.inf)) for row, score in scores.items()}


def exactly(scores: dict[int, float], gain: dict[int, float], hit: dict[int, bool]) -> dict[int, bool]:
    """Return by record whether its picture is it, beyond doubt: `EXACT`, `SHARP` above every guess, and not nearer
    to another candidate of its class.
    """
    return {row: score >= EXACT and gain[row] >= SHARP and hit.get(row, True) for row, score in scores.items()}
