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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.engine.layers import Affine, Linear, Stack, by_trial, convolution, convolution_backward


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
        places = delta.shape[2:]
        return self._maps(inputs, a, places, stack), slopes.view(-1, *places, delta.shape[1]).movedim(-1, 1)

    def arrange(self, gradients: list[Tensor]) -> list[Tensor]:
        """Return gradients (n, *p) of the layer's parameters the way `form` does."""
        weight = gradients[0]
        rows = (weight.movedim(2, -1) if weight.dim() > 3 else weight).flatten(2)
        return [(rows if self.bias is None else torch.cat([rows, gradients[1][..., None]], 2)).flatten(1)]

    def restore(self, formed: list[Tensor]) -> list[Tensor]:
        """Return what `form` returned as gradients (n, *p): `arrange` undone."""
        rows = formed[0].view(len(formed[0]), self.w.shape[0], -1)
        weight = rows[..., : self.w[0].numel()]
        if self.w.dim() > 2:
            out, channels, *kernel = self.w.shape
            weight = weight.reshape(-1, out, *kernel, channels).movedim(-1, 2)
        return [weight] if self.bias is None else [weight, rows[..., -1]]

    def _patches(self, a: Tensor, stack: Stack) -> Tensor:
        size, ones = self.w[0].numel(), 0 if self.bias is None else 1
        if self.w.dim() == 2:
            flat = a.reshape(stack.trials, -1, size)
            return torch.cat([flat, torch.ones_like(flat[..., :1])], 2) if ones else flat
        windows = self.windows(a).movedim(1, -1)
        places = windows.shape[1 : self.w.dim() - 1]
        found = a.new_empty(len(a), *places, size + ones)
        found[..., size:].fill_(1)
        found[..., :size].view(windows.shape).copy_(windows)
        return found.view(stack.trials, -1, size + ones)

    def _positions(self, delta: Tensor, stack: Stack) -> Tensor:
        last = delta if self.w.dim() == 2 else delta.movedim(1, -1)
        return last.reshape(stack.trials, -1, self.w.shape[0])

    def _maps(self, slopes: Tensor, a: Tensor, size: Sequence[int], stack: Stack) -> Tensor:
        """Return the slope of `a` from that of its patches: every pixel sums over the patches it is in."""
        records, channels = a.shape[:2]
        if stack.launches_cost and len(size) == 2:
            image = slopes.view(records, math.prod(size), -1, channels).permute(0, 3, 2, 1)
            image = image.reshape(records, -1, math.prod(size))
            return F.fold(image, a.shape[2:], self.w.shape[2:], self.dilation, self.padding, self.stride)
        return self.summed(slopes.view(records, *size, *self.w.shape[2:], channels), a)


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
        return convolution_backward(
            delta, a, w, sizes, self.stride, self.padding, self.dilation, False, self.unmoved, groups, mask
        )

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
        groups = stack.trials * self.groups
        out = convolution(side, w, bias, self.stride, self.padding, self.dilation, False, self.unmoved, groups)
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
    """Never forms ĝ: only for cotangents αg + βĝ. A is (T, K, P) here and Δ (T, O, P)."""

    def columns(self, a: Tensor, stack: Stack) -> Tensor:
        """Return A."""
        if self.w.dim() == 2:
            return a.reshape(stack.trials, -1, a.shape[-1]).transpose(1, 2)
        if self.w.dim() == 4:
            return _beside(F.unfold(a, self.w.shape[2:], self.dilation, self.padding, self.stride), stack)
        places = range(2, self.w.dim())
        seen = self.windows(a).movedim(list(places), [p - self.w.dim() for p in places])  # (N, I, *kernel, *places)
        return _beside(seen.reshape(len(a), self.w[0].numel(), -1), stack)

    def rows(self, delta: Tensor, stack: Stack) -> Tensor:
        """Return Δ."""
        if self.w.dim() == 2:
            return delta.reshape(stack.trials, -1, delta.shape[-1]).transpose(1, 2)
        return _beside(delta.flatten(2), stack)

    def products(
        self, a: Tensor, delta: Tensor, shared: Sequence[Tensor], stack: Stack
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return what sums over all but its first dimension to ⟨ĝ, g⟩ and to ‖ĝ‖², and what `pull_span` needs."""
        columns, rows = self.columns(a, stack), self.rows(delta, stack)
        inputs, slopes = columns.transpose(1, 2) @ columns, rows.transpose(1, 2) @ rows
        through = stack.product(shared[self.weight].flatten(2), columns)
        if self.bias is not None:  # a weight that meets ones
            inputs = inputs + 1
            through = through + stack.shared(shared[self.bias])[..., None]
        return through * rows, inputs * slopes, (columns, rows, inputs, slopes, through)

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
        back = stack.product(shared[self.weight].flatten(2).transpose(1, 2), rows)
        back = torch.baddbmm(back, columns, slopes * own)
        on_slope = torch.baddbmm(through, rows, inputs * own)
        if self.w.dim() == 2:
            return back.transpose(1, 2).reshape(a.shape), on_slope.transpose(1, 2).reshape(delta.shape)
        image, kernel = _apart(back, stack), self.w.shape[2:]
        if self.w.dim() == 4:
            on_input = F.fold(image, a.shape[2:], kernel, self.dilation, self.padding, self.stride)
        else:
            slopes = image.transpose(1, 2).view(len(a), *delta.shape[2:], a.shape[1], *kernel)
            on_input = self.summed(slopes.movedim(len(kernel) + 1, -1), a)
        return on_input, _apart(on_slope, stack).view(delta.shape)


Former = Affine | Patches | Grouped  # forms ĝ, so it can serve any distance
Layer = Former | Ghost


def _beside(x: Tensor, stack: Stack) -> Tensor:
    """Return (T·B, n, P) as (T, n, B·P): a trial's records side by side."""
    return x if stack.batch == 1 else by_trial(x, stack).transpose(1, 2).flatten(2)


def _apart(x: Tensor, stack: Stack) -> Tensor:
    """Return (T, n, B·P) as (T·B, n, P): `_beside` undone."""
    return x if stack.batch == 1 else x.reshape(*x.shape[:2], stack.batch, -1).transpose(1, 2).flatten(0, 1)


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
