"""Gradient matching by a difference quotient: the picture's slope without a second backward through the gradients.

With ĝ(x) = ∇_θ ℓ(θ, x) and the distance's cotangent c, the slope is (∂ĝ/∂x)ᵀ c, and second derivatives are symmetric:
it equals d/dε ∇_x ℓ(θ + εc, x) at ε = 0. One pass at θ gives ĝ, c and ∇_x ℓ, a second one at θ + εc, which goes back to
the picture only, the quotient: five passes through the network instead of the seven of a double backward. Kinks are
frozen between the two (`leakaudit.engine.kinks`). It is one-sided: a central quotient would cost all seven.

Networks of many weights are bound by memory. Where c = α(g + rĝ), θ + κg therefore serves all calls on one victim, and
layers of many weights and few positions never write their ĝ = ΔAᵀ (`layers.Ghost`): in the second pass, where A′ comes
in, κr·Δ(AᵀA′) is added to what θ + κg gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode

from leakaudit.engine.distances import Distance, Span, inner
from leakaudit.engine.kinks import Tape, TapeMismatch, recording, replaying
from leakaudit.engine.layers import Ghost, Stack
from leakaudit.engine.stacked import layer_of
from leakaudit.protocol.gradients import Gradients, parameters_of, with_parameters
from leakaudit.protocol.target import LossFunction, PixelModel

# Relative change of ∇_x ℓ that a step should make: longer steps bend, shorter ones drown in rounding. Either error is
# then below 1e-2 in float32, whatever the network and the stage of the attack (`python -m benchmarks.engine --errors`).
CHANGES = {torch.float32: 1e-3, torch.float64: 1e-7}
# By what factor a step may miss it before another is taken, and how often one is taken at most.
SLACK, TRIES = 3.0, 6
# Length of the first step, over ‖θ‖, and of the longest.
FIRST, LONGEST = {torch.float32: 1e-5, torch.float64: 1e-9}, 0.1
# Multiplications with A and Δ, per weight, up to which they cost less than a gradient that is written and read.
WORTH = 8


@dataclass
class Scratch:
    """What a call leaves for the next, for one model and victim that do not change: κ, and θ + κg."""

    kappa: float = 0.0
    shifted: list[Tensor] = field(default_factory=list)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).norm())


@contextmanager
def _drawing(state: Sequence[Tensor], devices: Sequence[torch.device]) -> Iterator[None]:
    """Draw in the enclosed run what was drawn from `state` on (dropout's masks), and go on as if it had not run."""
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(state[0])
        for known, device in zip(state[1:], devices, strict=True):
            torch.cuda.set_rng_state(known, device)
        yield


class _First(TorchFunctionMode):
    """Runs layers of many weights and few positions with weights that ask for no gradient, and notes them."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.places = {id(p): i for i, p in enumerate(parameters)}
        self.ghosts: list[Ghost] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = layer_of(func, args, kwargs or {})
        if found is None or id(found[1]) not in self.places:
            return func(*args, **(kwargs or {}))
        layer, weight, bias = found
        rows, columns = len(weight), weight[0].numel()
        cheap = layer.positions() ** 2 * (rows + columns) <= WORTH * rows * columns
        if layer.groups > 1 or not cheap or not layer.a.requires_grad:
            return func(*args, **(kwargs or {}))
        out = layer.forward(layer.a, layer.w, bias)
        known = {"a": layer.a.detach(), "edge": get_gradient_edge(out), "weight": self.places.pop(id(weight))}
        self.ghosts.append(Ghost(**vars(layer) | known))
        return out


class _Second(TorchFunctionMode):
    """Runs these layers, known by their weights, with their A and Δ, as if the weights were longer by step·ΔAᵀ."""

    def __init__(self, ghosts: dict[int, tuple[Ghost, Tensor, Tensor]], step: float) -> None:
        super().__init__()
        self.ghosts, self.step, self.met = ghosts, step, 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = layer_of(func, args, kwargs or {})
        if found is None or id(found[1]) not in self.ghosts:
            return func(*args, **(kwargs or {}))
        layer, weight, bias = found
        ghost, columns, rows = self.ghosts[id(weight)]
        self.met += 1
        out = layer.forward(layer.a, layer.w, bias)
        more = rows @ (columns.t() @ ghost.columns(layer.a))
        return torch.add(out, ghost.outputs(more, out), alpha=self.step)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self.met != len(self.ghosts):
            raise TapeMismatch(f"{len(self.ghosts)} layers were recorded, {self.met} were met again")


class NoQuotient(RuntimeError):
    """No step was found that changes ∇_x ℓ by as much as it should."""


@dataclass
class _Direction:
    """The distance's value and its cotangent α(fixed + r·moving): moving is ΔAᵀ where it is in `ghosts`, else ĝ."""

    value: Tensor
    alpha: float
    fixed: Gradients
    length: float  # ‖fixed + r·moving‖
    ratio: float = 0.0
    moving: Sequence[Tensor | None] = ()
    ghosts: dict[int, tuple[Ghost, Tensor, Tensor]] = field(default_factory=dict)


def _direction(
    found: Sequence[Tensor | None],
    noted: Sequence[tuple[Ghost, Tensor | None]],
    parameters: Sequence[Tensor],
    shared: Gradients,
    distance: Distance,
    other: Tensor | None,
) -> _Direction:
    gradients, products, ghosts = list(found), [], {}
    stacked = [s[None] for s in shared]
    for ghost, delta in noted:
        i = ghost.weight
        if delta is not None and (g := gradients[i]) is not None:  # the weight has other uses: its gradient is written
            gradients[i] = g + (ghost.rows(delta) @ ghost.columns(ghost.a).t()).view_as(g)
        elif delta is not None:
            one = Stack(1, len(delta), ((0, 0, 1),), torch.zeros(1, dtype=torch.long))
            dot, square, (columns, rows, *_) = ghost.products(ghost.a, delta, stacked, one)
            products.append(torch.cat([dot, square]))
            ghosts[i] = ghost, columns, rows
    pairs = [(i, p, g) for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)) if i not in ghosts]
    written = tuple(torch.zeros_like(p) if g is None else g for _, p, g in pairs)
    if not isinstance(distance, Span):
        value, cotangent = distance(written, shared)
        return _Direction(value, 1.0, cotangent, _norm(cotangent), 0.0, [None] * len(cotangent))
    others = tuple(shared[i] for i, _, _ in pairs)
    products.append(torch.stack([inner(written, others), inner(written, written)]))
    dot, square = torch.stack(products).sum(0)
    other = inner(shared, shared) if other is None else other
    value, alpha, beta = distance.coefficients(dot, square, other)
    ratio = float(beta / alpha)
    # Of two near gradients the difference is rounding.
    length = math.sqrt(max(float(other + ratio * (2 * dot + ratio * square)), 1e-7 * float(other)))
    return _Direction(value, float(alpha), shared, length, ratio, gradients, ghosts)


