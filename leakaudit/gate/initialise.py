"""What `leakaudit init` writes: `[tool.leakaudit]` with thresholds that a first scan supports, and the reasons beside.

No threshold is looser than the scan's own limit on identification, and none is tighter than the bound of the 95 %
interval that was measured: what was not shown is not asserted, and what leaks is not waved through.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from leakaudit.compare.changes import changes
from leakaudit.errors import UserError
from leakaudit.files.tomlfile import parsed
from leakaudit.gate.assertions import PRESETS, Rule, parse
from leakaudit.gate.decision import gate
from leakaudit.gate.pyproject import toml
from leakaudit.gate.thresholds import accuracy_of, judge_rule
from leakaudit.result.numbers import decibels, learned, lost, percent
from leakaudit.result.outcome import Outcome
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import judged, resolution
from leakaudit.result.schema import AuditResult, DefenseResult
from leakaudit.result.scores import by_measure
from leakaudit.stats.intervals import rate, records_needed
from leakaudit.stats.paired import runs_needed

BORNE = 2  # records that may be identified by chance without the gate failing
STEPS = 20  # shares are rounded to five points, to the looser side
SEEDS = 10  # more training runs than this are not written into anybody's build
LEAST_SEEDS = 3  # fewer cannot be compared with a baseline


@dataclass(frozen=True)
class Start:
    """What to write, and what the gate says of the first scan by it."""

    block: str  # TOML
    outcome: Outcome  # of the defenses that it names
    whole: Outcome  # of all that the first scan holds, as the gate judges it
    defenses: tuple[str, ...]
    records: int
    left: tuple[str, ...] = ()  # defenses that were scanned and are not named
    notes: tuple[str, ...] = ()  # what differs from the first scan, a sentence each


@dataclass(frozen=True)
class Training:
    """How many training runs each defense gets, and whether accuracy may fail a build against a baseline."""

    seeds: int | None = None  # None: as many as the first scan
    why: str = ""  # of `seeds`
    open: tuple[str, ...] = field(default=())  # why so few runs do not settle it, by defense


def start(result: AuditResult, options: Mapping[str, Any], today: dt.date) -> Start:
    """Derive the configuration from a finished scan. `options` are further ones of `scan` to keep, by long name.

    Raises UserError where the result holds nothing to derive it from.
    """
    if not result.complete:
        raise UserError("the scan was interrupted, so its numbers are not whole: scan again to the end, then init.")
    rows = _kept(result)
    if not rows:
        raise UserError("no defense was scored in this result: scan with one (-d obscure), then init.")
    specs = tuple(d.spec for d in rows)
    records = _records(result, rows)
    training = _training(result, rows)
    runs = {} if training.seeds is None else {"seeds": training.seeds}
    budget, of_budget = _budget(result, str(options.get("budget", "")), records, training)
    timed = {key: budget if key == "budget" else value for key, value in options.items() if key != "budget" or budget}
    scan = {"defense": list(specs), "records": records, **timed, **runs}
    lines = [
        "[tool.leakaudit]",
        "# Written by `leakaudit init`; the numbers in comments are the first scan's. All of it is yours to change.",
    ]
    left = tuple(d.spec for d in judged(result) if d.spec not in specs)
    if left:
        lines.append(f"# Scanned as well, but not private enough to be gated: {_words(', '.join(left))}.")
    before = result.settings.get("records")
    if isinstance(before, int) and records > before:
        lines.append(
            f"# More than the {before} scanned first: so many bear {BORNE} identified by chance at the limit below."
        )
    lines += [f"# {why}" for why in (training.why, of_budget) if why]
    lines += [f"{key} = {toml(value)}" for key, value in scan.items()]
    entries = [*_identification(result, rows), *_utility(result, rows), *_psnr(result, rows)]
    lines += [
        "",
        "[tool.leakaudit.assert]",
        'preset = "recommended" # with --baseline it fails what got clearly worse, too; or "strict"',
        *entries,
        *_regression(training),
        "",
        "# To accept a failing check for a while. It is shown in every report, and fails again after its last day.",
        "# [[tool.leakaudit.waiver]]",
        '# rule = "identification"',
        f"# defense = {toml(specs[0])}",
        '# reason = "why this is acceptable, and what is done about it"',
        f"# expires = {(today + dt.timedelta(days=90)).isoformat()}",
        '# by = "who decided"',
    ]
    block = "\n".join(lines) + "\n"
    asked = parsed(block, "the table")["tool"]["leakaudit"]["assert"]  # what is written, read back as the gate will
    kept = replace(result, defenses=tuple(d for d in result.defenses if d.spec in specs or d.spec == "none"))
    of_records = f"{records} records, not the {before} of this scan: the next one cannot be compared with it."
    notes = (_stricter(result, rows), of_records if records != before else "", training.why, of_budget, *training.open)
    said, whole = (gate(each, parse(asked), today=today) for each in (kept, result))
    return Start(block, said, whole, specs, records, left, tuple(filter(None, notes)))


def _kept(result: AuditResult) -> list[DefenseResult]:
    """Return the defenses to gate: those that passed, else those that are undecided, else all that were scored."""
    scored = [d for d in judged(result) if any(a.identification.value is not None for a in d.attacks)]
    limit = result.max_identification
    return [d for d in scored if _upper(d) <= limit] or [d for d in scored if d.verdict != "fail"] or scored


def _upper(defense: DefenseResult) -> float:
    """Return the highest bound of any attack on identification, the one handed the replaced records included.

    It is 1 where attacks were skipped: nobody knows what they would have found.
    """
    if any(a.settled_by for a in defense.attacks):
        return 1.0
    scored = [a.identification for a in defense.attacks if a.kind != "labels" and a.identification.value is not None]
    return max((1.0 if e.high is None else e.high for e in scored), default=1.0)


def _records(result: AuditResult, rows: Sequence[DefenseResult]) -> int:
    """Return how many records bear `BORNE` chance hits and decide a comparison with a baseline, if there are so many.

    With fewer, one lucky guess of any attack turns a pass into an open question and fails somebody's build.
    """
    before, batch, private = (
        result.settings.get("records"),
        result.settings.get("batch_size"),
        result.target.get("private_records"),
    )
    size = batch if isinstance(batch, int) and batch > 0 else 1
    wanted = [before if isinstance(before, int) else 16, bearing(_limit(result, rows)[0])]
    detect = next((r.detect for r in PRESETS["recommended"].regressions if r.metric == "identification"), None)
    if detect is not None:
        specs = {d.spec for d in rows}
        wanted += [
            c.needed or 0
            for c in changes(result, result, detect)
            if c.defense in specs and c.metric in ("identification", "bound")
        ]
    most = max(wanted)
    if isinstance(private, int) and private < most:
        most = max(wanted[0], private // size * size)
    return -(-most // size) * size


def _training(result: AuditResult, rows: Sequence[DefenseResult]) -> Training:
    """Return how many training runs let the gate rule out the loss of accuracy that the preset asks about.

    Half of the interval of a change is kept within half of that loss, so that chance alone seldom leaves it open; the
    spread is the one measured.
    """
    detect = next((r.detect for r in PRESETS["recommended"].regressions if r.metric == "accuracy"), None)
    trained = [d for d in rows if d.accuracies]
    if detect is None or not trained:
        return Training()
    had = min(len(d.accuracies) for d in trained)
    least = resolution(result)
    needed = {d.spec: runs_needed(d.accuracies, d.accuracies, detect / 2, least, SEEDS) for d in trained}
    loss = f"a loss of {lost(detect, result.measure)} against a baseline"
    unsettled = [
        f"{_words(d.spec)}: {SEEDS} training runs would not rule out {loss} at the spread measured, so it only warns."
        if len(d.accuracies) > 1
        else f"{_words(d.spec)}: one training run shows no spread, so {loss} only warns: scan again, then init --force."
        for d in trained
        if needed[d.spec] is None
    ]
    wanted = max([LEAST_SEEDS, *(n for n in needed.values() if n is not None)])
    if wanted <= had:
        return Training(open=tuple(unsettled))
    why = "fewer cannot be compared" if wanted == LEAST_SEEDS else f"that many rule out {loss} at the spread measured"
    return Training(wanted, f"{wanted} training runs of each defense, not {had}: {why}.", tuple(unsettled))


def _budget(result: AuditResult, old: str, records: int, training: Training) -> tuple[str, str]:
    """Return the time budget of the next scan, empty for none, and why it is not the `old` one, empty where it is.

    One that ended some of the work leaves the gate open for good. One that was enough grows with the work: nothing in a
    scan takes more than in proportion to its records, or to its training runs.
    """
    given = result.settings.get("budget")
    if not isinstance(given, int | float):
        return "", ""
    controls = result.controls
    ended = any(a.statuses.get("budget") for d in result.defenses for a in d.attacks)
    missing = any(not d.attacks or (result.settings.get("utility") and not d.accuracies) for d in result.defenses)
    if ended or missing or (controls is not None and controls.canary == "inconclusive"):
        return "", f"No budget: the {old} of this scan ended work early, and what is not measured leaves the gate open."
    before, had = result.settings.get("records"), min((len(d.accuracies) for d in result.defenses), default=0)
    grown = records / before if isinstance(before, int) and before > 0 else 1.0
    more = max(1.0, grown, (training.seeds or 0) / max(1, had))
    if more == 1.0:
        return old, ""
    new = f"{math.ceil(given * more / 60)}m"
    return new, f"A budget of {new}, not {old}: more records or training runs take longer."


def _stricter(result: AuditResult, rows: Sequence[DefenseResult]) -> str:
    """Return why the limit on identification is not the scan's, empty where it is."""
    limit = _limit(result, rows)[0]
    if limit == result.max_identification:
        return ""
    bound, scans = percent(max(map(_upper, rows))), percent(result.max_identification)
    return f"At most {percent(limit)} identified, not {scans}: what the worst attack may reach ({bound}), rounded up."


