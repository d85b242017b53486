"""What a scan left in its folder and in its cache, however it ended: looked at by `benchmarks.torture`."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from leakaudit.errors import UserError
from leakaudit.files.folder import GATE, REPORT, RESULT
from leakaudit.files.writing import HALF, OLD
from leakaudit.reports.html import render
from leakaudit.result.rules import WEAKENED
from leakaudit.result.schema import AuditResult, from_json, to_json
from leakaudit.units.packing import Unreadable, header_of
from leakaudit.units.shelf import CLAIMS, JOBS, PRIVATE, Shelf

FINISHED = re.compile(r"^(\S+): (\S+)  .*(?:identified|strength)", re.MULTILINE)  # what a scan says of a piece
FILES = (RESULT, REPORT, GATE)


@dataclass(frozen=True)
class Outcome:
    """A file of the cache."""

    private: bool
    work: str  # empty where it cannot be read
    seconds: float
    state: tuple[int, int, str]  # time of change, number and SHA-256: another one has another


@dataclass(frozen=True)
class Before:
    """What stood there before a scan began."""

    files: Mapping[str, str]  # of the output folder
    outcomes: Mapping[str, Outcome]
    job: bool  # there was a scan to go on with


def look(folder: Path) -> Before:
    """Return what stands in a scan's `folder`: its output in `out`, its cache in `cache`."""
    out, cache = folder / "out", folder / "cache"
    files = {name: (out / name).read_text() for name in FILES if (out / name).is_file()}
    return Before(files, dict(outcomes(cache)), any((cache / JOBS).glob("*.json")))


def outcomes(cache: Path) -> Iterator[tuple[str, Outcome]]:
    """Yield every outcome of a cache by its key."""
    for path, private in Shelf(cache).kept():
        try:
            data, found = path.read_bytes(), path.stat()
        except FileNotFoundError:  # somebody is still at it
            continue
        try:
            header, _ = header_of(data, path.name)
            work, seconds = f"{header.kind}: {header.work}", header.seconds
        except Unreadable:
            work, seconds = "", 0.0
        state = found.st_mtime_ns, found.st_ino, hashlib.sha256(data).hexdigest()
        yield path.name, Outcome(private, work, seconds, state)


def age(folder: Path) -> None:
    """Let what is half written be as old as it must be for the next scan to take it away."""
    for path in folder.rglob(f"*{HALF}"):
        found = path.stat()
        os.utime(path, (found.st_atime, found.st_mtime - 2 * OLD))


def read(path: Path) -> tuple[AuditResult | None, list[str]]:
    """Return a result, None where there is none, and what is wrong with it."""
    if not path.exists():
        return None, []
    try:
        return from_json(path.read_text(), path.name), []
    except UserError as error:
        return None, [f"half: {error}"]


def apart_from_times(result: AuditResult) -> str:
    """Return a result's bytes without the date and the timings: all that two equal scans may differ in."""
    return to_json(replace(result, made="", timings={}))


def after(folder: Path, before: Before, number: signal.Signals | None, code: int, told: str) -> list[str]:
    """Say what is wrong with what a scan left that was sent a signal, or none; `told` is what it printed."""
    out = folder / "out"
    now = look(folder)
    aside = {path.name: path.read_text() for path in sorted(folder.glob(".out.earlier/*/*")) if path.is_file()}
    began = any((out / name).exists() is False or now.files.get(name) != text for name, text in before.files.items())
    began = began or not before.files
    result, wrong = read(out / RESULT) if began else (None, [])
    finished = result is not None and result.complete
    wrong += code_of(number, code, began, finished)
    if began:
        wrong += [f"stale: {name}" for name, text in before.files.items() if now.files.get(name) == text]
        wrong += [f"lost: the earlier {name}" for name, text in before.files.items() if aside.get(name) != text]
        wrong += announced(told, result)
    if code >= 0 and result is not None and not (out / REPORT).exists():
        wrong.append("lost: the report")
    wrong += kept(before, now, finished and not now.job) + open_to_others(folder)
    if number != signal.SIGKILL:
        wrong += [f"half: {path.name}" for path in folder.rglob(f"*{HALF}")]
    return wrong


def code_of(number: signal.Signals | None, code: int, began: bool, finished: bool) -> list[str]:
    """Say where an exit code is none that such an end has."""
    by_signal = number is not None and code == -number  # before Python heard of it
    if number is not None and (code == 3 or (by_signal and (number == signal.SIGKILL or not began))):
        return []
    return [] if finished and code in (0, 1, 3) else [f"code: {code}"]


def announced(told: str, result: AuditResult | None) -> list[str]:
    """Say which pieces were announced as finished, and are not in the result."""
    if result is None:
        return [f"lost: {spec}: {attack}" for spec, attack in FINISHED.findall(told)]
    kept = {(row.spec, attack.name) for row in result.defenses for attack in row.attacks}
    kept |= {(r.spec, WEAKENED) for r in result.defenses if r.examined and r.examined.weakened.value is not None}
    return [f"lost: {spec}: {attack}" for spec, attack in FINISHED.findall(told) if (spec, attack) not in kept]


def kept(before: Before, now: Before, finished: bool) -> list[str]:
    """Say which outcomes are lost, were computed again, or cannot be read; private ones go when a scan ends."""
    found = [f"half: the outcome {key}" for key, outcome in now.outcomes.items() if not outcome.work]
    for key, outcome in before.outcomes.items():
        there = now.outcomes.get(key)
        if there is None and not (finished and outcome.private):
            found.append(f"lost: {outcome.work}")
        elif there is not None and there.state != outcome.state:
            found.append(f"again: {outcome.work}")
    return found


def open_to_others(folder: Path) -> list[str]:
    """Say which files of a scan somebody else could read."""
    places = [folder / "cache", folder / "out"]
    every = [path for place in places for path in (place, *place.rglob("*")) if path.exists()]
    return [f"open: {path.relative_to(folder)}" for path in every if path.lstat().st_mode & 0o077]


def at_the_end(folder: Path, whole: str, code: int, usual: int) -> list[str]:
    """Say what is wrong once a scan was resumed to its end; `whole` is the result of one that was never killed."""
    cache, out = folder / "cache", folder / "out"
    result, found = read(out / RESULT)
    if result is None:
        return [*found, "lost: the result"]
    if apart_from_times(result) != whole:
        found.append("bytes: result.json")
    if (out / REPORT).read_text() != render(result, None):
        found.append("bytes: report.html")
    if code != usual:
        found.append(f"code: {code}, not {usual}")
    left = [p for name in (PRIVATE, CLAIMS, JOBS) for p in (cache / name).rglob("*") if p.is_file()]
    return found + [f"left: {path.relative_to(folder)}" for path in left]
