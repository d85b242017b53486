"""Frozen kinks: run a network twice, the second time with every kink on the side where the first run had it.

A ReLU network's gradient jumps wherever a unit crosses its kink, so a difference quotient of it between two parameter
settings measures the jumps. `recording` notes the side of every kink in call order, `replaying` repeats the calls with
those sides: the function evaluated then is smooth and has, where it was recorded, the value and all derivatives of the
network. Smooth functions are called as they are. What is frozen, and how, is one table: `kink_table.KINKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leakaudit.engine.kink_table import KINKS

Call = Callable[..., Any]


class TapeMismatch(RuntimeError):
    """The replayed run made other calls than the recorded one, or a note was overwritten: it has no frozen value."""


@dataclass
class Tape:
    """What a recorded run noted: per kinked call its name, its note and the versions of the note's tensors."""

    notes: list[tuple[str, Any, tuple[int, ...]]] = field(default_factory=list)
    at: int = 0


def _versions(note: Any) -> tuple[int, ...]:
    return tuple(t._version for t in (note if isinstance(note, tuple) else (note,)) if isinstance(t, Tensor))


class _Mode(TorchFunctionMode):
    """Intercepts the functions of `KINKS`, called by modules, as functions or as methods."""

    def __init__(self, tape: Tape, replay: bool) -> None:
        super().__init__()
        self.tape, self.replay = tape, replay

    def __torch_function__(self, func: Call, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = FUNCTIONS.get(func)
        if found is None or not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            return func(*args, **kwargs)
        name, inplace = found
        if not self.replay:
            result, note = KINKS[name].note(func, *args, **kwargs)
            self.tape.notes.append((name, note, _versions(note)))
            return result
        if self.tape.at >= len(self.tape.notes):
            raise TapeMismatch(f"{name} was called more often than recorded")
        recorded, note, versions = self.tape.notes[self.tape.at]
        self.tape.at += 1
        if name != recorded or versions != _versions(note):
            raise TapeMismatch(f"{name} was called where {recorded} was recorded, or the note of it was overwritten")
        if kwargs.pop("inplace", False) or inplace:
            return args[0].copy_(KINKS[name].again(note, args[0].clone(), *args[1:], **kwargs))
        return KINKS[name].again(note, *args, **kwargs)


@contextmanager
def recording(tape: Tape) -> Iterator[None]:
    """Note on the empty `tape` the side of every kink that the enclosed run meets."""
    with _Mode(tape, replay=False):
        yield


@contextmanager
def replaying(tape: Tape) -> Iterator[None]:
    """Run the enclosed code with the sides on `tape`. Raises TapeMismatch if its calls are not the recorded ones."""
    tape.at = 0
    with _Mode(tape, replay=True):
        yield
    if tape.at != len(tape.notes):
        raise TapeMismatch(f"{len(tape.notes)} kinks were recorded, {tape.at} were met again")


def _functions() -> dict[Call, tuple[str, bool]]:
    """Return for every function object that is one of `KINKS` its name and whether it overwrites its argument."""
    found: dict[Call, tuple[str, bool]] = {}
    for space in (torch, Tensor, F, torch._C._nn):
        for name in KINKS:
            for spelled in (name, f"{name}_", f"_{name}", f"__{name}__", f"{name}_with_indices"):
                if callable(call := getattr(space, spelled, None)):
                    found[call] = (name, spelled == f"{name}_")
    return found


FUNCTIONS = _functions()
