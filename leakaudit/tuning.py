"""Choosing an attack's settings on auxiliary records, through the same model and defense, as an attacker would.

No function here takes a victim's update: what is passed was shared from records whose truth the attacker owns.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import torch

from leakaudit.attack import Attack
from leakaudit.client import SharedUpdate
from leakaudit.matching import assign
from leakaudit.metrics import psnr
from leakaudit.progress import expired
from leakaudit.result import Value
from leakaudit.target import PixelModel, Records

SLACK = 0.2  # dB that a shorter run may lose
RUNGS = (4, 2, 1)  # successive halving: the steps are divided by these


def quality(
    attack: Attack, model: PixelModel, update: SharedUpdate, truth: Records, generator: torch.Generator
) -> float:
    """Return the median PSNR in dB of an attack on auxiliary victims, after assignment; −inf where nothing came of it.

    `truth` holds the V·B records behind `update`, victim by victim.
    """
    guess = attack(model, update, generator)
    if guess.images is None:
        return -math.inf
    batches = truth.images[: update.victims * update.batch_size].to(guess.images).view_as(guess.images)
    scores = [
        psnr(true, drawn[assign(true, drawn)])
        for true, drawn, status in zip(batches, guess.images, guess.statuses, strict=True)
        if status in ("converged", "budget")
    ]
    return float(torch.cat(scores).median()) if scores else -math.inf


def configurations(attack: Attack) -> list[dict[str, Any]]:
    """Return every combination of the attack's `grid`, in the types of its settings."""
    names = list(attack.grid)
    kinds = [type(getattr(attack, name)) for name in names]
    return [
        {name: kind(value) for name, kind, value in zip(names, kinds, values, strict=True)}
        for values in itertools.product(*(attack.grid[name] for name in names))
    ]


def tune(
    attack: Attack, model: PixelModel, update: SharedUpdate, truth: Records, generator: torch.Generator
) -> tuple[Attack, dict[str, Value]]:
    """Return the attack with the settings of its `grid`, and the length, that are best on auxiliary victims.

    Successive halving: every combination runs at a quarter of the attack's `steps`, the best third of them at half,
    and the better half of those in full. Of the lengths that the winner was run at, the shortest within 0.2 dB of its
    best is kept. All combinations start from the same random numbers. The second value holds what was chosen and
    `auxiliary_psnr`, the winner's median in dB; it is empty, and the attack unchanged, where there is no grid or
    nothing could be scored.
    """
    if not attack.grid:
        return attack, {}
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    full: int | None = getattr(attack, "steps", None)
    alive = configurations(attack)
    found: dict[tuple[tuple[tuple[str, Any], ...], int | None], float] = {}
    lengths: list[int | None] = [None] if full is None else [max(1, full // rung) for rung in RUNGS]
    for length in dict.fromkeys(lengths):
        fixed: dict[str, Any] = {} if length is None else {"steps": length}
        scored = []
        for i, values in enumerate(alive):
            if expired() and found:
                break
            fresh = torch.Generator(device=generator.device).manual_seed(seed)
            score = quality(replace(attack, **values, **fixed), model, update, truth, fresh)
            found[tuple(values.items()), length] = score
            scored.append((-score, i))
        if not scored:
            break
        alive = [alive[i] for _, i in sorted(scored)[: math.ceil(len(alive) / 2)]]
    winner = alive[0]
    runs = {length: score for (values, length), score in found.items() if values == tuple(winner.items())}
    best = max(runs.values())
    if not math.isfinite(best):
        return attack, {}
    length = next(length for length in runs if runs[length] >= best - SLACK)
    chosen: dict[str, Any] = winner if length is None else {**winner, "steps": length}
    return replace(attack, **chosen), {**chosen, "auxiliary_psnr": round(runs[length], 3)}
