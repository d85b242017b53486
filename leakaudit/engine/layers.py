"""What a layer does in a pass over a stack of trials: per-trial gradients only where they are the cheap way.

A layer whose weights meet inputs A (K × P: P positions, K weights each) and whose output has slopes Δ (O × P) has the
gradient ĝ = Δ Aᵀ. A cotangent C of ĝ pulls back to C A on Δ and to CᵀΔ on A. There are three ways to do that:

- `Patches`: A is written out and ĝ formed by matrix products; best with few channels.
- `Grouped`: ĝ is formed by convolutions in which every trial is a group of channels; best with many.
- `Ghost`: where C = g + rĝ, nothing of the size of ĝ is needed (Goodfellow 2015, arXiv 1510.01799; Rochette et al.
  2019, arXiv 1912.06015): ⟨ĝ, g⟩ = ⟨Δ, gA⟩, ‖ĝ‖² = ⟨AᵀA, ΔᵀΔ⟩, ĝA = Δ(AᵀA), ĝᵀΔ = A(ΔᵀΔ). Best with small maps and
  many weights.

Which one follows from the layer's shape alone (`way`), not from a clock: the same command must give the same bits.
`a` and `delta` are the layer's input and its output's slopes for the T·B records of the stack, trial by trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.nn import functional as F

_backward = torch.ops.aten.convolution_backward


@dataclass(frozen=True)
class Stack:
    """Which of the shared updates each of T trials of B records is matched with: runs (row, first trial, end)."""

    trials: int
    batch: int
    runs: tuple[tuple[int, int, int], ...]
    rows: Tensor

    def shared(self, rows: Tensor) -> Tensor:
        """Return what each trial is matched with, (T or 1, *p), of the updates (V, *p)."""
        if len(self.runs) == 1:
            return rows[self.runs[0][0]][None]
        if self.trials == len(self.runs) == len(rows) and all(row == first for row, first, _ in self.runs):
            return rows  # no copy
        return rows[self.rows]


@dataclass(frozen=True)
class Affine:
    """out = x̂·γ + β with x̂ = a·scale + shift: the parameters of a normalisation.

    `own` is the shape of γ and β, `shape` how they broadcast over one record's `a`. `scale` and `shift` are the
    statistics of BatchNorm in eval mode, where the normalisation itself is affine, else None.
    """

    a: Tensor
    edge: GradientEdge
    shape: tuple[int, ...]
    own: tuple[int, ...]
    weight: int | None
    bias: int | None
    scale: Tensor | None
    shift: Tensor | None

    @property
    def parameters(self) -> tuple[int, ...]:
        """The parameters' places in the update."""
        return tuple(i for i in (self.weight, self.bias) if i is not None)

    def form(self, a: Tensor, delta: Tensor, stack: Stack) -> tuple[list[Tensor], Tensor | None]:
        """Return ∂γ = Σ Δ x̂ and ∂β = Σ Δ of every trial, in the order of `parameters`, flat; and what `pull` needs."""
        over = [1, *(i + 2 for i, n in enumerate(self.shape) if n == 1)]

        def total(x: Tensor) -> Tensor:
            return by_trial(x, stack).sum(over).flatten(1)

        slopes = total(delta)
        found = [] if self.bias is None else [slopes]
        if self.weight is not None:
            scaled = total(delta * a)
            if self.scale is not None and self.shift is not None:
                scaled = scaled * self.scale + slopes * self.shift
            found.insert(0, scaled)
        return found, None

    def pull(
        self, a: Tensor, delta: Tensor, kept: Tensor | None, cotangents: list[Tensor], stack: Stack
    ) -> tuple[Tensor | None, Tensor]:
        """Return the slopes of `a` and of Δ that `cotangents`, flat like what `form` returns, cause."""

        def spread(c: Tensor) -> Tensor:
            return c.view(stack.trials, *self.shape).repeat_interleave(stack.batch, 0)

        rest = list(cotangents)
        weight = rest.pop(0) if self.weight is not None else None
        constant = rest[0] if rest else None
        if weight is None:
            return None, spread(cotangents[0]).expand_as(delta)
        if self.scale is not None and self.shift is not None:
            constant = weight * self.shift if constant is None else constant + weight * self.shift
            weight = weight * self.scale
        own = spread(weight)
        return delta * own, a * own if constant is None else torch.addcmul(spread(constant), a, own)

    def arrange(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return gradients (n, *p) of the layer's parameters the way `form` does."""
        return [g.flatten(1) for g in gradients]

    def restore(self, formed: list[Tensor]) -> list[Tensor]:
        """Return what `form` returned as gradients (n, *p): `arrange` undone."""
        return [g.view(len(g), *self.own) for g in formed]


@dataclass(frozen=True)
class Linear:
    """A dense layer (a (N, …, K)) or a convolution (a (N, I, H, W)) with its weights, in the model's own terms."""

    a: Tensor
    edge: GradientEdge | None  # where the output's slopes arrive; None before it has run
    w: Tensor
    weight: int
    bias: int | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def parameters(self) -> tuple[int, ...]:
        """The parameters' places in the update."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def narrow(self) -> bool:
        """Whether it is a convolution whose channels do not fill the vector units, 16 floats wide.

        It then runs pixel by pixel (channels last), twice as fast on a CPU; a picture's own channels do not count.
        """
        return self.w.dim() == 4 and self.groups == 1 and any(n % 16 > 0 for n in self.w.shape[:2] if n > 4)

    def out_size(self, a: Tensor) -> tuple[int, int]:
        """Height and width of the convolution's output."""
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.w.shape[2:], strict=True)]
        sizes = zip(a.shape[2:], self.padding, spans, self.stride, strict=True)
        height, width = [(n + 2 * p - span) // s + 1 for n, p, span, s in sizes]
        return height, width

    def positions(self) -> int:
        """Return P of all records together."""
        if self.w.dim() == 2:
            return self.a.numel() // self.a.shape[-1]
        return len(self.a) * math.prod(self.out_size(self.a))

    def offsets(self, height: int, width: int) -> Iterator[tuple[int, int, slice, slice]]:
        """Yield for each entry (y, x) of the kernel the rows and columns of the padded input that it meets."""
        for y in range(self.w.shape[2]):
            for x in range(self.w.shape[3]):
                top, left = y * self.dilation[0], x * self.dilation[1]
                yield (
                    y,
                    x,
                    slice(top, top + (height - 1) * self.stride[0] + 1, self.stride[0]),
                    slice(left, left + (width - 1) * self.stride[1] + 1, self.stride[1]),
                )

    def _laid_out(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        memory = torch.channels_last if self.narrow else torch.contiguous_format
        return tuple(t.contiguous(memory_format=memory) for t in tensors)

    def forward(self, a: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        """Run the layer with other weights: C A, as a map."""
        if w.dim() == 2:
            return F.linear(a, w, bias)
        a, w = self._laid_out(a, w)
        return F.conv2d(a, w, bias, self.stride, self.padding, self.dilation, self.groups)

    def transposed(self, a: Tensor, w: Tensor, delta: Tensor) -> Tensor:
        """Run the layer backwards with other weights: CᵀΔ, as a map like `a`."""
        if w.dim() == 2:
            return delta @ w
        found: Tensor = _backward(
            *(*self._laid_out(delta, a, w), None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups),
            (True, False, False),
        )[0]
        return found


@dataclass(frozen=True)
class Patches(Linear):
    """Forms ĝ by matrix products of Aᵀ (T, P, K) and Δᵀ (T, P, O): position by position, like maps with channels last.

    K counts a kernel's entries (y, x, channel); where there is a bias it has one entry more, which meets ones.
    """

    def form(self, a: Tensor, delta: Tensor, stack: Stack) -> tuple[list[Tensor], Tensor | None]:
        """Return ĝ of every trial, flat (T, O·K), and Aᵀ."""
        patches = self._patches(a, stack)
        found = self._positions(delta, stack).transpose(1, 2) @ patches
        return [found.flatten(1)], patches

    def pull(
        self, a: Tensor, delta: Tensor, kept: Tensor | None, cotangents: list[Tensor], stack: Stack
    ) -> tuple[Tensor | None, Tensor]:
        """Return CᵀΔ and CA."""
        patches = self._patches(a, stack) if kept is None else kept
        own = cotangents[0].view(stack.trials, self.w.shape[0], -1)
        slopes = patches @ own.transpose(1, 2)
        size = self.w[0].numel()
        inputs = self._positions(delta, stack) @ own[..., :size]
        if self.w.dim() == 2:
            return inputs.view(a.shape), slopes.view(delta.shape)
        _, out, height, width = delta.shape
        return self._maps(inputs, a, height, width), slopes.view(-1, height, width, out).permute(0, 3, 1, 2)

    def arrange(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return gradients (n, *p) of the layer's parameters the way `form` does."""
        weight = gradients[0]
        rows = (weight.permute(0, 1, 3, 4, 2) if weight.dim() == 5 else weight).flatten(2)
        return [(rows if self.bias is None else torch.cat([rows, gradients[1][..., None]], 2)).flatten(1)]

    def restore(self, formed: list[Tensor]) -> list[Tensor]:
        """Return what `form` returned as gradients (n, *p): `arrange` undone."""
        rows = formed[0].view(len(formed[0]), self.w.shape[0], -1)
        weight = rows[..., : self.w[0].numel()]
        if self.w.dim() == 4:
            out, channels, height, width = self.w.shape
            weight = weight.reshape(-1, out, height, width, channels).permute(0, 1, 4, 2, 3)
        return [weight] if self.bias is None else [weight, rows[..., -1]]

    def _patches(self, a: Tensor, stack: Stack) -> Tensor:
        size, ones = self.w[0].numel(), 0 if self.bias is None else 1
        if self.w.dim() == 2:
            flat = a.reshape(stack.trials, -1, size)
            return torch.cat([flat, torch.ones_like(flat[..., :1])], 2) if ones else flat
        down, across = self.padding
        windows = F.pad(a, (across, across, down, down))
        for side, (k, d, s) in enumerate(zip(self.w.shape[2:], self.dilation, self.stride, strict=True)):
            windows = windows.unfold(2 + side, d * (k - 1) + 1, s)[..., ::d]  # (T·B, I, H, W, y, x): a view
        records, channels, height, width, *kernel = windows.shape
        found = a.new_empty(records, height, width, size + ones)
        found[..., size:] = 1
        found[..., :size].view(records, height, width, *kernel, channels).copy_(windows.permute(0, 2, 3, 4, 5, 1))
        return found.view(stack.trials, -1, size + ones)

    def _positions(self, delta: Tensor, stack: Stack) -> Tensor:
        last = delta if self.w.dim() == 2 else delta.permute(0, 2, 3, 1)
        return last.reshape(stack.trials, -1, self.w.shape[0])

    def _maps(self, slopes: Tensor, a: Tensor, height: int, width: int) -> Tensor:
        """Return the slope of `a` from that of its patches: every pixel sums over the patches it is in."""
        down, across = self.padding
        records, channels, h, w = a.shape
        by_offset = slopes.view(records, height, width, *self.w.shape[2:], channels)
        padded = a.new_zeros(records, h + 2 * down, w + 2 * across, channels)
        for y, x, rows, cols in self.offsets(height, width):
            padded[:, rows, cols] += by_offset[:, :, :, y, x]
        return padded[:, down : down + h, across : across + w].contiguous().permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Grouped(Linear):
    """Forms ĝ by convolutions with T·groups groups, over pictures of T·I channels."""

    def _side_by_side(self, x: Tensor, stack: Stack) -> Tensor:
        return by_trial(x, stack).transpose(0, 1).flatten(1, 2)

    def _one_by_one(self, x: Tensor, like: Tensor, stack: Stack) -> Tensor:
        return x.reshape(len(x), stack.trials, -1, *x.shape[2:]).transpose(0, 1).reshape(like.shape)

    def _call(self, delta: Tensor, a: Tensor, w: Tensor, stack: Stack, mask: tuple[bool, bool, bool]) -> Any:
        sizes = [stack.trials * self.w.shape[0]]
        groups = stack.trials * self.groups
        return _backward(delta, a, w, sizes, self.stride, self.padding, self.dilation, False, (0, 0), groups, mask)

    def form(self, a: Tensor, delta: Tensor, stack: Stack) -> tuple[list[Tensor], Tensor | None]:
        """Return ĝ of every trial, weight and bias, flat; and nothing for `pull`."""
        w = self.w.expand(stack.trials, *self.w.shape).flatten(0, 1)
        sides = self._side_by_side(delta, stack), self._side_by_side(a, stack)
        _, weight, bias = self._call(*sides, w, stack, (False, True, self.bias is not None))
        return [g.reshape(stack.trials, -1) for g in (weight, bias)[: len(self.parameters)]], None

    def pull(
        self, a: Tensor, delta: Tensor, kept: Tensor | None, cotangents: list[Tensor], stack: Stack
    ) -> tuple[Tensor | None, Tensor]:
        """Return CᵀΔ and CA."""
        w = cotangents[0].reshape(stack.trials * self.w.shape[0], *self.w.shape[1:])
        bias = None if self.bias is None else cotangents[1].flatten()
        side, sloped = self._side_by_side(a, stack), self._side_by_side(delta, stack)
        out = F.conv2d(side, w, bias, self.stride, self.padding, self.dilation, stack.trials * self.groups)
        back = self._call(sloped, side, w, stack, (True, False, False))[0]
        return self._one_by_one(back, a, stack), self._one_by_one(out, delta, stack)

    def arrange(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return gradients (n, *p) of the layer's parameters the way `form` does."""
        return [g.flatten(1) for g in gradients]

    def restore(self, formed: list[Tensor]) -> list[Tensor]:
        """Return what `form` returned as gradients (n, *p): `arrange` undone."""
        weight, *bias = formed
        return [weight.view(-1, *self.w.shape), *bias]


@dataclass(frozen=True)
class Ghost(Linear):
    """Never forms ĝ: only for cotangents αg + βĝ. A is (K, T·P) here and Δ (O, T·P), all trials side by side."""

    def columns(self, a: Tensor) -> Tensor:
        """Return A."""
        if self.w.dim() == 2:
            return a.reshape(-1, a.shape[-1]).t()
        unfolded = F.unfold(a, self.w.shape[2:], self.dilation, self.padding, self.stride)
        return unfolded.transpose(0, 1).flatten(1)

    def rows(self, delta: Tensor) -> Tensor:
        """Return Δ."""
        return delta.reshape(-1, delta.shape[-1]).t() if self.w.dim() == 2 else delta.transpose(0, 1).flatten(1)

    def outputs(self, rows: Tensor, like: Tensor) -> Tensor:
        """Return (O, T·P) as a map like Δ: `rows` undone."""
        if self.w.dim() == 2:
            return rows.t().reshape(like.shape)
        return rows.view(-1, len(like), *like.shape[2:]).transpose(0, 1)

    def products(
        self, a: Tensor, delta: Tensor, shared: Sequence[Tensor], stack: Stack
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return ⟨ĝ, g⟩ (T,), ‖ĝ‖² (T,), and what `pull_span` needs."""
        columns, rows = self.columns(a), self.rows(delta)
        inputs, slopes = (x.transpose(1, 2) @ x for x in (_each(columns, stack), _each(rows, stack)))
        inputs = inputs if self.bias is None else inputs + 1  # a bias is a weight that meets ones
        through = torch.empty_like(rows)
        for row, here in self._runs(columns, stack):
            through[:, here] = shared[self.weight][row].flatten(1) @ columns[:, here]
            if self.bias is not None:
                through[:, here] += shared[self.bias][row][:, None]
        dot = _each(through * rows, stack).sum((1, 2))
        return dot, (inputs * slopes).sum((1, 2)), (columns, rows, inputs, slopes, through)

    def pull_span(
        self,
        a: Tensor,
        delta: Tensor,
        kept: tuple[Tensor, ...],
        shared: Sequence[Tensor],
        ratio: Tensor,
        stack: Stack,
    ) -> tuple[Tensor | None, Tensor]:
        """Return CᵀΔ and CA for C = g + ratio·ĝ with ratio (T,)."""
        columns, rows, inputs, slopes, through = kept
        own = ratio.view(-1, 1, 1)
        back = (_each(columns, stack) @ (slopes * own)).transpose(0, 1).flatten(1)
        for row, here in self._runs(columns, stack):
            back[:, here] += shared[self.weight][row].flatten(1).t() @ rows[:, here]
        on_slope = through + (_each(rows, stack) @ (inputs * own)).transpose(0, 1).flatten(1)
        return self._inputs(back, a), self.outputs(on_slope, delta)

    def _inputs(self, columns: Tensor, like: Tensor) -> Tensor:
        """Return the slope of `a` from that of A."""
        if self.w.dim() == 2:
            return columns.t().reshape(like.shape)
        by_record = columns.view(len(columns), len(like), -1).transpose(0, 1)
        return F.fold(by_record, like.shape[2:], self.w.shape[2:], self.dilation, self.padding, self.stride)

    def _runs(self, columns: Tensor, stack: Stack) -> Iterator[tuple[int, slice]]:
        positions = columns.shape[1] // stack.trials
        for row, first, end in stack.runs:
            yield row, slice(first * positions, end * positions)


Former = Affine | Patches | Grouped  # forms ĝ, so it can serve any distance
Layer = Former | Ghost


def by_trial(x: Tensor, stack: Stack) -> Tensor:
    """Return (T·B, …) as (T, B, …)."""
    return x.reshape(stack.trials, stack.batch, *x.shape[1:])


def _each(x: Tensor, stack: Stack) -> Tensor:
    """Return (n, T·P) as (T, n, P)."""
    return x.reshape(len(x), stack.trials, -1).transpose(0, 1)


def way(layer: Linear, trials: int, span: bool) -> type[Patches | Grouped | Ghost]:
    """Return how a layer should do its part, by counting multiplications; `span` says whether C is in the span of g, ĝ.

    Forming ĝ and pulling back costs 3·O·K·P, the two products with g 2·O·K·P, and the Gram matrices and their use
    2·(O + K)·P². What the formed gradients cost in memory makes up for the slack between 1 and 2.
    """
    out, weights, positions = layer.w.shape[0], layer.w[0].numel(), layer.positions() // trials
    if layer.groups > 1:
        return Grouped
    if span and positions * (out + weights) <= out * weights:
        return Ghost
    if layer.w.dim() == 2:
        return Patches
    wide = layer.w.shape[1] % 16 == 0 and out % 16 == 0  # vector units are 16 floats wide
    return Grouped if wide or trials == 1 else Patches
