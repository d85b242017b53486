"""Pictures in a terminal: two pixels in a cell, the upper as the colour of `▀` and the lower as its background."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from torch import Tensor
from torch.nn import functional

LARGEST, SMALLEST = 32, 12  # pixels of the longer side: larger pictures are averaged down, smaller ones enlarged
GAP = 2  # columns between pictures


def sized(image: Tensor) -> Tensor:
    """Return a picture (C, H, W) in [0, 1] as bytes (H′, W′, 3), its longer side between 12 and 32 pixels.

    One channel is grey, three are RGB; of any other number the mean is shown.
    """
    shown = image.detach().float().cpu()
    if shown.shape[0] not in (1, 3):
        shown = shown.mean(0, keepdim=True)
    height, width = shown.shape[1:]
    longer = max(height, width)
    if longer > LARGEST:
        low, narrow = (max(1, round(side * LARGEST / longer)) for side in (height, width))
        shown = functional.adaptive_avg_pool2d(shown[None], (low, narrow))[0]
    elif longer <= SMALLEST:
        times = LARGEST // 2 // longer
        shown = shown.repeat_interleave(times, 1).repeat_interleave(times, 2)
    pixels = (shown.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous()


def fitting(images: Tensor, columns: int) -> int:
    """Return how many of the pictures (N, C, H, W) fit beside each other."""
    if not len(images):
        return 0
    width = sized(images[0]).shape[1]
    return max(0, min(len(images), (columns + GAP) // (width + GAP)))


def rows(images: Sequence[Tensor]) -> list[list[Segment]]:
    """Return lines of terminal cells that show pictures (C, H, W) of one size beside each other."""
    drawn = [sized(image).tolist() for image in images]
    lines: list[list[Segment]] = []
    for y in range(0, len(drawn[0]) if drawn else 0, 2):
        line: list[Segment] = []
        for picture in drawn:
            if line:
                line.append(Segment(" " * GAP))
            lower = picture[y + 1] if y + 1 < len(picture) else [None] * len(picture[y])
            line += [Segment("▀", _style(above, below)) for above, below in zip(picture[y], lower, strict=True)]
        lines.append(line)
    return lines


def _style(above: list[int], below: list[int] | None) -> Style:
    return Style(
        color=Color.from_rgb(above[0], above[1], above[2]),
        bgcolor=None if below is None else Color.from_rgb(below[0], below[1], below[2]),
    )
