"""Pictures in a terminal: two pixels in a cell, the upper as the colour of `▀` and the lower as its background."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from rich.color import Color, ColorSystem
from rich.segment import ControlType, Segment
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


def rows(images: Sequence[Tensor], colours: str) -> list[Segment]:
    """Return lines of terminal cells that show pictures (C, H, W) of one size beside each other.

    `colours` is the terminal's: "truecolor" or "256". Each line is one control segment, which rich passes on as it is
    and drops where there is no terminal: a styled segment for every cell costs twenty times as much.
    """
    code = _true if colours == "truecolor" else _indexed
    drawn = [sized(image).tolist() for image in images]
    lines: list[Segment] = []
    for y in range(0, len(drawn[0]) if drawn else 0, 2):
        parts = []
        for picture in drawn:
            above, below = picture[y], picture[y + 1] if y + 1 < len(picture) else None
            if below is None:
                cells = [f"\x1b[38;{code(*rgb)}m▀" for rgb in above]
            else:
                cells = [f"\x1b[38;{code(*a)};48;{code(*b)}m▀" for a, b in zip(above, below, strict=True)]
            parts.append("".join(cells) + "\x1b[0m")
        lines.append(Segment((" " * GAP).join(parts), None, [(ControlType.BELL,)]))
    return lines


def _true(red: int, green: int, blue: int) -> str:
    return f"2;{red};{green};{blue}"


@lru_cache(maxsize=4096)
def _indexed(red: int, green: int, blue: int) -> str:
    return f"5;{Color.from_rgb(red, green, blue).downgrade(ColorSystem.EIGHT_BIT).number}"
