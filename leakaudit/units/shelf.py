"""The shelf: a folder of finished pieces of work, and who is at which one now. It may be shared by many machines.

    outcomes/ab/<key>    what is kept        private/ab/<key>    what is of records, removed when its scan ends
    claims/<key>         who computes it     jobs/<id>.json      scans that are not finished

Every file is its owner's alone, written whole or not at all. A claim is made by whoever creates its file first; its
time of change is its heartbeat. One whose holder is dead, or silent for `STALE` seconds, is taken over: then two may
compute the same for a while, which costs time and changes nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from leakaudit.errors import Setting, UserError
from leakaudit.files.typed import Misfit, typed
from leakaudit.files.writing import HALF, OLD, created, make, sweep, why, write_atomically

PART = ".part"  # of the name of a file that holds the finished stages of an outcome at work
KEPT, PRIVATE, CLAIMS, JOBS = "outcomes", "private", "claims", "jobs"
STALE = 60.0  # seconds without a heartbeat after which whoever held a claim is taken for dead
LARGEST = 1 << 36  # bytes of an outcome that is read
TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# What leakaudit keeps: `leakaudit cache` shows and clears it.\n"


@dataclass(frozen=True)
class Claim:
    """Who is at a piece of work."""

    who: str  # a participant's own name
    host: str  # the machine, as `host` names it
    pid: int
    work: str


@cache
def host() -> str:
    """Return a name of this machine, and of the space in which its processes have their numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


@dataclass(frozen=True)
class Shelf:
    """A folder of outcomes. Names are keys of units: 64 hexadecimal digits."""

    folder: Path

    def place(self, key: str, private: bool) -> Path:
        """Return where an outcome stands."""
        return self.folder / (PRIVATE if private else KEPT) / key[:2] / key

    def get(self, key: str, private: bool) -> bytes | None:
        """Return an outcome, None where there is none that can be read."""
        path = self.place(key, private)
        with suppress(OSError):
            if own(path) and path.stat().st_size <= LARGEST:
                return path.read_bytes()
        return None

    def put(self, key: str, data: bytes, private: bool) -> None:
        """Keep an outcome; raises UserError where the folder takes nothing."""
        write_atomically(self.place(key, private), data, private=True)

    def drop(self, key: str) -> None:
        """Remove a private outcome."""
        with suppress(OSError):
            self.place(key, True).unlink(missing_ok=True)

    def claim(self, key: str, claim: Claim) -> bool:
        """Say that somebody is at a piece of work from now on; False where somebody else is."""
        path = self.folder / CLAIMS / key
        for _ in range(3):
            try:
                with created(path, private=True) as file:
                    file.write(json.dumps(asdict(claim)).encode())
                return True
            except FileExistsError:
                if not self._left(path):
                    return False
                aside = path.with_name(f"{key}.{secrets.token_hex(4)}{HALF}")
                with suppress(OSError):  # one of those who find it left is the first
                    os.rename(path, aside)
                    aside.unlink()
            except FileNotFoundError:
                make(path.parent, private=True)
        return False

    def beat(self, key: str) -> None:
        """Say that whoever claimed a piece of work is still at it."""
        with suppress(OSError):
            os.utime(self.folder / CLAIMS / key)

    def release(self, key: str, who: str) -> None:
        """Give a claim back, if it is still this participant's."""
        path = self.folder / CLAIMS / key
        held = read_claim(path)
        if held is not None and held.who == who:
            with suppress(OSError):
                path.unlink()

    def claims(self) -> dict[str, Claim]:
        """Return who is at which piece of work now, by its key; those left by the dead are not among them."""
        found = {}
        for path in sorted((self.folder / CLAIMS).glob("*")) if (self.folder / CLAIMS).is_dir() else ():
            held = read_claim(path)
            if held is not None and len(path.name) == 64 and not self._left(path):
                found[path.name] = held
        return found

    def _left(self, path: Path) -> bool:
        """Whether the holder of a claim is dead: known of a process of this machine, else after a silence."""
        held = read_claim(path)
        if held is not None and held.host == host():
            return not lives(held.pid)
        try:
            return self._now() - path.stat().st_mtime > STALE
        except OSError:
            return False

    def _now(self) -> float:
        """Return the time by the clock that stamps this folder's files: another machine's may go differently."""
        path = self.folder / CLAIMS / f".now-{secrets.token_hex(4)}{HALF}"
        with created(path, private=True):
            pass
        try:
            return path.stat().st_mtime
        finally:
            path.unlink(missing_ok=True)

    def kept(self) -> Iterator[tuple[Path, bool]]:
        """Yield the file of every outcome, and whether it is private."""
        for name in (KEPT, PRIVATE):
            for path in sorted((self.folder / name).glob("*/*")):
                if len(path.name) == 64:
                    yield path, name == PRIVATE


def opened(folder: Path) -> Shelf:
    """Return the shelf in a folder, made where it is missing; raises UserError where nothing can be kept there."""
    try:
        make(folder, private=True)
        if not (folder / "CACHEDIR.TAG").exists():
            write_atomically(folder / "CACHEDIR.TAG", TAG, private=True)
            write_atomically(folder / ".gitignore", "*\n", private=True)
        for name in (KEPT, PRIVATE, CLAIMS, JOBS):
            make(folder / name, private=True)
        for each in [folder / CLAIMS, folder / JOBS]:
            sweep(each, "", OLD)
        for each in [*(folder / KEPT).glob("*"), *(folder / PRIVATE).glob("*")]:
            sweep(each, ".", OLD)
    except OSError as error:
        raise UserError("cannot keep anything in ", Setting("cache", str(folder)), f": {why(error)}.") from error
    return Shelf(folder)


def own(path: Path) -> bool:
    """Whether a file is this user's, and nobody else can write it: what is read from it may run."""
    if not hasattr(os, "getuid"):
        return True
    found = path.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022


def read_claim(path: Path) -> Claim | None:
    """Return a claim, None where there is none or it is half written."""
    try:
        return typed(json.loads(path.read_bytes()[:10_000]), Claim)
    except (OSError, ValueError, Misfit, RecursionError):
        return None


def lives(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    with suppress(OSError, IndexError):  # dead, and not yet waited for
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True
