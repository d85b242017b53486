"""All trials of a stack in one forward and one backward pass.

One forward pass over all T·B records gives every layer's inputs A, one backward pass its output's slopes Δ, both kept
in the graph. From them come per-trial gradients or their inner products (`engine.kinds`), from those the distance
and its cotangents, and from these cotangents of A and Δ, which one last backward pass takes to the pictures. It is the
double backward without a second-order weight gradient, and every convolution runs on the whole stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from leakaudit.engine.distances import Distance, Span, energy
from leakaudit.engine.kinds import Ghost, Layer
from leakaudit.engine.layers import Stack
from leakaudit.engine.recording import Recorder, Unsupported
from leakaudit.protocol.gradients import Gradients, batches_of, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel

SMALL = 4_096  # entries of a layer's gradient up to which copying it beside others costs less than launching for it


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
    `around` is as `engine.match` takes it. `listed` are the rows once more where they are known without asking the
    device for them.
    """

    model: PixelModel
    loss: LossFunction
    images: Tensor
    labels: Tensor
    shared: Gradients
    distance: Distance
    rows: Tensor
    around: Around | None = None
    listed: tuple[int, ...] | None = None

    def run(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass over all records of all trials."""
        return nullcontext() if self.around is None else self.around(self.rows.repeat_interleave(self.images.shape[1]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, here: slice) -> Trials:
        listed = None if self.listed is None else self.listed[here]
        images, labels, rows = self.images[here], self.labels[here], self.rows[here]
        return replace(self, images=images, labels=labels, rows=rows, listed=listed)

    def numbers(self) -> tuple[int, ...]:
        """Return the rows; the device is waited for where they are not `listed`."""
        return tuple(self.rows.tolist()) if self.listed is None else self.listed


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


def runs_of(rows: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """Return the runs (row, first trial, end) of equal rows."""
    found, first = [], 0
    for row, run in groupby(rows):
        end = first + sum(1 for _ in run)
        found.append((row, first, end))
        first = end
    return tuple(found)


def stacked(job: Trials) -> tuple[Tensor, Tensor]:
    """Return what `engine.match` does. Raises Unsupported where the model cannot be followed layer by layer."""
    model, images, shared, distance, rows = job.model, job.images, job.shared, job.distance, job.rows
    trials, batch = images.shape[:2]
    parameters = parameters_of(model)[1]
    stack = Stack(trials, batch, runs_of(job.numbers()), rows)
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
    along, squares = [], []  # (T, n) each: what adds up to ⟨ĝ, g⟩ and to ‖ĝ‖²
    kept: list[Any] = []
    formed: list[Tensor] = []
    wanted: list[Tensor] = []
    for layer, (a, delta) in zip(layers, sides, strict=True):
        if isinstance(layer, Ghost):
            dot, square, matrices = layer.products(a, delta, shared, stack)
            along.append(dot.flatten(1))
            squares.append(square.flatten(1))
            kept.append(matrices)
            continue
        found, rest = layer.form(a, delta, stack)
        formed += found
        wanted += layer.arrange([stack.shared(shared[i]) for i in layer.parameters])
        kept.append((len(found), rest))
    groups = _groups([g.shape[1] for g in formed])
    pairs = [(_joined([formed[i] for i in group]), _joined([wanted[i] for i in group])) for group in groups]
    along += [torch.linalg.vecdot(own, g)[:, None] for own, g in pairs]
    squares += [torch.linalg.vecdot(own, own)[:, None] for own, _ in pairs]
    others = energy(shared)[stack.rows]
    values, alpha, beta = distance.coefficients(_joined(along).sum(1), _joined(squares).sum(1), others)
    ratio = beta / alpha
    beside: dict[int, Tensor] = {}  # cotangents of those that were worked on together; each other one when it is due
    for group, (own, g) in zip(groups, pairs, strict=True):
        if len(group) > 1:
            whole = torch.addcmul(g, ratio[:, None], own)
            beside.update(zip(group, torch.split(whole, [formed[i].shape[1] for i in group], 1), strict=True))

    def cotangent(i: int) -> Tensor:
        return beside[i] if i in beside else torch.addcmul(wanted[i], ratio[:, None], formed[i])

    places = iter(range(len(formed)))
    pulled: Pulled = []
    for layer, (a, delta), known in zip(layers, sides, kept, strict=True):
        if isinstance(layer, Ghost):
            pulled.append(layer.pull_span(a, delta, known, shared, ratio, stack))
            continue
        count, rest = known
        pulled.append(layer.pull(a, delta, rest, [cotangent(next(places)) for _ in range(count)], stack))
    return values, alpha, pulled


def _groups(sizes: Sequence[int]) -> list[list[int]]:
    """Return which gradients of so many entries are worked on as one: all small ones, and each other by itself."""
    small = [i for i, size in enumerate(sizes) if size <= SMALL]
    return [group for group in (small, *([i] for i, size in enumerate(sizes) if size > SMALL)) if group]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)


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
