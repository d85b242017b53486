"""Weight gradients that are never written: a layer's gradient is a product of what came in and what came back.

A dense or convolution layer with few output positions L (batch included) has ∇_W ℓ = D A, D (out, L) the gradient at
its output and A (L, in) the unfolded input. Inner products of it, and the layer's answer to a step along it, cost less
from the factors than reading and writing a matrix of the weights' size, which is what bounds networks of many weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leakaudit.kinks import TapeMismatch

LAYERS = (F.linear, F.conv2d)
# Weights below which a layer's gradient stays in the cache anyway.
LEAST = 1 << 17
# Multiplications with the factors, in weights, up to which they cost less than what they spare.
WORTH = 8.0


class NoFactors(RuntimeError):
    """A weight's gradient is not one product: it is used twice, or its input was overwritten."""


@dataclass
class Factors:
    """A layer call: the weight it is of, its input, where its output's gradient is found; D and A once it is."""

    weight: int
    x: Tensor
    version: int
    edge: GradientEdge
    layout: dict[str, Any] | None  # how the convolution unfolds; None for a dense layer
    back: Tensor | None = None
    into: Tensor | None = None

    def settle(self, gradient: Tensor) -> None:
        """Compute D and A from the gradient at the output. Raises NoFactors if the input was overwritten since."""
        if self.x._version != self.version:
            raise NoFactors("a layer's input was overwritten")
        self.back = rows(gradient, self.layout is not None)
        self.into = unfolded(self.x, self.layout).t()

    def products(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Return ⟨DA, g⟩ and ‖DA‖²."""
        back, into = self.both()
        return torch.vdot((shared.flatten(1) @ into.t()).flatten(), back.flatten()), torch.vdot(
            (into @ into.t()).flatten(), (back.t() @ back).flatten()
        )

    def both(self) -> tuple[Tensor, Tensor]:
        """Return D (out, L) and A (L, in)."""
        if self.back is None or self.into is None:
            raise NoFactors("the loss does not reach a layer")
        return self.back, self.into


def rows(output: Tensor, convolution: bool) -> Tensor:
    """Return a layer's output with channels first and all positions of the batch second: (out, L)."""
    return output.transpose(0, 1).flatten(1) if convolution else output.reshape(-1, output.shape[-1]).t()


def unfolded(x: Tensor, layout: dict[str, Any] | None) -> Tensor:
    """Return the (in, L) matrix which the layer's (out, in) weights multiply, L the output positions of the batch."""
    if layout is None:
        return x.reshape(-1, x.shape[-1]).t()
    return F.unfold(x, **layout).transpose(0, 1).flatten(1)


def _layout(
    x: Tensor, weight: Tensor, rest: tuple[Any, ...], named: dict[str, Any]
) -> tuple[dict[str, Any], int] | None:
    """Return how a 2d convolution unfolds its input and how many output positions it has, None if it has groups."""
    given = dict(zip(("bias", "stride", "padding", "dilation", "groups"), rest, strict=False)) | named
    if x.dim() != 4 or given.get("groups", 1) != 1 or isinstance(given.get("padding", 0), str):
        return None
    stride, padding, dilation = (
        (v, v) if isinstance(v, int) else (tuple(v) * 2)[:2]
        for v in (given.get("stride", 1), given.get("padding", 0), given.get("dilation", 1))
    )
    kernel = tuple(weight.shape[2:])
    sides = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)]
    layout = {"kernel_size": kernel, "dilation": dilation, "padding": padding, "stride": stride}
    return layout, x.shape[0] * math.prod(sides)


class Recorder(TorchFunctionMode):
    """Runs eligible layers without a gradient to their weights, and notes their factors' whereabouts in `calls`."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.weights = {id(w): i for i, w in enumerate(weights) if w.numel() >= LEAST}
        self.calls: list[Factors] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in LAYERS or len(args) < 2 or id(args[1]) not in self.weights:
            return func(*args, **kwargs)
        x, weight, *rest = args
        layout, positions = None, x.shape[:-1].numel()
        if func is F.conv2d:
            found = _layout(x, weight, tuple(rest), kwargs)
            if found is None:
                return func(*args, **kwargs)
            layout, positions = found
        if positions**2 * (weight.shape[0] + weight[0].numel()) > WORTH * weight.numel():  # the matrix is cheaper
            return func(*args, **kwargs)
        result = func(x, weight.detach(), *rest, **kwargs)
        if not result.requires_grad:
            return func(*args, **kwargs)
        index = self.weights[id(weight)]
        if any(call.weight == index for call in self.calls):
            raise NoFactors("a weight is used twice")
        self.calls.append(Factors(index, x.detach(), x._version, get_gradient_edge(result), layout))
        return result


class Replayer(TorchFunctionMode):
    """Runs the layers of `calls`, whose weights are now `weights`, as if these were longer by `step`·DA."""

    def __init__(self, calls: Sequence[Factors], weights: Sequence[Tensor], step: float) -> None:
        super().__init__()
        self.calls = {id(weights[call.weight]): call for call in calls}
        self.step, self.met = step, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in LAYERS or len(args) < 2 or (call := self.calls.get(id(args[1]))) is None:
            return result
        self.met += 1
        back, into = call.both()
        more = back @ (into @ unfolded(args[0], call.layout))
        if call.layout is None:
            return torch.add(result, more.t().reshape(result.shape), alpha=self.step)
        shape = (result.shape[1], result.shape[0], *result.shape[2:])
        return torch.add(result, more.view(shape).transpose(0, 1), alpha=self.step)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self.met != len(self.calls):
            raise TapeMismatch(f"{len(self.calls)} layers were recorded, {self.met} were met again")
