"""Whether a gradient's own slope is right: attacks that match gradients follow it, and none of them would notice."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from leakaudit.engine.stacked import twice_differentiable
from leakaudit.errors import message_of
from leakaudit.network.plain import precisions
from leakaudit.protocol.gradients import in_mode, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel, Target
from leakaudit.result.numbers import percent
from leakaudit.result.schema import Finding
from leakaudit.work.seeding import reseed, seeded

MOST = 30_000_000  # parameters up to which a copy in double precision is made
APART = 0.1  # share of itself by which a slope may differ from finite differences
STEP = 1e-6  # of the pictures, in which a network of pieces stays on one piece


def second(target: Target) -> list[Finding]:
    """Compare the slope of an inner product with the gradient, as a double backward gives it, with finite differences.

    In double precision and eval mode, where batches of two are nothing special, on random pictures. Says so where a
    user's operation passes no second derivative on, or one that is not its own. Empty where the model does not run in
    double precision.
    """
    if sum(p.numel() for p in target.model.parameters()) > MOST:
        return []
    model = copy.deepcopy(target.model).double()
    drawn = torch.Generator().manual_seed(0)
    x, v = (torch.rand((2, *target.input_shape), generator=drawn, dtype=torch.double) for _ in range(2))
    x, v, y = x.to(target.device), (v - 0.5).to(target.device), target.auxiliary.labels[[0, -1]].to(target.device)
    try:
        with seeded(0, "second"), in_mode(model, "eval"), twice_differentiable(), precisions() as seen:
            slope, cotangent = _slope(model, target.loss, x, y)
            if slope is not None and not bool(slope.any()):
                return [_cut()] if any(bool(g.any()) for g in _gradients(model, target.loss, x, y)) else []
            values = []
            for side in (1, -1):
                values.append(_product(model, target.loss, x + side * STEP * v, y, cotangent))
    except Exception as error:  # user code may raise anything; what fails, attacks say
        if "once_differentiable" not in message_of(error):
            return []
        return [_finding("an operation's backward is marked as once differentiable", None)]
    if slope is None or torch.float32 in seen:  # what is rounded on the way has no differences so fine
        return []
    found, exact = float((slope * v).sum()), (values[0] - values[1]) / (2 * STEP)
    apart = abs(found - exact) / max(abs(found), abs(exact), 1e-12)
    if apart <= APART or max(abs(found), abs(exact)) < 1e-9:
        return []
    return [_finding(f"it is {percent(min(1.0, round(apart, 2)))} off from finite differences", apart)]


def _cut() -> Finding:
    message = (
        "no slope of the model's gradient reaches the pictures, as where forward rounds them or uses torch.no_grad, "
        "detach or numpy: attacks that match gradients fail there, whatever leaks."
    )
    return Finding("no-slope", "warning", message, {})


def _finding(why: str, apart: float | None) -> Finding:
    message = (
        f"the slope of the model's gradient is wrong ({why}), as where a torch.autograd.Function of one's own has a "
        "backward that cannot be differentiated, or rounds: attacks that match gradients follow it, and are weaker."
    )
    return Finding("second-derivative", "warning", message, {} if apart is None else {"apart": apart})


def _gradients(model: PixelModel, loss: LossFunction, x: Tensor, y: Tensor) -> list[Tensor]:
    reseed(0)
    found = torch.autograd.grad(loss(model(x), y), parameters_of(model)[1], create_graph=True, allow_unused=True)
    return [g for g in found if g is not None]


def _slope(model: PixelModel, loss: LossFunction, x: Tensor, y: Tensor) -> tuple[Tensor | None, list[Tensor]]:
    """Return the slope (N, C, H, W) in pictures of the product with a random cotangent, and this; None without one."""
    x = x.clone().requires_grad_()
    found = _gradients(model, loss, x, y)
    drawn = torch.Generator().manual_seed(1)
    cotangent = [torch.randn(g.shape, generator=drawn, dtype=g.dtype).to(g.device) for g in found]
    pairs = [(g, c) for g, c in zip(found, cotangent, strict=True) if g.requires_grad]
    if not pairs or any(g.dtype != torch.double for g in found):
        return None, cotangent
    # All of it, not the pictures' part alone: what cannot be differentiated twice says so only where it is asked.
    torch.autograd.backward([g for g, _ in pairs], [c for _, c in pairs])
    return torch.zeros_like(x) if x.grad is None else x.grad, cotangent


def _product(model: PixelModel, loss: LossFunction, x: Tensor, y: Tensor, cotangent: list[Tensor]) -> float:
    found = _gradients(model, loss, x.requires_grad_(), y)
    return float(sum((g.detach() * c).sum() for g, c in zip(found, cotangent, strict=True)))
