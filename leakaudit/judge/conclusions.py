"""What follows from an audit and a gate, as one list of findings by severity: what every output format shows.

Nothing is judged here: a leak is what `rules` calls one, what is undecided are the stored reasons. Neither a waiver nor
a laxer limit of the gate makes a finding less severe: they are said beside it. A thing is said once, by whoever says
most about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from leakaudit.judge.captured import is_unscored
from leakaudit.judge.facts import control_in, facts_of
from leakaudit.judge.findings import MENDS, RULES, describe, mend, mend_of, unused_mend
from leakaudit.judge.ranking import statuses
from leakaudit.judge.settled import skipped
from leakaudit.judge.verdict import CONTROL, UNFINISHED, reasons_of, rejudge
from leakaudit.judge.words import grouped, sentence, singled_out
from leakaudit.result.numbers import decibels, percent
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.rules import SEVERITIES, SHARP, guessing, judged, labels_by_chance, worst_severity
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    DefenseResult,
    Estimate,
    Finding,
    Mend,
    Reason,
    Severity,
    Value,
    Verdict,
    Waiver,
)
from leakaudit.result.tasks import shares_labels

__all__ = ["RULES", "conclusions", "describe"]
OF_ALL = ("known-exactly", "union-above-limit", "class-above-limit")  # ids of reasons that are findings of their own
TOLD = 3  # sentences of an undecided check of identification: doubts differ, and each wants its own mend
# What the audit says of a defense that the gate's check of identification judges again, by the same rules.
VERDICT = ("identification-above-limit", "reconstruction-close", "leak-found", "undecided", "attack-not-scored")


def conclusions(result: AuditResult, outcome: Outcome | None = None) -> tuple[Finding, ...]:
    """Return what leaked, what is undecided, what the gate and its waivers say and what was noticed: errors first.

    Evidence holds `defense`, `attack`, `role`, `measured`, `low`, `high` (95 % interval), `n` and `limit` where they
    are known; of a waived check also `waived`, `waived_until` and `waived_by`. Every error and warning has a mend. The
    undefended control's leak is info where another defense was requested: it is what the others are for.
    """
    checks = outcome.checks if outcome else ()
    own = [*_of_audit(result), *(f for d in result.defenses for f in _of_defense(result, d)), *result.findings]
    told = {check.id: reasons_told(result, check) for check in checks}
    found = [*_gate(checks, own, told), *(_governed(f, checks) for f in own if not _retold(f, checks, told))]
    if outcome is not None:
        found += _waivers(outcome)
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda f: SEVERITIES.index(f.severity)):  # of two that say the same the worse
        if not any(_same(finding, other) for other in kept):
            kept.append(finding)
    return tuple(f if f.mend or f.severity == "info" else _mended(f) for f in kept)


def _mended(finding: Finding) -> Finding:
    """Return a finding with what to do about it."""
    todo = Mend(finding.id) if finding.id in MENDS else None
    return replace(finding, mend=mend(todo) if todo else mend_of(finding.id), todo=todo)


def _of_audit(result: AuditResult) -> list[Finding]:
    """Return what is true of the whole audit."""
    found = []
    if not result.complete:
        message = "The audit did not finish: what is here was measured, the rest was not and is not safe."
        found.append(Finding("audit-incomplete", "warning", message))
    control = result.control()
    if control is None:
        return found
    seen = control_in(result)
    floor, best = seen.floor, seen.best
    if best is None:
        message = sentence((Reason(seen.doubt),))
        found.append(Finding("control-does-not-leak", "warning", message, {"defense": control.spec, "guess": floor}))
    elif not seen.works:
        message = (
            "No attack is shown to beat guessing on the undefended model, so no failure elsewhere proves anything: "
            f"the most telling, {best.name}, identifies {_share(best.identification)}; a guess {percent(floor)}."
        )
        evidence = _evidence(control.spec, best, best.identification, None) | {"guess": floor}
        found.append(Finding("control-does-not-leak", "warning", message, evidence))
    elif control not in judged(result) and judged(result):
        message = (
            f"Without a defense the model leaks, as it must for this audit to mean anything: the attack {best.name} "
            f"identifies {_share(best.identification)}; a guess {percent(floor)}."
        )
        evidence = _evidence(control.spec, best, best.identification, None) | {"guess": floor}
        found.append(Finding("undefended-leaks", "info", message, evidence))
    return found


def _of_defense(result: AuditResult, defense: DefenseResult) -> list[Finding]:
    """Return what leaked under a defense, what is open, and which of its numbers are missing."""
    counted = defense in judged(result)
    reasons = reasons_of(result, defense)
    own = counted and not is_unscored(result.captured, defense.spec)  # else what leaked is of other records
    found = [*_leaks(result, defense), *_of_all(defense, reasons)] if own else []
    if counted and defense.verdict == "fail" and not found:
        about: dict[str, Value] = {"defense": defense.spec}
        found = [
            Finding("leak-found", "error", f"{defense.spec}: {sentence(why)}", about, why=why)
            for why in grouped(reasons)
        ] or [Finding("leak-found", "error", f"{defense.spec}: The audit failed it and gave no reason.", about)]
    found += _labels(result, defense)
    unscored = [finding for a in defense.attacks if (finding := _unscored(defense, a, counted, reasons))]
    found += [*unscored, *skipped(defense)]
    if counted and defense.verdict == "inconclusive":
        told = [reason for finding in unscored for reason in finding.why]
        found += _undecided(result, defense, [reason for reason in reasons if reason not in told])
    if counted and defense.accuracy.value is None and defense.attacks:
        off = result.settings.get("utility") is False
        why = (defense.accuracy.reason or "no reason was recorded").rstrip(".")
        message = f"{defense.spec}: its {result.measure} was not measured ({why})."
        severity: Severity = "info" if off or not result.complete else "warning"
        found.append(Finding("accuracy-not-measured", severity, message, {"defense": defense.spec}))
    return found


def _of_all(defense: DefenseResult, reasons: Iterable[Reason]) -> list[Finding]:
    """Return what all attacks together show: records known exactly, and a union above the limit."""
    about: dict[str, Value] = {"defense": defense.spec}
    return [
        Finding(r.id, "error", f"{defense.spec}: {sentence((r,))}", about | r.facts, why=(r,))
        for r in reasons
        if r.id in OF_ALL
    ]


def _labels(result: AuditResult, defense: DefenseResult) -> list[Finding]:
    """Return that labels leak, where an attack infers more of them than the commonest class makes up."""
    scored = [a for a in defense.attacks if a.kind == "labels" and a.label_accuracy.value is not None]
    told = max(scored, key=lambda a: a.label_accuracy.low or 0.0, default=None)
    if defense.examined is None or told is None or (told.label_accuracy.low or 0.0) <= labels_by_chance(result):
        return []
    measured, guess = told.label_accuracy, labels_by_chance(result)
    what, one = ("labels", "class") if result.chance_labels is None else ("label groups", "group")
    message = (
        f"{defense.spec}: the attack {told.name} reads {percent(measured.value or 0.0)} of the {what} off the updates "
        f"(at least {percent(measured.low or 0.0)} with 95% confidence; the commonest {one} makes up {percent(guess)})."
    )
    evidence = _evidence(defense.spec, told, measured, None) | {"guess": guess}
    return [Finding("labels-leak", "info", message, evidence)]


def _line_up(attack: AttackResult) -> str:
    """Return how many candidates there are, the median where line-ups differ."""
    return f"a median of {attack.candidates}" if any(r.candidates for r in attack.records) else str(attack.candidates)


def _leaks(result: AuditResult, defense: DefenseResult) -> list[Finding]:
    """Return one finding for each attack that identifies too many records, and for each that rebuilds them."""
    floor = guessing(result.chance_identification, result.baselines)
    limit = max(result.max_identification, floor)
    known = max((b.psnr.value for b in result.baselines if b.psnr.value is not None), default=0.0)
    found = []
    for known_of in (facts_of(a, limit, result.baselines) for a in defense.attacks):
        a = known_of.attack
        bound = "; it was handed the replaced records, from an update alone it may be less" if a.role == "bound" else ""
        if known_of.identifies:
            did = singled_out(a.kind * bool(defense.examined), _line_up(a), shares_labels(result.target))
            message = (
                f"{defense.spec}: the attack {a.name} {did} {_share(a.identification)}, more than the {percent(limit)} "
                f"allowed{bound}."
            )
            evidence = _evidence(defense.spec, a, a.identification, limit) | {"candidates": a.candidates}
            found.append(Finding("identification-above-limit", "error", message, evidence))
        if known_of.rebuilds:
            message = (
                f"{defense.spec}: the attack {a.name} rebuilds pictures far closer to the private ones (median "
                f"{decibels(a.psnr.value or 0.0)}, at least {decibels(a.psnr.low or 0.0)} with 95% confidence) than a "
                f"guess without the update ({decibels(known)}){bound}."
            )
            evidence = _evidence(defense.spec, a, a.psnr, known + SHARP) | {"guess": known, "unit": "dB"}
            found.append(Finding("reconstruction-close", "error", message, evidence))
    return found


def _unscored(defense: DefenseResult, attack: AttackResult, counted: bool, reasons: Sequence[Reason]) -> Finding | None:
    """Return what is missing of an attack, with the reason of the verdict that tells it, if there is one.

    One that does not apply says nothing of a defense, and neither does what a pass has already weighed: info.
    """
    known = facts_of(attack)
    done, total = known.scored, known.victims
    if done >= total or known.skipped or (known.inapplicable and attack.role == "standard"):
        return None
    why = tuple(r for r in reasons if r.id == UNFINISHED and r.attack == attack.name)[:1]
    reason = (attack.reason or attack.identification.reason or "no reason was recorded").rstrip(".")
    text = f"The attack {attack.name} has no score on {total - done} of {total} victims ({reason})."
    text = sentence(why) if why else text
    open_ = counted and defense.verdict != "pass" and not known.inapplicable
    evidence: dict[str, Value] = {
        "defense": defense.spec,
        "attack": attack.name,
        "role": attack.role,
        "scored": done,
        "victims": total,
        "statuses": statuses(attack),
    }
    todo = Mend("out-of-time") if open_ and known.out_of_time else None
    severity: Severity = "warning" if open_ else "info"
    told = mend(todo) if todo else ""
    return Finding("attack-not-scored", severity, f"{defense.spec}: {text}", evidence, told, why=why, todo=todo)


def _undecided(result: AuditResult, defense: DefenseResult, reasons: Sequence[Reason]) -> list[Finding]:
    """Return one finding for each of the reasons why a defense is undecided."""
    found = []
    for reason in reasons:
        if reason.id in CONTROL:  # which is a finding of the whole audit
            continue
        attack = next((a for a in defense.attacks if a.name == reason.attack), None)
        evidence: dict[str, Value] = {"defense": defense.spec}
        if attack is not None:
            evidence = _evidence(defense.spec, attack, attack.identification, result.max_identification)
        text = f"{defense.spec}: {sentence((reason,))}"
        late = reason.id == UNFINISHED and attack is not None and facts_of(attack).out_of_time
        todo = Mend("out-of-time") if late else Mend(reason.id) if reason.id in MENDS else None
        told = mend(todo) if todo else ""
        found.append(Finding("undecided", "warning", text, evidence, told, why=(reason,), todo=todo))
    return found


def _gate(checks: Iterable[Check], own: Sequence[Finding], told: Mapping[str, tuple[Reason, ...]]) -> list[Finding]:
    """Return one finding for each check that did not pass, but those that only repeat one of the audit's `own`."""
    found = []
    for check in checks:
        if check.status == "pass" or any(repeats(check, finding) for finding in own):
            continue
        evidence = _estimate(check.measured, check.threshold)
        evidence |= {"defense": check.defense, "attack": check.attack, "status": check.status, "level": check.level}
        evidence = {k: v for k, v in (evidence | check.evidence).items() if v != ""}
        message = check.message if check.defense in check.message else f"{check.defense}: {check.message}"
        if check.waiver:
            message, evidence = _accepted(message, evidence, check.waiver)
        found.append(
            Finding(f"gate-{check.rule}", _severity(check), message, evidence, check.mend, told[check.id], check.todo)
        )
    return found


