"""How an attack is run on a stack of victims: the mode, the memory, and how each ended."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec

import torch
from torch import Tensor

from leakaudit.protocol.attack import Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.target import PixelModel
from leakaudit.work.memory import exhausted

P = ParamSpec("P")


def starts(model: PixelModel, update: SharedUpdate, restarts: int, generator: torch.Generator) -> Tensor:
    """Return starting pictures (V·restarts, B, C, H, W), victim by victim.

    Each victim's first is grey with a little noise, so that the records of a batch part: the prior then has nothing to
    undo, which on CIFAR-size pictures is worth 1 to 3 dB. The others are normal noise around grey, boxed.
    """
    shape = (update.victims, restarts, update.batch_size, *update.input_shape)
    noise = torch.randn(shape, generator=generator, device=generator.device).to(model.mean)
    scale = torch.full((restarts,), 0.25).to(noise)
    scale[0] = 0.01
    return (0.5 + noise * scale.view(1, -1, 1, 1, 1, 1)).clamp(0, 1).flatten(0, 1)


WORDS = {
    "diverged": "the objective was not finite, or never fell",
    "budget": "the time budget was spent; the best so far is given",
}


def reason_of(statuses: tuple[Status, ...], words: Mapping[str, str] = WORDS) -> str | None:
    """Say in `words` (by status) what became of the victims that did not converge, or None where all did."""
    parts = [f"{words[s]} for {statuses.count(s)} of {len(statuses)} victims" for s in words if s in statuses]
    return "; ".join(parts) or None


def failed(update: SharedUpdate, status: Status, reason: str) -> Reconstruction:
    """Return a reconstruction that claims nothing, with one status for every victim."""
    nothing = torch.full((update.victims,), torch.inf)
    return Reconstruction(
        images=None, labels=None, objective=nothing, statuses=(status,) * update.victims, reason=reason
    )


def memory_safe(call: Callable[P, Reconstruction]) -> Callable[P, Reconstruction]:
    """Turn running out of memory inside an attack (self, model, update, …) into the status `out-of-memory`."""

    @functools.wraps(call)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> Reconstruction:
        try:
            return call(*args, **kwargs)
        except (MemoryError, RuntimeError) as error:
            if not exhausted(error):
                raise
            update = next(a for a in (*args, *kwargs.values()) if isinstance(a, SharedUpdate))
            return failed(update, "out-of-memory", f"out of memory at {update.victims} victims of {update.batch_size}")

    return guarded


@contextmanager
def client_mode(model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Iterator[None]:
    """Put the model in the client's mode and fix the global random state, so that dropout repeats under one seed."""
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]), in_mode(model, update.mode):
        torch.manual_seed(seed)
        yield
