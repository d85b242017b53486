"""Gradient matching by a difference quotient: the picture's slope without a second backward through the gradients.

With ĝ(x) = ∇_θ ℓ(θ, x) and the distance's cotangent c, the slope is (∂ĝ/∂x)ᵀ c, and second derivatives are symmetric:
it equals d/dε ∇_x ℓ(θ + εc, x) at ε = 0. One pass at θ gives ĝ, c and ∇_x ℓ, a second one at θ + εc, which goes back to
the picture only, the quotient: five passes through the network instead of the seven of a double backward. Kinks are
frozen between the two (`leakaudit.kinks`). It is one-sided: a central quotient would cost all seven.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leakaudit.client import parameters_of
from leakaudit.defense import Gradients
from leakaudit.kinks import Tape, recording, replaying
from leakaudit.target import LossFunction, PixelModel

Distance = Callable[[Gradients, Gradients], tuple[Tensor, Gradients]]
# (‖ĝ‖², ⟨ĝ, g⟩, ‖g‖²) -> (value, α, β) of a distance whose cotangent is αg + βĝ
Products = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

# Relative change of ∇_x ℓ that a step should make: longer steps bend, shorter ones drown in rounding. Either error is
# then below 1e-2 in float32 (docs/engine.md), whatever the network and the stage of the attack.
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

    `step` is ε‖c‖/‖θ‖, `scale` ‖θ‖. `buffers` are written in every call; fresh ones would cost page faults. As long as
    calls are on one `victim`, `square` holds its ‖g‖² and `shifted` θ + `kappa`·g.
    """

    step: float | None = None
    scale: float = 0.0
    buffers: list[Tensor] = field(default_factory=list)
    victim: list[tuple[Tensor, int]] = field(default_factory=list)
    square: Tensor | None = None
    kappa: float | None = None
    shifted: list[Tensor] = field(default_factory=list)

    def serves(self, origin: Gradients, shared: Gradients) -> bool:
        """Return whether the last call was on the same parameters and victim; if not, forget what hung on them."""
        # The tensors are held, so that no other can come to lie where they are.
        now = [(t, t._version) for t in (*origin, *shared)]
        if len(now) == len(self.victim) and all(
            a.data_ptr() == b.data_ptr() and a.stride() == b.stride() and v == w
            for (a, v), (b, w) in zip(now, self.victim, strict=True)
        ):
            return True
        self.victim, self.square, self.kappa, self.shifted = now, None, None, []
        return False


def agrees(fast: Tensor, exact: Tensor) -> bool:
    """Return whether a slope is the exact one up to rounding and the quotient's bend: ‖fast − exact‖ ≤ tol·‖exact‖."""
    gap, length = float((fast - exact).norm()), float(exact.norm())
    return gap <= TOLERANCES.get(exact.dtype, TOLERANCES[torch.float32]) * length


