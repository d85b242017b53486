"""What an entry of the zoo is, the pictures all of them are made of, and a small network for those about data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

RECORDS = 60
CLASSES = 3


@dataclass(frozen=True, repr=False)
class Truth:
    """What is brought, in pixels: `pictures` (N, C, H, W) or (N, C, D, H, W) in [0, 1], and `labels` (N, *shape)."""

    pictures: Tensor
    labels: Tensor


@dataclass(frozen=True, repr=False)
class Brought:
    """What somebody brings: a model, data in whatever form, and `more` names as `model.py` may give them.

    `data` is an object, or the path that `--data` names. Records that are read must be among those of `truth`.
    """

    model: Any
    data: Any
    truth: Truth | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model, task or kind of data, and what must become of it.

    `expect` is "works" or "refused". `says` are words (lower case) that the refusal must contain; of one that works,
    words that stand in its notes and findings; `untrue` ones must not. `shape` is the picture's that must be read (a
    volume's with its depth), `kind` the task's, `width` how many classes it must have. `leaks`: without a defense an
    attack must name records.
    """

    name: str
    about: str
    build: Callable[[Path], Brought]
    package: str = ""  # names; to be skipped where one is not installed
    expect: Literal["works", "refused"] = "works"
    says: tuple[str, ...] = ()
    untrue: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    kind: str = "classes"
    width: int | None = CLASSES
    leaks: bool = True
    scanned: bool = True  # False: only looked at, since a scan takes minutes
    defenses: tuple[str, ...] = ("none",)
    tolerance: float = 0.6 / 255  # how far a pixel may be from the one brought


def pictures(channels: int = 3, side: int = 32, *, depth: int = 0, count: int = RECORDS, levels: int = 255) -> Tensor:
    """Return smooth pictures (N, C, H, W), volumes (N, C, D, H, W) with `depth`, from 0 to 1 each, on so many levels.

    The class k of record i is i mod 3: its pictures are lighter on one side, so that it can be learned.
    """
    generator = torch.Generator().manual_seed(7)
    size = (depth, side, side) if depth else (side, side)
    coarse = torch.rand(count, channels, *(max(2, n // 6) for n in size), generator=generator)
    found = F.interpolate(coarse, size, mode="trilinear" if depth else "bilinear", align_corners=False)
    found = found + 0.1 * torch.rand(found.shape, generator=generator)
    ramp = torch.linspace(-0.5, 0.5, side)
    for k, slope in enumerate((ramp, -ramp, ramp.view(-1, 1))):
        found[k::CLASSES] += slope
    flat = found.flatten(1)
    low, high = flat.min(1, keepdim=True).values, flat.max(1, keepdim=True).values
    return (((flat - low) / (high - low)).view_as(found) * levels).round() / levels


def labels(count: int = RECORDS) -> Tensor:
    """Return the classes (N,) of `pictures`."""
    return torch.arange(count) % CLASSES


def truth(channels: int = 3, side: int = 32, **size: int) -> Truth:
    """Return pictures with their classes."""
    return Truth(pictures(channels, side, **size), labels(size.get("count", RECORDS)))


def arrays(of: Truth) -> np.ndarray[Any, Any]:
    """Return the pictures as uint8, channels last; of one channel without it."""
    found = (of.pictures * 255).round().byte().movedim(1, -1).numpy()
    return found[..., 0] if found.shape[-1] == 1 else found


def small(channels: int = 3, out: int = CLASSES, depth: int = 0) -> nn.Module:
    """Return two strided convolutions and a dense layer, for pictures or volumes of any size."""
    conv, pool = (nn.Conv3d, nn.AdaptiveAvgPool3d(2)) if depth else (nn.Conv2d, nn.AdaptiveAvgPool2d(4))
    cells = 8 * (8 if depth else 16)
    return nn.Sequential(
        *(conv(channels, 8, 5, stride=2, padding=2), nn.LeakyReLU(0.2), conv(8, 8, 3, stride=2, padding=1)),
        *(nn.LeakyReLU(0.2), pool, nn.Flatten(), nn.Linear(cells, out)),
    )


def around(model: Any, channels: int = 3, side: int = 32, **more: Any) -> Brought:
    """Return a model with a TensorDataset of pictures as they are."""
    found = truth(channels, side, depth=more.pop("depth", 0))
    return Brought(model, TensorDataset(found.pictures, found.labels), found, more)
