"""Finding in whatever a command wrote what names a record, a person or a machine: rows of pixels, and words.

A text is looked for in every form in which it could stand in a file: as it is, with escapes and entities undone, in
base64, in an archive, in the streams, the words and the metadata of a PDF, in the records of TensorBoard.
"""

from __future__ import annotations

import base64
import gzip
import html
import io
import re
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

COLUMNS = 4  # of a table, a column of which may be a row of pixels
ROW = 16  # numbers in a row that can only be a record's
NEAR = 0.006  # how far each may be from its pixel: it may have been written with two digits
_NUMBER = re.compile(rb"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")


def texts(data: bytes, depth: int = 0) -> Iterator[bytes]:
    """Yield every text within a file, as bytes of UTF-8."""
    if depth > 4:
        return
    yield data
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from texts(archive.read(name), depth + 1)
    elif data.startswith(b"\x1f\x8b"):
        yield from texts(gzip.decompress(data), depth + 1)
    elif data.startswith(b"%PDF"):
        yield from _of_pdf(data, depth)
    else:
        for found in {html.unescape(data.decode(errors="replace")).encode("utf-8", "replace"), _undone(data)} - {data}:
            yield found
    for run in _BASE64.findall(data):
        told = run.rstrip(b"=")
        if len(told) % 4 != 1:
            found = base64.b64decode(told + b"=" * (-len(told) % 4))
            if found.startswith((b"PK", b"\x1f\x8b", b"%PDF")) or found.isascii():
                yield from texts(found, depth + 1)


def _undone(data: bytes) -> bytes:
    """Undo percent signs, and the escapes of JSON."""
    plain = urllib.parse.unquote_to_bytes(data)
    return re.sub(rb"\\u00([0-9a-fA-F]{2})", lambda m: bytes([int(m[1], 16)]), plain)


def _of_pdf(data: bytes, depth: int) -> Iterator[bytes]:
    from pypdf import PdfReader
    from pypdf.generic import IndirectObject, StreamObject

    reader = PdfReader(io.BytesIO(data))
    yield " ".join(map(str, (reader.metadata or {}).values())).encode()
    words = [page.extract_text() for page in reader.pages]
    yield "\n".join(words).encode("utf-8", "replace")
    yield "".join(words).replace("\n", "").encode("utf-8", "replace")  # a word may be broken at the end of a line
    for number in range(1, int(str(reader.trailer["/Size"]))):
        found = reader.get_object(IndirectObject(number, 0, reader))
        if isinstance(found, StreamObject) and found.get("/Subtype") != "/Image":
            try:
                yield from texts(found.get_data(), depth + 1)
            except Exception:  # a stream in a form that pypdf does not know
                continue


def numbers(text: bytes) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the numbers of a text in their order, without signs, whatever stands between them."""
    return np.array([float(found[:20]) for found in _NUMBER.findall(text)], dtype=np.float64)


def floats(data: bytes) -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Yield a file's bytes read as numbers of four bytes, from each of the four places where such a row may begin."""
    for start in range(4):  # bytes that are no numbers are cast to any
        whole = (len(data) - start) // 4 * 4
        with np.errstate(all="ignore"):
            yield np.frombuffer(data[start : start + whole], "<f4").astype(np.float64)


@dataclass(frozen=True)
class Pixels:
    """Every row of `ROW` pixels of some records (N, …), but for flatter ones, which anything is like."""

    tree: cKDTree

    @classmethod
    def of(cls, records: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Pixels:
        """Take records with pixels in [0, 1]."""
        rows = np.lib.stride_tricks.sliding_window_view(records.reshape(len(records), -1), ROW, axis=1).reshape(-1, ROW)
        distinct = (np.diff(np.sort(rows, axis=1), axis=1) > 2 * NEAR).sum(1)
        return cls(cKDTree(rows[distinct >= 6]))

    def among(self, found: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
        """Return whether a row of a record stands among numbers, as pixels in [0, 1] or from 0 to 255.

        One after another, or one in each line of a table of up to `COLUMNS` columns, as one axis of a drawn path is.
        """
        for scale in (1.0, 255.0):
            for column in (found[start::step] for step in range(1, COLUMNS + 1) for start in range(step)):
                if len(column) < ROW:
                    continue
                rows = np.lib.stride_tricks.sliding_window_view(column / scale, ROW)
                rows = rows[((rows >= -NEAR) & (rows <= 1 + NEAR)).all(1)]
                if len(rows) and np.isfinite(self.tree.query(rows, p=np.inf, distance_upper_bound=NEAR)[0]).any():
                    return True
        return False


def told(name: str, data: bytes, pixels: Pixels, words: Mapping[str, str]) -> set[str]:
    """Return what a file tells: "row" of pixels, and which of `words`, by their keys; its name is searched too."""
    found = set()
    for text in (name.encode(), *texts(data)):
        found |= {key for key, word in words.items() if word.encode().lower() in text.lower()}
        if "row" not in found and pixels.among(numbers(text)):
            found.add("row")
    if "row" not in found and any(pixels.among(row) for row in floats(data)):
        found.add("row")
    return found