def cosine_products(own: Tensor, cross: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return 1 − cos(ĝ, g) and the coefficients of g and ĝ in its cotangent from ‖ĝ‖², ⟨ĝ, g⟩ and ‖g‖²."""
    norm, size = own.sqrt().clamp_min(1e-15), other.sqrt().clamp_min(1e-15)
    similarity = cross / (norm * size)
    return 1 - similarity, -1 / (norm * size), similarity / norm.square()


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).norm())


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


@contextmanager
def _same_draws(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw in the enclosed run what was drawn from `state` on (dropout's masks), and go on as if it had not run."""
    if all(torch.equal(a, b) for a, b in zip(state, _random_state(device), strict=True)):
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield


def _flat(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    for t in tensors:
        whole = t.numel() <= CHUNK or t.device.type != "cpu"
        yield from (t.reshape(-1),) if whole else torch.split(t.reshape(-1), CHUNK)


def _inner_products(own: Gradients, shared: Gradients, square: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return ‖own‖², ⟨own, shared⟩ and ‖shared‖², which is `square` if that is known."""
    found = [t for u, v in zip(_flat(own), _flat(shared), strict=True) for t in (torch.dot(u, u), torch.dot(u, v))]
    first, second = torch.stack(found).view(-1, 2).sum(0)
    return first, second, torch.stack([torch.dot(v, v) for v in _flat(shared)]).sum() if square is None else square


def _along_cotangent(
    origin: Gradients, found: Gradients, shared: Gradients, distance: Distance, scratch: Scratch, step: float
) -> tuple[Tensor, float, float]:
    """Write θ + εc to the buffers, ε‖c‖/‖θ‖ = `step`; return the distance's value, ε (zero where c is) and `step`."""
    value, cotangent = distance(found, shared)
    size = _norm(cotangent)
    epsilon = step * scratch.scale / size if size else 0.0
    for p, c, buffer in zip(origin, cotangent, scratch.buffers, strict=True):
        torch.add(p, c, alpha=epsilon, out=buffer)
    return value, epsilon, step


def _along_combination(
    origin: Gradients, found: Gradients, shared: Gradients, products: Products, scratch: Scratch, step: float
) -> tuple[Tensor, float, float]:
    """Do what `_along_cotangent` does with c = αg + βĝ never written; the `step` returned is within a factor of three.

    From the second call on one victim on, its θ + κg serves again, with ε = κ/α: a pass over memory less.
    """
    same = scratch.serves(origin, shared)
    own, cross, other = _inner_products(found, shared, scratch.square)
    value, *both = products(own, cross, other)
    scratch.square = other
    alpha, beta = (float(b) for b in both)
    square = alpha**2 * float(other) + 2 * alpha * beta * float(cross) + beta**2 * float(own)
    size = math.sqrt(max(square, 1e-7 * alpha**2 * float(other)))  # of two near gradients the rest is rounding
    if size == 0 or alpha == 0:
        return value, 0.0, step
    wanted = step * scratch.scale / size * alpha
    if scratch.kappa is None or not 1 / 3 < scratch.kappa / wanted < 3:
        scratch.kappa, scratch.shifted = wanted, []
    kappa, ratio = scratch.kappa, beta / alpha
    if not scratch.shifted and same and sum(p.numel() for p in origin) <= KEEP_UP_TO:
        scratch.shifted = [torch.add(p, g, alpha=kappa) for p, g in zip(origin, shared, strict=True)]
    if scratch.shifted:
        for p, a, buffer in zip(scratch.shifted, found, scratch.buffers, strict=True):
            torch.add(p, a, alpha=kappa * ratio, out=buffer)
    else:
        for p, a, g, buffer in zip(*(_flat(t) for t in (origin, found, shared, scratch.buffers)), strict=True):
            torch.add(g, a, alpha=ratio, out=buffer)
            torch.add(p, buffer, alpha=kappa, out=buffer)
    return value, kappa / alpha, step * kappa / wanted


def finite_difference(
    model: PixelModel,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    shared: Gradients,
    distance: Distance,
    products: Products | None = None,
    scratch: Scratch | None = None,
) -> tuple[Tensor, Tensor]:
    """Return d(∇_θ ℓ(x, y), shared) and its gradient with respect to the pictures (B, C, H, W).

    `x` (B, C, H, W), `y` (B,) class indices or (B, classes) probabilities, `shared` one tensor (*parameter.shape) per
    parameter. `products`, if given, stands for `distance` and spares writing its cotangent. `scratch` is carried from
    call to call; without it most calls take a second step.

    The model's parameters are not touched; BatchNorm in train mode updates its statistics in every pass. Random draws
    are the same in all passes. Raises TapeMismatch where the passes take different ways through the model.
    """
    names, parameters = parameters_of(model)
    origin = tuple(p.detach() for p in parameters)
    scratch = scratch or Scratch()
    scratch.scale = scratch.scale or _norm(origin) or 1.0
    if not scratch.buffers:
        scratch.buffers = [torch.empty_like(p, memory_format=torch.contiguous_format) for p in origin]
    x = x.detach().requires_grad_(True)
    tape, state = Tape(), _random_state(x.device)
    with recording(tape):
        outcome = loss(model(x), y)
    *gradients, picture = torch.autograd.grad(outcome, [*parameters, x], allow_unused=True)
    found = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
    step = scratch.step or FIRST.get(x.dtype, FIRST[torch.float32])
    with torch.no_grad():
        if products is None:
            value, epsilon, step = _along_cotangent(origin, found, shared, distance, scratch, step)
        else:
            value, epsilon, step = _along_combination(origin, found, shared, products, scratch, step)
    if picture is None or epsilon == 0:
        return value.detach(), torch.zeros_like(x)
    del outcome, gradients, found
    aim, whole = CHANGES.get(x.dtype, CHANGES[torch.float32]), float(picture.norm())
    for _ in range(TRIES):
        there = x.detach().requires_grad_(True)
        with _same_draws(state, x.device), replaying(tape):
            moved = dict(zip(names, scratch.buffers, strict=True))
            outcome = loss(torch.func.functional_call(model, moved, (there,)), y)
        gap = torch.autograd.grad(outcome, there)[0].sub_(picture)
        off = float(gap.norm()) / (whole * aim) if whole else 1.0
        again = min(max(1 / max(off, 1e-3), 1e-3), LONGEST / step) if math.isfinite(off) else 1e-3
        slope, step = gap.div_(epsilon), step * again
        if 1 / SLACK <= off <= SLACK or again == 1:
            break
        for p, q in zip(origin, scratch.buffers, strict=True):
            q.sub_(p).mul_(again).add_(p)
        epsilon *= again
    scratch.step = step
    return value.detach(), slope
