"""Saved weights, looked through before a library reads them: what a file claims must be there. Nothing needs torch."""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leakaudit.files.archives import check_stored
from leakaudit.files.jsonfile import parsed
from leakaudit.files.reading import WEIGHTS, Broken, MiB, check, opened, reading, short

HEADER = 32 * MiB  # of a .safetensors file: some hundred thousand tensors
PICKLE = 64 * MiB  # of a torch file: what its tensors are called and how they are laid out
MEND = "save it with torch.save(model.state_dict(), path)"


@dataclass(frozen=True)
class Header:
    """What a .safetensors file says of itself: the shapes of its tensors by name, and texts by name."""

    shapes: dict[str, tuple[int, ...]]
    texts: dict[str, str]


def safetensors_header(path: Path, what: str = WEIGHTS.name, mend: str = MEND) -> Header:
    """Return the header of a whole .safetensors file; raises UserError for anything else, also for one of no tensor.

    `what` the file is read as, and the `mend`, are told then.
    """
    with opened(path, WEIGHTS) as file, reading(path, what, mend):
        size = file.seek(0, 2)
        file.seek(0)
        first = file.read(8)
        length = int(struct.unpack("<Q", first)[0]) if len(first) == 8 else 0
        if not 2 <= length <= min(HEADER, size - 8):
            raise Broken("it does not begin with the header of a safetensors file")
        header = parsed(file.read(length).decode("utf-8"), str(path), mend)
    with reading(path, what, mend):
        if not isinstance(header, dict):
            raise Broken("its header is no table")
        texts = header.pop("__metadata__", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise Broken("its header holds other notes than texts")
        shapes = {name: _shape(name, entry) for name, entry in header.items()}
        if not shapes:
            raise Broken("it holds no tensor")
        if size - 8 - length != max(entry["data_offsets"][1] for entry in header.values()):
            raise Broken("it is cut short, or holds more than its header says")
    return Header(shapes, texts)


def _shape(name: str, entry: Any) -> tuple[int, ...]:
    kind, shape, ends = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    numbers = [*shape, *ends] if isinstance(shape, list) and isinstance(ends, list) and len(ends) == 2 else [None]
    if not isinstance(kind, str) or any(type(number) is not int or number < 0 for number in numbers):
        raise Broken(f"its header says of {short(name)} what is said of no tensor")
    if ends[1] - ends[0] > 16 * math.prod(shape) or ends[1] < ends[0]:  # no number takes more than 16 bytes
        raise Broken(f"{short(name)} claims the shape {short(tuple(shape))} and {ends[1] - ends[0]} bytes")
    return tuple(shape)


def check_torch_file(path: Path) -> None:
    """Look at a torch file before torch does: nothing in it may be packed, encrypted or there twice. Raises UserError.

    A file in the format of before 2020 is no archive; only that it is a regular file is checked.
    """
    check(path, WEIGHTS)
    with opened(path, WEIGHTS) as file, reading(path, WEIGHTS.name, MEND):
        if file.read(4) != b"PK\x03\x04":
            return
        try:
            members = check_stored(file, WEIGHTS)
        except zipfile.BadZipFile as error:
            raise Broken("it is an archive that is cut short or damaged") from error
        most = max((size for name, size in members.items() if name.endswith(".pkl")), default=0)
        if most > PICKLE:
            raise Broken(f"it lists its tensors in {most} bytes, more than {PICKLE}")
