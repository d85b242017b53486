"""The augmentation of the training that measures accuracy: what users do to pictures before every step.

Its names are in `leakaudit.result.augmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 8  # a crop moves a picture by an eighth of its side at most: four pixels of 32


def augmented(images: Tensor, augment: Sequence[str], generator: torch.Generator) -> Tensor:
    """Return pictures (N, C, H, W), each moved (`crop`) and mirrored or not (`mirror`) by a draw of its own.

    `crop` pads by reflection and cuts a picture of the same size out, `mirror` flips left and right with chance ½: what
    He et al. (2016, arXiv 1512.03385, section 4.2) do on CIFAR-10. Labels stay as they are.
    """
    device, (count, _, height, width) = images.device, images.shape
    if "crop" in augment:
        down, across = height // PADDING, width // PADDING
        padded = F.pad(images, (across, across, down, down), mode="reflect")
        rows = torch.randint(0, 2 * down + 1, (count,), generator=generator, device=generator.device).to(device)
        columns = torch.randint(0, 2 * across + 1, (count,), generator=generator, device=generator.device).to(device)
        rows = rows[:, None] + torch.arange(height, device=device)
        columns = columns[:, None] + torch.arange(width, device=device)
        which = torch.arange(count, device=device)
        images = padded.movedim(1, 3)[which[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(3, 1)
    if "mirror" in augment:
        coins = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device).to(device)
        images = torch.where(coins < 0.5, images.flip(3), images)
    return images
