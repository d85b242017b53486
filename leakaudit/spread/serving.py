"""What `leakaudit worker` does: take part in one unfinished scan after another, each in a process of its own.

So the code of one scan's model is not another's, and whatever ends the one (a model.py that does not load here, too
little memory, a crash) leaves the others alone.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from leakaudit.spread.glance import Glance, glances, leave
from leakaudit.units.shelf import Shelf
from leakaudit.work import ends

LOOK = 1.0  # seconds between two looks for a scan to take part in, or whether it is over
GRACE = 10.0  # seconds that a participant is given to end by itself
COMMAND = "import sys; sys.argv[0] = 'leakaudit'; from leakaudit.cli import main; main()"
INTERRUPTED = 3  # the exit code of a participant that was interrupted


@dataclass
class Served:
    """What came of it."""

    scans: int = 0  # that were taken part in until every piece was known
    failed: int = 0  # that could not be
    worst: int = 0  # the highest exit code of those


def there(folder: Path, patience: float) -> bool:
    """Wait until a folder is there, at most so many seconds; return whether it is. One of other things is none."""
    until = time.monotonic() + patience
    while not (found := _may_be_shelf(folder)) and time.monotonic() < until:
        ends.check()
        time.sleep(LOOK)
    return found


def _may_be_shelf(folder: Path) -> bool:
    with suppress(OSError):
        return (folder / "CACHEDIR.TAG").exists() or next(folder.iterdir(), None) is None
    return False


def serve(shelf: Shelf, only: str | None, patience: float, say: Callable[[str], None], *, quiet: bool) -> Served:
    """Take part in the scans of a shelf, in that with the id `only` where one is named, until there is none.

    It waits `patience` seconds for one. A scan is tried once; begun again, it is another one. What cannot be taken part
    in is said, here and to whoever waits for it.
    """
    found, done = Served(), set[tuple[str, str]]()
    until = time.monotonic() + patience
    while True:
        open_ = [g for g in glances(shelf) if (g.id, g.attempt) not in done and only in (None, g.id)]
        scan = secrets.choice(open_) if open_ else None  # the oldest would have all workers crowd into one scan
        if scan is None:
            if time.monotonic() >= until or (only is not None and done):
                return found
            ends.check()
            time.sleep(min(LOOK, max(0.0, until - time.monotonic())))
            continue
        done.add((scan.id, scan.attempt))
        code, told = (2, scan.refusal) if scan.refusal else _taken_part(shelf, scan, say, quiet=quiet)
        if told:
            say(told)
            leave(shelf, scan, told)
        found.scans += code == 0
        found.failed += code != 0
        found.worst = max(found.worst, code)
        until = time.monotonic() + patience


def _taken_part(shelf: Shelf, scan: Glance, say: Callable[[str], None], *, quiet: bool) -> tuple[int, str]:
    """Take part in one scan; return the exit code, and what is to be said of it that was not said there."""
    say(f"taking part in the scan of {scan.request.target}")
    words = ["worker", str(shelf.folder), "--job", scan.id, "--tied", *(["--quiet"] if quiet else [])]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *words], stdin=subprocess.PIPE)  # it ends as this does
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
    if code < 0:
        with suppress(ValueError):
            name, why = signal.Signals(-code).name, ": is there too little memory?" * (-code == signal.SIGKILL)
            return 2, f"what took part in the scan of {scan.request.target} was ended by {name}{why or '.'}"
    return (abs(code), "") if code != INTERRUPTED else (2, f"the scan of {scan.request.target} was interrupted here.")


@contextmanager
def until_over(path: Path) -> Iterator[None]:
    """Interrupt what is done within when the job in this file is finished: then nobody needs it any more."""
    over, ended = threading.Event(), threading.Event()

    def watch() -> None:
        gone = 0
        while not ended.wait(LOOK):
            gone = 0 if path.exists() else gone + 1
            if gone == 3:  # a network's file system may not see for a moment what is replaced
                over.set()
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        if not over.is_set():
            raise
        ends.took()
    finally:
        ended.set()


def tie(code: int) -> None:
    """End with whoever holds the other end of standard input: a participant must not outlive its scan."""

    def wait() -> None:
        with suppress(OSError):  # not the buffered one: Python ends it while this still waits
            while os.read(0, 1):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(code)

    threading.Thread(target=wait, daemon=True).start()
