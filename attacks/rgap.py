"""R-GAP: a record's input solved layer by layer, from the last to the first, each a system of linear equations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, cut_short, memory_safe, need_one_gradient
from leakaudit.attacks._chain import Block, Operator, Transpose, chain_of, least_squares, undone
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks.analytic import known_labels_or_none, solve
from leakaudit.errors import NotApplicable, UserError
from leakaudit.protocol.attack import Attack, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel

NEWTON = 12  # linearisations of the layers that are solved together, at most


@dataclass(frozen=True)
class System:
    """The equations of one layer in its input u: W·u = z − b where z is known, and ∂W(δ, u) as it was shared.

    `weigh` makes both kinds count alike.
    """

    block: Block
    slope: Tensor  # δ, in the layer's output
    known: Tensor
    weigh: float
    right: tuple[Tensor, Tensor]

    def apply(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the left sides for an input u."""
        return self.block.linear(u) * self.known, self.weigh * self.block.gradient(self.slope, u)

    def transpose(self, sides: tuple[Tensor, ...]) -> Tensor:
        """Return the transpose of `apply`."""
        return self.block.back(sides[0] * self.known) + self.block.gradient_back(self.slope, self.weigh * sides[1])


def system_of(block: Block, output: Tensor, slope: Tensor, gradient: Tensor, probe: Tensor) -> System:
    """Return the equations of a layer whose output after the activation is known, and the slope in that.

    `probe` is any input of its shape: by it the two kinds of equations are weighed.
    """
    z, bend, known = undone(block.act, output)
    slope = slope * bend
    sizes = [float(side.norm()) for side in (block.linear(probe) * known, block.gradient(slope, probe))]
    weigh = sizes[0] / sizes[1] if min(sizes) > 0 else 1.0
    return System(block, slope, known, weigh, (block.shifted(z, -1) * known, weigh * gradient))


