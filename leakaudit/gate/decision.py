"""The gate: assertions on one result, and on what changed since a baseline, as one outcome with an exit code."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from glob import escape

from leakaudit.compare.changes import Change, changes, paired_defenses
from leakaudit.compare.comparable import differences, remarks
from leakaudit.errors import Setting, UserError
from leakaudit.gate.assertions import PRESETS, Assertions, RegressionRule, Rule
from leakaudit.gate.losses import judge_change
from leakaudit.gate.thresholds import deciding, judge_rule, uncontrolled, why_no_pass, without
from leakaudit.gate.waivers import in_force, names_attack, states
from leakaudit.judge.captured import UNSCORED, is_unscored
from leakaudit.judge.facts import facts_of
from leakaudit.judge.findings import MENDS, mend
from leakaudit.judge.verdict import SKIPPED
from leakaudit.judge.words import sentences
from leakaudit.result import dates
from leakaudit.result.outcome import Check, Outcome, WaiverState
from leakaudit.result.rules import SEVERITIES, judged
from leakaudit.result.schema import AuditResult, Finding, Mend, Severity, Verdict, Waiver, digest
from leakaudit.result.scores import SCORES
from leakaudit.stats.paired import holm


def gate(
    result: AuditResult,
    assertions: Assertions = PRESETS["recommended"],
    *,
    baseline: AuditResult | None = None,
    waivers: Sequence[Waiver] = (),
    today: dt.date | None = None,
    source: str = "result.json",
    baseline_source: str = "",
) -> Outcome:
    """Judge a result, and its change from `baseline` where one is given.

    The verdict is that of the checks of level `error` which no waiver in force covers: fail before inconclusive before
    pass; an expired waiver fails. `today` is the day waivers are judged on, by default the present one in UTC. Raises
    UserError where the baseline cannot be compared, naming what differs.
    """
    today = today or dates.today()
    rules = _rules(assertions, result)
    found = [_waived(result, rule, check, waivers, today) for rule in rules for check in judge_rule(result, rule)]
    rest = _findings(result, assertions.findings)
    if not result.complete:
        rest.append(_incomplete())
    notes: tuple[str, ...] = ()
    if baseline is not None:
        rest += _regressions(result, baseline, assertions.regressions, baseline_source)
        notes = (*remarks(baseline, result), *_renamed(result, baseline), *_unseen(result, baseline))
    rest = [_waived(result, None, check, waivers, today) for check in rest]
    checks = _unique([*found, *rest, *_unscored(result)])
    standing = states(waivers, checks, today)
    verdict, reasons = conclude(checks, standing)
    return Outcome(
        source=source,
        verdict=verdict,
        reasons=reasons,
        checks=tuple(checks),
        waivers=standing,
        date=today.isoformat(),
        result_digest=digest(result),
        baseline=baseline_source if baseline is not None else "",
        baseline_digest=digest(baseline) if baseline is not None else "",
        presets=assertions.presets,
        notes=notes,
        audited=result.made,
        leakaudit=str(result.environment.get("leakaudit") or ""),
        commit=dates.commit_of(result),
    )


def compare(
    result: AuditResult, baseline: AuditResult, source: str, detect: float | None = None
) -> tuple[tuple[Change, float | None], ...]:
    """Return every change with its p-value adjusted for their number; UserError where the two cannot be compared."""
    wrong = differences(baseline, result)
    if wrong:
        raise UserError(
            f"{source or 'the baseline'} cannot be compared with this result: {'; '.join(wrong)}. "
            "Give a baseline scanned with the same model shape, data, exposure and settings."
        )
    found = changes(baseline, result, detect)
    tested = [c for c in found if c.p is not None]
    adjusted = dict(zip(map(id, tested), holm([c.p or 0.0 for c in tested]), strict=True))
    return tuple((c, adjusted.get(id(c))) for c in found)


def _rules(assertions: Assertions, result: AuditResult) -> list[Rule]:
    """Return the rules; a preset's limit on identification gives way to a stricter one that the scan was made with."""
    if not assertions.follow_limit:
        return list(assertions.rules)
    limit = result.max_identification
    return [
        replace(rule, threshold=min(rule.threshold, limit))
        if rule.metric == "identification" and rule.attack is None and rule.defense is None
        else rule
        for rule in assertions.rules
    ]


def _findings(result: AuditResult, least: Severity | None) -> list[Check]:
    if least is None:
        return []
    bad = [f for f in result.findings if SEVERITIES.index(f.severity) <= SEVERITIES.index(least)]
    if not bad:
        message = f"Besides what leaked, the audit noticed nothing of severity {least} or worse."
        return [_plain("findings", "", "pass", message)]
    return [_finding(f) for f in bad]


def _finding(finding: Finding) -> Check:
    defense = str(finding.evidence.get("defense") or "")
    todo = Mend(finding.id if finding.id in MENDS else "mend-finding")
    check = _plain(f"finding-{finding.id}", defense, "fail", finding.message, todo)
    check = replace(check, finding=finding.evidence)
    return replace(check, mend=finding.mend, todo=None) if finding.mend else check


def _incomplete() -> Check:
    message = "The audit was interrupted: what is missing was not measured and is not safe."
    return _plain("complete", "", "inconclusive", message, Mend("scan-to-end"))


def _unscored(result: AuditResult) -> list[Check]:
    """Return that captured updates were not scored, which no waiver covers: nobody knows what there is to accept."""
    rows = [d for d in result.defenses if is_unscored(result.captured, d.spec)]
    message = "Nobody says which records are behind the captured update, so nothing is scored on it."
    return [_plain("captured", d.spec, "inconclusive", message, Mend(UNSCORED)) for d in rows]


