"""Pictures in a terminal: two pixels to a character, an upper half block in two colours, scaled to fit.

What emerges stands beside the record that it is to become, so this is only for those who may see private pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.cells import set_cell_size
from rich.color import Color
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

BLOCK = "▀"
LEAST, MOST, TALL = 4, 9, 16  # lines of a picture: at least, at most on 24 lines, and at most on a tall terminal
LINES = 36  # from which a terminal is tall
GAP = 3  # columns between pairs


@dataclass(frozen=True)
class Pair:
    """A picture as it emerges, and the original; each (C, H, W) in [0, 1], or (C, D, H, W) of a volume."""

    name: str
    drawn: Tensor
    original: Tensor


@dataclass(frozen=True)
class Pane:
    """Pairs of pictures in a row, each with a line above it that names them."""

    pairs: Sequence[Pair]
    lines: int  # that there are for it, with the line above
    page: int = 0  # counted on for ever: where there is not room for all, they are shown page by page

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as many pairs as there is room for; nothing where a picture would be too small."""
        height, width = fitted(self.pairs[0].drawn.shape, self.lines - 1, options.max_width, console.height)
        if not height:
            return
        room = (options.max_width + GAP) // (2 * width + 1 + GAP)
        first = self.page % math.ceil(len(self.pairs) / room) * room
        shown = self.pairs[first : first + room]
        named = [f"{set_cell_size(p.name, width)} {set_cell_size('original', width)}" for p in shown]
        yield Segment((" " * GAP).join(named).rstrip(), Style(dim=True))
        yield Segment.line()
        both = [(scaled(p.drawn, 2 * height, width), scaled(p.original, 2 * height, width)) for p in shown]
        for line in range(height):
            for i, (drawn, original) in enumerate(both):
                yield Segment(" " * GAP if i else "")
                yield from _cells(drawn, line)
                yield Segment(" ")
                yield from _cells(original, line)
            yield Segment.line()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """Return that it takes what there is."""
        return Measurement(1, options.max_width)


def fitted(shape: Sequence[int], lines: int, columns: int, terminal: int) -> tuple[int, int]:
    """Return lines and columns of one picture (…, H, W) of a pair; (0, 0) where there is no room for it.

    A pixel is half a character high and one wide. Only very small pictures are drawn with more than they have.
    """
    *_, high, wide = shape
    height = min(lines, TALL if terminal >= LINES else MOST, max(LEAST, math.ceil(high / 2)))
    height = min(height, int((columns - 1) // 2 * high / (2 * wide)))
    width = max(1, round(2 * height * wide / high))
    return (height, width) if height >= LEAST else (0, 0)


def scaled(picture: Tensor, height: int, width: int) -> Pixels:
    """Return what is shown of a picture (C, H, W), or of a volume, as (height, width, 3) pixels.

    Each is the mean of what it stands for (`leakaudit.score.pictures.plane`). What is no number is black.
    """
    import numpy as np
    from PIL import Image

    from leakaudit.score.pictures import plane

    depth = picture.shape[1] if picture.dim() == 4 else 1
    seen = plane(picture.detach().cpu().float().nan_to_num().reshape(-1, *picture.shape[-2:]), depth)
    pixels = seen.clamp(0, 1).expand(3, -1, -1).numpy()
    whole = Image.fromarray((pixels * 255).round().astype(np.uint8).transpose(1, 2, 0))
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX))


def _cells(pixels: Pixels, line: int) -> list[Segment]:
    upper, lower = pixels[2 * line].tolist(), pixels[2 * line + 1].tolist()
    return [
        Segment(BLOCK, Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        for above, below in zip(upper, lower, strict=True)
    ]


def nearest(drawn: Tensor, originals: Tensor) -> tuple[Tensor, float]:
    """Return the record of a batch (B, C, H, W) that a picture is nearest to, and its PSNR in dB.

    Of volumes the batch is (B, C, D, H, W).
    """
    errors = ((originals.detach().cpu().float().flatten(1) - drawn.cpu().flatten()) ** 2).mean(1).tolist()
    least = min(range(len(errors)), key=errors.__getitem__)
    return originals[least], -10 * math.log10(max(errors[least], 1e-16))
