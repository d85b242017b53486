"""Files that this program wrote for itself: read only where their user alone can write them, and within limits."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from leakaudit.files.typed import Misfit, typed

T = TypeVar("T")


def is_own(found: os.stat_result) -> bool:
    """Whether this is of a file of this user's that nobody else can write: what is read from it may run."""
    own = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o022)
    return own and stat.S_ISREG(found.st_mode)


def opened(path: Path) -> BinaryIO:
    """Return a file to be read from. A pipe that somebody put in its place is not waited for."""
    return open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")


def read(path: Path, most: int) -> tuple[bytes, float] | None:
    """Return a file of at most so many bytes, and when it was changed; None where there is none of this user's."""
    with suppress(OSError), opened(path) as file:
        found = os.fstat(file.fileno())  # of what is read, whatever stands in its place by now
        if is_own(found) and found.st_size <= most:
            return file.read(), found.st_mtime
    return None


def first_line(path: Path, most: int) -> bytes:
    """Return the first line of a file, up to so many bytes; empty where there is none of this user's."""
    with suppress(OSError), opened(path) as file:
        if is_own(os.fstat(file.fileno())):
            return file.readline(most)
    return b""


def text(path: Path, most: int = 10_000) -> str:
    """Return the first so many bytes of a file as text; empty where there is none, whoever wrote it."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(most).decode("utf-8", "replace")
    return ""


def read_as(data: bytes, kind: type[T]) -> T | None:
    """Return JSON as an object of a dataclass, with strict types; None where it is none."""
    try:
        return typed(json.loads(data), kind)
    except (ValueError, Misfit, RecursionError):
        return None


def sha256(path: Path) -> str:
    """Return the hash of a file, an empty text where there is none that can be read."""
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""
