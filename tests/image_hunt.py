"""Finding every picture in whatever a command wrote, and how much each is like given ones. For the redaction test."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import urllib.parse
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
RASTER = MAGIC[:3]  # what is looked for within other files: the others' marks are too short to stand for anything
HALF = "▀"  # two pixels of a terminal
SHORTEST = 64  # numbers in a row that could be a picture: fewer are like one by chance
Array = np.ndarray[Any, Any]


def below(folder: Path) -> list[Path]:
    """Every file of a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pictures(data: bytes, depth: int = 0) -> Iterator[Array]:
    """Yield every raster picture (H, W, C) in [0, 1] within a file: itself, embedded, in base64, zipped, in a PDF."""
    if depth > 4:
        return
    yield from _raster(data)
    if HALF.encode() in data:
        yield from _of_terminal(data.decode("utf-8", "replace"))
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield from pictures(archive.read(name), depth + 1)
    if data.startswith(b"\x93NUMPY"):
        yield from _stacked(np.load(io.BytesIO(data), allow_pickle=False))
    if data[8:9] == b"{" and b'"data_offsets"' in data[:100_000]:
        from safetensors.numpy import load

        for array in load(data).values():
            yield from _stacked(array)
    if data.startswith(b"%PDF"):
        yield from _of_pdf(data)
        return
    if data.startswith(b"\x1f\x8b"):
        yield from pictures(zlib.decompress(data, 31), depth + 1)
    text = data.replace(b"\\/", b"/").replace(b"\\n", b"")
    text = urllib.parse.unquote_to_bytes(text)
    if text != data:
        yield from _raster(text)
    for run in re.findall(
        rb"[A-Za-z0-9+/_-]{40,}={0,2}", re.sub(rb"(?<=[A-Za-z0-9+/])\r?\n(?=[A-Za-z0-9+/])", b"", text)
    ):
        for found in _decoded(run):
            if found.startswith(MAGIC) or found.startswith((b"PK", b"\x1f\x8b", b"%PDF")):
                yield from pictures(found, depth + 1)
                break
        else:  # it may begin within the run, after what looks like more of it
            for found in (each for start in range(1, 4) for each in _decoded(run[start:])):
                yield from _raster(found)


def _decoded(run: bytes) -> Iterator[bytes]:
    standard = run.replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    yield base64.b64decode(standard + b"=" * (-len(standard) % 4)) if len(standard) % 4 != 1 else b""
    if re.fullmatch(rb"[0-9a-fA-F]+", run) and len(run) % 2 == 0:
        yield binascii.unhexlify(run)


def _raster(data: bytes) -> Iterator[Array]:
    for mark in RASTER:
        start = data.find(mark)
        while start >= 0:
            try:
                with Image.open(io.BytesIO(data[start:])) as image:
                    for frame in range(getattr(image, "n_frames", 1)):
                        image.seek(frame)
                        yield np.asarray(image.convert("RGB"), dtype=np.float64) / 255
            except Exception:  # three bytes of anything may look like the mark of a JPEG
                pass
            start = data.find(mark, start + len(mark))


def _of_terminal(text: str) -> Iterator[Array]:
    """Every picture drawn with upper half blocks in 24-bit colours: cells below each other at the same columns."""
    above: dict[tuple[int, int], list[Array]] = {}  # what was begun, by its first column and width
    for line in text.splitlines():
        runs: list[tuple[int, list[list[int]]]] = []
        column, last = 0, -2
        for colours, plain in re.findall(rf"\x1b\[38;2;([\d;]+)m{HALF}|(?:\x1b\[[\d;?]*[A-Za-z])|([^\x1b])", line):
            if colours and last != column - 1:
                runs.append((column, []))
            if colours:
                runs[-1][1].append([int(x) for x in colours.replace("48;2;", "").split(";")])
                last = column
            column += bool(colours or plain)
        here = {(start, len(cells)): np.array(cells) / 255 for start, cells in runs}
        for place in above.keys() - here.keys():
            yield np.concatenate(above.pop(place))
        for place, cells in here.items():
            above.setdefault(place, []).append(np.stack([cells[:, :3], cells[:, 3:]]))
    yield from (np.concatenate(rows) for rows in above.values())


