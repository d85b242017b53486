"""Refining sketches of pictures until references see in them what they see in real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses._joint_code import JointCode
from leakaudit.defenses._reference import Reference, seen_at
from leakaudit.work import resume
from leakaudit.work.progress import track

BATCH = 200
STEP = 0.03  # Adam's, in pixel units
RECOGNISED, STATISTICS, SEEN, NEAR, SMOOTH = 0.2, 1.0, 0.4, 1.0, 0.02  # weights of the terms


class Spread(torch.autograd.Function):
    """Mean and variance of each channel over the batch and every `step`-th row and column.

    Autograd's own takes twice as long as the convolutions beside it: of channels that lie last, and of a slice.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return (C,) each for maps (N, C, H, W)."""
        flat = maps[:, :, ::step, ::step].permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        mean = flat.mean(0)
        centred = flat - mean
        ctx.save_for_backward(centred)
        ctx.shape, ctx.step = maps.shape, step
        return mean, centred.square().mean(0)

    @staticmethod
    def backward(ctx: Any, on_mean: Tensor, on_variance: Tensor) -> tuple[Tensor, None]:
        """Return the slope of the maps."""
        (centred,) = ctx.saved_tensors
        count, channels, height, width = ctx.shape
        slope = torch.addcmul(on_mean / len(centred), centred, 2 / len(centred) * on_variance)
        rows, columns = -(-height // ctx.step), -(-width // ctx.step)
        slope = slope.view(count, rows, columns, channels)
        if ctx.step > 1:
            whole = slope.new_zeros(count, height, width, channels)
            whole[:, :: ctx.step, :: ctx.step] = slope
            slope = whole
        return slope.permute(0, 3, 1, 2), None


def gap(layer: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Return how far the batch's statistics are from those a BatchNorm layer learned: means and log variances.

    Of large maps every second row and column is looked at.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = Spread.apply(maps, 2 if maps.shape[2] > 16 else 1)
    means = (mean - layer.running_mean) / (layer.running_var + 1e-5).sqrt()
    spreads = (variance + 1e-5).log() - (layer.running_var + 1e-5).log()
    found: Tensor = means.square().mean() + spreads.square().mean()
    return found


def seen_by(reference: Reference, pictures: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return logits (N, K), the sum of `gap` over the BatchNorm layers, and the maps of `Reference.maps`."""
    gaps, h, stage = pictures.new_zeros(()), 4 * pictures - 2, -1
    found: list[Tensor] = []
    for layer in reference.body:
        if isinstance(layer, nn.BatchNorm2d):
            gaps = gaps + gap(layer, h)
            h = normalised(layer, h)
        else:
            h = layer(h)
        if isinstance(layer, nn.ReLU):
            stage += 1
            found += seen_at(stage, h)
    logits: Tensor = reference.head(h.flatten(1))
    return logits, gaps, tuple(found)


def normalised(layer: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Return what a BatchNorm layer in eval mode gives, as the affine map that it is: its slope is one product."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = layer.weight * (layer.running_var + layer.eps).rsqrt()
    shift = layer.bias - layer.running_mean * scale
    found: Tensor = torch.addcmul(shift.view(1, -1, 1, 1), maps, scale.view(1, -1, 1, 1))
    return found


def roughness(pictures: Tensor) -> Tensor:
    """Return the mean absolute difference between neighbouring pixels."""
    across, down = pictures.diff(dim=3).abs().mean(), pictures.diff(dim=2).abs().mean()
    return across + down


def misses(found: Sequence[Tensor], wanted: Sequence[Tensor], spreads: Sequence[float]) -> Tensor:
    """Return Σ_l ‖h_l − t_l‖²/σ_l², the mean over pictures: 1 for each map that is no nearer than its mean is."""
    each = [(h - t).square().sum(1).mean() / spread**2 for h, t, spread in zip(found, wanted, spreads, strict=True)]
    return torch.stack(each).sum()


def refined(
    code: JointCode, labels: Tensor, references: Sequence[Reference], *, steps: int, generator: torch.Generator
) -> Tensor:
    """Return pictures (N, C, H, W) in [0, 1] that references take for real ones of classes `labels` (N,).

    Each is begun at a sketch s that `code` draws together with the maps t_l that the references should see in it, and
    changed over x, batch by batch, the references r in turn::

        0.4 Σ_l ‖h_l(x) − t_l‖²/σ_l²  +  gap_r(x)  +  0.2 CE(r(x), y)  +  ‖x − s‖²/D  +  0.02 · roughness(x)

    The second and third term are model inversion with BatchNorm statistics (DeepInversion, Yin et al. 2020, arXiv
    1912.08795, eq. 3 to 5). The first is what makes tens of steps suffice in place of thousands, and every picture
    another: without it all pictures of a class tend to what a reference is surest of.

    Raises RuntimeError where the time budget ends it early.
    """
    order = torch.randperm(len(labels), generator=generator, device=generator.device).to(labels.device)
    parts = list(torch.split(order, BATCH))
    found = code.code.centre.new_empty(len(labels), *code.shape)
    done = 0
    for number in track("refining pictures", len(parts)):
        chosen = parts[number]
        done += 1
        kept = resume.load(f"refined pictures {number}", generator)
        if kept is not None:
            found[chosen] = kept["pictures"].to(found)
            continue
        found[chosen] = _refined(code, labels[chosen], references, steps, generator)
        resume.store(f"refined pictures {number}", {"pictures": found[chosen]}, generator)
    if done < len(parts):
        raise RuntimeError("the time budget ended before all pictures were refined")
    return found


def _refined(
    code: JointCode, labels: Tensor, references: Sequence[Reference], steps: int, generator: torch.Generator
) -> Tensor:
    """Return one batch of pictures."""
    sketches = code.draw(labels, generator)
    start = sketches.pictures
    x = start.clone(memory_format=torch.channels_last).requires_grad_(True)
    optimiser = torch.optim.Adam([x], lr=STEP)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = STEP * (1 - 0.9 * step / steps)
        turn = step % len(references)
        logits, gaps, maps = seen_by(references[turn], x)
        loss = SEEN * misses(maps, sketches.maps[turn], code.spread_of(turn)) + STATISTICS * gaps
        loss = loss + RECOGNISED * F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss = loss + NEAR * (x - start).square().mean() + SMOOTH * roughness(x)
        (slope,) = torch.autograd.grad(loss, x)
        x.grad = slope * len(labels)  # per picture, so that Adam's ε does not depend on the batch
        optimiser.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    return x.detach()
