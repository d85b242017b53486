"""Files written whole or not at all; places that can be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from leakaudit.errors import Setting, UserError


def check_writable(path: Path, option: str = "--output") -> None:
    """Find out before the work, not after it, that a file cannot be written; raises UserError naming the option."""
    try:
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder: name the file to write.")
        if path.exists() and not path.is_file():  # a device or a pipe: written to as it is
            return
    except OSError as error:
        raise UserError(f"cannot write to {option} {path}: {error.strerror}; choose another place.") from error
    missing = [folder for folder in path.parents if not folder.exists()]
    probe = path.parent / ".leakaudit-probe"
    try:
        write_atomically(probe, "")
    except UserError as error:
        raise UserError(f"cannot write to {option} {path}: {error.__cause__}; choose another place.") from error
    probe.unlink(missing_ok=True)
    for folder in missing:
        folder.rmdir()


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


def writable(folder: Path) -> None:
    """Find out before the work, not after it, that the output cannot be written; raises UserError."""

    if folder.exists() and not folder.is_dir():
        raise UserError(Setting("output", str(folder)), " is a file: name a folder.")
    existed = folder.exists()
    probe = folder / ".leakaudit-probe"
    try:
        write_atomically(probe, "")
    except UserError as error:
        raise UserError(
            "cannot write to ", Setting("output", str(folder)), f": {error.__cause__}; choose another folder."
        ) from error
    probe.unlink(missing_ok=True)
    if not existed:
        folder.rmdir()


def write_atomically(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Write a whole file or leave the old one: a full disk or an interrupt never leaves half a result.

    Text is written as UTF-8. A link is followed; a device or a pipe is written to as it is. Raises UserError when the
    place cannot be written.
    """
    data = text.encode() if isinstance(text, str) else text
    try:
        place = path.resolve() if path.is_symlink() else path
        if place.exists() and not place.is_file() and not place.is_dir():
            place.write_bytes(data)
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(name, mode)
            os.replace(name, place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place.") from error
