"""The picture transforms that `ats` searches: those of AutoAugment on batches, each with fixed magnitudes.

All take and give pictures (N, C, H, W) in [0, 1], of any number of channels. Slopes pass through them, and straight
through the steps of those that are piecewise constant, so that whoever owns a defense's code can optimise through it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

Transform = Callable[[Tensor], Tensor]
Policy = tuple[str, ...]  # names in `library`, applied left to right


def affine(images: Tensor, *, angle: float = 0, shear: float = 0, across: float = 0, down: float = 0) -> Tensor:
    """Rotate by `angle` degrees, shear horizontally, and move by shares of the width and height; mid-grey comes in."""
    turn = torch.deg2rad(torch.tensor(float(angle)))
    ratio = images.shape[2] / images.shape[3]
    cos, sin = float(turn.cos()), float(turn.sin())
    matrix = [[cos, -sin * ratio - shear * ratio, -2 * across], [sin / ratio, cos, -2 * down]]
    theta = torch.tensor([matrix]).to(images).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return 0.5 + F.grid_sample(images - 0.5, grid, padding_mode="zeros", align_corners=False)


def upright(images: Tensor, *, shear: float) -> Tensor:
    """Shear vertically."""
    return affine(images.transpose(2, 3), shear=shear).transpose(2, 3)


def blend(images: Tensor, other: Tensor, factor: float) -> Tensor:
    """Return other + factor·(x − other), cut to [0, 1]: 1 leaves the picture as it is, 0 gives the other."""
    return torch.lerp(other.expand_as(images), images, factor).clamp(0, 1)


def brightness(images: Tensor, *, factor: float) -> Tensor:
    """Blend with black."""
    return blend(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, *, factor: float) -> Tensor:
    """Blend with the picture's mean."""
    return blend(images, images.mean((1, 2, 3), keepdim=True), factor)


def saturation(images: Tensor, *, factor: float) -> Tensor:
    """Blend with the mean over the channels; a grey picture stays as it is."""
    return blend(images, images.mean(1, keepdim=True), factor)


def sharpness(images: Tensor, *, factor: float) -> Tensor:
    """Blend with the picture smoothed by a 3×3 kernel whose centre weighs 5 of 13."""
    kernel = torch.ones(3, 3).to(images)
    kernel[1, 1] = 5
    flat = F.pad(images.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    return blend(images, F.conv2d(flat, kernel[None, None] / 13).view_as(images), factor)


def solarize(images: Tensor, *, threshold: float) -> Tensor:
    """Invert values at or above the threshold."""
    replaced: Tensor = torch.where(images >= threshold, 1 - images, images)
    return replaced


def posterize(images: Tensor, *, bits: int) -> Tensor:
    """Keep so many of 8 bits."""
    step = 2 ** (8 - bits)
    kept: Tensor = (images * 255 / step + 1e-4).floor() * step / 255
    return images + (kept - images).detach()


def invert(images: Tensor) -> Tensor:
    """1 − x."""
    return 1 - images


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to [0, 1]; a flat one stays as it is."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    gap = high - low
    return torch.where(gap > 1e-6, (images - low) / gap.clamp_min(1e-6), images)


def equalize(images: Tensor) -> Tensor:
    """Replace every value by the share of its channel that is at most as large, from 0; a flat one stays as it is."""
    flat = images.detach().flatten(2)
    order = flat.sort(2).values.contiguous()
    below = torch.searchsorted(order, flat.contiguous(), right=True).to(images)
    least = torch.searchsorted(order, order[..., :1].contiguous(), right=True).to(images)
    spread = flat.shape[2] - least
    level = torch.where(spread > 0, (below - least) / spread.clamp_min(1), flat).view_as(images)
    return images + (level - images).detach()


@cache
def library() -> dict[str, Transform]:
    """Return 50 transforms by name."""
    found: dict[str, Transform] = {"invert": invert, "autocontrast": autocontrast, "equalize": equalize}
    for angle in (-30, -20, -10, 10, 20, 30):
        found[f"rotate {angle}"] = partial(affine, angle=angle)
    for shear in (-0.3, -0.15, 0.15, 0.3):
        found[f"shear-x {shear}"] = partial(affine, shear=shear)
        found[f"shear-y {shear}"] = partial(upright, shear=shear)
    for share in (-0.45, -0.3, -0.15, 0.15, 0.3, 0.45):
        found[f"translate-x {share}"] = partial(affine, across=share)
        found[f"translate-y {share}"] = partial(affine, down=share)
    for factor in (0.3, 0.6, 1.5, 1.9):
        found[f"brightness {factor}"] = partial(brightness, factor=factor)
        found[f"contrast {factor}"] = partial(contrast, factor=factor)
    for factor in (0.1, 0.5, 1.9):
        found[f"saturation {factor}"] = partial(saturation, factor=factor)
        found[f"sharpness {factor}"] = partial(sharpness, factor=factor)
    for threshold in (0.2, 0.4, 0.6, 0.8):
        found[f"solarize {threshold}"] = partial(solarize, threshold=threshold)
    for bits in (2, 3, 4):
        found[f"posterize {bits}"] = partial(posterize, bits=bits)
    return found


def applied(policy: Policy, images: Tensor) -> Tensor:
    """Return images (N, C, H, W) after the policy's transforms."""
    for name in policy if len(images) else ():
        images = library()[name](images)
    return images.clamp(0, 1)
