"""The one writer: files whole or not at all, with the rights they need; places that can be written.

What is private (pictures of records, networks trained on them) its owner alone may read: files 0600, new folders 0700.
Everything else has the rights that the umask gives.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from leakaudit.errors import Setting, UserError

PROBE = 1 << 20  # bytes written to find out that a place takes any: an empty file fits on a full disk
HALF = ".half"  # how the name of a file ends while it is written
OLD = 60.0  # seconds after which a file that was half written has been left by a process that was killed


def check_writable(path: Path, option: str = "--output") -> None:
    """Find out before the work, not after it, that a file cannot be written; raises UserError naming the option."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder: name the file to write.")
        if path.exists() and not path.is_file():  # a device or a pipe: written to as it is
            return
        sweep(path.parent, f".{path.name}.", OLD)
        probe(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a name that none can be
        raise UserError(f"cannot write to {option} {path}: {why(error)}; choose another place.") from error


def writable(folder: Path) -> None:
    """Find out before the work, not after it, that nothing can be written into a folder; raises UserError."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(Setting("output", str(folder)), " is a file: name a folder.")
        probe(folder)
    except (OSError, ValueError) as error:
        raise UserError(
            "cannot write to ", Setting("output", str(folder)), f": {why(error)}; choose another folder."
        ) from error


def probe(folder: Path, size: int = PROBE) -> None:
    """Write `size` bytes into a folder and take them away again, with what was made for them; OSError if none fit."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        make(folder, private=False)
        place = _beside(folder / "probe")
        try:
            with created(place, private=True) as file:
                file.write(os.urandom(size))  # zeros would take no room in some file systems
                file.flush()
                os.fsync(file.fileno())
        finally:
            place.unlink(missing_ok=True)
    finally:
        for each in missing:
            if each.exists():
                each.rmdir()


def apart(places: dict[str, Path | None], inputs: dict[str, Path | None]) -> None:
    """Refuse outputs that cannot be written, that are an input (or ./pyproject.toml), or that would replace each other.

    Both are given by what they are called. A link, hard or symbolic, is what it leads to.
    """
    seen = {
        _identity(path): name for name, path in {**inputs, "the configuration": Path("pyproject.toml")}.items() if path
    }
    for option, path in places.items():
        if path is None:
            continue
        check_writable(path, option)
        if path.exists() and not path.is_file():
            continue  # a device or a pipe takes any number of them
        other = seen.setdefault(_identity(path), option)
        if other != option:
            raise UserError(f"{option} {path} is {other} as well: name another file.")


def _identity(path: Path) -> tuple[int, int] | Path:
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino


def write_atomically(path: Path, data: str | bytes, private: bool = False, *, follow: bool = True) -> None:
    """Write a whole file or leave the old one: a full disk or an interrupt never leaves half a result.

    Text is written as UTF-8. A link is followed; a device or a pipe is written to as it is. `private`: for its owner
    alone; what is not keeps the rights of the file that it replaces. Not to `follow`: a link, a device or a pipe that
    stands there is replaced, for nobody asked for it. Raises UserError when the place cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    try:
        place = path.resolve() if follow and path.is_symlink() else path
        if follow and place.exists() and not place.is_file() and not place.is_dir():
            place.write_bytes(content)
            return
        make(place.parent, private)
        half = _beside(place)
        try:
            with created(half, private) as file:
                if place.exists() and not private:  # whoever set its rights had a reason
                    os.chmod(half, place.stat().st_mode & 0o777)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # what is renamed stands on the disk, whatever becomes of the machine
            os.replace(half, place)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {why(error)}; choose another place.") from error


def append(path: Path, text: str) -> None:
    """Add text to a file that may be there, as UTF-8; OSError where that cannot be."""
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def owner_only(private: bool = True) -> Iterator[None]:
    """Let whatever others' code writes within be for its owner alone, where it is private."""
    before = os.umask(0o077) if private else None
    try:
        yield
    finally:
        if before is not None:
            os.umask(before)


def sweep(folder: Path, begins: str = ".", older: float = 0.0) -> None:
    """Remove the files that were being written into a folder when their process was killed, `older` than seconds."""
    for left in folder.glob(f"*{HALF}") if folder.is_dir() else ():
        if left.name.startswith(begins) and time.time() - left.stat().st_mtime >= older:
            left.unlink(missing_ok=True)


def why(error: Exception) -> str:
    """Return why a place cannot be written, without its name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def make(folder: Path, private: bool) -> None:
    """Make a folder and those above it, where they are missing."""
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        each.mkdir(mode=0o700 if private else 0o777, exist_ok=True)


def created(path: Path, private: bool) -> BinaryIO:
    """Open a new file to write, with rights that hold from its first byte on; FileExistsError where there is one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags, 0o600 if private else 0o666), "wb")


def _beside(place: Path) -> Path:
    """Return the name of a file beside `place` that holds what will stand there."""
    name = place.name.encode()[:180].decode(errors="ignore")  # a name has 255 bytes at most
    return place.with_name(f".{name}.{secrets.token_hex(4)}{HALF}")