def finite_difference(
    model: PixelModel,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    shared: Gradients,
    distance: Distance,
    scratch: Scratch | None = None,
    other: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return d(∇_θ ℓ(x, y), shared) and its gradient with respect to the pictures (B, C, H, W).

    `x` (B, C, H, W), `y` (B,) class indices or (B, classes) probabilities, `shared` one tensor (*parameter.shape) per
    parameter and `other` its ‖g‖² if known. `scratch` is carried from call to call on one victim; without it most calls
    take a second step.

    The model's parameters are not touched; BatchNorm in train mode updates its statistics in every pass. Random draws
    are the same in all passes. Raises TapeMismatch where the passes take different paths through the model, and
    NoQuotient where no step is right: kinks that are not frozen, or a gradient that is rounding.
    """
    _, parameters = parameters_of(model)
    x, tape, first = x.detach().requires_grad_(True), Tape(), _First(parameters)
    devices = [x.device] if x.device.type == "cuda" else []
    state = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    with first if isinstance(distance, Span) else nullcontext(), recording(tape):
        outcome = loss(model(x), y)
    edges: list[Any] = [ghost.edge for ghost in first.ghosts]
    found: Sequence[Tensor | None] = torch.autograd.grad(outcome, [*parameters, *edges, x], allow_unused=True)
    count, picture = len(parameters), found[-1]
    noted = list(zip(first.ghosts, found[count:-1], strict=True))
    with torch.no_grad():
        origin = [p.detach() for p in parameters]
        direction = _direction(found[:count], noted, origin, shared, distance, other)
    if picture is None:
        return direction.value.detach(), torch.zeros_like(x)

    def units(length: float) -> float:
        return length * (_norm(origin) or 1.0) / (direction.length or 1.0)

    scratch, spans = scratch or Scratch(), isinstance(distance, Span)
    scratch.kappa = scratch.kappa if scratch.kappa > 0 else units(FIRST.get(x.dtype, FIRST[torch.float32]))  # or NaN
    aim = CHANGES.get(x.dtype, CHANGES[torch.float32]) * float(picture.norm())
    for _ in range(TRIES):
        kappa = scratch.kappa
        steady = scratch.shifted if spans else []
        steady = steady or [torch.add(p, c, alpha=kappa) for p, c in zip(origin, direction.fixed, strict=True)]
        scratch.shifted = steady if spans else []
        pairs = zip(steady, direction.moving, strict=True)
        moved = [p if g is None else torch.add(p, g, alpha=kappa * direction.ratio) for p, g in pairs]
        there = x.detach().requires_grad_(True)
        second = _Second({id(moved[i]): known for i, known in direction.ghosts.items()}, kappa * direction.ratio)
        with _drawing(state, devices), with_parameters(model, parameters, moved), second, replaying(tape):
            outcome = loss(model(there), y)
        gap = torch.autograd.grad(outcome, there)[0].sub_(picture)
        off = float(gap.norm()) / aim if aim else 1.0
        if 1 / SLACK <= off <= SLACK:
            break
        factor = min(max(1 / max(off, 1e-3), 1e-3), 1e3) if math.isfinite(off) else 1e-3
        scratch.kappa, scratch.shifted = min(kappa * factor, units(LONGEST)), []
    if math.isfinite(aim) and not 1 / SLACK <= off <= SLACK:
        raise NoQuotient("no step changes the picture's gradient by as much as it should")
    return direction.value.detach(), gap.mul_(direction.alpha / kappa)
