"""Pictures of nothing: overlapping shaded shapes, drawn from a law that no record enters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = (2, 4, 8, 16)  # that cover each other, in a quarter of the pictures each
LEAST, MOST = 0.06, 0.5  # radii over the side: shapes of radius r are as frequent as r⁻³ up to there


@dataclass(frozen=True)
class _Look:
    """What the shapes of one picture have in common: level, contrast, colourfulness (N, 1, 1, 1) and tint."""

    level: Tensor
    contrast: Tensor
    chroma: Tensor
    tint: Tensor


def procedural(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return `count` pictures (N, C, H, W) in [0, 1], on the generator's device: dead leaves with shading and texture.

    Ellipses and rectangles of radius density r⁻³ hide each other as leaves on the ground do, which gives edges and the
    scale invariance of natural pictures (Lee, Mumford and Huang 2001; Baradad et al. 2021, arXiv 2106.05963, learn from
    them); level, contrast, colourfulness, gradients and gratings are drawn per picture and shape.
    """
    parts = [(count + k) // len(SHAPES) for k in range(len(SHAPES))]
    drawn = [_leaves(n, shape, shapes, generator) for n, shapes in zip(parts, SHAPES, strict=True) if n]
    return torch.cat(drawn) if drawn else torch.zeros(0, *shape)


def _leaves(count: int, shape: tuple[int, int, int], shapes: int, generator: torch.Generator) -> Tensor:
    channels, height, width = shape
    side, device = max(height, width), generator.device

    def uniform(*trailing: int) -> Tensor:
        return torch.rand((count, *trailing), generator=generator, device=device)

    def normal(*trailing: int) -> Tensor:
        return torch.randn((count, *trailing), generator=generator, device=device)

    look = _Look(
        level=0.48 + 0.12 * normal(1, 1, 1),
        contrast=0.12 + 0.2 * uniform(1, 1, 1),
        chroma=0.12 * uniform(1, 1, 1) ** 1.5,
        tint=0.06 * normal(channels, 1, 1),
    )

    def surface(across: Tensor, down: Tensor) -> Tensor:
        """Return a colour with a slope of brightness and a grating, (N, C, H, W)."""
        colours = normal(channels, 1, 1)
        colour = look.level + look.tint + look.contrast * normal(1, 1, 1)
        colour = colour + look.chroma * (colours - colours.mean(1, keepdim=True))
        slope = (normal(1, 1) * across + normal(1, 1) * down) * (0.25 / side)
        frequency, phase = 0.2 + 1.5 * uniform(1, 1), 2 * math.pi * uniform(1, 1)
        angle, strength = math.pi * uniform(1, 1), 0.12 * uniform(1, 1) ** 2
        grating = strength * torch.sin(frequency * (across * angle.cos() + down * angle.sin()) + phase)
        return colour + (slope + grating)[:, None]

    rows = torch.arange(height, device=device)[:, None] + 0.5
    columns = torch.arange(width, device=device)[None] + 0.5
    pictures = surface((columns - width / 2).expand(height, width), (rows - height / 2).expand(height, width))
    least, most = LEAST * side, MOST * side
    for _ in range(shapes):
        radius = (least**-2 + (most**-2 - least**-2) * uniform(1, 1)) ** -0.5
        across = columns - (1.2 * uniform(1, 1) - 0.1) * width
        down = rows - (1.2 * uniform(1, 1) - 0.1) * height
        angle, stretch = math.pi * uniform(1, 1), torch.exp(0.5 * normal(1, 1))
        along = (across * angle.cos() + down * angle.sin()) * stretch
        beside = (down * angle.cos() - across * angle.sin()) / stretch
        ellipse = uniform(1, 1) < 0.6
        distance = torch.where(ellipse, torch.hypot(along, beside), torch.maximum(along.abs(), beside.abs()))
        softness = 0.5 + 2 * uniform(1, 1) ** 2
        cover = (((radius - distance) / softness + 0.5).clamp(0, 1) * (uniform(1, 1) < 0.8))[:, None]
        pictures = pictures * (1 - cover) + cover * surface(across, down)
    return pictures.clamp(0, 1)
