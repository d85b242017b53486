"""What comes from outside, read behind limits: every file that somebody else may have written is opened here.

A reader takes regular files only and never waits for one: a pipe, a device, a socket or a folder is refused before it
is opened. Its size is looked at before anything is read, and whatever a library makes of it ends in one sentence.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from leakaudit.errors import UserError, first_line

MiB, GiB = 2**20, 2**30
SHORT = 80  # characters of a foreign value that a sentence repeats
_OTHERS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of file: what one is called, how many bytes it may have at most (None: as many as are there)."""

    name: str
    most: int | None


JSON = Kind("JSON", 512 * MiB)  # a result with its pictures may have tens
TOML = Kind("TOML", MiB)
CODE = Kind("Python code", 16 * MiB)
NOTES = Kind("text", 16 * MiB)
REPORT = Kind("a report", GiB)
PICTURE = Kind("a picture", 128 * MiB)
ARRAYS = Kind("an .npz of plain arrays", None)  # data is as large as it is: what it unpacks to is limited
WEIGHTS = Kind("plain weights", None)


def check(path: Path, kind: Kind) -> int:
    """Return the size in bytes of a regular file that a reader may open; raises UserError for anything else."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _unreadable(path, error) from error
    return _allowed(path, kind, found)


def opened(path: Path, kind: Kind) -> BinaryIO:
    """Open a regular file of at most the kind's size for reading; raises UserError, and never waits."""
    check(path, kind)  # first by its name: opening a device may do something
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    try:
        _allowed(path, kind, os.fstat(handle))  # it may have been replaced in between
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def bytes_of(path: Path, kind: Kind) -> bytes:
    """Return all bytes of a file; raises UserError when it cannot be read or holds more than its kind may."""
    with opened(path, kind) as file:
        try:
            data = file.read() if kind.most is None else file.read(kind.most + 1)
        except (OSError, MemoryError) as error:
            raise _unreadable(path, error) from error
    if kind.most is not None and len(data) > kind.most:  # it grew, or did not say its size
        raise _too_large(path, kind)
    return data


def text_of(path: Path, kind: Kind = JSON, encoding: str = "utf-8-sig") -> str:
    """Return a file's text, line ends as they are; raises UserError when it cannot be read or is no UTF-8."""
    try:
        return bytes_of(path, kind).decode(encoding)
    except (UnicodeDecodeError, MemoryError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}.") from error


class Broken(Exception):
    """What a reader itself finds wrong with a file, as a clause: `reading` makes a sentence of it."""


@contextmanager
def reading(source: object, what: str, mend: str) -> Iterator[None]:
    """Say in one sentence, a UserError, whatever is raised while `source` is read as `what`; `mend` is what to do.

    Libraries raise dozens of types over a broken file, and a few that no `except Exception` catches. Their warnings are
    about the file as well and are dropped. An interrupt stays one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        why = str(error) if isinstance(error, Broken) else first_line(error)
        raise UserError(f"{source} cannot be read as {what} ({why}): {mend}.") from error


def check_text(word: str, what: str) -> None:
    """Raise UserError for text that no file of ours could hold: bytes of a command line that are no UTF-8."""
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} holds {short(word)}, which is no UTF-8: mend that.") from error


def short(value: object) -> str:
    """Return a foreign value as Python writes it, in at most `SHORT` characters, whatever it is."""
    if isinstance(value, str | bytes):
        value = value[: SHORT + 1]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= SHORT else f"{text[: SHORT - 1]}…"


def _allowed(path: Path, kind: Kind, found: os.stat_result) -> int:
    if not stat.S_ISREG(found.st_mode):
        other = next((name for is_one, name in _OTHERS if is_one(found.st_mode)), "no file")
        raise UserError(f"cannot read {path}: it is {other}, give a regular file.")
    if kind.most is not None and found.st_size > kind.most:
        raise _too_large(path, kind)
    return found.st_size


def _too_large(path: Path, kind: Kind) -> UserError:
    assert kind.most is not None
    return UserError(f"cannot read {path}: it is larger than the {kind.most // MiB} MiB that {kind.name} may have.")


def _unreadable(path: Path, error: BaseException) -> UserError:
    why = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"cannot read {path}: {why}.")
