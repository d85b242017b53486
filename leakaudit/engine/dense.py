"""Dense layers at work: which a network uses, in which order, and what they are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.engine.stacked import twice_differentiable
from leakaudit.protocol.target import PixelModel


@dataclass(frozen=True)
class Dense:
    """A dense layer under its name in the model, with the input (N, D) it was given, in the autograd graph."""

    name: str
    layer: nn.Linear
    given: Tensor


def dense_at_work(model: PixelModel, pictures: Tensor) -> list[Dense]:
    """Return the dense layers that take one vector per record, in the order in which `pictures` (N, C, H, W) meet them.

    The model runs in the mode it is in, with kernels that can be differentiated twice. Layers over tokens or pixels
    (inputs of more than two dimensions) and those whose weight is not trained are passed over; of a layer that is used
    more than once the first use counts.
    """
    found: dict[str, Dense] = {}

    def watch(name: str) -> object:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(layer, nn.Linear) and inputs[0].dim() == 2 and layer.weight.requires_grad:
                found.setdefault(name, Dense(name, layer, inputs[0]))

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))  # type: ignore[arg-type]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with twice_differentiable():
            model(pictures)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def fed_pictures(dense: Dense, model: PixelModel, pictures: Tensor) -> bool:
    """Return whether a layer's input is the flattened, normalised picture itself."""
    flat = ((pictures - model.mean) / model.std).flatten(1)
    return dense.given.shape == flat.shape and torch.allclose(dense.given, flat, atol=1e-5)
