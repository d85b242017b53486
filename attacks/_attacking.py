"""How an attack is run on a stack of victims: the mode, the memory, and how each ended."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import ParamSpec

import torch
from torch import Tensor

from leakaudit.errors import NotApplicable, TooLittleMemory, first_line
from leakaudit.protocol.attack import Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import exhausted
from leakaudit.work.progress import expired
from leakaudit.work.seeding import forked

P = ParamSpec("P")


def starts(model: PixelModel, update: SharedUpdate, restarts: int, generator: torch.Generator) -> Tensor:
    """Return starting pictures (V·restarts, B, C, H, W), victim by victim.

    Each victim's first is grey with a little noise, so that the records of a batch part: the prior then has nothing to
    undo, which on CIFAR-size pictures is worth 1 to 3 dB. The others are normal noise around grey, boxed.
    """
    shape = (update.victims, restarts, update.batch_size, *update.input_shape)
    noise = torch.randn(shape, generator=generator, device=generator.device).to(model.mean)
    noise = tied(noise) if model.grey else noise
    scale = torch.full((restarts,), 0.25).to(noise)
    scale[0] = 0.01
    return (0.5 + noise * scale.view(1, -1, 1, 1, 1, 1)).clamp(0, 1).flatten(0, 1)


def tied(values: Tensor) -> Tensor:
    """Return values of pictures (..., C, H, W) with their mean over the channels in each: of pictures that are grey."""
    return values.mean(-3, keepdim=True).expand_as(values)


def room_for(update: SharedUpdate, trials: int, copies: int, classes: int = 0) -> int:
    """Return the bytes of so many copies of the trials' pictures, and of `classes` numbers for each of their records.

    A few hundred bytes are what a tensor takes by itself.
    """
    return trials * (copies * 4 * update.batch_size * (math.prod(update.input_shape) + classes) + 500)


WORDS = {
    "diverged": "the objective was not finite, or never fell",
    "budget": "the time budget was spent; the best so far is given",
}


def reason_of(statuses: tuple[Status, ...], words: Mapping[str, str] = WORDS) -> str | None:
    """Say in `words` (by status) what became of the victims that did not converge, or None where all did."""
    parts = [f"{words[s]} for {statuses.count(s)} of {len(statuses)} victims" for s in words if s in statuses]
    return "; ".join(parts) or None


def need_one_gradient(update: SharedUpdate) -> None:
    """Raise NotApplicable where an update is not one gradient at the weights that were sent out.

    Equations that a candidate's own gradient enters hold for no sum of gradients at weights that move.
    """
    if not update.is_gradient:
        raise NotApplicable(f"it solves for one gradient, and this update is of {steps_behind(update)}")


def need_sum_of_gradients(update: SharedUpdate) -> None:
    """Raise NotApplicable where an update is no sum of gradients.

    What is linear in a layer's gradient and holds for any weights (∂W = δ·xᵀ of a first layer) holds for what sgd sums
    over its steps, with momentum or without. Adam divides every entry by its own size.
    """
    if update.client.local and update.client.optimizer != "sgd":
        raise NotApplicable(f"it solves for a sum of gradients, and this update is of {steps_behind(update)}")


def steps_behind(update: SharedUpdate) -> str:
    """Say how many local steps are behind an update, and of which optimiser."""
    steps, clients = update.steps, update.client.clients
    whose = f" of each of {clients} clients" if clients > 1 else ""
    return f"{steps} local step{'s' * (steps > 1)} by {update.client.optimizer}{whose}"


def cut_short(first: Reconstruction) -> Reconstruction:
    """Return a first stage's claim after a second one, which the time may have ended on victims done with the first."""
    if not expired():
        return first
    statuses: tuple[Status, ...] = tuple("budget" if s == "converged" else s for s in first.statuses)
    return replace(first, statuses=statuses, reason=reason_of(statuses))


def failed(update: SharedUpdate, status: Status, reason: str) -> Reconstruction:
    """Return a reconstruction that claims nothing, with one status for every victim."""
    nothing = torch.full((update.victims,), torch.inf)
    return Reconstruction(
        images=None, labels=None, objective=nothing, statuses=(status,) * update.victims, reason=reason
    )


def told_nothing(update: SharedUpdate, found: Reconstruction) -> Reconstruction:
    """Return what was found, but where an update of zeros made an attack diverge: there it ends at grey, and says so.

    Such an update tells nothing of its records, and an objective that is undefined at zero does not make that a
    failure. What an attack draws without diverging (the mean of a class, the least rough picture) stays.
    """
    zero = torch.stack([~g.reshape(len(g), -1).any(1) for g in update.gradients]).all(0).tolist()
    statuses: tuple[Status, ...] = tuple(
        "converged" if z and s == "diverged" else s for z, s in zip(zero, found.statuses, strict=True)
    )
    changed = [v for v, (s, was) in enumerate(zip(statuses, found.statuses, strict=True)) if s != was]
    if not changed:
        return found
    images, linkage = found.images, found.linkage
    if images is not None:
        images = images.clone()
        images[changed] = 0.5
    if linkage is not None:
        linkage = linkage.clone()
        linkage[changed] = 0.0
    objective = found.objective.clone()
    objective[changed] = 0.0
    note = (
        f"{len(changed)} of {update.victims} updates are zero in every entry and tell nothing: grey is given for them."
    )
    return replace(
        found,
        images=images,
        linkage=linkage,
        objective=objective,
        statuses=statuses,
        reason=reason_of(statuses),  # none where all the others converged
        notes=(*found.notes, note),
    )


def memory_safe(call: Callable[P, Reconstruction]) -> Callable[P, Reconstruction]:
    """Turn running out of memory inside an attack (self, model, update, …) into the status `out-of-memory`.

    Every attack goes through here, so this is also where an update of zeros is seen (`told_nothing`).
    """

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Reconstruction:
        update = next(a for a in (*args, *kwargs.values()) if isinstance(a, SharedUpdate))
        try:
            return told_nothing(update, call(*args, **kwargs))
        except (MemoryError, RuntimeError) as error:
            if not exhausted(error):
                raise
            told = f"out of memory at {update.victims} victims of {update.batch_size}"
            return failed(update, "out-of-memory", first_line(error) if isinstance(error, TooLittleMemory) else told)

    return guarded


@contextmanager
def client_mode(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Iterator[None]:
    """Put the model in the client's mode and fix the global random state, so that dropout repeats under one seed."""
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with forked(seed), in_mode(model, update.mode):
        yield
