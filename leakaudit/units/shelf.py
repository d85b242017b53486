"""The shelf: a folder of finished pieces of work, and who is at which one now. It may be shared by many machines.

    outcomes/ab/<key>    what is kept        private/ab/<key>    what is of records, removed when its scan ends
    claims/<key>         who computes it     jobs/<id>.json      scans that are not finished

Every file is its owner's alone, written whole or not at all. A claim is made by whoever creates its file first; its
time of change is its heartbeat. One whose holder is dead, or silent for `STALE` seconds, is taken over by whoever
creates the next one first, `<key>.1` after `<key>`: nobody removes a file that may be somebody's own by now, so of
any number who find a claim left exactly one has it. A holder that was only silent may still compute: then two compute
the same for a while, which costs time and changes nothing.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Collection, Container, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from leakaudit.errors import Setting, UserError
from leakaudit.files import own
from leakaudit.files.writing import HALF, OLD, created, make, sweep, why, write_atomically
from leakaudit.units.packing import glanced

PART = ".part"  # of the name of a file that holds the finished stages of an outcome at work
KEPT, PRIVATE, CLAIMS, JOBS = "outcomes", "private", "claims", "jobs"
STALE = 60.0  # seconds without a heartbeat after which whoever held a claim is taken for dead
CLOCK = 60.0  # seconds for which the folder's clock is taken to go as this process's own
DAY = 86_400.0  # seconds after which a claim that nobody gave back is removed, and a use of an outcome is noted
TURN = re.compile(r"([0-9a-f]{64})(?:\.([0-9]{1,9}))?")  # the name of a claim: its key, and how often it was taken over
LONGEST = 10_000  # bytes of a claim
LARGEST = 1 << 36  # bytes of an outcome that is read
IGNORED = "".join(f"/{name}\n" for name in (f"{KEPT}/", f"{PRIVATE}/", f"{CLAIMS}/", f"{JOBS}/", "CACHEDIR.TAG"))
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
    parts.append(own.text(Path("/proc/sys/kernel/random/boot_id")).strip()[:8])
    with suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return "/".join(parts)


@dataclass(frozen=True)
class Shelf:
    """A folder of outcomes. Names are keys of units: 64 hexadecimal digits."""

    folder: Path
    _held: dict[str, tuple[str, Path]] = field(default_factory=dict, compare=False, repr=False)  # claims made here
    _ahead: list[float] = field(default_factory=list, compare=False, repr=False)  # its clock's lead, and when seen

    def place(self, key: str, private: bool) -> Path:
        """Return where an outcome stands."""
        return self.folder / (PRIVATE if private else KEPT) / key[:2] / key

    def get(self, key: str, private: bool) -> bytes | None:
        """Return an outcome, None where there is none that can be read."""
        path = self.place(key, private)
        found = own.read(path, LARGEST)
        if found is None:
            return None
        if time.time() - found[1] > DAY:  # it is of use: what is removed by age is not
            with suppress(OSError):
                os.utime(path)
        return found[0]

    def has(self, key: str, private: bool) -> bool:
        """Whether there is an outcome, without reading it."""
        return self.place(key, private).is_file()

    def put(self, key: str, data: bytes, private: bool) -> None:
        """Keep an outcome; raises UserError where the folder takes nothing."""
        write_atomically(self.place(key, private), data, private=True, follow=False)

    def drop(self, key: str) -> None:
        """Remove a private outcome."""
        with suppress(OSError):
            self.place(key, True).unlink(missing_ok=True)

    def drop_of(self, attempts: Container[str]) -> None:
        """Remove the private outcomes that these runs of a scan left, whichever they are."""
        for path in sorted((self.folder / PRIVATE).glob("*/*")):
            if path.name.endswith(PART):
                run = path.name.removesuffix(PART).partition(".")[2]
            else:
                header = glanced(path)
                run = "" if header is None else header.attempt
            if run in attempts:
                with suppress(OSError):
                    path.unlink()

    def claim(self, key: str, claim: Claim) -> bool:
        """Say that somebody is at a piece of work from now on; False where somebody else is.

        Where the folder takes no claims (its disk is full, say) everybody may compute everything.
        """
        for _ in range(2):
            turns = self._turns(key)
            if not all(map(self._left, turns.values())):
                return False
            turn = max(turns, default=-1) + 1
            path = self.folder / CLAIMS / (f"{key}.{turn}" if turn else key)
            try:
                with created(path, private=True) as file:
                    file.write(json.dumps(asdict(claim)).encode())
                return self._is_mine(key, turn, path, claim.who)
            except FileExistsError:
                return False
            except FileNotFoundError:  # the folder was cleared
                with suppress(OSError):
                    make(path.parent, private=True)
            except OSError:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                return True
        return True

    def _is_mine(self, key: str, turn: int, path: Path, who: str) -> bool:
        """Look again once a claim is made: two that were made at once, on what each saw before, see each other now."""
        turns = self._turns(key)
        if max(turns, default=-1) == turn and all(self._left(turns[each]) for each in turns if each < turn):
            self._held[key] = who, path
            return True
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return False

    def beat(self, key: str) -> None:
        """Say that whoever claimed a piece of work is still at it."""
        turns = {} if key in self._held else self._turns(key)
        for path in [self._held[key][1]] if key in self._held else [turns[max(turns)]] if turns else []:
            with suppress(OSError):
                os.utime(path)

    def release(self, key: str, who: str) -> None:
        """Give a claim back, if it is still this participant's, and what the dead left whom it was taken over from."""
        if self._held.get(key, ("",))[0] == who:
            self._held.pop(key)
        turns = self._turns(key)
        mine = [turn for turn, path in turns.items() if (held := read_claim(path)) is not None and held.who == who]
        for turn in sorted(turns):
            if mine and turn <= max(mine):  # the own one last: until then nobody begins at the first turn again
                with suppress(OSError):
                    turns[turn].unlink(missing_ok=True)

    def claims(self, among: Collection[str] | None = None) -> dict[str, Claim]:
        """Return who is at which piece of work now, by its key; those left by the dead are not among them.

        `among` are the keys that are asked about: where many are at work, only their files are read.
        """
        found = {}
        for key, turns in sorted(self._all_turns().items()):
            if among is not None and key not in among:
                continue
            path = turns[max(turns)]
            held = read_claim(path)
            if held is not None and not self._left(path):
                found[key] = held
        return found

    def _turns(self, key: str) -> dict[int, Path]:
        """Return the claims of a key, by how often it was taken over."""
        return self._all_turns().get(key, {})

    def _all_turns(self) -> dict[str, dict[int, Path]]:
        found: dict[str, dict[int, Path]] = {}
        with suppress(OSError):
            for name in os.listdir(self.folder / CLAIMS):
                if parts := TURN.fullmatch(name):
                    found.setdefault(parts[1], {})[int(parts[2] or 0)] = self.folder / CLAIMS / name
        return found

    def _left(self, path: Path) -> bool:
        """Whether a claim is nobody's: its holder is dead (known of this machine's processes), silent, or gave it back.

        The file is opened, since only then a network's file system asks how old it is.
        """
        found = own.read(path, LONGEST)
        if found is None:  # somebody else's, or no file at all: it counts for as long as it shows signs of life
            try:
                return self._now() - path.lstat().st_mtime > STALE
            except FileNotFoundError:
                return True
            except OSError:
                return False
        held, changed = own.read_as(found[0], Claim), found[1]
        if held is not None and held.host == host() and not lives(held.pid):
            return True
        return self._now() - changed > STALE

    def _now(self) -> float:
        """Return the time by the clock that stamps this folder's files: another machine's may go differently."""
        if not self._ahead or not 0 <= time.monotonic() - self._ahead[1] <= CLOCK:
            path, stamped = self.folder / CLAIMS / f".now-{secrets.token_hex(4)}{HALF}", time.time()
            with suppress(OSError), created(path, private=True) as file:
                stamped = os.fstat(file.fileno()).st_mtime
            with suppress(OSError):
                path.unlink(missing_ok=True)
            self._ahead[:] = stamped - time.monotonic(), time.monotonic()
        return time.monotonic() + self._ahead[0]

    def tidy(self) -> None:
        """Remove claims that nobody gave back, long after they were left."""
        for turns in self._all_turns().values():
            for path in turns.values():
                with suppress(OSError):
                    if self._now() - path.stat().st_mtime > DAY:
                        path.unlink(missing_ok=True)

    def kept(self) -> Iterator[tuple[Path, bool]]:
        """Yield the file of every outcome, and whether it is private."""
        for name in (KEPT, PRIVATE):
            for path in sorted((self.folder / name).glob("*/*")):
                if len(path.name) == 64:
                    yield path, name == PRIVATE