def _of_pdf(data: bytes) -> Iterator[Array]:
    """Every picture among a PDF's objects, drawn on a page or not, and every file attached."""
    from pypdf import PdfReader
    from pypdf.generic import IndirectObject, StreamObject

    reader = PdfReader(io.BytesIO(data))
    for number in range(1, int(str(reader.trailer["/Size"]))):
        found = reader.get_object(IndirectObject(number, 0, reader))
        if isinstance(found, StreamObject):
            if found.get("/Subtype") == "/Image":
                yield np.asarray(found.decode_as_image().convert("RGB"), dtype=np.float64) / 255
            elif found.get("/Type") == "/EmbeddedFile":
                yield from pictures(found.get_data())


def _stacked(array: Array) -> Iterator[Array]:
    """Every picture in a stored array, whichever axis holds the channels."""
    if array.ndim < 2 or array.dtype.kind not in "fiu" or min(array.shape[-2:]) < 1:
        return
    planes = array.astype(np.float64).reshape(-1, *array.shape[-2:])
    for plane in planes:
        if min(plane.shape) >= 4:
            yield plane[:, :, None]
    if array.ndim >= 3 and array.shape[-1] in (1, 3):
        yield from array.astype(np.float64).reshape(-1, *array.shape[-3:])


def sequences(value: Any) -> Iterator[list[float]]:
    """Yield the numbers of a JSON document that stand together: nested lists, and one key through a list of objects."""
    if isinstance(value, dict):
        for item in value.values():
            yield from sequences(item)
        numbers = [x for x in value.values() if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) >= SHORTEST:
            yield numbers
    elif isinstance(value, list):
        flat = list(_numbers(value))
        if len(flat) >= SHORTEST:
            yield flat
        columns: dict[str, list[float]] = {}
        for item in value:
            if isinstance(item, dict):
                for key, x in item.items():
                    if isinstance(x, int | float) and not isinstance(x, bool):
                        columns.setdefault(key, []).append(x)
            yield from sequences(item) if isinstance(item, dict) else ()
        yield from (column for column in columns.values() if len(column) >= SHORTEST)


def _numbers(value: Any) -> Iterator[float]:
    for item in value:
        if isinstance(item, list):
            yield from _numbers(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield item


def numbers_in(path: Path) -> list[list[float]]:
    """The long rows of numbers of a JSON file."""
    return list(sequences(json.loads(path.read_text())))


def distinct(found: list[Array]) -> list[Array]:
    """Every picture once."""
    return list({(picture.shape, picture.tobytes()): picture for picture in found}.values())


def likeness(shown: Array, records: Tensor, shift: int = 2) -> Array:
    """Return for each record (N, C, H, W) the largest |correlation| with a picture (H′, W′, C′), (N,).

    Of every channel and the mean of the picture with every channel and the mean of the record: as they are, mirrored
    either way, and shifted by up to `shift` pixels; the absolute value finds a negative.
    """
    height, width = records.shape[2:]
    planes = [shown[:, :, 0]] if np.ptp(shown, 2).max() == 0 else [*np.moveaxis(shown, 2, 0), shown.mean(2)]
    planes = _resized(planes, height, width)
    variants = []
    for plane in planes:
        for turned in (plane, plane[::-1], plane[:, ::-1], plane[::-1, ::-1]):
            for down in range(-shift, shift + 1):
                for right in range(-shift, shift + 1):
                    variants.append(np.roll(turned, (down, right), (0, 1)))
    known = records.double().numpy()
    if known.shape[1] > 1:
        known = np.concatenate([known, known.mean(1, keepdims=True)], 1)
    left = _unit(np.stack(variants).reshape(len(variants), -1))
    right_ = _unit(known.reshape(known.shape[0] * known.shape[1], -1))
    return np.abs(right_ @ left.T).max(1).reshape(known.shape[0], known.shape[1]).max(1)


def likeness_of_numbers(row: list[float], records: Tensor) -> Array:
    """Return for each record the |correlation| of a row of numbers with its pixels in their order, (N,)."""
    flat = records.double().flatten(1).numpy()
    there = np.linspace(0, flat.shape[1] - 1, len(row))
    drawn = np.stack([np.interp(there, np.arange(flat.shape[1]), x) for x in flat])
    return np.abs(_unit(drawn) @ _unit(np.asarray(row, dtype=np.float64)[None])[0])


def _resized(planes: list[Array], height: int, width: int) -> list[Array]:
    if planes[0].shape == (height, width):
        return planes
    return [
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for plane in planes
    ]


def _unit(rows: Array) -> Array:
    centred = rows - rows.mean(1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