def _regression(training: Training) -> list[str]:
    """Return the table that lets accuracy only warn against a baseline, where too few runs could settle it."""
    if not training.open:
        return []
    told = [f"# {sentence}" for sentence in training.open]
    return ["", "[tool.leakaudit.assert.regression]", *told, 'accuracy = { level = "warn" }']


def _limit(result: AuditResult, rows: Sequence[DefenseResult]) -> tuple[float, bool]:
    """Return the threshold on identification, and whether what was measured stays within it."""
    upper = max(map(_upper, rows))
    return (
        (min(up(upper), result.max_identification), True)
        if upper <= result.max_identification
        else (result.max_identification, False)
    )


def _identification(result: AuditResult, rows: Sequence[DefenseResult]) -> list[str]:
    limit, within = _limit(result, rows)
    upper = max(map(_upper, rows))
    lines = [f"# The worst attack may have identified up to {percent(upper)} of the records (95% confidence)."]
    if not within:
        lines.append("# That is not asserted: this is the limit of the scan itself, which is not met yet.")
    return [*lines, f"identification = {{ max = {limit:.4g} }}"]


def _utility(result: AuditResult, rows: Sequence[DefenseResult]) -> list[str]:
    """Return what accuracy and its loss may be: judged today by the gate itself, so that its bounds are used."""
    floors, missing = [], []
    for row in rows:
        low = accuracy_of(result, row).low
        floor = down(low) if low is not None else 0.0
        if low is not None and floor > result.chance_accuracy:
            floors.append((row.spec, floor, f"{_words(row.spec)}: at least {learned(low, result.measure)}"))
        else:
            why = row.accuracy.reason or (
                "too few seeds for an interval" if low is None else "not clearly above chance"
            )
            missing.append(f"{_words(row.spec)}: {_words(why.rstrip('.'))}")
    lines = []
    if floors:
        lines.append(
            f"# Test {result.measure}, lower bound of its interval: {'; '.join(told for _, _, told in floors)}."
        )
        tables = [f"{{ min = {floor:.4g}, defense = {toml(spec)} }}" for spec, floor, _ in floors]
        lines.append(
            f"accuracy = {tables[0]}" if len(tables) == 1 else "accuracy = [\n  " + ",\n  ".join(tables) + ",\n]"
        )
    if missing:
        lines.append(f"# No least {result.measure} is asserted ({'; '.join(missing)}).")
    losses = [
        each.measured
        for row in rows
        for each in judge_rule(result, Rule("accuracy-loss", "max", 1.0, defense=row.spec))
    ]
    highs = [e.high for e in losses if e.high is not None]
    if losses and len(highs) == len(losses):
        most = min(1.0, max(1 / STEPS, up(max(highs))))
        score = by_measure("accuracy-loss", result.measure)
        lines.append(f"# {score.heading} against no defense: at most {score.write(max(max(highs), 0.0))}.")
        lines.append(f"accuracy-loss = {{ max = {most:.4g} }}")
    return lines