def newton(first: Sequence[Block], system: System, x: Tensor, steps: int) -> tuple[Tensor, float]:
    """Return the picture that meets the equations of a layer behind `first` best, near x, and what it leaves of them.

    By Gauss-Newton.

    Where a layer has fewer equations than unknowns, those before it leave fewer unknowns: its input is what they make
    of the picture.
    """

    def off(x: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        u, bends = x, []
        for block in first:
            u, bend = block.forward(u.view(block.given))
            bends.append(bend)
        sides = system.apply(u.view(system.block.given))
        return tuple(r - s for r, s in zip(system.right, sides, strict=True)), bends

    left, bends = off(x)
    best = sum(float(side.square().sum()) for side in left)
    for _ in range(NEWTON):
        apply, transpose = _linearised(first, bends, system)
        move = least_squares(apply, transpose, left, torch.zeros_like(x), steps, "layers together")
        for part in (1.0, 0.5, 0.25, 0.125):
            tried, bent = off(x + part * move)
            value = sum(float(side.square().sum()) for side in tried)
            if value < best:
                break
        else:
            break
        x, left, bends, gained, best = x + part * move, tried, bent, best - value, value
        if gained < 1e-3 * (best + gained):
            break
    return x, best**0.5


def _size(system: System, sides: tuple[Tensor, ...]) -> float:
    return float(torch.cat([(r - s).flatten() for r, s in zip(system.right, sides, strict=True)]).norm())


def _linearised(first: Sequence[Block], bends: Sequence[Tensor], system: System) -> tuple[Operator, Transpose]:
    def apply(d: Tensor) -> tuple[Tensor, ...]:
        for block, bend in zip(first, bends, strict=True):
            d = block.linear(d.view(block.given)) * bend
        return system.apply(d.view(system.block.given))

    def transpose(sides: tuple[Tensor, ...]) -> Tensor:
        d = system.transpose(sides)
        for block, bend in zip(reversed(first), reversed(bends), strict=True):
            d = block.back(d.view(bend.shape) * bend)
        return d

    return apply, transpose


def recovered(
    blocks: Sequence[Block], gradients: Sequence[tuple[Tensor, Tensor | None]], steps: int, probe: Tensor
) -> tuple[Tensor, float]:
    """Return the normalised picture (C, H, W) of one record, and the norm of what its equations leave.

    `gradients` are each layer's, of weight and bias (None without one). `probe` is any picture, likewise normalised.
    """
    last = gradients[-1][1]
    assert last is not None
    output, rest = solve(gradients[-1][0], last)
    slope, left = blocks[-1].back(last.double()), float(rest)
    inputs = [probe.double()]
    for block in blocks[:-1]:
        inputs.append(block.forward(inputs[-1].view(block.given))[0])
    together: tuple[int, System] | None = None
    for i in range(len(blocks) - 2, -1, -1):
        block, shape = blocks[i], inputs[i + 1].shape
        own = inputs[i].view(block.given)
        system = system_of(block, output.view(shape), slope.view(shape), gradients[i][0].double(), own)
        if together is None and (block.short() or i == 1):  # the picture has fewer unknowns than what comes of it
            together = i, system
        start = torch.zeros(block.given).to(block.weight)
        output = least_squares(system.apply, system.transpose, system.right, start, steps, "layers")
        left = _size(system, system.apply(output))
        slope = block.back(system.slope)
    if together is not None and together[0] > 0:
        output, left = newton(blocks[: together[0]], together[1], output.view(blocks[0].given), steps)
    return output.view(probe.shape), left


@register_attack
@dataclass(frozen=True, kw_only=True)
class RGap(Attack):
    """Solve a record layer by layer, from the last to the first (R-GAP, Zhu and Blaschko 2021, arXiv 2010.07733).

    The last layer's bias gives the slope in the logits, and its weight its input. Of every layer before, the output is
    then known, and undoing the activation gives z and the slope δ in it: W·u + b = z (weight constraints) and
    ∂W = δ ⋆ u (gradient constraints) are linear in the input u, and solved by least squares (conjugate gradients, up to
    `steps`). A layer that has fewer equations than its input has numbers, and at the latest the second, is solved
    together with those before it, in the picture, by Gauss-Newton: the paper leaves it at the solution of least norm.

    It applies at batch size 1 where the network is dense layers and convolutions one after another, the last with a
    bias, and LeakyReLU, ELU, Sigmoid or Tanh between them, or ReLU, which hides what is off. Error grows from layer to
    layer: it is for gradients that are nearly exact.
    """

    name: ClassVar[str] = "r-gap"
    summary: ClassVar[str] = "solve a chain of layers from the last to the first, each a system of linear equations"
    source: ClassVar[str] = "Zhu and Blaschko 2021 (R-GAP)"
    family: ClassVar[str] = "closed-form"
    covers: ClassVar[frozenset[str]] = frozenset({"layer-by-layer"})
    needs: ClassVar[Needs] = Needs(one_record=True, chain=True)

    steps: int = 400  # of conjugate gradients for each layer

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError("steps must be at least 1")

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures; a victim whose last bias has a gradient of zero, or not finite, is `diverged`."""
        if update.batch_size != 1:
            raise NotApplicable(f"it needs one record per update, here there are {update.batch_size}")
        need_one_gradient(update)
        with client_mode(model, update, generator):
            shown = probe_pictures(update, generator, model.mean.device, most=1)[:1].to(model.mean.dtype)
            blocks = chain_of(model, shown)
        probe = ((shown - model.mean) / model.std)[0]
        place = {id(p): i for i, p in enumerate(parameters_of(model)[1])}
        if any(id(b.layer.weight) not in place for b in blocks):
            raise NotApplicable("a layer's weight is not trained, and so not shared")
        if not isinstance(blocks[-1].layer, nn.Linear) or id(blocks[-1].layer.bias) not in place:
            raise NotApplicable("the last layer is not dense with a bias")
        images = torch.full((update.victims, *update.input_shape), 0.5).to(model.mean)
        objective = torch.full((update.victims,), torch.inf).to(model.mean)
        statuses: list[Status] = ["diverged"] * update.victims
        for v in range(update.victims):
            pairs = [_shared(b, update, place, v) for b in blocks]
            last = pairs[-1][1]
            if last is None or not last.any() or not all(g.isfinite().all() for p in pairs for g in p if g is not None):
                continue
            found, left = recovered(blocks, pairs, self.steps, probe)
            if found.isfinite().all():
                images[v] = (found.to(model.mean) * model.std[0] + model.mean[0]).clamp(0, 1)
                objective[v], statuses[v] = left, "converged"
        return cut_short(
            Reconstruction(
                images=images[:, None],
                labels=known_labels_or_none(model, update, generator),
                objective=objective,
                statuses=tuple(statuses),
                reason=None if "diverged" not in statuses else "the last bias' gradient is zero or not finite",
            )
        )


def _shared(block: Block, update: SharedUpdate, place: dict[int, int], victim: int) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a layer's weight and bias."""
    weight, bias = block.layer.weight, block.layer.bias
    own = None if bias is None or id(bias) not in place else update.gradients[place[id(bias)]][victim]
    return update.gradients[place[id(weight)]][victim], own
