"""Gradient matching by a difference quotient: the picture's slope without a second backward through the gradients.

With ĝ(x) = ∇_θ ℓ(θ, x) and the distance's cotangent c, the slope is (∂ĝ/∂x)ᵀ c, and second derivatives are symmetric:
it equals d/dε ∇_x ℓ(θ + εc, x) at ε = 0. One pass at θ gives ĝ, c and ∇_x ℓ, a second one at θ + εc, which goes back to
the picture only, the quotient: five passes through the network instead of the seven of a double backward. Kinks are
frozen between the two (`leakaudit.kinks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from leakaudit.client import parameters_of
from leakaudit.defense import Gradients
from leakaudit.kinks import Tape, recording, replaying
from leakaudit.target import LossFunction, PixelModel

Distance = Callable[[Gradients, Gradients], tuple[Tensor, Gradients]]

# Length of the step εc over that of the parameters. Longer ones bend, shorter ones drown in rounding.
STEPS = {torch.float32: 3e-4, torch.float64: 1e-6}
# Relative error of the slope up to which the quotient counts as right.
TOLERANCES = {torch.float32: 2e-2, torch.float64: 1e-4}


def agrees(fast: Tensor, exact: Tensor) -> bool:
    """Return whether a slope is the exact one up to rounding and the quotient's bend: ‖fast − exact‖ ≤ tol·‖exact‖."""
    gap, length = float((fast - exact).norm()), float(exact.norm())
    return gap <= TOLERANCES.get(exact.dtype, TOLERANCES[torch.float32]) * length


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack(torch._foreach_norm(list(tensors))).norm())


def _random_state(device: torch.device) -> list[Tensor]:
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


@contextmanager
def _same_draws(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Draw in the enclosed run what was drawn from `state` on (dropout's masks), and go on as if it had not run."""
    now = _random_state(device)
    if all(torch.equal(a, b) for a, b in zip(state, now, strict=True)):
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield


def finite_difference(
    model: PixelModel,
    loss: LossFunction,
    x: Tensor,
    y: Tensor,
    shared: Gradients,
    distance: Distance,
    step: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return d(∇_θ ℓ(x, y), shared) and its gradient with respect to the pictures (B, C, H, W).

    `x` (B, C, H, W), `y` (B,) class indices or (B, classes) probabilities, `shared` one tensor (*parameter.shape) per
    parameter; `step` is ε‖c‖/‖θ‖. The model's parameters are not touched; BatchNorm in train mode updates its
    statistics in both passes. Random draws are the same in both.

    Raises TapeMismatch where the two passes take different ways through the model.
    """
    names, parameters = parameters_of(model)
    x = x.detach().requires_grad_(True)
    tape = Tape()
    before = _random_state(x.device)
    with recording(tape):
        outcome = loss(model(x), y)
    *found, picture = torch.autograd.grad(outcome, [*parameters, x], allow_unused=True)
    candidate = tuple(torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True))
    value, cotangent = distance(candidate, shared)
    value = value.detach()
    if picture is None:
        return value, torch.zeros_like(x)
    with torch.no_grad():
        origin = [p.detach() for p in parameters]
        length, scale = _norm(cotangent), _norm(origin)
        if length == 0:
            return value, torch.zeros_like(x)
        step = STEPS.get(x.dtype, STEPS[torch.float32]) if step is None else step
        epsilon = step * (scale or 1.0) / length
        moved = dict(zip(names, torch._foreach_add(origin, list(cotangent), alpha=epsilon), strict=True))
    there = x.detach().requires_grad_(True)
    with _same_draws(before, x.device), replaying(tape):
        outcome = loss(torch.func.functional_call(model, moved, (there,)), y)
    if not outcome.requires_grad:
        return value, torch.zeros_like(x)
    (other,) = torch.autograd.grad(outcome, there)
    return value, (other - picture).div_(epsilon)
