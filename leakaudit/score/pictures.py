"""Pictures as they go into a result: base64 PNG at native size."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor


def encode(image: Tensor | None) -> str | None:
    """Return a picture (C, H, W) in [0, 1] as base64 PNG, None when there is none.

    One channel is grey, three are RGB; of any other number the mean is shown. Equal pictures give equal strings.
    """
    if image is None:
        return None
    from PIL import Image

    shown = image.detach().cpu().float()
    if shown.shape[0] not in (1, 3):
        shown = shown.mean(0, keepdim=True)
    pixels = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=False, compress_level=9)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
