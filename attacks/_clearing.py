"""Noise that entries share: what is left of a row where it is taken out, as whoever knows the defense can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

TOGETHER = 1e-3  # two columns of noise, each of length 1, so near to each other are one but for a factor and rounding


@dataclass(frozen=True)
class Clearing:
    """Which entries share their noise, but for a known factor: one drawn number on many entries, or masks that cancel.

    Such are noise that is broadcast over the rows of a layer, drawn anew from the same seed for every layer, or added
    here and taken off there.
    """

    group: Tensor  # (F,) long
    load: Tensor  # (F,) how loud the noise of its group is in an entry; 0 where nothing can be cleared

    @cached_property
    def _shared(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The n entries that share their noise: their places (n,), groups (n,) of G, and loads (n,); lengths (G,)."""
        places = self.load.nonzero()[:, 0]
        _, group = torch.unique(self.group[places], return_inverse=True)
        load = self.load[places].double()
        length = load.new_zeros(int(group.max()) + 1).index_add_(0, group, load.square())
        return places, group, load, length.clamp_min(1e-30)

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows (..., F) without the part along the noise that entries share; 0 where noise is an entry's own."""
        places, group, load, length = self._shared
        given = rows[..., places].double()
        total = given.new_zeros(*rows.shape[:-1], len(length)).index_add_(-1, group, given * load)
        cleared = torch.zeros_like(rows)
        cleared[..., places] = (given - (total / length)[..., group] * load).to(rows)
        return cleared


def clearing_of(runs: Sequence[Tensor]) -> Clearing | None:
    """Return how draws (K, F) of each of several records are cleared; None where no two entries share their noise."""
    noise = torch.cat([rows - rows.mean(0) for rows in runs]).double()
    size = noise.norm(dim=0)
    drawn = size > 1e-6 * max(float(size.max()), 1e-30)
    if len(noise) < 8 or int(drawn.sum()) < 2:
        return None
    columns = (noise / size.clamp_min(1e-30)).T
    # Opposite columns are one: the sign is that of a sum under odd weights. Equal ones then stand next to each other.
    told = columns @ torch.linspace(0.5, 1.5, len(noise), dtype=torch.float64, device=noise.device).sin()
    columns = columns * torch.where(told < 0, -1.0, 1.0)[:, None]
    order = torch.where(drawn, told.abs(), torch.full_like(told, torch.inf)).argsort(stable=True)
    near = (columns[order[1:]] - columns[order[:-1]]).norm(dim=1) < TOGETHER
    near &= drawn[order[1:]] & drawn[order[:-1]]
    number = torch.cat([near.new_zeros(1, dtype=torch.long), (~near).long().cumsum(0)])
    group = torch.zeros_like(number)
    group[order] = number
    shared = torch.bincount(group)[group] > 1
    if not bool(shared.any()):
        return None
    return Clearing(group, torch.where(shared, size * torch.where(told < 0, -1.0, 1.0), torch.zeros_like(size)))
