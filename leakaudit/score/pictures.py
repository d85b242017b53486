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


def unfolded(pictures: Tensor, depth: int) -> Tensor:
    """Return volumes (…, C·D, H, W) of D = `depth` slices as (…, C, D, H, W), and pictures (D = 1) as they are."""
    return pictures if depth == 1 else torch.unflatten(pictures, -3, (-1, depth))


def plane(pictures: Tensor, depth: int = 1) -> Tensor:
    """Return what is shown of pictures (…, C, H, W): (…, 3, H, W) of three channels, else their mean (…, 1, H, W).

    What a channel is nobody knows of any other number. Of volumes (…, C·D, H, W) the middle slice is shown, D // 2.
    """
    shown = pictures if depth == 1 else unfolded(pictures, depth).select(-3, depth // 2)
    return shown if shown.shape[-3] == 3 else shown.mean(-3, keepdim=True)


def encode(image: Tensor | None, depth: int = 1) -> str | None:
    """Return what is shown (`plane`) of a picture (C, H, W) in [0, 1] as base64 PNG, None when there is none.

    One channel is grey, three are RGB. Equal pictures give equal strings.
    """
    if image is None:
        return None
    from PIL import Image

    pixels = (plane(image.detach().cpu().float(), depth).clamp(0, 1) * 255).round().to(torch.uint8)
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
    depth: int = 1,
) -> tuple[Picture, ...]:
    """Return the `size` most leaking records by PSNR, worst first; pictures (N, C, H, W) are in the records' order.

    Redacted, their pictures follow from the scores, the positions and the shape alone: no private pixel is looked at.
    """
    if guess is None:
        return ()
    shown = [(i, r) for i, r in enumerate(records) if r.psnr is not None]
    shown.sort(key=lambda pair: (-(pair[1].psnr or 0.0), pair[0]))
    _, channels, height, width = plane(originals[:1], depth).shape
    pictures: list[Picture] = []
    shown_depth = depth if images == "full" else 1  # a stand-in is a picture
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
                original=encode(original, shown_depth),
                shared=encode(replaced, shown_depth),
                reconstruction=encode(drawn, shown_depth),
                psnr=r.psnr,
                ssim=r.ssim,
                identified=r.identified,
            )
        )
    return tuple(pictures)