def repeats(check: Check, finding: Finding) -> bool:
    """Return whether a check fails for nothing but a finding that is there anyway."""
    if check.rule == "complete":
        return finding.id == "audit-incomplete"
    same = check.rule == f"finding-{finding.id}" and check.defense == str(finding.evidence.get("defense") or "")
    # Older outcomes do not say which of several alike it was: each has a check of its own.
    return same and (not check.finding or check.finding == finding.evidence)


def judged_at(result: AuditResult, defense: DefenseResult, limit: float) -> tuple[Verdict, tuple[Reason, ...]]:
    """Return the verdict at a limit on identification, with its reasons."""
    verdict, reasons = rejudge(result, defense, limit)
    if not defense.attacks:  # it could not be applied; its own reason says why
        reasons = (*reasons_of(result, defense), *reasons)
    return verdict, reasons


def foremost(verdict: Verdict, reasons: Iterable[Reason], worst: str) -> tuple[Reason, ...]:
    """Return the reasons that a check of identification tells: of a failed one those of the `worst` attack."""
    groups = grouped(reasons)
    if verdict == "fail":
        groups = [group for group in groups if group[0].attack == worst] or groups
    told = groups[: TOLD if verdict == "inconclusive" else 1]
    return tuple(reason for together in told for reason in together)


