"""The user's network: a copy of our own, checked, and looked at on one record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leakaudit.errors import UserError
from leakaudit.load.checkpoints import load_checkpoint
from leakaudit.load.modelfile import is_factory, resolve
from leakaudit.network.plain import common_tensors, plain
from leakaudit.protocol.target import PixelModel


def network_of(
    model: Any, factory: Callable[[], nn.Module] | None, checkpoint: Path | None, seed: int
) -> tuple[nn.Module, Callable[[], nn.Module] | None, list[str]]:
    """Return a network of our own with finite float32 weights, the constructor where the user gave one, and notes."""
    built = is_factory(model)
    if built and factory is None:
        factory = model
    given = resolve(model, "model", seed)
    if not isinstance(given, nn.Module):
        source = "what model() returned is" if built else "`model` is"
        raise UserError(
            f"{source} {kind_of(given)}, not a torch.nn.Module: give a classifier or a function that returns one."
        )
    if _holds_itself(given):
        raise UserError("`model` holds itself among its own layers: take that layer out.")
    found = plain(given)
    network, failure = found.network, found.failure
    if failure is not None and not built:
        raise UserError(f"`model` {failure}: give a function that returns the model instead.")
    notes = [*found.notes, *(_given_again(model, given, failure, seed) if built else [])]
    if checkpoint is not None:
        notes += load_checkpoint(network, checkpoint)
    parameters = list(network.named_parameters())
    if not any(p.requires_grad for _, p in parameters):
        raise UserError("`model` has no parameter that is trained, so it shares no gradient: give a trainable model.")
    real = {n: p.is_floating_point() or p.is_complex() for n, p in parameters}
    odd = next((n for n, p in parameters if real[n] and p.dtype != torch.float32), None)
    if odd is not None:
        dtype = str(network.get_parameter(odd).dtype).removeprefix("torch.")
        raise UserError(f"the parameter {odd!r} of `model` is {dtype}, not float32: give a model with real weights.")
    return network, factory, notes


def _holds_itself(module: nn.Module, around: tuple[nn.Module, ...] = ()) -> bool:
    """Whether a module stands somewhere within itself: whatever walks through its layers would never end."""
    return any(module is outer for outer in around) or any(
        _holds_itself(inner, (*around, module)) for inner in module.children()
    )


def _given_again(model: Any, first: nn.Module, failure: str | None, seed: int) -> list[str]:
    """Call the user's function once more: say where it gives the same network, or the same layers, as the first time.

    Every audit works on copies; what cannot be copied (`failure` says why) must be new at every call, or UserError.
    """
    try:
        again = resolve(model, "model", seed)
    except UserError:  # training runs will say so
        return []
    common = common_tensors(again, first) if isinstance(again, nn.Module) else 0
    if not common:
        return []
    if failure is not None:
        raise UserError(f"model() returns the same layers at every call, and they {failure}: build new ones in it.")
    total = sum(t.numel() for t in (*first.parameters(), *first.buffers()))
    what = "the same network" if again is first else "a network around the same layers"
    if common < total:
        what = f"a network with layers of the last one ({common:,} of {total:,} numbers are the same)"
    return [
        f"model() returned {what} at its second call: the audit works on copies, and every training run starts from a "
        "copy of it as given."
    ]


def kind_of(value: Any) -> str:
    """Return what a value is that is none of what was asked for."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def check_weights(model: PixelModel) -> None:
    """Raise UserError where a parameter or a buffer is not finite."""
    for kind, tensors in (("parameter", model.network.named_parameters()), ("buffer", model.network.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise UserError(
                    f"the {kind} {name!r} of `model` holds NaN or infinity: load weights of a run that did not diverge."
                )
