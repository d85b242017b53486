"""Layers at work: which a network uses, in which order, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.engine.stacked import twice_differentiable
from leakaudit.protocol.target import PixelModel


@dataclass(frozen=True)
class Use:
    """One use of a layer, under its name in the model, with its first positional input in the graph; None without."""

    name: str
    layer: nn.Module
    given: Tensor | None


@dataclass(frozen=True)
class Dense:
    """A dense layer under its name in the model, with the input (N, D) it was given, in the autograd graph."""

    name: str
    layer: nn.Linear
    given: Tensor


def layers_at_work(
    model: PixelModel, pictures: Tensor, wanted: Callable[[nn.Module], bool]
) -> tuple[Tensor, list[Use]]:
    """Return the logits of `pictures` (N, C, H, W) and every use of a layer that is `wanted`, in order.

    The model runs in the mode it is in, and with or without gradients as the caller has it.
    """
    found: list[Use] = []

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return layer.register_forward_pre_hook(
            lambda _, inputs: found.append(Use(name, layer, inputs[0] if inputs else None))
        )

    handles = [watch(name, layer) for name, layer in model.named_modules() if wanted(layer)]
    try:
        logits = model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return logits, found


def dense_in_use(model: PixelModel, pictures: Tensor) -> tuple[Tensor, list[Dense]]:
    """Return the logits of `pictures` (N, C, H, W) and every use of a dense layer that takes one vector per record.

    Uses over tokens or pixels (inputs of more than two dimensions) are passed over.
    """
    logits, uses = layers_at_work(model, pictures, lambda layer: isinstance(layer, nn.Linear))
    found = [
        Dense(use.name, use.layer, use.given)
        for use in uses
        if isinstance(use.layer, nn.Linear) and use.given is not None and use.given.dim() == 2
    ]
    return logits, found


def dense_at_work(model: PixelModel, pictures: Tensor) -> list[Dense]:
    """Return the trained dense layers that take one vector per record, in the order in which `pictures` meet them.

    Their inputs are in the autograd graph, made with kernels that can be differentiated twice. Those whose weight is
    not trained are passed over; of a layer that is used more than once the first use counts.
    """
    with twice_differentiable():
        _, uses = dense_in_use(model, pictures)
    found: dict[str, Dense] = {}
    for use in uses:
        if use.layer.weight.requires_grad:
            found.setdefault(use.name, use)
    return list(found.values())


def is_pictures(given: Tensor | None, model: PixelModel, pictures: Tensor) -> bool:
    """Return whether a layer's input is the flattened, normalised picture itself."""
    flat = ((pictures - model.mean) / model.std).flatten(1)
    return given is not None and given.shape == flat.shape and torch.allclose(given, flat, atol=1e-5)
