"""Inverting gradients at its published settings, in plain torch autograd: what `benchmarks.quality` compares with.

The settings are those of the script in the authors' repository that reproduces the paper's tables (Geiping et al.
2020, arXiv 2003.14053): signed Adam of step 0.1 on normalised pixels, boxed, total variation 1e-4, normal noise to
start from, 4800 iterations, the step divided by ten at 3/8, 5/8 and 7/8 of them, one restart, one victim at a time.
Written here from that description. Two things favour it: only the picture is differentiated for, where the authors'
code also pays for second-order weight gradients, and the best picture by objective is scored beside the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.protocol.gradients import Gradients, in_mode, parameters_of
from leakaudit.protocol.target import LossFunction, PixelModel

ITERATIONS, STEP_SIZE, TV = 4800, 0.1, 1e-4


@dataclass(frozen=True)
class Moment:
    """One victim after `iteration` steps and `seconds` of its own CPU time: pictures (C, H, W) in [0, 1]."""

    iteration: int
    seconds: float
    last: Tensor
    best: Tensor  # of least objective so far


def step_size(iteration: int, iterations: int) -> float:
    """Return the step at an iteration counted from 0: a tenth after 3/8, 5/8 and 7/8 of them each."""
    return STEP_SIZE * 0.1 ** sum(iteration >= iterations * eighths // 8 for eighths in (3, 5, 7))


def total_variation(x: Tensor) -> Tensor:
    """Return mean|∂x| + mean|∂y| of pictures (B, C, H, W)."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def cosine_distance(found: Sequence[Tensor], shared: Gradients) -> Tensor:
    """Return 1 − cos of two gradients, over all parameters."""
    product = torch.stack([(a * b).sum() for a, b in zip(found, shared, strict=True)]).sum()
    norms = [torch.stack([a.square().sum() for a in side]).sum().sqrt() for side in (found, shared)]
    return 1 - product / norms[0] / norms[1]


def invert(  # noqa: PLR0913 - all that the published attack depends on
    model: PixelModel,
    loss: LossFunction,
    shared: Gradients,
    label: Tensor,
    shape: tuple[int, int, int],
    generator: torch.Generator,
    *,
    iterations: int,
    checkpoints: Sequence[int],
    report: Callable[[int], None] = lambda iteration: None,
) -> list[Moment]:
    """Invert the update of one record in eval mode: `shared` one tensor per parameter, `label` (1,).

    Returns a moment for each of `checkpoints` up to `iterations`. Keeping the pictures is not timed.
    """
    mean, std = model.mean, model.std
    low, high = (0 - mean) / std, (1 - mean) / std
    _, parameters = parameters_of(model)
    x = torch.randn((1, *shape), generator=generator).requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=STEP_SIZE)
    best, least, moments, wanted = x.detach(), torch.inf, [], set(checkpoints)
    with in_mode(model, "eval"):
        spent, began = 0.0, time.process_time()
        for k in range(iterations):
            for group in optimiser.param_groups:
                group["lr"] = step_size(k, iterations)
            outcome = loss(model.network(x), label)
            found = torch.autograd.grad(outcome, parameters, create_graph=True)
            objective = cosine_distance(found, shared) + TV * total_variation(x)
            (slope,) = torch.autograd.grad(objective, [x])
            if (value := float(objective.detach())) < least:
                least, best = value, x.detach().clone()
            x.grad = slope.sign()
            optimiser.step()
            with torch.no_grad():
                x.copy_(torch.maximum(torch.minimum(x, high), low))
            if k + 1 in wanted:
                spent += time.process_time() - began
                pictures = ((p.detach()[0] * std[0] + mean[0]).clamp(0, 1) for p in (x, best))
                moments.append(Moment(k + 1, spent, *pictures))
                report(k + 1)
                began = time.process_time()
    return moments
