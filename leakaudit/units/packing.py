"""Outcomes as bytes: a line of JSON that says what it is, then the outcome itself.

Plain values (scores, estimates, findings) are JSON, read with strict types. Objects (a fitted defense, tensors) are
pickled, which runs code when it is read: they are taken from no file but one that its user alone can write.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from leakaudit.files import own
from leakaudit.units.unit import FORMAT, Unit

LONGEST = 1 << 16  # bytes of a header


@dataclass(frozen=True)
class Header:
    """What is said of an outcome in the first line of its file."""

    kind: str
    work: str
    key: str
    seconds: float  # that computing it took, with all within it
    attempt: str  # by which run of a scan
    late: bool  # whether time ended it early: it holds for that run alone
    sha256: str  # of what follows
    unkept: bool = False  # the outcome cannot be written, and is not here: in that run everybody makes his own
    images: str = ""  # how records appear in the scan that it is of: full, redacted, none
    format: str = FORMAT


class Unreadable(Exception):
    """What was kept is no outcome, or another one's, or only half of it."""


def packed(unit: Unit, value: Any, *, seconds: float, attempt: str, late: bool) -> bytes:
    """Return an outcome as bytes. Raises whatever pickling raises where an object cannot be written."""
    body = _body(value)
    digest = hashlib.sha256(body).hexdigest()
    seconds = round(seconds, 3)
    header = Header(unit.kind, unit.work, unit.key, seconds, attempt, late, digest, images=unit.images)
    return json.dumps(asdict(header), sort_keys=True).encode() + b"\n" + body


def unkept(unit: Unit, attempt: str) -> bytes:
    """Return what stands in place of an outcome that cannot be written."""
    header = Header(unit.kind, unit.work, unit.key, 0.0, attempt, False, hashlib.sha256(b"").hexdigest(), unkept=True)
    return json.dumps(asdict(header), sort_keys=True).encode() + b"\n"


def _body(value: Any) -> bytes:
    if isinstance(value, Values):
        plain: Any = value
        return json.dumps(asdict(plain), allow_nan=False, sort_keys=True).encode()
    import torch

    held = io.BytesIO()
    torch.save(value, held, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return held.getvalue()


class Values:
    """The mark of outcomes that are plain values: frozen dataclasses of text, numbers, truths, lists and mappings."""


def header_of(data: bytes, key: str) -> tuple[Header, bytes]:
    """Return header and body of the outcome of this key; raises Unreadable."""
    line, _, body = data.partition(b"\n")
    header = own.read_as(line, Header)
    if (
        header is None
        or header.format != FORMAT
        or header.key != key
        or header.sha256 != hashlib.sha256(body).hexdigest()
    ):
        raise Unreadable
    return header, body


def glanced(path: Path) -> Header | None:
    """Return the header of an outcome's file, without reading what follows; None where it has none."""
    return own.read_as(own.first_line(path, LONGEST), Header)


def unpacked(body: bytes, kind: type[Any]) -> Any:
    """Return the outcome that `packed` wrote, of a class; raises Unreadable."""
    try:
        if issubclass(kind, Values):
            if (values := own.read_as(body, kind)) is None:
                raise Unreadable
            return values
        import torch

        found = torch.load(io.BytesIO(body), weights_only=False)
    except Exception as error:  # a class that changed, or is not there any more, may raise anything
        raise Unreadable from error
    if not isinstance(found, kind):
        raise Unreadable
    return found
