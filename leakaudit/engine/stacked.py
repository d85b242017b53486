"""All trials of a stack in one forward and one backward pass.

One forward pass over all T·B records gives every layer's inputs A, one backward pass its output's slopes Δ, both kept
in the graph. From them come per-trial gradients or their inner products (`engine.layers`), from those the distance
and its cotangents, and from these cotangents of A and Δ, which one last backward pass takes to the pictures. It is the
double backward without a second-order weight gradient, and every convolution runs on the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from leakaudit.engine.distances import Distance, Span, energy
from leakaudit.engine.layers import Affine, Ghost, Layer, Linear, Stack, way
from leakaudit.protocol.gradients import Gradients, batches_of, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel


class _TwiceMode(TorchFunctionMode):
    """Replaces the one activation of torch whose kernel has no second derivative."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is not F.hardsigmoid:
            return func(*args, **given)
        x = args[0] if args else given["input"]
        found = F.relu6(x + 3) / 6
        return x.copy_(found) if given.get("inplace", args[1] if len(args) > 1 else False) else found


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Run the enclosed forward passes with kernels that can be differentiated twice: attention by plain products.

    The fused attention kernels and hardsigmoid's have no second derivative; `match` sees to it itself, callers of
    `match_one` must.
    """
    with sdpa_kernel(SDPBackend.MATH), _TwiceMode():
        yield


# (the row of the update of each record (N,) of a forward pass) -> what that pass is run in
Around = Callable[[Tensor], AbstractContextManager[None]]


@dataclass(frozen=True)
class Trials:
    """A stack of T trials of a model and loss: pictures (T, B, C, H, W) and labels (T, B) or (T, B, classes).

    `shared` are the updates, each tensor (V, *p); trial t is matched with row `rows[t]` of (T,) under `distance`.
    `around` is as `engine.match` takes it.
    """

    model: PixelModel
    loss: LossFunction
    images: Tensor
    labels: Tensor
    shared: Gradients
    distance: Distance
    rows: Tensor
    around: Around | None = None

    def run(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass over all records of all trials."""
        return nullcontext() if self.around is None else self.around(self.rows.repeat_interleave(self.images.shape[1]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, here: slice) -> Trials:
        return replace(self, images=self.images[here], labels=self.labels[here], rows=self.rows[here])


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
    if isinstance(padding, str) or input.dim() != 4:
        return None, weight, bias, {}
    settings = {"stride": _pair(stride), "padding": _pair(padding), "dilation": _pair(dilation)}
    return input, weight, bias, {**settings, "groups": groups}


SIGNATURES: dict[Any, Callable[..., tuple[Any, ...]]] = {F.linear: _dense, torch.conv2d: _convolution}


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
        shift: Tensor | None = None,
    ) -> Tensor:
        factor, constant = scale, shift
        if weight is not None:
            factor = weight.detach() if factor is None else factor * weight.detach()
            constant = None if constant is None else constant * weight.detach()
        if bias is not None:
            constant = bias.detach() if constant is None else constant + bias.detach()
        out = a
        if factor is not None and constant is not None:
            out = torch.addcmul(constant.view(shape), a, factor.view(shape))
        elif factor is not None:
            out = a * factor.view(shape)
        elif constant is not None:
            out = a + constant.view(shape)
        places = self._place(weight), self._place(bias)
        for parameter, place in zip((weight, bias), places, strict=True):
            if parameter is not None and parameter.requires_grad and place is None:
                raise Unsupported("a normalisation's parameter is used twice")
        if places != (None, None):
            own = tuple((weight if weight is not None else bias).shape)  # type: ignore[union-attr]
            self._add(Affine(a, get_gradient_edge(out), shape, own, *places, scale, shift))
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
            return self._affine(input, shape, weight, bias, scale, -running_mean * scale)
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


def _pair(value: Any) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
    return int(first), int(second)


