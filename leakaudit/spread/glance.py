"""Unfinished scans as whoever may take part in them sees them, and what becomes of that: without loading a library."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from leakaudit.errors import UserError
from leakaudit.files import own
from leakaudit.files.writing import write_atomically
from leakaudit.result.schema import Images
from leakaudit.units.desk import nobody
from leakaudit.units.shelf import JOBS, Shelf
from leakaudit.version import __version__

T = TypeVar("T")
JOB, NOTE = ".json", ".note"
LARGEST = 1 << 22  # bytes of a job's file that is read


@dataclass(frozen=True)
class Pictures:
    """What matters of a plan here."""

    images: Images = "full"


@dataclass(frozen=True)
class Wanted:
    """What matters of a request here."""

    target: str
    plan: Pictures = field(default_factory=Pictures)


@dataclass(frozen=True)
class Glance:
    """What is seen of an unfinished scan, whichever version of leakaudit began it."""

    id: str
    attempt: str
    request: Wanted
    version: str = "an earlier version"
    began: float = 0.0  # seconds since 1970
    host: str = ""
    pid: int = 0
    earlier: tuple[str, ...] = ()  # attempts that did not come to their end

    @property
    def refusal(self) -> str:
        """Say why this version cannot take part; empty where it can. Outcomes of two versions are not the same."""
        if self.version == __version__:
            return ""
        return (
            f"the scan of {self.request.target} was begun by leakaudit {self.version}, and this is {__version__}: "
            "install the same version in both places."
        )


@dataclass(frozen=True)
class Note:
    """Why a participant cannot take part in a scan, for whoever waits for it."""

    attempt: str
    where: str  # the machine
    told: str  # a sentence


def place(shelf: Shelf, id: str, suffix: str = JOB) -> Path:
    """Return where a scan's file stands."""
    return shelf.folder / JOBS / f"{id}{suffix}"


def glance(path: Path) -> Glance | None:
    """Return what a job's file says at a glance; None where there is none, or it is none of this user's."""
    return read_as(path, Glance)


def glances(shelf: Shelf) -> list[Glance]:
    """Return the unfinished scans, those that began first before the others."""
    found = (glance(path) for path in sorted((shelf.folder / JOBS).glob(f"*{JOB}")))
    return sorted((each for each in found if each is not None), key=lambda each: each.began)


def leave(shelf: Shelf, scan: Glance, told: str) -> None:
    """Tell whoever waits for a scan why it is not taken part in here; a full folder is no reason to fail, too."""
    if not place(shelf, scan.id).exists():  # nobody waits
        return
    note = Note(scan.attempt, socket.gethostname(), told[:1000])
    with suppress(UserError):
        write_atomically(
            place(shelf, scan.id, f".{nobody()}{NOTE}"), json.dumps(asdict(note)), private=True, follow=False
        )


def notes(shelf: Shelf, id: str, attempt: str) -> Iterator[tuple[str, Note]]:
    """Yield why others could not take part in this run of a scan, with a name of each note."""
    for path in sorted((shelf.folder / JOBS).glob(f"{id}.*{NOTE}")):
        note = read_as(path, Note)
        if note is not None and note.attempt == attempt:
            yield path.name, note


def read_as(path: Path, kind: type[T]) -> T | None:
    """Return a file of the folder of jobs as an object; None where there is none such, or it is none of this user's."""
    found = own.read(path, LARGEST)
    with suppress(UserError):  # a plan that another version took
        return None if found is None else own.read_as(found[0], kind)
    return None
