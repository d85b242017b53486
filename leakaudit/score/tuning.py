"""Choosing an attack's settings on auxiliary records, through the same model and defense, as an attacker would.

No function here takes a victim's update: what is passed was shared from records whose truth the attacker owns.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from leakaudit.errors import OutOfTime
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.schema import Value
from leakaudit.score.metrics import assign, psnr
from leakaudit.work.progress import expired, note_untuned, while_tuning

SCORED = "auxiliary_psnr"  # the winner's score among the settings that `tune` returns
RUNS = 7.25  # in full, that a search over the grid of inverting gradients makes
SLACK = 0.2  # dB that a shorter run may lose
PARTS = (4, 2, 1)  # the lengths tried: the steps divided by these …
LEAST = 60  # … but no less than so many steps, where the attack has them


def quality(guess: Reconstruction, update: SharedUpdate, truth: Records) -> float:
    """Return the median PSNR in dB of an attack on auxiliary victims, after assignment; −inf where nothing came of it.

    `truth` holds the V·B records behind `update`, victim by victim.
    """
    if guess.images is None:
        return -math.inf
    batches = truth.images[: update.victims * update.batch_size].to(guess.images).view_as(guess.images)
    scores = [
        psnr(true, drawn[assign(true, drawn)])
        for true, drawn, status in zip(batches, guess.images, guess.statuses, strict=True)
        if status in ("converged", "budget")
    ]
    return float(torch.cat(scores).median()) if scores else -math.inf


def candidates(attack: Attack, name: str) -> list[Any]:
    """Return the values of the attack's `grid` for one setting, in that setting's type."""
    kind = type(getattr(attack, name))
    return [kind(value) for value in attack.grid[name]]


def tuned_in_time(
    attack: Attack, model: PixelModel, update: SharedUpdate, truth: Records, generator: torch.Generator
) -> tuple[Attack, dict[str, Value]]:
    """Return what `tune` does within half of the time that is left; the attack as it is where that does not suffice.

    Then the piece of work is noted as untuned: its default settings may be weaker.
    """
    try:
        with while_tuning():
            return tune(attack, model, update, truth, generator)
    except OutOfTime:
        note_untuned()
        return attack, {}


def tune(
    attack: Attack, model: PixelModel, update: SharedUpdate, truth: Records, generator: torch.Generator
) -> tuple[Attack, dict[str, Value]]:
    """Return the attack with the settings of its `grid`, and the length, that are best on auxiliary victims.

    The first setting of the grid is found by successive halving: every value runs at a quarter of the attack's `steps`,
    the better half at half of them, and the best two in full. Between the last two, the best tries every value of each
    further setting in turn at half the steps, and both take over what was best. Of the lengths that the winner was run
    at, the shortest within 0.2 dB of its best is kept. No run is made twice, nor one of fewer than `LEAST` steps:
    short runs prefer strong priors. Settings of one length run together where the attack can (`several`). With the grid
    of inverting gradients that costs 7.25 full runs, in stacks that are 2.75 runs long.

    All runs start from the same random numbers. The second value returned holds what was chosen and `auxiliary_psnr`,
    the winner's median in dB; it is empty, and the attack unchanged, where there is no grid or nothing could be scored.
    Raises OutOfTime where the time is up before it ended: half a search prefers whatever came first.
    """
    if not attack.grid:
        return attack, {}
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    full: int | None = getattr(attack, "steps", None)
    lengths: list[int | None] = [None] * 3 if full is None else [max(min(full, LEAST), full // part) for part in PARTS]
    found: dict[tuple[tuple[Any, ...], int | None], float] = {}

    def settings(choice: Attack) -> tuple[Any, ...]:
        return tuple(getattr(choice, name) for name in attack.grid)

    def best(choices: list[Attack], length: int | None, keep: int = 1) -> list[Attack]:
        """Return the best `keep` of the choices at this length, best first; earlier ones where they are equal."""
        sized: dict[str, Any] = {} if length is None else {"steps": length}
        new = list({settings(c): replace(c, **sized) for c in choices if (settings(c), length) not in found}.values())
        guesses = attack.several(new, model, update, torch.Generator().manual_seed(seed)) if new else []
        if len(guesses) < len(new) or expired():  # the last may have been cut short
            raise OutOfTime("the time budget ended its tuning")
        for choice, guess in zip(new, guesses, strict=True):
            found[settings(choice), length] = quality(guess, update, truth)
        scored = [(-found[settings(choice), length], i) for i, choice in enumerate(choices)]
        return [choices[i] for _, i in sorted(scored)[:keep]] or choices[:keep]

    first, *others = attack.grid
    alive = [replace(attack, **{first: value}) for value in candidates(attack, first)]
    alive = best(alive, lengths[0], math.ceil(len(alive) / 2))
    winner, *rival = best(alive, lengths[1], 2)
    for name in others:
        (winner,) = best([winner, *(replace(winner, **{name: v}) for v in candidates(attack, name))], lengths[1])
    (winner,) = best([winner, *(replace(winner, **{first: getattr(other, first)}) for other in rival)], lengths[2])
    runs = {length: score for (values, length), score in found.items() if values == settings(winner)}
    top = max(runs.values())
    if not math.isfinite(top):
        return attack, {}
    length = next(length for length in runs if runs[length] >= top - SLACK)
    chosen: dict[str, Any] = {name: getattr(winner, name) for name in attack.grid}
    chosen |= {} if length is None else {"steps": length}
    return replace(attack, **chosen), {**chosen, SCORED: round(runs[length], 3)}
