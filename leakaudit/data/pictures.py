"""One picture or volume as a dataset gives it, as float32 numbers with its channels first.

What is *raw* are pixels, whatever the model's constants: PIL pictures, and arrays of 8 or 16 bits. Nothing is clipped
and no scale is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leakaudit.data.refusal import other_than_picture, refused
from leakaudit.errors import UserError
from leakaudit.files.pictures import NARROWED
from leakaudit.files.reading import reading, short

PAIRS = "give (image, label) pairs, or dicts with an image and a label"
ALPHA = "the alpha channel was left out"
WHITE = 65_535  # of 16 bits
_USUAL = (1, 3)  # channels of pictures
_BANDS = 16  # more are no channels at the end of a tensor, where they stand first by custom


@dataclass(frozen=True)
class Expected:
    """What a model looks as if it took: volumes or pictures, of how many channels; None where that is not known.

    `series`: its first convolution has one dimension.
    """

    volumes: bool | None = None
    channels: int | None = None
    series: bool = False


ANY = Expected()


@dataclass(frozen=True)
class Seen:
    """A picture (C, H, W) or volume (C, D, H, W), float32: raw pixels, in [0, 1] if all is well, or a model's input.

    `deep`: it was of 16 bits. `told`: what was done to it in reading, as clauses.
    """

    picture: Tensor
    raw: bool
    deep: bool = False
    told: tuple[str, ...] = ()


def to_picture(image: Any, where: str, expected: Expected = ANY) -> Seen:
    """Read a PIL picture, or a tensor or array (H, W), (C, H, W), (H, W, C), of volumes with D before H.

    Raises UserError, which calls it by `where` ("record 5 of train_data").
    """
    if isinstance(image, Seen):  # a file of ours was read
        return image
    other = other_than_picture(image)
    if other is not None:
        raise refused(f"{where} is {other}")
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL picture, without importing PIL
        with reading(f"the image of {where}", "a picture", PAIRS):
            return _from_pil(image, where, expected)
    found = _numbers(image, where)
    if found.ndim == 2 and expected.series:
        raise refused(f"{where} has the shape {tuple(found.shape)}, and `model` a convolution of one dimension")
    deep = found.dtype == torch.uint16
    raw = deep or found.dtype == torch.uint8
    arranged = _arranged(found, isinstance(image, Tensor), where, expected)
    numbers = arranged.float() / (WHITE if deep else 255) if raw else arranged.float()
    return Seen(numbers.contiguous(), raw, deep)


def _numbers(image: Any, where: str) -> Tensor:
    """Return a plain tensor of what is given: of whole numbers of 8 or 16 bits as they are, of others as float32."""
    found: Tensor | None = None
    if isinstance(image, Tensor):
        with reading(f"the image of {where}", "numbers", PAIRS):
            dense = image.detach().cpu()
            dense = dense if dense.layout == torch.strided else dense.to_dense()
            found = (dense.dequantize() if dense.is_quantized else dense).as_subclass(Tensor)
    elif isinstance(image, np.ndarray) and image.dtype.kind in "buif":
        kept = image.dtype.kind == "u" and image.dtype.itemsize <= 2
        with np.errstate(over="ignore"):  # what is too large for 32 bits is refused as infinite
            found = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("=") if kept else np.float32))
    if isinstance(image, str):
        raise UserError(f"{where} has the name of a file as its image, {short(image)}: open it in the dataset.")
    if isinstance(image, bytes) or (isinstance(image, Mapping) and {"bytes", "path"} & set(image)):
        raise UserError(f"{where} has an image that is not decoded ({type(image).__name__}): decode it in the dataset.")
    if found is None:
        raise UserError(f"{where} has {_an(type(image).__name__)} as its image: {PAIRS}.")
    if found.is_complex():
        raise UserError(f"{where} has complex numbers as its image: {PAIRS}.")
    return found


def _an(name: str) -> str:
    return f"an {name}" if name[:1].lower() in "aeiou" else f"a {name}"


def _arranged(array: Tensor, tensor: bool, where: str, expected: Expected) -> Tensor:
    """Return (C, H, W), of a volume (C, D, H, W); raises UserError naming the shape where it can be told for none."""
    shape = tuple(array.shape)
    if not array.numel():
        raise UserError(f"{where} has an image of shape {shape}, so no pixel: leave it out.")
    if array.ndim == 2:
        return array[None]
    if array.ndim == 3 and expected.volumes:
        if expected.channels in (1, None) and not {shape[0], shape[2]} & {*_USUAL}:  # which are pictures' channels
            return array[None]
        raise UserError(
            f"{where} has an image of shape {shape}, but `model` takes volumes: give "
            f"({expected.channels or 'C'}, D, H, W)."
        )
    if array.ndim == 4 and expected.volumes is False and shape[1] in _USUAL and shape[0] not in (expected.channels, 1):
        raise UserError(
            f"{where} is {shape[0]} pictures of shape {shape[1:]}: leakaudit audits models that take one, or a volume "
            f"({shape[1]}, D, H, W), so give one, or a model that takes its slices in that order."
        )
    if array.ndim not in (3, 4):
        raise UserError(f"{where} has an image of shape {shape}: give pictures {_wanted(expected)}.")
    last = _last(shape, tensor, expected)
    if last is None:
        both = shape[0] in (expected.channels, *_USUAL)
        if not both and array.ndim == 3 and expected.volumes is None:
            return array[None]  # a volume: folded it is the same as a picture of as many channels
        why = "of which the channels may stand first or last" if both else "of which neither end is that of channels"
        slices = "" if both or array.ndim == 4 else ", or a slice if it is a volume"
        raise UserError(f"{where} has an image of shape {shape}, {why}: give {_wanted(expected)} as a tensor{slices}.")
    return array.movedim(-1, 0) if last else array


def _wanted(expected: Expected) -> str:
    return f"({expected.channels or 'C'}, {'D, ' if expected.volumes else ''}H, W)"


def _last(shape: tuple[int, ...], tensor: bool, expected: Expected) -> bool | None:
    """Return whether channels stand last, by what the model takes, then what is usual, then the shape; None: unclear.

    A tensor has them first where both ends fit.
    """
    first, last = shape[0], shape[-1]
    for fits in ((expected.channels,), _USUAL):
        if first in fits and last in fits:
            return False if tensor else None
        if first in fits or last in fits:
            return last in fits
    if last < min(shape[:-1]) and (not tensor or last <= _BANDS):
        return True
    return False if tensor or first < min(shape[1:]) else None


def _from_pil(image: Any, where: str, expected: Expected) -> Seen:
    mode = str(image.mode)
    if mode == "F":
        return Seen(torch.from_numpy(np.array(image, dtype=np.float32))[None], True)
    if mode == "I" or mode.startswith("I;16"):
        whole = np.array(image).astype(np.int64)
        if int(whole.min()) < 0 or int(whole.max()) > WHITE:
            raise UserError(
                f"{where} has whole numbers from {int(whole.min())} to {int(whole.max())} as pixels (mode {mode}), "
                "and no white is known of them: divide them by what is white, and give floats from 0 to 1."
            )
        return Seen(torch.from_numpy((whole / WHITE).astype(np.float32))[None], True, deep=True)
    into, told = _plain(image, mode, expected)
    if into != mode:
        # Of pictures with an alpha that is multiplied in already, the colours are found first.
        image = image.convert("RGBA").convert(into) if mode == "RGBa" else image.convert(into)
    deep = bool(image.info.get(NARROWED))
    if deep:
        told = (*told, "16 bits of colour were read as their upper 8")
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)
    return Seen((pixels.float() / 255).contiguous(), True, deep, told)


def _plain(image: Any, mode: str, expected: Expected) -> tuple[str, tuple[str, ...]]:
    """Return the mode of 8 bits that a picture is taken in, and what is left out or converted by that."""
    if mode in ("RGBA", "CMYK") and expected.channels == 4:
        return mode, ()
    if mode in ("LA", "La"):
        return "L", (ALPHA,)
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and "transparency" in image.info):
        return "RGB", (ALPHA,)
    if mode in ("1", "L"):
        return "L", ()
    return "RGB", () if mode in ("RGB", "RGBX", "P") else (f"{mode} colours were converted to RGB",)


def check_whites(deep: list[tuple[str, Tensor]]) -> None:
    """Raise UserError where pictures of 16 bits, taken together, hold what fewer bits hold: their white is not known.

    `deep` are such pictures with what calls each in a sentence.
    """
    tops = [round(float(picture.max()) * WHITE) for _, picture in deep]
    scale = scale_of(max(tops, default=0))
    if scale is None or scale == WHITE or max(tops, default=0) == 0:
        return
    bits = scale.bit_length()
    raise UserError(
        f"the pixels of the {len(deep):,} picture(s) of 16 bits that were read reach {max(tops):,} at most "
        f"({deep[tops.index(max(tops))][0]}), as values of {bits} bit{'s' if bits > 1 else ''} do, and white is 65,535 "
        f"in 16: divide them by {scale}, or by what else their white is, and give floats from 0 to 1, or save them "
        "with white at 65535."
    )


def scale_of(top: float) -> int | None:
    """Return the white that values up to `top` seem to have: that of 1, 8, 10, 12, 14 or 16 bits; None: of more."""
    return next((2**bits - 1 for bits in (1, 8, 10, 12, 14, 16) if top <= 2**bits - 1), None)
