"""Stand-ins for private pictures: a public one, and what an attack as good as the measured one would make of it."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from leakaudit.errors import UserError
from leakaudit.score.metrics import psnr
from leakaudit.work.seeding import generator_for

UNCHANGED = 50.0  # dB: from here on no eye sees a difference, and 8 bits hardly hold one
SENTENCE = (
    "No private picture is shown: each original is replaced by the same public one, the cat Chelsea (photograph by "
    "Stéfan van der Walt, CC0, shipped with scikit-image) cropped, resized and raised in contrast, and each "
    "reconstruction by that picture blurred and made noisy until its PSNR is the one the attack reached on the record "
    f"(unchanged from {UNCHANGED:g} dB on; as far off as a picture can be where the attack was further); released "
    "records are withheld."
)


@lru_cache(maxsize=8)
def picture(shape: tuple[int, int, int]) -> Tensor:
    """Return the public picture for records of `shape` (C, H, W): (3, H, W), or (1, H, W) where C is not 3.

    Its middle part of that aspect ratio, resized, its values from 0 to 1 in steps of 1/255: as it is stored. Raises
    UserError where scikit-image was installed without its pictures.
    """
    from skimage.data import chelsea

    try:
        whole = torch.from_numpy(chelsea()).float().permute(2, 0, 1) / 255
    except Exception as error:  # a distribution may leave the pictures out, and then a download is tried
        raise UserError(
            "redacted pictures need the public one that scikit-image ships (chelsea.png), and it cannot be read: "
            "reinstall scikit-image, or give --images none."
        ) from error
    channels, height, width = shape
    scale = min(whole.shape[1] / height, whole.shape[2] / width)
    h, w = (max(1, min(limit, round(side * scale))) for limit, side in zip(whole.shape[1:], shape[1:], strict=True))
    top, left = (whole.shape[1] - h) // 2, (whole.shape[2] - w) // 2
    part = whole[None, :, top : top + h, left : left + w]
    resized = functional.interpolate(part, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
    shown = resized if channels == 3 else resized.mean(0, keepdim=True)
    # A flat picture would drown in noise at a PSNR that leaves others plain to see: use all of the range.
    low, high = shown.min(), shown.max()
    return _stored((shown - low) / (high - low).clamp_min(1 / 255))


def degraded(shape: tuple[int, int, int], reached: float, victim: int, record: int) -> Tensor:
    """Return the public picture for records of `shape` with PSNR `reached` (dB) to itself, within 0.2 dB.

    First it is blurred, then noise takes over, then its negative: a picture can be no further from itself than about
    4 dB, and what asks for less gets that. The noise depends on the position of the record, `record` of `victim`,
    alone: neither on pictures nor on a seed.
    """
    public = picture(shape)
    reached = round(reached, 1)  # scores that a reader takes for equal give equal pictures
    if reached >= UNCHANGED:
        return public
    generator = generator_for(0, "stand-in", victim, record)
    grain = torch.randn(public.shape, generator=generator)
    snow = torch.rand(public.shape, generator=generator).round()
    few = functional.adaptive_avg_pool2d(public[None], (min(public.shape[1], 6), min(public.shape[2], 6)))
    blurred = functional.interpolate(few, public.shape[1:], mode="bilinear", align_corners=False)[0]
    stops = (public, blurred + 0.05 * grain, snow, 1 - public.round())

    def at(place: float) -> Tensor:
        i = min(int(place), len(stops) - 2)
        return _stored(torch.lerp(stops[i], stops[i + 1], place - i))

    near, far = 0.0, len(stops) - 1.0
    if float(psnr(public[None], at(far)[None])) > reached:
        return at(far)
    best, gap = public, float("inf")
    for _ in range(40):
        middle = (near + far) / 2
        shown = at(middle)
        found = float(psnr(public[None], shown[None]))
        if abs(found - reached) < gap:
            best, gap = shown, abs(found - reached)
        if gap < 0.01:
            break
        near, far = (middle, far) if found > reached else (near, middle)
    return best


def _stored(shown: Tensor) -> Tensor:
    return (shown.clamp(0, 1) * 255).round() / 255
