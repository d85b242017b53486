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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.engine.layers import Affine, Linear, Stack, by_trial, convolution_backward


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
        return self._maps(inputs, a, (height, width), stack), slopes.view(-1, height, width, out).permute(0, 3, 1, 2)

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
        found[..., size:].fill_(1)
        found[..., :size].view(records, height, width, *kernel, channels).copy_(windows.permute(0, 2, 3, 4, 5, 1))
        return found.view(stack.trials, -1, size + ones)

    def _positions(self, delta: Tensor, stack: Stack) -> Tensor:
        last = delta if self.w.dim() == 2 else delta.permute(0, 2, 3, 1)
        return last.reshape(stack.trials, -1, self.w.shape[0])

    def _maps(self, slopes: Tensor, a: Tensor, size: tuple[int, int], stack: Stack) -> Tensor:
        """Return the slope of `a` from that of its patches: every pixel sums over the patches it is in."""
        (height, width), (down, across) = size, self.padding
        records, channels, h, w = a.shape
        if stack.launches_cost:
            image = slopes.view(records, height * width, -1, channels).permute(0, 3, 2, 1)
            image = image.reshape(records, -1, height * width)
            return F.fold(image, (h, w), self.w.shape[2:], self.dilation, self.padding, self.stride)
        by_offset = slopes.view(records, height, width, *self.w.shape[2:], channels)
        padded = a.new_zeros(records, h + 2 * down, w + 2 * across, channels)
        for y, x, rows, cols in self.offsets(height, width):
            padded[:, rows, cols].add_(by_offset[:, :, :, y, x])
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
        return convolution_backward(
            delta, a, w, sizes, self.stride, self.padding, self.dilation, False, (0, 0), groups, mask
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
    """Never forms ĝ: only for cotangents αg + βĝ. A is (T, K, P) here and Δ (T, O, P)."""

    def columns(self, a: Tensor, stack: Stack) -> Tensor:
        """Return A."""
        if self.w.dim() == 2:
            return a.reshape(stack.trials, -1, a.shape[-1]).transpose(1, 2)
        return _beside(F.unfold(a, self.w.shape[2:], self.dilation, self.padding, self.stride), stack)

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
        on_input = F.fold(image, a.shape[2:], kernel, self.dilation, self.padding, self.stride)
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
