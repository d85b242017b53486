"""A model's forward pass over a stack, recorded: which layers it uses, on what, and where their slopes will arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from leakaudit.engine.kinds import Layer, way
from leakaudit.engine.layers import Affine, Linear


class Unsupported(Exception):
    """The model has something that cannot be followed layer by layer; the reason is the message."""


def _dense(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias, {}


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    if isinstance(padding, str) or input.dim() != weight.dim():
        return None, weight, bias, {}
    places = weight.dim() - 2
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    return input, weight, bias, {n: _each(v, places) for n, v in settings.items()} | {"groups": groups}


SIGNATURES: dict[Any, Callable[..., tuple[Any, ...]]] = {
    F.linear: _dense,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
}


def layer_of(func: Any, args: Any, kwargs: Any) -> tuple[Linear, Tensor, Tensor | None] | None:
    """Return the layer that a call is, its weight and its bias; None if it is none, or one that is not followed."""
    if func not in SIGNATURES:
        return None
    a, weight, bias, settings = SIGNATURES[func](*args, **kwargs)
    return None if a is None else (Linear(a, None, weight.detach(), 0, None, **settings), weight, bias)


class Run(torch.autograd.Function):
    """The layer with fixed weights, as the linear map that it is: its derivative's derivative is itself again.

    Autograd's own second derivative of a convolution also forms the weights' part, whether it is wanted or not.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, layer: Linear, bias: Tensor | None) -> Tensor:
        """Return the layer's output for `a`."""
        ctx.layer, ctx.like = layer, a.detach()
        return layer.forward(a, layer.w, bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        """Return the slope of `a`."""
        return _Back.apply(delta, ctx.layer, ctx.like), None, None


class _Back(torch.autograd.Function):
    """The adjoint of `Run`."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, layer: Linear, like: Tensor) -> Tensor:
        ctx.layer = layer
        return layer.transposed(like, layer.w, delta)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        return ctx.layer.forward(slope, ctx.layer.w, None), None, None


class Scale(torch.autograd.Function):
    """a·factor + constant for fixed ones: linear in `a` too, and one kernel in every pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, factor: Tensor, constant: Tensor | None) -> Tensor:
        """Return a·factor + constant; `factor` and `constant` broadcast over `a`."""
        ctx.factor = factor
        return a * factor if constant is None else torch.addcmul(constant, a, factor)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, None, None]:
        """Return the slope of `a`."""
        return Scale.apply(delta, ctx.factor, None), None, None


class Recorder(TorchFunctionMode):
    """Runs a model's forward pass with its parameters detached, and records every layer that uses one."""

    def __init__(self, parameters: Sequence[Tensor], trials: int, batch: int, span: bool) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self.versions: list[int] = []
        self._places = {id(p): i for i, p in enumerate(parameters)}
        self._trials, self._batch, self._span = trials, batch, span

    def finish(self) -> None:
        """Raise Unsupported where a layer's input is no longer what it was."""
        if any(layer.a._version != was for layer, was in zip(self.layers, self.versions, strict=True)):
            raise Unsupported("a layer's input is overwritten later")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own: dict[Any, Callable[..., Any]] = {
            F.batch_norm: self._batch_norm,
            F.group_norm: self._group_norm,
            F.instance_norm: self._instance_norm,
            F.layer_norm: self._layer_norm,
        }
        if (found := layer_of(func, args, kwargs or {})) is not None:
            return self._weighted(*found)
        return own.get(func, func)(*args, **(kwargs or {}))

    def _place(self, parameter: Tensor | None) -> int | None:
        return None if parameter is None else self._places.pop(id(parameter), None)

    def _add(self, layer: Layer) -> None:
        self.layers.append(layer)
        self.versions.append(layer.a._version)

    def _weighted(self, plain: Linear, weight: Tensor, bias: Tensor | None) -> Tensor:
        place, own = self._place(weight), self._place(bias)
        if place is None and (own is not None or weight.requires_grad):
            raise Unsupported("a layer's weight is used twice, or is not a parameter of its own")
        if bias is not None and own is None and (place is not None or bias.requires_grad):
            raise Unsupported("a layer's bias is used twice, or is not a parameter of its own")
        plain = replace(plain, bias=own)
        out: Tensor = Run.apply(plain.a, plain, None if bias is None else bias.detach())
        if place is not None:
            edge = get_gradient_edge(out)  # of this value: what follows may work in place on the tensor
            kind = way(plain, self._trials, self._span)
            self._add(kind(**vars(plain) | {"edge": edge, "weight": place}))
        return out

    def _affine(
        self,
        a: Tensor,
        shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> Tensor:
        """Return ((a − mean)·scale)·weight + bias."""
        own = None if weight is None else weight.detach()
        constant = None if bias is None else bias.detach()
        factor = own if scale is None else scale if own is None else own * scale
        if mean is not None and factor is not None:
            constant = -mean * factor if constant is None else torch.addcmul(constant, mean, factor, value=-1)
        spread = None if constant is None else constant.view(shape)
        if factor is not None:
            out: Tensor = Scale.apply(a, factor.view(shape), spread)
        else:
            out = a if spread is None else a + spread
        places = self._place(weight), self._place(bias)
        for parameter, place in zip((weight, bias), places, strict=True):
            if parameter is not None and parameter.requires_grad and place is None:
                raise Unsupported("a normalisation's parameter is used twice")
        if places != (None, None):
            sizes = tuple((weight if weight is not None else bias).shape)  # type: ignore[union-attr]
            self._add(Affine(a, get_gradient_edge(out), shape, sizes, *places, scale, mean))
        return out

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        shape = (input.shape[1], *[1] * (input.dim() - 2))
        if not training and running_mean is not None and running_var is not None:
            scale = (running_var + eps).rsqrt()
            return self._affine(input, shape, weight, bias, scale, running_mean)
        # Every trial has statistics of its own: its channels stand beside those of the others.
        side = input.reshape(self._trials, self._batch, *input.shape[1:]).transpose(0, 1).flatten(1, 2)
        normal = F.batch_norm(side, None, None, None, None, True, 0.0, eps)
        back = normal.reshape(self._batch, self._trials, *input.shape[1:]).transpose(0, 1).reshape(input.shape)
        return self._affine(back, shape, weight, bias)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        normal = F.group_norm(input, num_groups, None, None, eps)
        return self._affine(normal, (input.shape[1], *[1] * (input.dim() - 2)), weight, bias)

    def _instance_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not use_input_stats:  # by the statistics that it kept, as BatchNorm
            return self._batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        normal = F.instance_norm(input, eps=eps)
        return self._affine(normal, (input.shape[1], *[1] * (input.dim() - 2)), weight, bias)

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        shape = (*[1] * (input.dim() - 1 - len(normalized_shape)), *normalized_shape)
        return self._affine(F.layer_norm(input, normalized_shape, None, None, eps), shape, weight, bias)


def _each(value: Any, places: int) -> tuple[int, ...]:
    return tuple(map(int, ((value,) if isinstance(value, int) else tuple(value)) * places))[:places]
