"""Pictures as they go into a result: base64 PNG at native size, the most leaking first."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from torch import Tensor

from leakaudit.protocol.target import Records
from leakaudit.result.schema import Images, Picture, RecordScore
from leakaudit.score import standin


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


def gallery(
    records: Sequence[RecordScore],
    originals: Tensor,
    released: Records | None,
    guess: Tensor | None,
    images: Images,
    size: int,
) -> tuple[Picture, ...]:
    """Return the `size` most leaking records by PSNR, worst first; pictures (N, C, H, W) are in the records' order.

    Redacted, their pictures follow from the scores, the positions and the shape alone: no private pixel is looked at.
    """
    if guess is None:
        return ()
    shown = [(i, r) for i, r in enumerate(records) if r.psnr is not None]
    shown.sort(key=lambda pair: (-(pair[1].psnr or 0.0), pair[0]))
    channels, height, width = originals.shape[1:]
    pictures: list[Picture] = []
    for i, r in shown[:size]:
        original = replaced = drawn = None
        if images == "full":
            original, drawn = originals[i], guess[i]
            replaced = released.images[i] if released is not None else None
        elif images == "redacted":
            original = standin.picture((channels, height, width))
            drawn = standin.degraded((channels, height, width), r.psnr or 0.0, r.victim, r.record)
        pictures.append(
            Picture(
                victim=r.victim,
                record=r.record,
                label=r.label,
                original=encode(original),
                shared=encode(replaced),
                reconstruction=encode(drawn),
                psnr=r.psnr,
                ssim=r.ssim,
                identified=r.identified,
            )
        )
    return tuple(pictures)
