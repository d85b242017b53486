"""The layers of a network in a pass over a stack of trials, and what a trial is matched with.

`a` and `delta` are a layer's input and its output's slopes for the T·B records of the stack, trial by trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

convolution = torch.ops.aten.convolution  # of any number of places, unlike `F.conv2d`
convolution_backward = torch.ops.aten.convolution_backward


@dataclass(frozen=True)
class Stack:
    """Which of the shared updates each of T trials of B records is matched with: runs (row, first trial, end)."""

    trials: int
    batch: int
    runs: tuple[tuple[int, int, int], ...]
    rows: Tensor

    @property
    def launches_cost(self) -> bool:
        """Whether many small kernels cost more than a copy: on every device but the CPU, where it is the reverse."""
        return self.rows.device.type != "cpu"

    def shared(self, rows: Tensor) -> Tensor:
        """Return what each trial is matched with, (T or 1, *p), of the updates (V, *p)."""
        if len(self.runs) == 1:
            return rows[self.runs[0][0]][None]
        if self.trials == len(self.runs) and self._whole(rows):
            return rows  # no copy
        return rows[self.rows]

    def product(self, shared: Tensor, own: Tensor) -> Tensor:
        """Return (T, m, P), the matrix that each trial is matched with, of (V, m, n), times its own of (T, n, P).

        By one product for each run where launches cost nothing, else by one for all.
        """
        if len(self.runs) == 1 or not self.launches_cost:
            found = [_times(shared[row], own[first:end]) for row, first, end in self.runs]
            return found[0] if len(found) == 1 else torch.cat(found)
        lengths = {end - first for _, first, end in self.runs}
        if len(lengths) > 1:
            return torch.bmm(shared[self.rows], own)
        (length,) = lengths
        each = shared if self._whole(shared) else shared[self.rows[::length]]
        return _one_by_one(torch.bmm(each, _side_by_side(own, length)), length)

    def _whole(self, rows: Tensor) -> bool:
        """Return whether the runs are of all the updates there are, in order."""
        return len(self.runs) == len(rows) and all(i == row for i, (row, _, _) in enumerate(self.runs))


def _times(shared: Tensor, own: Tensor) -> Tensor:
    """Return (m, n) times each of (R, n, P), as (R, m, P), by one product."""
    return _one_by_one((shared @ _side_by_side(own, len(own))[0])[None], len(own))


def _side_by_side(x: Tensor, length: int) -> Tensor:
    """Return matrices (R·length, n, P) as (R, n, length·P)."""
    if length == 1:
        return x
    return x.reshape(-1, length, *x.shape[1:]).transpose(1, 2).reshape(-1, x.shape[1], length * x.shape[2])


def _one_by_one(x: Tensor, length: int) -> Tensor:
    """Return (R, n, length·P) as (R·length, n, P): `_side_by_side` undone."""
    return x if length == 1 else x.reshape(*x.shape[:2], length, -1).transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Affine:
    """out = x̂·γ + β with x̂ = (a − mean)·scale: the parameters of a normalisation.

    `own` is the shape of γ and β, `shape` how they broadcast over one record's `a`. `scale` and `mean` are the
    statistics of BatchNorm in eval mode, where the normalisation itself is affine, else None.
    """

    a: Tensor
    edge: GradientEdge
    shape: tuple[int, ...]
    own: tuple[int, ...]
    weight: int | None
    bias: int | None
    scale: Tensor | None
    mean: Tensor | None

    @property
    def parameters(self) -> tuple[int, ...]:
        """The parameters' places in the update."""
        return tuple(i for i in (self.weight, self.bias) if i is not None)

    def form(self, a: Tensor, delta: Tensor, stack: Stack) -> tuple[list[Tensor], Tensor | None]:
        """Return ∂γ = Σ Δ x̂ and ∂β = Σ Δ of every trial, in the order of `parameters`, flat; and what `pull` needs."""
        over = [1, *(i + 2 for i, n in enumerate(self.shape) if n == 1)]

        def total(x: Tensor) -> Tensor:
            return by_trial(x, stack).sum(over).flatten(1)

        if self.weight is None:
            return [total(delta)], None
        scaled = total(delta * a)
        if self.bias is None and self.mean is None:
            return [scaled], None
        slopes = total(delta)
        if self.scale is not None and self.mean is not None:
            scaled = torch.addcmul(scaled, slopes, self.mean, value=-1) * self.scale
        return [scaled] if self.bias is None else [scaled, slopes], None

    def pull(
        self, a: Tensor, delta: Tensor, kept: Tensor | None, cotangents: list[Tensor], stack: Stack
    ) -> tuple[Tensor | None, Tensor]:
        """Return the slopes of `a` and of Δ that `cotangents`, flat like what `form` returns, cause."""

        def spread(c: Tensor) -> Tensor:
            return c.view(stack.trials, 1, *self.shape)

        rest = list(cotangents)
        weight = rest.pop(0) if self.weight is not None else None
        constant = rest[0] if rest else None
        if weight is None:
            return None, spread(cotangents[0]).expand_as(by_trial(delta, stack)).reshape(delta.shape)
        if self.scale is not None and self.mean is not None:
            weight = weight * self.scale
            constant = -self.mean * weight if constant is None else torch.addcmul(constant, weight, self.mean, value=-1)
        own, given = spread(weight), by_trial(a, stack)
        on_slope = given * own if constant is None else torch.addcmul(spread(constant), given, own)
        return (by_trial(delta, stack) * own).view(a.shape), on_slope.view(a.shape)

    def arrange(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return gradients (n, *p) of the layer's parameters the way `form` does."""
        return [g.flatten(1) for g in gradients]

    def restore(self, formed: list[Tensor]) -> list[Tensor]:
        """Return what `form` returned as gradients (n, *p): `arrange` undone."""
        return [g.view(len(g), *self.own) for g in formed]


@dataclass(frozen=True)
class Linear:
    """A dense layer (a (N, …, K)) or a convolution (a (N, I, *places)) with its weights, in the model's own terms.

    The places of a convolution are those of a line, a picture (H, W) or a volume (D, H, W).
    """

    a: Tensor
    edge: GradientEdge | None  # where the output's slopes arrive; None before it has run
    w: Tensor
    weight: int
    bias: int | None
    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1

    @property
    def parameters(self) -> tuple[int, ...]:
        """The parameters' places in the update."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def narrow(self) -> bool:
        """Whether it is a convolution whose channels do not fill the vector units, 16 floats wide.

        It then runs pixel by pixel (channels last), twice as fast on a CPU; a picture's own channels do not count.
        Of volumes nothing is gained.
        """
        return self.w.dim() == 4 and self.groups == 1 and any(n % 16 > 0 for n in self.w.shape[:2] if n > 4)

    def out_size(self, a: Tensor) -> tuple[int, ...]:
        """Return the places of the convolution's output: height and width."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.w.shape[2:], strict=True)]
        sizes = zip(a.shape[2:], self.padding, spans, self.stride, strict=True)
        return tuple((n + 2 * p - span) // s + 1 for n, p, span, s in sizes)

    @property
    def unmoved(self) -> tuple[int, ...]:
        """What torch calls the padding of the output, which only transposed convolutions have."""
        return (0,) * len(self.stride)

    def positions(self) -> int:
        """Return P of all records together."""
        if self.w.dim() == 2:
            return self.a.numel() // self.a.shape[-1]
        return len(self.a) * math.prod(self.out_size(self.a))

    def offsets(self, size: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yield for each entry (y, x) of the kernel the rows and columns of the padded input that it meets.

        `size` are the places of the output.
        """
        for entry in product(*map(range, self.w.shape[2:])):
            sides = zip(entry, self.dilation, size, self.stride, strict=True)
            yield entry, tuple(slice(k * d, k * d + (n - 1) * s + 1, s) for k, d, n, s in sides)

    def windows(self, a: Tensor) -> Tensor:
        """Return what each place of the output sees, (N, I, *places, *kernel), of the input: a view, if not padded."""
        found = F.pad(a, [p for side in reversed(self.padding) for p in (side, side)])
        for side, (k, d, s) in enumerate(zip(self.w.shape[2:], self.dilation, self.stride, strict=True)):
            found = found.unfold(2 + side, d * (k - 1) + 1, s)[..., ::d]
        return found

    def summed(self, slopes: Tensor, a: Tensor) -> Tensor:
        """Return the slope of `a` from that of its windows, (N, *places, *kernel, I): `windows` transposed."""
        count = self.w.dim() - 2
        padded = a.new_zeros(len(a), *(n + 2 * p for n, p in zip(a.shape[2:], self.padding, strict=True)), a.shape[1])
        for entry, where in self.offsets(slopes.shape[1 : 1 + count]):
            seen = slopes
            for place in entry:
                seen = seen.select(count + 1, place)
            padded[(slice(None), *where)].add_(seen)
        inner = tuple(slice(p, p + n) for n, p in zip(a.shape[2:], self.padding, strict=True))
        found: Tensor = padded[(slice(None), *inner)].contiguous().movedim(-1, 1)
        return found

    def _laid_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        memory = torch.channels_last if self.narrow else torch.contiguous_format
        return tuple(t.contiguous(memory_format=memory) for t in tensors)

    def forward(self, a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer with other weights: C A, as a map."""
        if w.dim() == 2:
            return F.linear(a, w, bias)
        a, w = self._laid_out(a, w)
        how = self.stride, self.padding, self.dilation, False, self.unmoved, self.groups
        found: Tensor = convolution(a, w, bias, *how)
        return found

    def transposed(self, a: Tensor, w: Tensor, delta: Tensor) -> Tensor:
        """Run the layer backwards with other weights: CᵀΔ, as a map like `a`."""
        if w.dim() == 2:
            return delta @ w
        found: Tensor = convolution_backward(
            *(
                *self._laid_out(delta, a, w),
                None,
                self.stride,
                self.padding,
                self.dilation,
                False,
                self.unmoved,
                self.groups,
            ),
            (True, False, False),
        )[0]
        return found


def by_trial(x: Tensor, stack: Stack) -> Tensor:
    """Return (T·B, …) as (T, B, …)."""
    return x.reshape(stack.trials, stack.batch, *x.shape[1:])