def _losses(loss: LossFunction, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the trials' own mean losses for logits (T, B, classes)."""
    if len(logits) > 1:
        try:
            return torch.func.vmap(loss)(logits, labels).sum()
        except RuntimeError:  # a loss that branches on its input's values
            pass
    return torch.stack([loss(z, y) for z, y in zip(logits, labels, strict=True)]).sum()


def _each(distance: Distance, candidate: Gradients, shared: Gradients) -> tuple[Tensor, Gradients]:
    """Apply a distance to every trial: (T, *p) both, values (T,)."""
    if len(candidate[0]) > 1:
        try:
            found: tuple[Tensor, Gradients] = torch.func.vmap(distance)(candidate, shared)
            return found
        except RuntimeError:  # random draws and the like
            pass
    values, cotangents = [], []
    for t in range(len(candidate[0])):
        value, cotangent = distance(tuple(c[t] for c in candidate), tuple(s[t] for s in shared))
        values.append(value)
        cotangents.append(cotangent)
    return torch.stack(values), tuple(torch.stack(column) for column in zip(*cotangents, strict=True))


def stacked(job: Trials) -> tuple[Tensor, Tensor]:
    """Return what `engine.match` does. Raises Unsupported where the model cannot be followed layer by layer."""
    model, images, shared, distance, rows = job.model, job.images, job.shared, job.distance, job.rows
    trials, batch = images.shape[:2]
    parameters = parameters_of(model)[1]
    runs, first = [], 0
    for row, count in zip(*(t.tolist() for t in torch.unique_consecutive(rows, return_counts=True)), strict=True):
        runs.append((row, first, first + count))
        first += count
    stack = Stack(trials, batch, tuple(runs), rows)
    x = images.flatten(0, 1).detach().requires_grad_(True)
    recorder = Recorder(parameters, trials, batch, isinstance(distance, Span))
    with twice_differentiable(), batches_of(batch), job.run(), recorder:
        logits = model(x)
    recorder.finish()
    layers = recorder.layers
    total = _losses(job.loss, logits.reshape(trials, batch, *logits.shape[1:]), job.labels)
    inputs: list[Any] = [*(layer.edge for layer in layers), *parameters]
    found = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True)
    # Layers ran on detached weights, so what still leads to a parameter is a use that no layer stands for.
    others = sum(g is not None for g in found[len(layers) :])
    if others:
        raise Unsupported(f"{others} parameters are used in ways that are not followed")
    slopes = [slope for slope in found[: len(layers)] if slope is not None]
    if len(slopes) < len(layers):
        raise Unsupported("the loss does not reach every layer")
    with torch.no_grad():
        sides = [(layer.a.detach(), slope.detach()) for layer, slope in zip(layers, slopes, strict=True)]
        if isinstance(distance, Span):
            values, scale, cotangents = _span(distance, layers, sides, shared, stack)
        else:
            values, cotangents = _entries(distance, layers, sides, shared, stack)
            scale = torch.ones_like(values)
    outputs, weights = [], []
    for layer, slope, (on_input, on_slope) in zip(layers, slopes, cotangents, strict=True):
        for output, weight in ((layer.a, on_input), (slope, on_slope)):
            if weight is not None and output.requires_grad:
                outputs.append(output)
                weights.append(weight)
    (slope,) = torch.autograd.grad(outputs, [x], weights)
    return values, slope.reshape(images.shape) * scale.view(-1, 1, 1, 1, 1)


Sides = Sequence[tuple[Tensor, Tensor]]
Pulled = list[tuple[Tensor | None, Tensor]]


def _span(
    distance: Span, layers: Sequence[Layer], sides: Sides, shared: Gradients, stack: Stack
) -> tuple[Tensor, Tensor, Pulled]:
    """Return values (T,), α (T,), and every layer's pulled-back cotangent g + (β/α)ĝ, for c = αg + βĝ."""
    others = energy(shared)[stack.rows]
    dot, square = torch.zeros_like(others), torch.zeros_like(others)
    kept: list[Any] = []
    for layer, (a, delta) in zip(layers, sides, strict=True):
        if isinstance(layer, Ghost):
            along, length, matrices = layer.products(a, delta, shared, stack)
            dot, square = dot + along, square + length
            kept.append(matrices)
            continue
        formed, rest = layer.form(a, delta, stack)
        wanted = layer.arrange([stack.shared(shared[i]) for i in layer.parameters])
        for g, own in zip(formed, wanted, strict=True):
            dot = dot + torch.linalg.vecdot(g, own)
            square = square + torch.linalg.vecdot(g, g)
        kept.append((formed, wanted, rest))
    values, alpha, beta = distance.coefficients(dot, square, others)
    ratio = beta / alpha
    pulled: Pulled = []
    for layer, (a, delta), known in zip(layers, sides, kept, strict=True):
        if isinstance(layer, Ghost):
            pulled.append(layer.pull_span(a, delta, known, shared, ratio, stack))
            continue
        formed, wanted, rest = known
        cotangents = [torch.addcmul(own, ratio[:, None], g) for g, own in zip(formed, wanted, strict=True)]
        pulled.append(layer.pull(a, delta, rest, cotangents, stack))
    return values, alpha, pulled


def _entries(
    distance: Distance, layers: Sequence[Layer], sides: Sides, shared: Gradients, stack: Stack
) -> tuple[Tensor, Pulled]:
    """Return values (T,) and every layer's pulled-back cotangent, for a distance that needs every entry of ĝ."""
    formers = [layer for layer in layers if not isinstance(layer, Ghost)]  # all, as asked of the recorder
    candidate: dict[int, Tensor] = {}
    kept = []
    for layer, (a, delta) in zip(formers, sides, strict=True):
        formed, rest = layer.form(a, delta, stack)
        candidate.update(zip(layer.parameters, layer.restore(formed), strict=True))
        kept.append(rest)
    zeros = {i: s.new_zeros(stack.trials, *s.shape[1:]) for i, s in enumerate(shared) if i not in candidate}
    whole = tuple((candidate | zeros)[i] for i in range(len(shared)))
    values, cotangents = _each(distance, whole, tuple(s[stack.rows] for s in shared))
    pulled = [
        layer.pull(a, delta, rest, layer.arrange([cotangents[i] for i in layer.parameters]), stack)
        for layer, (a, delta), rest in zip(formers, sides, kept, strict=True)
    ]
    return values, pulled
