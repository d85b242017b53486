"""Zip archives that hold arrays or weights: what they claim is compared with what is there before it is unpacked."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from leakaudit.errors import UserError
from leakaudit.files.reading import ARRAYS, Broken, Kind, MiB, opened, reading, short

MEMBERS = 100_000  # that an archive may have: the weights of the largest networks are some thousands
DIRECTORY = 32 * MiB  # that the list of them may take
PACKED = 100  # times: pictures do not pack more tightly, but for empty ones
SMALL = 256 * MiB  # what may be packed as tightly as it likes
DIMENSIONS = 8
KINDS = "biufcSU"  # plain arrays; what they are of is checked where they are used
MEND_ARRAYS = "save it with numpy.savez"


@dataclass
class Arrays:
    """The arrays of an open .npz by name; `room` is how many bytes those that are read may take together, if known."""

    source: str
    packed: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]
    room: int | None
    taken: int = field(default=0)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return an array; raises UserError where what it claims is not there, or would take too much memory."""
        member = self.members[name]
        with self.packed.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = header(stream)
            begun = stream.tell()
        if kind.hasobject or kind.kind not in KINDS:
            raise Broken(f"{name} holds {short(str(kind))[1:-1]}, not plain numbers or text")
        if len(shape) > DIMENSIONS or min(shape, default=0) < 0:
            raise Broken(f"{name} claims the shape {short(shape)}")
        claimed, there = math.prod(shape) * kind.itemsize, member.file_size - begun
        if claimed != there:
            raise Broken(f"{name} claims the shape {short(shape)}, {claimed} bytes, and holds {there}")
        self._fits(name, claimed, member.compress_size)
        with self.packed.open(member) as stream:
            found: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return found

    def _fits(self, name: str, claimed: int, packed: int) -> None:
        if claimed > SMALL and claimed > PACKED * packed:
            raise UserError(
                f"{name} in {self.source} would unpack {packed} bytes to {claimed}, more than {PACKED} times as many: "
                "no pictures pack so tightly; save it with numpy.savez, unpacked."
            )
        self.taken += claimed
        if self.room is not None and self.taken > self.room:
            raise UserError(
                f"{self.source} would take {self.taken // MiB} MiB of memory and {self.room // MiB} MiB may be used: "
                "give fewer records."
            )


@contextmanager
def arrays(path: Path, room: int | None = None) -> Iterator[Arrays]:
    """Open an .npz; raises UserError, also within, for all that is no archive of plain arrays of the size it claims.

    Encrypted, foreign and repeated members are refused, as are objects.
    """
    with opened(path, ARRAYS) as file, reading(path, ARRAYS.name, MEND_ARRAYS), _directory(file, ARRAYS) as packed:
        members = {}
        for member in packed.infolist():
            name = member.filename
            if not name.endswith(".npy") or member.is_dir():
                raise Broken(f"it holds {short(name)}, which is no array")
            members[name.removesuffix(".npy")] = member
        yield Arrays(str(path), packed, members, room)


def check_stored(file: BinaryIO, kind: Kind) -> dict[str, int]:
    """Return the members of a zip archive by name, with their bytes: all as they are, nothing packed or encrypted.

    Raises Broken for another.
    """
    with _directory(file, kind) as found:
        for member in found.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise Broken(f"{short(member.filename)} in it is packed")
        return {member.filename: member.file_size for member in found.infolist()}


def _directory(file: BinaryIO, kind: Kind) -> zipfile.ZipFile:
    """Open an archive whose list of members is no larger than it may be and names each once."""
    listed = _listed_bytes(file)
    if listed > DIRECTORY:
        raise Broken(f"its list of members takes {listed} bytes: that is not {kind.name}")
    found = zipfile.ZipFile(file)
    members = found.infolist()
    if len(members) > MEMBERS:
        raise Broken(f"it holds {len(members)} members: that is not {kind.name}")
    if len({member.filename for member in members}) != len(members):
        raise Broken("it holds two members of the same name")
    if any(member.flag_bits & 0x1 for member in members):
        raise Broken("it is encrypted")
    return found


def _listed_bytes(file: BinaryIO) -> int:
    """Return the bytes that an archive says its list of members takes, 0 where it has no end record."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 2**16 - 128))
    tail = file.read()
    file.seek(0)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 22:
        return 0
    listed = int(struct.unpack_from("<I", tail, at + 12)[0])
    if at >= 76 and tail[at - 20 : at - 16] == b"PK\x06\x07":  # an archive of 64 bits, whose own record is before
        listed = max(listed, int(struct.unpack_from("<Q", tail, at - 76 + 40)[0]))
    return listed
