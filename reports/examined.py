"""What the audit found out by trying, in words: what HTML, Markdown and the terminal share.

Nothing is said of results from before anything was tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leakaudit.judge.exposed import exact
from leakaudit.judge.words import unfinished
from leakaudit.reports import view
from leakaudit.result.numbers import DASH, interval, number, percent
from leakaudit.result.schema import AuditResult, Controls, DefenseResult, Estimate, Examined

CLASSES = 3  # named one by one, the most exposed first; of more the range is told
CANARY = {
    "fail": "found, as it must be",
    "pass": "not found, so that nothing that was not found here means anything",
    "inconclusive": "not decided, so that nothing that was not found here means anything",
}


@dataclass(frozen=True)
class Told:
    """What is told in a cell, and below it what it stands beside."""

    text: str
    under: str = ""


@dataclass(frozen=True)
class Tried:
    """What was found out about one defense by trying it, in the order of `COLUMNS`."""

    key: str
    spec: str
    changes: Told
    works: Told  # at which strength attacks do
    union: Told
    tenth: Told
    classes: Told
    exact: Told


COLUMNS = (
    "Seen to change",
    "Attacks work at",
    "Identified by any attack",
    "Most exposed tenth",
    "By class",
    "Exact records",
)
FIELDS = ("changes", "works", "union", "tenth", "classes", "exact")  # of `Tried`, in that order


def columns(result: AuditResult) -> tuple[str, ...]:
    """Return the headings of `COLUMNS` as the result's labels have them: label groups are no classes."""
    if result.chance_labels is None:
        return COLUMNS
    return tuple("By label group" if heading == "By class" else heading for heading in COLUMNS)


def tried(result: AuditResult) -> tuple[Tried, ...]:
    """Return what was found out about each defense that was examined."""
    grouped = result.chance_labels is not None
    return tuple(_tried(view.key(i), d, d.examined, grouped) for i, d in enumerate(result.defenses) if d.examined)


def controls(result: AuditResult) -> tuple[tuple[str, str], ...]:
    """Return what shows that the audit could have found a leak, by name: the canary, the test, what was weakened."""
    return _controls(result.controls) if result.controls else ()


def in_brief(defense: DefenseResult) -> str:
    """Return in a line for a terminal what was found out about a defense; empty where nothing was tried."""
    e = defense.examined
    if e is None:
        return ""
    row = _tried("", defense, e)
    parts = [f"seen to change {row.changes.text}" + (f" ({row.changes.under})" if row.changes.under else "")]
    if e.union.value is not None:
        parts.append(f"identified by any attack {row.union.text}, {row.union.under}")
    if e.tenth.value is not None:
        parts.append(f"of the most exposed tenth {percent(e.tenth.value)}")
    if row.exact.text != "none":
        parts.append(f"exactly: {row.exact.text}")
    return f"Tried: {'; '.join(parts)}."


def _tried(key: str, defense: DefenseResult, e: Examined, grouped: bool = False) -> Tried:
    independent = {
        True: "all that is shared is the same whichever record"
        + (" with a near label it is of" if grouped else " of a class it is of"),
        False: "what is shared depends on the record",
        None: "",
    }[e.independent]
    return Tried(
        key=key,
        spec=defense.spec,
        changes=Told(", ".join(e.changes) or "nothing", independent),
        works=_works(e),
        union=_share(e.union, f"guessing as often: {percent(e.union_guess)}"),
        tenth=_share(e.tenth, f"of {e.tenth.n} record{'' if e.tenth.n == 1 else 's'}"),
        classes=_by_class(e.by_class, grouped),
        exact=_exactly(defense),
    )


def _share(estimate: Estimate, under: str) -> Told:
    if estimate.value is None:
        return Told(DASH, estimate.reason or "")
    ends = interval(estimate)
    return Told(f"{percent(estimate.value)}{f' ({ends})' if ends else ''}", under)


def _works(e: Examined) -> Told:
    """Return at which share of the defense's strength an attack was seen to work."""
    seen = _share(e.weakened, "")
    found = f"identified {seen.text}" if e.weakened.value is not None else seen.under
    if e.strength is not None:
        return Told("its full strength" if e.strength >= 1 else f"{percent(e.strength)} of its strength", found)
    return Told("no strength tried", found) if found and e.changes else Told(DASH)


def _by_class(rates: Mapping[str, Estimate], grouped: bool = False) -> Told:
    """Return the classes whose records were identified most often, and the range of the others."""
    known = [(name, e.value, e.n) for name, e in rates.items() if e.value is not None]
    known.sort(key=lambda row: (-row[1], row[0]))
    if not known:
        return Told(DASH)
    first, rest = known[:CLASSES], known[CLASSES:]
    told = ", ".join(f"{name} {percent(value)} of {n}" for name, value, n in first)
    if not rest:
        return Told(told)
    low, high = percent(rest[-1][1]), percent(rest[0][1])
    spread = low if low == high else f"{low} to {high}"
    one, many = ("label group", "label groups") if grouped else ("class", "classes")
    return Told(told, f"{len(rest)} other {one if len(rest) == 1 else many}: {spread}")


def _exactly(defense: DefenseResult) -> Told:
    """Return how many records were rebuilt, and how many confirmed in a line-up, beyond doubt."""
    found = exact(defense.attacks)
    counts = [(len(found.rebuilt), "rebuilt"), (len(found.confirmed), "confirmed")]
    told = ", ".join(f"{n} {how}" for n, how in counts if n)
    handed = len(found.handed)
    more = f"{handed} {'more' if told else 'only'} by who is handed the replaced records" if handed else ""
    return Told(told or "none", more)


def _controls(c: Controls) -> tuple[tuple[str, str], ...]:
    rows = []
    if c.canary_ended:
        rows.append(("Planted leak", f"{unfinished(c.canary_ended)}; what was not found here counts for nothing."))
    elif c.canary is not None:
        told = f": {c.canary_told.rstrip('.')}" if c.canary_told else ""
        rows.append(("Planted leak", f"{CANARY[c.canary]}{told}."))
    if c.auxiliary.value is not None or c.auxiliary.reason:
        e = c.auxiliary
        ends = "" if e.low is None or e.high is None else f" ({number(e.low, 2)} to {number(e.high, 2)})"
        auc = DASH if e.value is None else f"AUC {number(e.value, 2)}{ends}; 0.5 is no difference"
        rows.append(("Adversary’s records told from private ones", auc + (f" ({e.reason})" if e.reason else "") + "."))
    rows += [("Given less effort than the battery", f"{', '.join(c.lowered)}.")] if c.lowered else []
    rows += [("Left out of the battery", f"{', '.join(c.left_out)}.")] if c.left_out else []
    return tuple(rows)