def _psnr(result: AuditResult, rows: Sequence[DefenseResult]) -> list[str]:
    """Return a warning for closer pictures, where the limit is met and every attack that draws some has an interval."""
    if not _limit(result, rows)[1]:
        return []
    highs = [a.psnr.high for d in rows for a in d.attacks if a.psnr.value is not None]
    known = [h for h in highs if h is not None]
    if not known or len(known) < len(highs):
        return []
    rule = Rule("psnr", "max", float(math.ceil(max(known))), "warn")
    if rule.threshold > 160 or any(
        j.status != "pass" for d in rows for j in judge_rule(result, replace(rule, defense=d.spec))
    ):
        return []
    return [
        f"# The closest pictures of any attack have a median of up to {decibels(max(known))}.",
        f'psnr = {{ max = {rule.threshold:g}, level = "warn" }}',
    ]


def bearing(limit: float) -> int:
    """Return the fewest records of which `BORNE` can be identified with an upper bound within the limit in (0, 1)."""
    fewest = records_needed(limit) or BORNE + 1
    return next(n for n in count(max(fewest, BORNE + 1)) if (rate(BORNE, n).high or 1.0) <= limit)


def up(share: float) -> float:
    """Return a share rounded up to a multiple of 1 / `STEPS`, so never below it."""
    steps = math.ceil(share * STEPS)
    return (steps + (steps / STEPS < share)) / STEPS


def down(share: float) -> float:
    """Return a share rounded down to a multiple of 1 / `STEPS`, so never above it."""
    steps = math.floor(share * STEPS)
    return (steps - (steps / STEPS > share)) / STEPS


def _words(text: str) -> str:
    return visible(text, 300)