def _plain(rule: str, defense: str, status: Verdict, message: str, todo: Mend | None = None) -> Check:
    return Check(
        id=f"{rule}/{defense}" if defense else rule,
        rule=rule,
        level="error",
        defense=defense,
        attack="",
        status=status,
        message=message,
        mend=mend(todo) if todo else "",
        todo=todo,
    )


def _regressions(
    result: AuditResult, baseline: AuditResult, rules: Sequence[RegressionRule], source: str
) -> list[Check]:
    by_metric = {rule.metric: rule for rule in rules}
    detect = by_metric["identification"].detect if "identification" in by_metric else None
    speaks_of = {d.spec for d in judged(result)}
    asked = [
        (change, by_metric[name])
        for change, _ in compare(result, baseline, source, detect)
        if change.defense in speaks_of
        and (name := "identification" if change.metric == "bound" else change.metric) in by_metric
    ]
    found = []
    for level in ("error", "warn"):  # corrected apart: what only warns takes no power from what fails the build
        group = [(change, rule) for change, rule in asked if rule.level == level]
        adjusted = iter(holm([change.p for change, _ in group if change.p is not None]))
        for change, rule in group:
            check = judge_change(change, rule, None if change.p is None else next(adjusted))
            found.append(_supported(check, result))
    partners = {a.spec for a, _ in paired_defenses(baseline, result)}
    for gone in judged(baseline):
        if gone.spec not in partners and by_metric:
            message = f"The baseline audited {gone.spec}, this result does not: whether it changed is not known."
            todo = Mend("scan-too", (Setting("defense", gone.spec),))
            found.append(_plain("regression-coverage", gone.spec, "inconclusive", message, todo))
    return found


def _supported(check: Check, result: AuditResult) -> Check:
    """Return the check; that nothing more leaked is no pass where the attacks do not work on the undefended model."""
    why = uncontrolled(result)
    if check.status != "pass" or check.rule == "regression-accuracy" or not why:
        return check
    todo = Mend("control-must-leak")
    message = f"{check.message} {' '.join(sentences(why))}"
    return replace(check, status="inconclusive", message=message, mend=mend(todo), todo=todo)


def _renamed(result: AuditResult, baseline: AuditResult) -> tuple[str, ...]:
    pairs = paired_defenses(baseline, result)
    return tuple(f"{b.spec} is compared with the baseline's {a.spec}." for a, b in pairs if a.spec != b.spec)


def _unseen(result: AuditResult, baseline: AuditResult) -> tuple[str, ...]:
    partners = {b.spec for _, b in paired_defenses(baseline, result)}
    new = [d.spec for d in judged(result) if d.spec not in partners]
    return (f"Not in the baseline, judged by thresholds only: {', '.join(new)}.",) if new else ()


def _waived(result: AuditResult, rule: Rule | None, check: Check, waivers: Sequence[Waiver], today: dt.date) -> Check:
    """Return the check with the waiver that accepts it, if one does.

    A waiver for some attacks accepts a check only where it would pass had these found nothing: what other attacks
    found, or what was not measured, it does not cover. Comparisons and findings take a waiver for all attacks.
    """
    if check.status == "pass":
        return check
    force = in_force(waivers, check.rule, check.defense, today)
    if force and force[0].attack == "*":
        return replace(check, waiver=force[0])
    row = next((d for d in result.defenses if d.spec == check.defense), None)
    if not force or rule is None or row is None:
        return check
    accepted = {a.name for a in row.attacks if names_attack(force, a.name) and facts_of(a).finished}
    own = deciding(row, rule) if SCORES[rule.metric].field else frozenset()
    narrowed = replace(rule, defense=escape(check.defense))  # a spec is no pattern
    again = judge_rule(without(result, check.defense, accepted), narrowed)
    alone = bool(own) and own <= accepted and not why_no_pass(result, row)  # it speaks of nothing but what was accepted
    good = alone or all(c.status == "pass" for c in again)
    if good:
        return replace(check, waiver=force[0])
    unknown = next((c.todo for c in again if c.todo is not None and c.todo.id == SKIPPED), None)
    return replace(check, mend=mend(unknown), todo=unknown) if unknown else check  # then the waiver may hold


def _unique(checks: Sequence[Check]) -> list[Check]:
    seen: Counter[str] = Counter()
    found = []
    for check in checks:
        seen[check.id] += 1
        found.append(check if seen[check.id] == 1 else replace(check, id=f"{check.id}#{seen[check.id]}"))
    return found


def conclude(checks: Sequence[Check], waivers: Sequence[WaiverState]) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict that follows from checks and waivers, with its reasons: what no waiver covers decides."""
    late = [
        f"The waiver for {w.waiver.rule} ({w.waiver.reason}) expired on {w.waiver.expires}: mend its cause or renew it."
        for w in waivers
        if w.state == "expired"
    ]
    counted = [c for c in checks if c.level == "error" and c.waiver is None]
    failed = [c.message for c in counted if c.status == "fail"]
    if failed or late:
        return "fail", (*failed, *late)
    open_ = [c.message for c in counted if c.status == "inconclusive"]
    if open_:
        return "inconclusive", tuple(open_)
    if not checks:
        return "inconclusive", ("Nothing is asserted, so nothing was judged: see [tool.leakaudit.assert].",)
    waived = sum(c.waiver is not None for c in checks)
    told = [f"{sum(c.status == 'pass' for c in checks)} of {len(checks)} checks passed"]
    told += [f"{waived} waived"] if waived else []
    warned = sum(c.level == "warn" and c.status != "pass" and c.waiver is None for c in checks)
    told += [f"{warned} only warned of"] if warned else []
    return "pass", (", ".join(told) + ".",)
