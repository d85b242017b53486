"""What each piece of an audit took, read off a result's timings."""

from __future__ import annotations

from dataclasses import dataclass

from leakaudit.result import numbers
from leakaudit.result.rules import ACCURACY, FIT, OTHER_WORK, UPDATES, WEAKENED
from leakaudit.result.schema import AuditResult
from leakaudit.result.tasks import spoken

DEAREST = 3  # pieces that are named where there is room for a line


@dataclass(frozen=True)
class Costs:
    """Seconds by piece and defense, in the order they were done; a cell is None where a defense has no such piece."""

    specs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    sums: tuple[float, ...]
    total: float | None  # of the whole audit, with what comes before the first piece


def costs(result: AuditResult) -> Costs | None:
    """Return what each piece took; None where a result does not say."""
    specs = tuple(defense.spec for defense in result.defenses)
    timed = {spec: _of(result, spec) for spec in specs}
    done = [FIT, UPDATES, *(a.name for d in result.defenses for a in d.attacks), WEAKENED, ACCURACY]  # in this order
    names = [name for name in dict.fromkeys(done) if any(name in of for of in timed.values())]
    if not names:
        return None
    called = {ACCURACY: spoken(ACCURACY, result.measure)}
    rows = tuple((called.get(name, name), tuple(timed[spec].get(name) for spec in specs)) for name in names)
    sums = tuple(sum(timed[spec].values()) for spec in specs)
    return Costs(specs, rows, sums, result.timings.get("total"))


def in_brief(result: AuditResult) -> str:
    """Return what an audit took and its dearest pieces, in a sentence; empty where a result does not say."""
    found = costs(result)
    if found is None or found.total is None:
        return ""
    pieces = [
        (s, f"{name} on {spec}") for name, row in found.rows for spec, s in zip(found.specs, row, strict=True) if s
    ]
    dearest = sorted(pieces, key=lambda piece: -piece[0])[:DEAREST]
    named = ", ".join(f"{what} {numbers.clock(seconds)}" for seconds, what in dearest if seconds >= 1)
    return f"Took {numbers.clock(found.total)}" + (f"; most for {named}." if named else ".")


def others(result: AuditResult) -> dict[str, float]:
    """Return the timings that are of no piece: what no table of them shows."""
    told = {f"{d.spec}: {name}" for d in result.defenses for name in _of(result, d.spec)} | {"total"}
    return {name: seconds for name, seconds in result.timings.items() if name not in told}


def _of(result: AuditResult, spec: str) -> dict[str, float]:
    """Return the seconds of a defense's pieces by name. A spec may hold what stands between it and the name."""
    known = {a.name for d in result.defenses if d.spec == spec for a in d.attacks} | set(OTHER_WORK)
    keys = {f"{spec}: {name}": name for name in known}
    return {keys[key]: seconds for key, seconds in result.timings.items() if key in keys}
