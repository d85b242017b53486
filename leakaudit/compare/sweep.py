"""The scans of a sweep beside each other: what each model leaks at what accuracy under every defense and strength.

The scans of one model at one moment of training share their control, and are read as one result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from leakaudit.compare.advice import Advice, among, loss_limit
from leakaudit.compare.comparable import differences
from leakaudit.judge.ranking import worst
from leakaudit.result.rules import worst_verdict
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Value, Verdict, digest
from leakaudit.result.sweep import Front, Row, State, Sweep
from leakaudit.version import __version__

NOT = Estimate(reason="it was not audited")


@dataclass(frozen=True)
class Entry:
    """One scan of a sweep, and what came of it so far."""

    name: str  # of its folder
    model: str
    stage: str  # empty: the weights as given
    spec: str  # of its defense; empty: the undefended model alone
    line: str = ""  # the same for those that are strengths of one defense
    varied: Mapping[str, Value] = field(default_factory=dict)
    result: AuditResult | None = None
    trouble: str = ""  # why it could not be audited
    digest: str = ""  # of its result.json

    @property
    def state(self) -> State:
        """How far it is."""
        if self.result is not None:
            return "audited" if self.result.complete else "interrupted"
        return "failed" if self.trouble else "waiting"

    def row(self) -> DefenseResult | None:
        """Return the row of its defense, None where there is none."""
        rows = self.result.defenses if self.result is not None else ()
        return next((row for row in rows if row.spec == (self.spec or "none")), None)


@dataclass(frozen=True)
class Frontier:
    """The scans of one model at one moment of training."""

    model: str
    stage: str
    entries: tuple[Entry, ...]
    whole: AuditResult | None = None  # the control and every defense that was audited; None: nothing was
    advice: Advice | None = None
    best: frozenset[str] = frozenset()  # specs, the control's among them, that none surpasses
    apart: tuple[tuple[str, str], ...] = ()  # names of scans that cannot be compared with the first, and why


def ended(entry: Entry, result: AuditResult) -> Entry:
    """Return an entry with its result, which is kept without pictures: a sweep may be of many."""
    bare = tuple(replace(d, attacks=tuple(replace(a, gallery=()) for a in d.attacks)) for d in result.defenses)
    return replace(entry, result=replace(result, defenses=bare), digest=digest(result))


def frontiers(entries: Sequence[Entry]) -> tuple[Frontier, ...]:
    """Return the frontiers of a sweep in the order of its scans."""
    places = dict.fromkeys((entry.model, entry.stage) for entry in entries)
    return tuple(
        _frontier(model, stage, [e for e in entries if (e.model, e.stage) == (model, stage)]) for model, stage in places
    )


def _frontier(model: str, stage: str, entries: list[Entry]) -> Frontier:
    audited = [(e, e.result, row) for e in entries if e.result is not None and (row := e.row()) is not None]
    if not audited:
        return Frontier(model, stage, tuple(entries))
    first = audited[0][1]
    unlike = {e.name: "; ".join(differences(first, result)) for e, result, _ in audited[1:]}
    apart = tuple((name, why) for name, why in unlike.items() if why)
    alike = [(result, row) for e, result, row in audited if not unlike.get(e.name) and row.spec != "none"]
    control = first.control()
    rows = (*([control] if control else []), *(row for _, row in alike))
    whole = replace(
        first,
        defenses=rows,
        verdict=worst_verdict(row.verdict for row in rows[1:] or rows),
        complete=all(e.state == "audited" for e in entries),
    )
    return Frontier(model, stage, tuple(entries), whole, among(whole, alike), best(rows), apart)


def best(rows: Sequence[DefenseResult]) -> frozenset[str]:
    """Return the specs that no other surpasses: none leaks less at no less accuracy, or is better and leaks no more.

    Compared are the numbers as measured; of what was not measured nothing is said.
    """
    found: dict[str, tuple[float, float]] = {}
    for row in rows:
        attack = worst(row)
        leak = attack.identification.value if attack else None
        if leak is not None and row.accuracy.value is not None:
            found[row.spec] = leak, row.accuracy.value
    return frozenset(
        spec
        for spec, (leak, right) in found.items()
        if not any(a <= leak and b >= right and (a, b) != (leak, right) for a, b in found.values())
    )


def lines(frontier: Frontier) -> tuple[tuple[str, ...], ...]:
    """Return the specs of every defense whose strengths were audited at more than one, in the order of the sweep."""
    there = {row.spec for row in frontier.whole.defenses} if frontier.whole else set()
    found: dict[str, list[str]] = {}
    for entry in frontier.entries:
        if entry.varied and entry.spec in there:
            found.setdefault(entry.line, []).append(entry.spec)
    return tuple(tuple(specs) for specs in found.values() if len(specs) > 1)


def verdict(entries: Sequence[Entry]) -> Verdict | None:
    """Return the worst verdict of a sweep: a scan that was not audited settles nothing. None where none was audited."""
    if all(entry.result is None for entry in entries):
        return None
    return worst_verdict(
        "inconclusive"
        if e.result is None or (e.state == "interrupted" and e.result.verdict == "pass")
        else e.result.verdict
        for e in entries
    )


def values(source: str, found: Sequence[Frontier]) -> Sweep:
    """Return what a sweep found, to be written down."""
    entries = [entry for frontier in found for entry in frontier.entries]
    return Sweep(source, verdict(entries), tuple(map(_values, found)), __version__)


def _values(frontier: Frontier) -> Front:
    whole = frontier.whole
    control = whole.control() if whole else None
    return Front(
        model=frontier.model,
        stage=frontier.stage,
        measure=whole.measure if whole else "accuracy",
        max_identification=whole.max_identification if whole else None,
        max_accuracy_loss=loss_limit(whole) if whole else None,
        control=leak(control),
        control_accuracy=control.accuracy if control else NOT,
        advice=frontier.advice.sentences if frontier.advice else (),
        rows=tuple(_row(frontier, entry) for entry in frontier.entries),
    )


def _row(frontier: Frontier, entry: Entry) -> Row:
    row = entry.row()
    if row is None or entry.result is None:
        return Row(entry.name, entry.spec or "none", dict(entry.varied), entry.state, entry.trouble)
    options = frontier.advice.options if frontier.advice else ()
    option = next((each for each in options if each.spec == row.spec), None)
    attack = worst(row)
    return Row(
        name=entry.name,
        defense=row.spec,
        varied=dict(entry.varied),
        state=entry.state,
        verdict=entry.result.verdict,
        attack=attack.name if attack else "",
        identification=leak(row),
        accuracy=row.accuracy,
        loss=option.loss if option else Estimate(reason="nothing is compared with it"),
        keeps=option.both if option else None,
        best=row.spec in frontier.best,
        digest=entry.digest,
    )


def leak(row: DefenseResult | None) -> Estimate:
    """Return what the worst attack on a defense identifies."""
    attack = worst(row) if row is not None else None
    return attack.identification if attack else replace(NOT, reason="no attack was scored") if row else NOT
