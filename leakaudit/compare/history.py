"""The stored results of a branch, in order: what leaked and what it cost from run to run, and where runs cannot be
compared.

The order is that of their paths, read as people read them (`run-2` before `run-10`): results of older versions have no
date, and a date is when a scan ran, not which state of the code is the later one.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from leakaudit.compare.changes import unlike_settings
from leakaudit.compare.comparable import differences, remarks
from leakaudit.errors import UserError
from leakaudit.judge.facts import facts_of
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Verdict, load
from leakaudit.result.specs import names
from leakaudit.result.tasks import MeasureName

MOST_RUNS = 2_000


@dataclass(frozen=True)
class Run:
    """One stored result, and how it stands to the one before."""

    number: int  # 1, 2, …
    path: str  # below the folder, with slashes
    result: AuditResult
    breaks: tuple[str, ...] = ()  # why it measured something else than the run before ("there")
    notes: tuple[str, ...] = ()  # other versions or another device than there

    @property
    def commit(self) -> str:
        """The commit of the audited code, empty where the scan knew none."""
        return str(self.result.environment.get("commit") or "")


@dataclass(frozen=True)
class Point:
    """One defense in one run. Estimates without a value say why there is none."""

    run: int
    spec: str  # as it was written in this run
    attack: str  # the worst that an adversary can run; empty where none was scored
    identification: Estimate
    accuracy: Estimate
    limit: float
    verdict: Verdict
    follows: bool  # the point before is of the run before, and comparable
    changed: str = ""  # what changed of the defense itself since its point before
    attacked: str = ""  # what changed of its attacks since then ("there"): its identification cannot be joined
    measure: MeasureName = "accuracy"  # what the accuracy is of


@dataclass(frozen=True)
class Series:
    """A defense over the runs; its settings may have changed."""

    name: str  # as the last run writes it
    points: tuple[Point, ...]


@dataclass(frozen=True)
class History:
    """All results below a folder."""

    folder: str  # its name
    runs: tuple[Run, ...]
    series: tuple[Series, ...]
    skipped: tuple[str, ...]  # JSON files that are no results


def read(folder: Path) -> History:
    """Read every result below a folder, hidden folders aside; UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that holds the results of a branch.")
    found: list[tuple[str, AuditResult]] = []
    skipped = []
    for place in sorted(_documents(folder), key=order):
        try:
            found.append((place, _without_pictures(load(folder / place))))
        except UserError:
            skipped.append(place)
    if not found:
        there = f"{len(skipped)} JSON files there are none" if len(skipped) > 1 else "a JSON file there is none"
        also = f" ({there})" if skipped else ""
        raise UserError(f"no result below {folder}{also}: keep the result.json of every run there, one folder each.")
    runs = []
    for i, (place, result) in enumerate(found):
        before = found[i - 1][1] if i else None
        breaks = differences(before, result) if before is not None else ()
        runs.append(Run(i + 1, place, result, breaks, remarks(before, result) if before is not None else ()))
    return History(folder.resolve().name or str(folder), tuple(runs), _series(runs), tuple(skipped))


def _documents(folder: Path) -> list[str]:
    """Return the JSON files below a folder; UserError where they are more than a branch has runs."""
    found: list[str] = []
    for top, below, held in os.walk(folder):  # a link to a folder is not followed, so that none leads in a circle
        below[:] = [name for name in below if not name.startswith(".")]
        paths = [Path(top, name) for name in held if name.endswith(".json") and not name.startswith(".")]
        found += [path.relative_to(folder).as_posix() for path in paths if path.is_file()]
        if len(found) > MOST_RUNS:
            raise UserError(f"{folder} holds more than {MOST_RUNS:,} JSON files: keep the last runs only.")
    return found


def _without_pictures(result: AuditResult) -> AuditResult:
    """Return a result without its galleries: a history draws none, and hundreds of them fill the memory."""
    defenses = (replace(d, attacks=tuple(replace(a, gallery=()) for a in d.attacks)) for d in result.defenses)
    return replace(result, defenses=tuple(defenses))