def reasons_told(result: AuditResult, check: Check) -> tuple[Reason, ...]:
    """Return the reasons that a check of identification tells; those of an older outcome are found by judging again."""
    row = next((d for d in result.defenses if d.spec == check.defense), None)
    if check.why or check.rule != "identification" or check.pattern or check.threshold is None or row is None:
        return check.why
    verdict, reasons = judged_at(result, row, check.threshold)
    return foremost(verdict, reasons, check.attack) if verdict == check.status else ()


def _essence(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Return what reasons say, whatever an attack told of itself, and the limit above which it may hide a leak."""
    spoken = [replace(r, limit=None) if r.id == UNFINISHED else r for r in reasons]
    return tuple(replace(r, facts={k: v for k, v in r.facts.items() if not r.attack or k != "told"}) for r in spoken)


def _same(finding: Finding, other: Finding) -> bool:
    """Return whether two findings say the same: of two checks with another limit or level, by their reasons."""
    names = ("defense", "attack", "waived")
    alike = finding.id == other.id and all(finding.evidence.get(n) == other.evidence.get(n) for n in names)
    return finding == other or (alike and bool(finding.why) and _essence(finding.why) == _essence(other.why))


def _severity(check: Check) -> Severity:
    """Return how bad a check is. A waiver makes nothing less bad; a check that only warns is a warning at most."""
    if check.status == "pass":
        return "info"
    return "error" if check.status == "fail" and check.level == "error" else "warning"


def _judges(check: Check, finding: Finding) -> bool:
    """Return whether a check judges again what a finding of the audit says: its severity is the gate's to give."""
    if repeats(check, finding):
        return True
    if check.rule != "identification" or finding.id not in VERDICT or finding.evidence.get("defense") != check.defense:
        return False
    return not check.pattern or fnmatchcase(str(finding.evidence.get("attack") or ""), check.pattern)


def _retold(finding: Finding, checks: Iterable[Check], told: Mapping[str, Sequence[Reason]]) -> bool:
    """Return whether a check says what the audit said, reason for reason or attack for attack."""
    spec, attack = finding.evidence.get("defense"), finding.evidence.get("attack")
    for check in checks:
        if check.status == "pass" or check.defense != spec:
            continue
        if check.rule.startswith("accuracy") and finding.id == "accuracy-not-measured":
            return True
        if not _judges(check, finding) or repeats(check, finding):
            continue
        if any(reason in _essence(told[check.id]) for reason in _essence(finding.why)):
            return True
        deciding = str(check.evidence.get("attacks") or check.attack).split(", ")
        if check.status == "fail" and finding.severity == "error" and attack in deciding:
            return True
    return False


def _governed(finding: Finding, checks: Sequence[Check]) -> Finding:
    """Return a finding of the audit with what the gate makes of it: never less severe than the audit found it."""
    own = [check for check in checks if _judges(check, finding)]
    if not own or finding.severity == "info":
        return finding
    worst = min(own, key=lambda check: SEVERITIES.index(_severity(check)))
    severity = worst_severity((finding.severity, _severity(worst)))
    if worst.status != "pass" and worst.waiver:
        message, evidence = _accepted(finding.message, finding.evidence, worst.waiver)
        return replace(finding, severity=severity, message=message, evidence=evidence)
    allowed = " The gate allows it." if worst.status == "pass" and finding.id in VERDICT else ""
    return replace(finding, severity=severity, message=finding.message + allowed)


def _waivers(outcome: Outcome) -> list[Finding]:
    """Return what the waivers say that no longer hold or match nothing; those in force stand beside their checks."""
    found = []
    for state in outcome.waivers:
        waiver = state.waiver
        what = f"{waiver.rule} on {waiver.defense}, attack {waiver.attack}"
        evidence: dict[str, Value] = {
            "rule": waiver.rule,
            "defense": waiver.defense,
            "attack": waiver.attack,
            "waived": waiver.reason,
            "waived_until": waiver.expires,
            "waived_by": waiver.by,
        }
        evidence = {k: v for k, v in evidence.items() if v != ""}
        if state.state == "expired":
            message = f"The waiver of {what} expired on {waiver.expires} (reason given: {waiver.reason.rstrip('.')})."
            found.append(Finding("waiver-expired", "error", message, evidence))
        elif state.state == "unused":
            message = f"The waiver of {what} until {waiver.expires} matches no check (reason given: {waiver.reason})."
            told = unused_mend(waiver.rule, (check.rule for check in outcome.checks))
            found.append(Finding("waiver-unused", "info", message, evidence, told))
    return found


def _accepted(message: str, evidence: dict[str, Value], waiver: Waiver) -> tuple[str, dict[str, Value]]:
    by = f" by {waiver.by}" if waiver.by else ""
    told = f"{message} Accepted{by} until {waiver.expires}: {waiver.reason.rstrip('.')}."
    added: dict[str, Value] = {"waived": waiver.reason, "waived_until": waiver.expires}
    return told, evidence | added | ({"waived_by": waiver.by} if waiver.by else {})


def _evidence(spec: str, attack: AttackResult, measured: Estimate, limit: float | None) -> dict[str, Value]:
    return {"defense": spec, "attack": attack.name, "role": attack.role, **_estimate(measured, limit)}


def _estimate(measured: Estimate, limit: float | None) -> dict[str, Value]:
    """Return the parts of an estimate and its limit that are known."""
    parts: dict[str, Value] = {
        "measured": measured.value,
        "low": measured.low,
        "high": measured.high,
        "n": measured.n or None,
        "limit": limit,
    }
    return {name: value for name, value in parts.items() if value is not None}


def _share(estimate: Estimate) -> str:
    value, n = estimate.value or 0.0, estimate.n
    low = f", at least {percent(estimate.low)} with 95% confidence" if estimate.low is not None else ""
    return f"{round(value * n)} of {n} records ({percent(value)}{low})"
