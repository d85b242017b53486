"""Gradient matching by a difference quotient: the picture's slope without a second backward through the gradients.

With ĝ(x) = ∇_θ ℓ(θ, x) and the distance's cotangent c, the slope is (∂ĝ/∂x)ᵀ c, and second derivatives are symmetric:
it equals d/dε ∇_x ℓ(θ + εc, x) at ε = 0. One pass at θ gives ĝ, c and ∇_x ℓ, a second one at θ + εc, which goes back to
the picture only, the quotient: five passes through the network instead of the seven of a double backward. Kinks are
frozen between the two (`leakaudit.kinks`). It is one-sided: a central quotient would cost all seven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leakaudit.client import parameters_of
from leakaudit.defense import Gradients
from leakaudit.distances import Distance, Span
from leakaudit.factors import Factors, NoFactors, Recorder, Replayer
from leakaudit.kinks import Tape, recording, replaying
from leakaudit.target import LossFunction, PixelModel

# Relative change of ∇_x ℓ that a step should make: longer steps bend, shorter ones drown in rounding. Either error is
# then below 1e-2 in float32, whatever the network and the stage of the attack (`python -m benchmarks.finite`).
CHANGES = {torch.float32: 1e-3, torch.float64: 1e-7}
# How far from it, up or down, a step may come out before it is taken again, and how often it is taken at most.
SLACK, TRIES = 5.0, 3
# Length ε‖c‖/‖θ‖ of the first step and of the longest.
FIRST, LONGEST = {torch.float32: 1e-5, torch.float64: 1e-9}, 0.1
# Relative error of the slope up to which the quotient counts as right.
TOLERANCES = {torch.float32: 2e-2, torch.float64: 1e-4}
# Entries handled at a time on a CPU, so that the second operation on them finds them in the cache.
CHUNK = 1 << 17
# Entries of the parameters up to which θ + κg is kept from call to call, which takes as much memory again.
KEEP_UP_TO = 1 << 25


@dataclass
class Scratch:
    """What a call leaves for the next: one per model and run of an attack, in which the model does not change.

    `step` is ε‖c‖/‖θ‖ and `scale` ‖θ‖. `buffers` hold θ + εc of one call; fresh ones would cost page faults. As long
    as calls are on one `victim`, `square` holds its ‖g‖² and `shifted` θ + `kappa`·g. `dense`: no use of `factors`.
    """

    step: float | None = None
    scale: float = 0.0
    buffers: dict[int, Tensor] = field(default_factory=dict)
    victim: list[tuple[Tensor, int]] = field(default_factory=list)
    square: Tensor | None = None
    kappa: float | None = None
    shifted: list[Tensor] = field(default_factory=list)
    dense: bool = False

    def serves(self, origin: Gradients, shared: Gradients) -> bool:
        """Return whether the last call was on the same parameters and victim; if not, forget what hung on them."""
        # The tensors are held, so that no other can come to lie where they are.
        now = [(t, t._version) for t in (*origin, *shared)]
        if len(now) == len(self.victim) and all(
            a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and v == w
            for (a, v), (b, w) in zip(now, self.victim, strict=True)
        ):
            return True
        self.victim, self.square, self.kappa, self.shifted = now, None, None, []
        return False

    def buffer(self, index: int, like: Tensor) -> Tensor:
        """Return the buffer of a parameter, in its shape."""
        kept = self.buffers.get(index)
        if kept is None or kept.shape != like.shape or kept.dtype != like.dtype or kept.device != like.device:
            kept = self.buffers[index] = torch.empty_like(like, memory_format=torch.contiguous_format)
        return kept


def agrees(fast: Tensor, exact: Tensor) -> bool:
    """Return whether a slope is the exact one up to rounding and the quotient's bend: ‖fast − exact‖ ≤ tol·‖exact‖."""
    gap, length = float((fast - exact).norm()), float(exact.norm())
    return gap <= TOLERANCES.get(exact.dtype, TOLERANCES[torch.float32]) * length


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).norm())


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def _draw_again(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def _same_draws(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw in the enclosed run what was drawn from `state` on (dropout's masks), and go on as if it had not run."""
    if all(torch.equal(a, b) for a, b in zip(state, _random_state(device), strict=True)):
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _draw_again(state, device)
        yield


@contextmanager
def _with_parameters(model: PixelModel, parameters: Sequence[Tensor], moved: Sequence[Tensor]) -> Iterator[None]:
    """Run the enclosed code with other parameters; what comes back is the very same objects, at the same places.

    `torch.func.functional_call` leaves a model that holds one module twice with tensors in place of its parameters.
    """
    instead = {id(p): tensor for p, tensor in zip(parameters, moved, strict=True)}
    slots = [(m._parameters, n, p) for m in model.modules() for n, p in m._parameters.items() if id(p) in instead]
    try:
        for place, name, p in slots:
            place[name] = instead[id(p)]  # type: ignore[assignment]
        yield
    finally:
        for place, name, p in slots:
            place[name] = p


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    whole = tensors[0].numel() <= CHUNK or tensors[0].device.type != "cpu"
    flat = [t.reshape(-1) for t in tensors]
    yield from (tuple(flat),) if whole else zip(*(torch.split(t, CHUNK) for t in flat), strict=True)


@dataclass
class _Base:
    """The pass at θ: ∇_θ ℓ as matrices in `found`, or as `calls`' factors where that is None; ∇_x ℓ."""

    origin: Gradients
    found: list[Tensor | None]
    calls: list[Factors]
    picture: Tensor | None


def _base(
    model: PixelModel, loss: LossFunction, x: Tensor, y: Tensor, parameters: Sequence[Tensor], tape: Tape, dense: bool
) -> _Base:
    """Run the pass at θ. Raises NoFactors unless `dense` where a weight's gradient is not one product."""
    layers = Recorder(() if dense else parameters)
    with layers if layers.weights else nullcontext(), recording(tape):
        outcome = loss(model(x), y)
    inputs: list[Any] = [*parameters, x, *(call.edge for call in layers.calls)]
    gradients = torch.autograd.grad(outcome, inputs, allow_unused=True)
    count = len(parameters)
    found: list[Tensor | None] = list(gradients[:count])
    calls = []
    for call, back in zip(layers.calls, gradients[count + 1 :], strict=True):
        if found[call.weight] is not None:
            raise NoFactors("a weight is used elsewhere, too")
        if back is not None:
            call.settle(back)
            calls.append(call)
    factored = {call.weight for call in calls}
    for i, p in enumerate(parameters):
        if found[i] is None and i not in factored:
            found[i] = torch.zeros_like(p)
    return _Base(tuple(p.detach() for p in parameters), found, calls, gradients[count])


@dataclass
class _Direction:
    """The distance's value and a way along c, None where c is zero.

    `at` takes ε‖c‖/‖θ‖ and returns the parameters, what the layers of `calls` still lack of them as a multiple of DA,
    ε, and the ε‖c‖/‖θ‖ it came to.
    """

    value: Tensor
    at: Callable[[float], tuple[list[Tensor], float, float, float]] | None


def _cotangent(base: _Base, shared: Gradients, distance: Distance, scratch: Scratch) -> _Direction:
    """Return the direction of any distance, whose cotangent is written."""
    found = tuple(g for g in base.found if g is not None)
    value, cotangent = distance(found, shared)
    size = _norm(cotangent)

    def at(step: float) -> tuple[list[Tensor], float, float, float]:
        epsilon = step * scratch.scale / size
        moved = [scratch.buffer(i, p) for i, p in enumerate(base.origin)]
        for p, c, buffer in zip(base.origin, cotangent, moved, strict=True):
            torch.add(p, c, alpha=epsilon, out=buffer)
        return moved, 0.0, epsilon, step

    return _Direction(value, at if size else None)


def _combination(base: _Base, shared: Gradients, distance: Span, scratch: Scratch, other: Tensor | None) -> _Direction:
    """Return the direction αg + βĝ, which is never written; lengths are kept to within a factor of three.

    From the second call on one victim on, its θ + κg serves again with ε = κ/α.
    """
    same = scratch.serves(base.origin, shared)
    if other is not None:
        scratch.square = other
    elif scratch.square is None:
        scratch.square = torch.stack([torch.dot(v, v) for g in shared for (v,) in _chunks(g)]).sum()
    pairs = [(a, g) for a, g in zip(base.found, shared, strict=True) if a is not None]
    parts = [(torch.dot(u, v), torch.dot(u, u)) for pair in pairs for u, v in _chunks(*pair)]
    parts += [call.products(shared[call.weight]) for call in base.calls]
    dot, own = torch.stack([t for part in parts for t in part]).view(-1, 2).sum(0)
    value, *both = distance.coefficients(dot, own, scratch.square)
    alpha, beta, whole = (float(t) for t in (*both, scratch.square))
    # Of two near gradients the difference is rounding.
    square = max(alpha**2 * whole + 2 * alpha * beta * float(dot) + beta**2 * float(own), 1e-7 * alpha**2 * whole)
    ratio, fits = beta / alpha, sum(p.numel() for p in base.origin) <= KEEP_UP_TO

    def at(step: float) -> tuple[list[Tensor], float, float, float]:
        wanted = step * scratch.scale / math.sqrt(square) * alpha
        if scratch.kappa is None or not 1 / 3 < scratch.kappa / wanted < 3:
            scratch.kappa, scratch.shifted = wanted, []
        kappa = scratch.kappa
        if not scratch.shifted and same and fits:
            scratch.shifted = [torch.add(p, g, alpha=kappa) for p, g in zip(base.origin, shared, strict=True)]
        moved = []
        for i, (p, a, g) in enumerate(zip(base.origin, base.found, shared, strict=True)):
            if a is None and scratch.shifted:
                moved.append(scratch.shifted[i])
                scratch.buffers.pop(i, None)
                continue
            moved.append(buffer := scratch.buffer(i, p))
            if a is None:
                torch.add(p, g, alpha=kappa, out=buffer)
            elif scratch.shifted:
                torch.add(scratch.shifted[i], a, alpha=kappa * ratio, out=buffer)
            else:
                for q, b, c, room in _chunks(p, a, g, buffer):
                    torch.add(c, b, alpha=ratio, out=room)
                    torch.add(q, room, alpha=kappa, out=room)
        return moved, kappa * ratio, kappa / alpha, step * kappa / wanted

    return _Direction(value, at if square else None)


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
    parameter and `other` its ‖g‖² if known. `scratch` is carried from call to call; without it most calls take a
    second step.

    The model's parameters are not touched; BatchNorm in train mode updates its statistics in every pass. Random draws
    are the same in all passes. Raises TapeMismatch where the passes take different ways through the model.
    """
    _, parameters = parameters_of(model)
    scratch = scratch or Scratch()
    x, state = x.detach().requires_grad_(True), _random_state(x.device)
    dense = scratch.dense or not isinstance(distance, Span)
    tape = Tape()
    try:
        base = _base(model, loss, x, y, parameters, tape, dense)
    except NoFactors:
        scratch.dense, tape = True, Tape()
        _draw_again(state, x.device)
        base = _base(model, loss, x, y, parameters, tape, dense=True)
    scratch.scale = scratch.scale or _norm(base.origin) or 1.0
    with torch.no_grad():
        if isinstance(distance, Span):
            direction = _combination(base, shared, distance, scratch, other)
        else:
            direction = _cotangent(base, shared, distance, scratch)
    value, picture = direction.value.detach(), base.picture
    if picture is None or direction.at is None:
        return value, torch.zeros_like(x)
    step = scratch.step or FIRST.get(x.dtype, FIRST[torch.float32])
    aim, whole = CHANGES.get(x.dtype, CHANGES[torch.float32]), float(picture.norm())
    for _ in range(TRIES):
        with torch.no_grad():
            moved, along, epsilon, step = direction.at(step)
        there = x.detach().requires_grad_(True)
        passes = _same_draws(state, x.device), _with_parameters(model, parameters, moved)
        layers: AbstractContextManager[Any] = Replayer(base.calls, moved, along) if base.calls else nullcontext()
        with passes[0], passes[1], layers, replaying(tape):
            outcome = loss(model(there), y)
        gap = torch.autograd.grad(outcome, there)[0].sub_(picture)
        off = float(gap.norm()) / (whole * aim) if whole else 1.0
        again = min(max(1 / max(off, 1e-3), 1e-3), LONGEST / step) if math.isfinite(off) else 1e-3
        step *= again
        if 1 / SLACK <= off <= SLACK or again == 1:
            break
    scratch.step = step
    return value, gap.div_(epsilon)