def order(path: str) -> tuple[tuple[tuple[tuple[int, int, str], ...], ...], str]:
    """Return the key of the natural order: part by part, numbers by their value, without regard to case."""
    parts = tuple(
        tuple(
            (0, int(piece), piece) if piece.isdecimal() else (1, 0, piece)
            for piece in re.split(r"(\d+)", part.casefold())
            if piece
        )
        for part in path.split("/")
    )
    return parts, path  # the path itself where only the case differs


def _series(runs: list[Run]) -> tuple[Series, ...]:
    """Return the defenses in the order in which they first appear, the control first."""
    alone = _once_each(runs)
    found: dict[tuple[str, ...], list[Point]] = {}
    last: dict[tuple[str, ...], tuple[int, DefenseResult]] = {}
    for run in runs:
        for defense in run.result.defenses:
            chain = names(defense.spec)
            key = chain if chain in alone else (defense.spec, "as written")
            before = last.get(key)
            changed = _changed(before[1], defense) if before else ""
            follows = before is not None and before[0] == run.number - 1 and not run.breaks and not changed
            attacked = _attacked(before[1], defense) if before and not run.breaks else ""
            attack = most_successful(a for a in defense.attacks if a.role != "bound")
            missing = Estimate(reason="no attack was scored")
            found.setdefault(key, []).append(
                Point(
                    run=run.number,
                    spec=defense.spec,
                    attack=attack.name if attack else "",
                    identification=attack.identification if attack else missing,
                    accuracy=defense.accuracy,
                    limit=run.result.max_identification,
                    verdict=defense.verdict,
                    follows=follows,
                    changed=changed,
                    attacked=attacked,
                    measure=run.result.measure,
                )
            )
            last[key] = run.number, defense
    control = ("none",)
    keys = sorted(found, key=lambda key: key != control)
    return tuple(Series(found[key][-1].spec, tuple(found[key])) for key in keys)


def _once_each(runs: list[Run]) -> set[tuple[str, ...]]:
    """Return the chains that no run has twice: another setting of those is a change of the same defense."""
    counts = [Counter(names(d.spec) for d in run.result.defenses) for run in runs]
    return {chain for count in counts for chain in count if all(other[chain] <= 1 for other in counts)}


def _changed(before: DefenseResult, after: DefenseResult) -> str:
    """Return which settings of a defense are others than before, empty where none is."""
    keys = sorted(before.settings.keys() | after.settings.keys())
    pairs = [(key, before.settings.get(key), after.settings.get(key)) for key in keys]
    told = [f"{key} was {was}, is {now}" for key, was, now in pairs if was != now]
    return "; ".join(told) or ("" if before.spec == after.spec else f"was {before.spec}")


def _attacked(before: DefenseResult, after: DefenseResult) -> str:
    """Return what of the attacks on a defense is not as before, so that what the worst one finds is not either.

    Settings that an attack tunes itself may differ. What cannot be run on the model any more leaks nothing by it.
    """
    there, here = _drawn(before), _drawn(after)
    told: list[str] = []
    aside: dict[str, list[str]] = {"there": [], "here": []}
    for name, was in there.items():
        now = here.get(name)
        if now is None:
            told.append(f"{name} is not run any more")
            continue
        if was.settled_by or now.settled_by:
            if bool(was.settled_by) is not bool(now.settled_by):
                aside["there" if was.settled_by else "here"].append(name)
            continue
        other = unlike_settings(was, now)
        if other:
            told.append(f"{name} ran with other settings ({other})")
        elif now.identification.n < was.identification.n and not facts_of(now).inapplicable:
            why = (now.reason or now.identification.reason or "no reason was recorded").rstrip(".")
            n, before_ = now.identification.n, was.identification.n
            told.append(f"{name} was scored on {n} record{'' if n == 1 else 's'}, on {before_} there ({why})")
    told += [f"{name} is new" for name in here if name not in there]
    told += [f"skipped {where}: {', '.join(names)}" for where, names in aside.items() if names]
    return "; ".join(told)


def _drawn(defense: DefenseResult) -> dict[str, AttackResult]:
    """Return the attacks of which the worst one is drawn."""
    return {a.name: a for a in defense.attacks if a.role != "bound" and a.kind != "labels"}
