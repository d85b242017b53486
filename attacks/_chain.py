"""A network that is one layer after another, for one record: its layers run forwards, backwards and solved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight, conv3d_input, conv3d_weight

from leakaudit.errors import NotApplicable
from leakaudit.protocol.target import PixelModel
from leakaudit.work.progress import track

Slope = Callable[..., Tensor]  # torch declares no types of these
INPUT_SLOPE: dict[int, Slope] = {4: conv2d_input, 5: conv3d_input}  # by the dimensions of the weight
WEIGHT_SLOPE: dict[int, Slope] = {4: conv2d_weight, 5: conv3d_weight}
EDGE = 1e-6  # how near the end of its range an activation's value is not undone


@dataclass(frozen=True)
class Block:
    """A dense layer or convolution, with the activation after it (None: none), for inputs of the shape `given`.

    The weights are in double precision; nothing here has a batch dimension.
    """

    layer: nn.Conv2d | nn.Conv3d | nn.Linear
    act: nn.Module | None
    given: torch.Size
    weight: Tensor
    bias: Tensor | None

    def linear(self, u: Tensor) -> Tensor:
        """Return what the layer makes of an input, without its bias."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(u.flatten(), self.weight)
        convolve = F.conv2d if self.weight.dim() == 4 else F.conv3d
        return convolve(u[None], self.weight, None, *self._how())[0]

    def back(self, slope: Tensor) -> Tensor:
        """Return the slope in the input, of that in the output: the transpose of `linear`."""
        if isinstance(self.layer, nn.Linear):
            return (self.weight.T @ slope).view(self.given)
        return INPUT_SLOPE[self.weight.dim()]([1, *self.given], self.weight, slope[None], *self._how())[0]

    def gradient(self, slope: Tensor, u: Tensor) -> Tensor:
        """Return the gradient of the weight: linear in the input, at a fixed slope in the output."""
        if isinstance(self.layer, nn.Linear):
            return torch.outer(slope, u.flatten())
        return WEIGHT_SLOPE[self.weight.dim()](u[None], self.weight.shape, slope[None], *self._how())

    def gradient_back(self, slope: Tensor, weights: Tensor) -> Tensor:
        """Return the transpose of `gradient` in the input."""
        if isinstance(self.layer, nn.Linear):
            return (weights.T @ slope).view(self.given)
        return INPUT_SLOPE[weights.dim()]([1, *self.given], weights, slope[None], *self._how())[0]

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of layer and activation, and the activation's slope there."""
        z = self.shifted(self.linear(u))
        if self.act is None:
            return z, torch.ones_like(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            h = self.act(z.clone())  # it may work in place
            (slope,) = torch.autograd.grad(h.sum(), z)
        return h.detach(), slope

    def shifted(self, z: Tensor, sign: int = 1) -> Tensor:
        """Return an output with the bias added, or taken off."""
        if self.bias is None:
            return z
        return z + sign * self.bias.view(-1, *[1] * (z.dim() - 1))

    def short(self) -> bool:
        """Return whether the layer's equations are fewer than the numbers of its input."""
        unknown = self.given.numel()
        outputs = self.linear(torch.zeros(self.given).to(self.weight)).numel()
        if isinstance(self.layer, nn.Linear):
            return False  # the gradient of each row is the input
        pixels = self.given[1:].numel()
        per_channel = min(self.weight.shape[0] * self.weight.shape[2:].numel(), pixels)
        return outputs + per_channel * self.given[0] < unknown

    def _how(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        layer = self.layer
        assert isinstance(layer, nn.Conv2d | nn.Conv3d)
        assert not isinstance(layer.padding, str)
        return tuple(layer.stride), tuple(layer.padding), tuple(layer.dilation), layer.groups


def undone(act: nn.Module | None, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of an activation with the output h, the slope there, and where the input is known at all.

    Raises NotApplicable where the activation cannot be undone.
    """
    everywhere = torch.ones_like(h, dtype=torch.bool)
    if act is None:
        return h, torch.ones_like(h), everywhere
    if isinstance(act, nn.LeakyReLU) and act.negative_slope > 0:
        slope = torch.where(h > 0, 1.0, act.negative_slope).to(h)
        return h / slope, slope, everywhere
    if isinstance(act, nn.ReLU | nn.LeakyReLU):
        # Rounding leaves a little where the unit was off.
        on = h > EDGE * h.abs().max()
        return h, on.to(h), on
    if isinstance(act, nn.Sigmoid):
        held = h.clamp(EDGE, 1 - EDGE)
        return held.logit(), held * (1 - held), held == h
    if isinstance(act, nn.Tanh):
        held = h.clamp(EDGE - 1, 1 - EDGE)
        return held.atanh(), 1 - held.square(), held == h
    if isinstance(act, nn.ELU) and act.alpha > 0:
        low = (h / act.alpha).clamp_min(EDGE - 1)
        return torch.where(h > 0, h, low.log1p()), torch.where(h > 0, 1.0, h + act.alpha).to(h), everywhere
    raise NotApplicable(f"{type(act).__name__} cannot be undone")


ACTS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.ELU)
PASSED = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def chain_of(model: PixelModel, picture: Tensor) -> list[Block]:
    """Return the layers of a network in the order in which a picture (1, C, H, W) meets them, each fed by the last.

    Raises NotApplicable with the reason where it is no such chain.
    """
    leaves = [m for m in model.network.modules() if not any(True for _ in m.children())]
    given: list[tuple[nn.Module, Tensor]] = []
    made: list[Tensor] = []
    # Copies: an activation may work in place.
    handles = [leaf.register_forward_pre_hook(lambda m, g: given.append((m, g[0].clone()))) for leaf in leaves]
    handles += [leaf.register_forward_hook(lambda _, __, out: made.append(out.clone())) for leaf in leaves]
    try:
        with torch.no_grad():
            logits = model(picture)
    finally:
        for handle in handles:
            handle.remove()
    now, blocks = (picture - model.mean) / model.std, list[Block]()
    for (module, taken), out in zip(given, made, strict=True):
        if taken.shape[0] != 1 or not torch.equal(taken.flatten(), now.flatten()):
            raise NotApplicable(f"{type(module).__name__} is not fed by the layer before it alone")
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            blocks.append(_block(module, taken[0].shape))
        elif isinstance(module, ACTS) and blocks and blocks[-1].act is None:
            blocks[-1] = replace(blocks[-1], act=module)
        elif not isinstance(module, PASSED) or not torch.equal(out.flatten(), taken.flatten()):
            raise NotApplicable(f"{type(module).__name__} cannot be undone")
        now = out
    if not blocks or blocks[-1].act is not None or not torch.equal(now.flatten(), logits.flatten()):
        raise NotApplicable("the logits are not what the last layer gives")
    if len({id(b.layer) for b in blocks}) < len(blocks):
        raise NotApplicable("a layer is used more than once")
    return blocks


def _block(layer: nn.Linear | nn.Conv2d | nn.Conv3d, given: torch.Size) -> Block:
    if not isinstance(layer, nn.Linear) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        raise NotApplicable("a convolution pads with other than zeros")
    if isinstance(layer, nn.Linear) and len(given) != 1:
        raise NotApplicable("a dense layer is used on several vectors of a record")
    bias = None if layer.bias is None else layer.bias.detach().double()
    return Block(layer, None, given, layer.weight.detach().double(), bias)


Operator = Callable[[Tensor], tuple[Tensor, ...]]
Transpose = Callable[[tuple[Tensor, ...]], Tensor]


def least_squares(
    apply: Operator, transpose: Transpose, right: tuple[Tensor, ...], start: Tensor, steps: int, label: str
) -> Tensor:
    """Return the x nearest `start` that meets apply(x) = right best, by conjugate gradients on the normal equations.

    `transpose` is that of `apply`, linear. It ends early where rounding leaves nothing to gain.
    """
    x = start.clone()
    left = tuple(r - a for r, a in zip(right, apply(x), strict=True))
    slope = transpose(left)
    way, size = slope, slope.square().sum()
    least = 1e-28 * transpose(right).square().sum()
    for _ in track(label, steps):
        if not bool(size > least):
            break
        moved = apply(way)
        step = size / sum(m.square().sum() for m in moved)
        x = x + step * way
        left = tuple(r - step * m for r, m in zip(left, moved, strict=True))
        slope = transpose(left)
        before, size = size, slope.square().sum()
        way = slope + (size / before) * way
    return x
