"""What one record was taught, where that is more than a class: solved from the head's own slope and input."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from leakaudit.engine import head as engine_head
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import replaces_records
from leakaudit.protocol.target import PixelModel
from leakaudit.protocol.task import Task

MOST = 512  # numbers of a target that are solved for
AFFINE = 1e-3  # relative: how far the slope of a mixture of targets may be from the mixture of their slopes
FULL = 1e-6  # of the largest singular value, below which a number of a target leaves no trace in the slope
OFF = 1e-3  # of the norm of a head's gradient, by which it may be off rank one as the gradient of one record
LOST = 0.5  # of the same: beyond it what is solved is noise
ALIKE = 0.02  # by how much the scales may differ that make a target's numbers 0 or 1


@dataclass(frozen=True)
class Solved:
    """Targets (V, 1, *shape), of one logit labels (V, 1) or probabilities (V, 1, 2), and which are `told` (V,)."""

    targets: Tensor
    told: Tensor


def input_of(rows: Tensor, slope: Tensor) -> Tensor:
    """Return a head's inputs (V, D) from its gradients (V, O, D) and (V, O): least squares over ∂W_k = ∂b_k·h."""
    rows, slope = rows.double(), slope.double()
    return torch.einsum("vk,vkd->vd", slope, rows) / slope.square().sum(1, keepdim=True).clamp_min(1e-300)


def solved(model: PixelModel, update: SharedUpdate, at: engine_head.Head, rows: Tensor, slope: Tensor) -> Solved | None:
    """Return what each victim's one record was taught, from a head's gradients (V, O, D) and (V, O).

    The head's input is ∂W/∂b, so its output z is known, and with it the slope that any target t gives there. Of cross-
    entropy, binary or not, and of squared errors the slope is affine in t, A·t + c, so ∂b = A·t + c is solved for t.
    None where the slope is not affine, or leaves a number of the target open. The caller sets the model's mode.
    """
    task = update.task
    inputs, wanted = input_of(rows, slope), slope.double()
    form = _affine(model, update, at, at.given(inputs).nan_to_num(0, 0, 0))
    if form is None:
        return None
    steps, constant = form
    right = wanted - constant
    idle: Tensor | None = constant  # and then the target of no slope
    if task.kind == "soft labels":  # the slope of cross-entropy is p Σt − t, which leaves open how much p is in t
        steps = torch.cat([steps, steps.new_ones(len(steps), 1, steps.shape[2])], 1)
        right, idle = torch.cat([right, right.new_ones(len(right), 1)], 1), None
    spread = torch.linalg.svdvals(steps)
    if steps.shape[1] < steps.shape[2] or not bool((spread[:, -1] > FULL * spread[:, 0]).all()):
        return None
    inverse = torch.linalg.pinv(steps)
    found = torch.einsum("vdo,vo->vd", inverse, right)
    idle = None if idle is None else torch.einsum("vdo,vo->vd", inverse, -idle)
    rest = (rows.double() - wanted[..., None] * inputs[:, None]).flatten(1).norm(dim=1)
    miss = rest / rows.double().flatten(1).norm(dim=1).clamp_min(1e-300)
    exact = (miss < OFF) & torch.full_like(miss, update.is_gradient, dtype=torch.bool)
    told = ((miss < LOST) | _by_side(task, idle)) & found.isfinite().all(1) & wanted.any(1)
    return Solved(_shaped(task, _settled(update, found.nan_to_num(0, 0, 0), idle, exact)), told)


def _by_side(task: Task, idle: Tensor | None) -> bool:
    """Whether a target's numbers are told by their side of the chances alone: that hangs on signs, not on lengths."""
    return task.binary and task.kind != "soft labels" and idle is not None


def _affine(
    model: PixelModel, update: SharedUpdate, at: engine_head.Head, outputs: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Return A (V, O, D) and c (V, O) of slopes A·t + c, in double precision; None where they are not affine in t."""
    task, count, size = update.task, len(outputs), prod(update.task.shape)
    one_logit = not task.own_targets
    size = 1 if one_logit else size
    if size > MOST:
        return None
    generator = torch.Generator().manual_seed(0)
    mixed = torch.rand((count, size), generator=generator).to(outputs)
    points = [torch.zeros_like(mixed), *(torch.eye(size).to(mixed)[i].expand_as(mixed) for i in range(size)), mixed]
    shaped = [torch.cat([1 - p, p], 1) if one_logit else p.reshape(count, *task.shape) for p in points]
    found = [s.double() for s in engine_head.slopes(model, update.loss, at, outputs, update.input_shape, shaped)]
    constant, tried = found[0], found[-1]
    steps = torch.stack([each - constant for each in found[1:-1]], 2)
    expected = torch.einsum("vod,vd->vo", steps, mixed.double()) + constant
    size_of = tried.abs().amax(1).clamp_min(1e-30)
    fits = ((tried - expected).abs().amax(1) <= AFFINE * size_of).all()
    return (steps, constant) if bool(fits) else None


def _settled(update: SharedUpdate, found: Tensor, idle: Tensor | None, exact: Tensor) -> Tensor:
    """Return the targets (V, D) that are meant by solved ones: 0 and 1 where targets are, in the range that they have.

    An update that was clipped is shorter by an unknown factor, and then a solved number lies between the true one and
    that of no slope, `idle`: of 0 and 1 the true one is on its other side. Where a defense may mix records, what is
    exact is left as it is.
    """
    task, mixing = update.task, update.defense is not None and replaces_records(update.defense)
    if task.kind == "soft labels":
        shares = found.clamp_min(0)
        return shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
    assert task.table is not None
    table = task.table.reshape(len(task.table), -1).to(found)
    if _by_side(task, idle) and idle is not None:
        silent = (found - idle).abs() <= torch.finfo(torch.float32).eps  # pruned, or the model is as sure as can be
        whole = torch.where(silent, idle > 0.5, found > idle).to(found)
        scales = ((found - idle) / (whole - idle)).nan_to_num(1, 1, 1)
        alike = (scales.amax(1) - scales.amin(1)).abs() <= ALIKE * scales.abs().amax(1)
        kept = exact & ((~alike & (found.shape[1] > 1)) | mixing)
        return torch.where(kept[:, None], found.clamp(0, 1), whole)
    low, high = table.amin(0), table.amax(0)
    room = (high - low) / 2
    return torch.where(exact[:, None], found, torch.minimum(torch.maximum(found, low - room), high + room))


def _shaped(task: Task, found: Tensor) -> Tensor:
    if task.own_targets:
        return found.float().reshape(len(found), 1, *task.shape)
    if bool(((found == 0) | (found == 1)).all()):
        return found.long()
    return torch.stack([1 - found, found], 2).float()
