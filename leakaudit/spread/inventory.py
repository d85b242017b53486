"""What a shelf holds: outcomes by kind, scans that are not finished, who is at work; and how it is cleared.

Only what has a name of ours, in folders that are no links, is counted and removed: a shelf may stand in a folder that
holds other things, and a link may lead out of it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leakaudit.errors import UserError
from leakaudit.files import own
from leakaudit.files.writing import HALF, OLD
from leakaudit.spread.glance import Glance, glances
from leakaudit.units.packing import glanced
from leakaudit.units.shelf import CLAIMS, JOBS, KEPT, PRIVATE, TAG, Claim, Shelf, host, lives

DAY = 86_400.0  # seconds
SHOWING = ("attack", "fit")  # kinds that hold pictures of records, and what was learned of them, where those are shown
OUTCOME, SHARE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{2}")
CLAIM, JOB = re.compile(r"[0-9a-f]{64}(?:\.[0-9]+)?"), re.compile(r"[0-9a-f]{16}\.[\w.%-]+")


@dataclass(frozen=True)
class Kept:
    """One outcome."""

    path: Path
    kind: str  # empty where its file says none
    attempt: str
    private: bool  # of one scan: removed when that ends
    shows: bool  # whether private records may be seen in it
    size: int  # bytes
    used: float  # seconds since 1970


@dataclass(frozen=True)
class Unfinished:
    """A scan that is not finished."""

    scan: Glance
    pieces: int  # that were computed for it so far
    runs: bool  # whether the process that gathers its outcomes is at work, as far as this machine knows


@dataclass(frozen=True)
class Inventory:
    """What a shelf holds now."""

    shelf: Shelf
    kept: tuple[Kept, ...]
    unfinished: tuple[Unfinished, ...]
    claims: dict[str, Claim]

    @property
    def at_work(self) -> tuple[Claim, ...]:
        """Return who is at which piece now."""
        return tuple(self.claims.values())


def shelf_in(folder: Path) -> Shelf:
    """Return the shelf in a folder, an empty one where there is no folder; raises UserError where it is no shelf."""
    if not folder.exists():
        return Shelf(folder.absolute())
    text = own.text(folder / "CACHEDIR.TAG")
    if text.startswith(TAG.partition("\n")[0]) and "leakaudit" in text:
        return Shelf(folder.resolve())
    raise UserError(f"{folder} is no folder in which leakaudit keeps outcomes (it has no CACHEDIR.TAG of it).")


def inventory(shelf: Shelf) -> Inventory:
    """Look at a shelf, while scans may be running on it."""
    kept = tuple(_kept(shelf))
    return Inventory(shelf, kept, tuple(_unfinished(shelf, kept)), shelf.claims())


def clear(found: Inventory, older: float | None = None) -> Sequence[Kept]:
    """Remove all outcomes and unfinished scans, or those that nobody used for `older` days; return the outcomes.

    Raises UserError where all is to go and a scan is running: it would compute everything again. What somebody is at
    stays in any case.
    """
    running = [each.scan.request.target for each in found.unfinished if each.runs]
    if older is None and (running or found.claims):
        who = f"the scan of {running[0]} is running" if running else f"somebody is at {found.at_work[0].work}"
        raise UserError(f"{who}: stop it first, or wait; or remove only what is old (--older 30).")
    before = None if older is None else time.time() - older * DAY
    gone = []
    for each in found.kept:
        if (before is None or each.used < before) and each.path.name not in found.claims:
            with suppress(OSError):
                each.path.unlink()
                gone.append(each)
    live = {each.scan.id for each in found.unfinished if each.runs}
    _remove(found.shelf.folder / JOBS, JOB, before, live)
    _remove(found.shelf.folder / CLAIMS, CLAIM, before, set(found.claims))
    for name in (KEPT, PRIVATE):
        for share in _entries(found.shelf.folder / name, SHARE, folders=True):
            with suppress(OSError):  # not empty
                os.rmdir(share.path)
    return gone


def _kept(shelf: Shelf) -> Iterator[Kept]:
    for name in (KEPT, PRIVATE):
        for share in _entries(shelf.folder / name, SHARE, folders=True):
            for each in _entries(Path(share.path), OUTCOME):
                with suppress(OSError):  # it may be gone by now
                    about, path = each.stat(follow_symlinks=False), Path(each.path)
                    header, private = glanced(path), name == PRIVATE
                    kind, attempt = (header.kind, header.attempt) if header is not None else ("", "")
                    shows = private or (header is not None and header.images == "full" and kind in SHOWING)
                    yield Kept(path, kind, attempt, private, shows, about.st_size, about.st_mtime)


def _unfinished(shelf: Shelf, kept: Sequence[Kept]) -> Iterator[Unfinished]:
    for scan in glances(shelf):
        attempts = {scan.attempt, *scan.earlier}
        pieces = sum(each.attempt in attempts and not each.private for each in kept)
        yield Unfinished(scan, pieces, scan.host == host() and lives(scan.pid))


def _entries(folder: Path, name: re.Pattern[str], *, folders: bool = False) -> list[os.DirEntry[str]]:
    """Return the files in a folder whose names are ours, or its folders; none of them, nor the folder, is a link."""
    with suppress(OSError):
        if not folder.is_symlink():
            with os.scandir(folder) as found:
                of_kind = [e for e in found if (e.is_dir if folders else e.is_file)(follow_symlinks=False)]
            return sorted((e for e in of_kind if name.fullmatch(e.name)), key=lambda e: e.name)
    return []


def _remove(folder: Path, name: re.Pattern[str], before: float | None, but: set[str]) -> None:
    """Remove files of ours, but those whose names begin with one of these; what is being written is left alone."""
    for each in _entries(folder, name):
        with suppress(OSError):
            used = each.stat(follow_symlinks=False).st_mtime
            writing = each.name.endswith(HALF) and time.time() - used < OLD
            if each.name.partition(".")[0] not in but and not writing and (before is None or used < before):
                os.unlink(each.path)
