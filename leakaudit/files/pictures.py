"""Pictures from outside: few formats, decoded here and nowhere else, behind limits on bytes and pixels."""

from __future__ import annotations

import base64
import binascii
import io
import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from leakaudit.errors import UserError
from leakaudit.files.reading import PICTURE, Broken, bytes_of, reading

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # what else Pillow can open may start other programs
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
PIXELS = 2**24  # 4096 × 4096: no classifier takes more, and as numbers they are 200 MB already
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I", "F", *DEEP)
NARROWED = "leakaudit: 16 bits as 8"  # in a picture's `info`
SLICES = 2**27  # pixels of all pages of a file together, where they are a volume: 512 × 512 × 512
MEND = f"give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"


def picture_of(path: Path) -> Image:
    """Return the picture in a file, decoded; raises UserError naming the file."""
    return decoded(bytes_of(path, PICTURE), str(path))


def pages_of(path: Path) -> list[Image]:
    """Return all pictures of a file of several pages, decoded: the slices of a volume; UserError names the file."""
    data, source = bytes_of(path, PICTURE), str(path)
    with reading(source, "pictures", MEND), _opened(data, source) as picture:
        count = int(getattr(picture, "n_frames", 1))
        found = []
        for page in range(count):
            picture.seek(page)
            if picture.width * picture.height * count > SLICES:
                raise UserError(
                    f"{source} has {count} pages of {_size(picture)} pixels, more than {SLICES:,} together."
                )
            found.append(_loaded(picture, source).copy())
        return found
    raise AssertionError("reading lets nothing pass")


def decoded(data: bytes, source: str) -> Image:
    """Return the one picture in `data`, decoded: of 8 or 16 bits a channel, or one of 32; UserError names `source`."""
    with reading(source, "a picture", MEND), _opened(data, source) as picture:
        if picture.width * picture.height > PIXELS:
            raise UserError(
                f"{source} has {_size(picture)} pixels, more than {PIXELS:,}: resize it to what the model takes."
            )
        if picture.format in ("PNG", "WEBP", "TIFF") and getattr(picture, "is_animated", False):
            raise UserError(f"{source} holds several pictures: give one to a file.")
        return _loaded(picture, source)
    raise AssertionError("reading lets nothing pass")


def _size(picture: Image) -> str:
    return f"{picture.width}×{picture.height}"


def _loaded(picture: Image, source: str) -> Image:
    narrowed = ";16" in str([tile[-1] for tile in getattr(picture, "tile", ())])
    picture.load()
    if narrowed and not picture.mode.startswith("I"):  # Pillow drops the lower 8 bits of a colour
        picture.info[NARROWED] = True
    if picture.mode == "I" and picture.format == "PNG":  # 16 bits, as older versions of Pillow give them
        return picture.convert("I;16")
    if picture.mode not in MODES:
        raise UserError(f"{source} has pixels of the kind {picture.mode}: give 8 or 16 bits a channel, grey or colour.")
    return picture


def _opened(data: bytes, source: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it logs of a broken picture, the sentence says
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise UserError(
                f"{source} is no TIFF that can be read here (it is broken, or has 16 bits of colour, or more than four "
                "channels): save it with 8 bits, or give arrays."
            ) from error
        if not data:
            raise Broken("it is empty") from error
        if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")) or data[8:12] == b"WEBP":
            raise Broken("it begins as one and is broken") from error
        raise Broken(f"it is none of {', '.join(FORMATS)}") from error


def embedded(text: str, source: str) -> Image:
    """Return the picture of a base64 PNG, decoded; raises UserError naming `source`."""
    if embedded_size(text) is None:
        raise UserError(f"{source} is no base64 PNG of at most {PIXELS:,} pixels.")
    return decoded(base64.b64decode(text), source)


def embedded_size(text: str | None) -> tuple[int, int] | None:
    """Return width and height of a base64 PNG, None for all else and for more than `PIXELS`: it may be any string."""
    try:
        head = base64.b64decode(text or "", validate=True)[:24]
    except (binascii.Error, ValueError):
        return None
    if not head.startswith(b"\x89PNG\r\n\x1a\n") or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return (width, height) if 0 < width < 65536 and 0 < height < 65536 and width * height <= PIXELS else None