def usual() -> Path:
    """Return the folder in which outcomes are kept where nobody names another."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "leakaudit"


def opened(folder: Path) -> Shelf:
    """Return the shelf in a folder, made where it is missing; raises UserError where nothing can be kept there."""
    try:
        make(folder, private=True)
        if not (folder / "CACHEDIR.TAG").exists():
            ignores = folder / ".gitignore"
            if ignores.exists() and own.text(ignores) != IGNORED:
                raise UserError(
                    "cannot keep anything in ",
                    Setting("cache", str(folder)),
                    ": it has a .gitignore of others, and what is private could be committed. Name a folder "
                    "of its own.",
                )
            write_atomically(ignores, IGNORED, private=True, follow=False)
            write_atomically(folder / "CACHEDIR.TAG", TAG, private=True, follow=False)
        for name in (KEPT, PRIVATE, CLAIMS, JOBS):
            make(folder / name, private=True)
        for each in [folder / CLAIMS, folder / JOBS]:
            sweep(each, "", OLD)
        for each in [*(folder / KEPT).glob("*"), *(folder / PRIVATE).glob("*")]:
            sweep(each, ".", OLD)
    except OSError as error:
        raise UserError("cannot keep anything in ", Setting("cache", str(folder)), f": {why(error)}.") from error
    shelf = Shelf(folder.absolute())  # code of users may go to another folder
    shelf.tidy()
    return shelf


def read_claim(path: Path) -> Claim | None:
    """Return a claim, None where there is none or it is half written."""
    found = own.read(path, LONGEST)
    return None if found is None else own.read_as(found[0], Claim)


def lives(pid: int) -> bool:
    """Whether a process of this machine is alive."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    state = own.text(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return not state or state[0] != "Z"  # dead, and not yet waited for
