"""Updates that the attacker makes of its own records, through the defense it knows."""

from __future__ import annotations

from dataclasses import replace

import torch

from leakaudit.attacks.inverting_gradients import InvertingGradients, inversion_of
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import bytes_of, parameters_of
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.tuning import RUNS, tuned_in_time
from leakaudit.work.memory import held


def inversions(steps: int, sizes: Sizes, rehearsals: int) -> Amount:
    """Return how much work it is to tune an inversion on so many rehearsals, and to run it on the victims."""
    return Amount(updates=sizes.victims + rehearsals, slopes=steps * (sizes.victims + RUNS * rehearsals))


def rehearsed(
    settings: InvertingGradients,
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    auxiliary: Records | None,
    rehearsals: int,
    generator: torch.Generator,
) -> tuple[Attack, float]:
    """Return the inversion, tuned to find x̃ on updates of auxiliary records, and its root mean square error there.

    With these `settings`, and an error of 0.05, where nothing can be rehearsed.
    """
    inversion: Attack = inversion_of(settings)
    wanted = 0 if auxiliary is None else min(rehearsals, len(auxiliary) // update.batch_size) * update.batch_size
    if auxiliary is None or not wanted:
        return inversion, 0.05
    size = wanted // update.batch_size * bytes_of(parameters_of(model)[1])
    with held(size, f"{wanted // update.batch_size} rehearsals", "rehearsals", model.mean.device):
        return _tuned(inversion, model, update, defense, auxiliary, wanted, generator)


def _tuned(
    inversion: Attack,
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    auxiliary: Records,
    wanted: int,
    generator: torch.Generator,
) -> tuple[Attack, float]:
    order = torch.randperm(len(auxiliary), generator=generator, device=generator.device)[:wanted]
    released = release(defense, auxiliary[order.to(auxiliary.labels.device)], generator)
    own = share(
        model,
        update.loss,
        released,
        defense,
        replace(update.exposure, released=False),
        batch_size=update.batch_size,
        classes=update.classes,
        mode=update.mode,
        generator=generator,
        client=update.client,
        task=update.task,
    )
    inversion, tuned = tuned_in_time(inversion, model, own, released, generator)
    psnr = tuned.get("auxiliary_psnr")
    return inversion, 10 ** (-psnr / 20) if isinstance(psnr, float) else 0.05
