"""What follows from an audit and a gate, as one list of findings by severity: what every output format shows.

Nothing is judged here: a leak is what `rules` calls one, what is undecided are the stored reasons. Neither a waiver nor
a laxer limit of the gate makes a finding less severe: they are said beside it. A thing is said once, by whoever says
most about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from leakaudit.judge.findings import RULES, describe, mend_of, unused_mend
from leakaudit.judge.ranking import scored, statuses
from leakaudit.result.numbers import percent
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.rules import SHARP, beats, guessing, identifies, judged, most_telling, rebuilds
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Finding, Severity, Value, Waiver

__all__ = ["RULES", "conclusions", "describe"]
RANK: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}
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
    found = [*_gate(checks, own), *(_governed(f, checks) for f in own if not _retold(f, checks))]
    if outcome is not None:
        found += _waivers(outcome)
    unique = {(f.id, f.message, f.evidence.get("defense"), f.evidence.get("attack")): f for f in reversed(found)}
    kept = [f for f in found if any(f is other for other in unique.values())]
    mended = [f if f.mend or f.severity == "info" else replace(f, mend=mend_of(f.id)) for f in kept]
    return tuple(sorted(mended, key=lambda f: RANK[f.severity]))


def _of_audit(result: AuditResult) -> list[Finding]:
    """Return what is true of the whole audit."""
    found = []
    if not result.complete:
        message = "The audit did not finish: what is here was measured, the rest was not and is not safe."
        found.append(Finding("audit-incomplete", "warning", message))
    control = result.control()
    if control is None:
        return found
    floor = guessing(result.chance_identification, result.baselines)
    best = most_telling(control.attacks, floor)
    if best is None:
        message = "No attack could be scored on the undefended model, so nothing shows that these attacks work at all."
        found.append(Finding("control-does-not-leak", "warning", message, {"defense": control.spec, "guess": floor}))
    elif not beats(best, floor):
        message = (
            "The attacks do not beat guessing on the undefended model, so their failure elsewhere proves nothing: the "
            f"most telling, {best.name}, identifies {_share(best.identification)}; a guess {percent(floor)}."
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
    found = _leaks(result, defense) if counted else []
    if counted and defense.verdict == "fail" and not found:
        found = [
            Finding("leak-found", "error", f"{defense.spec}: {reason}", {"defense": defense.spec})
            for reason in defense.reasons or ("The audit failed it and gave no reason.",)
        ]
    said: set[str] = set()
    for attack in defense.attacks:
        if finding := _unscored(defense, attack, counted, said):
            found.append(finding)
    if counted and defense.verdict == "inconclusive":
        found += _undecided(result, defense, said)
    if counted and defense.accuracy.value is None and defense.attacks:
        off = result.settings.get("utility") is False
        why = (defense.accuracy.reason or "no reason was recorded").rstrip(".")
        message = f"{defense.spec}: its accuracy was not measured ({why})."
        severity: Severity = "info" if off or not result.complete else "warning"
        found.append(Finding("accuracy-not-measured", severity, message, {"defense": defense.spec}))
    return found


def _leaks(result: AuditResult, defense: DefenseResult) -> list[Finding]:
    """Return one finding for each attack that identifies too many records, and for each that rebuilds them."""
    floor = guessing(result.chance_identification, result.baselines)
    limit = max(result.max_identification, floor)
    known = max((b.psnr.value for b in result.baselines if b.psnr.value is not None), default=0.0)
    found = []
    for a in defense.attacks:
        bound = "; it was handed the replaced records, from an update alone it may be less" if a.role == "bound" else ""
        if identifies(a, limit):
            message = (
                f"{defense.spec}: the attack {a.name} picked the right one of {a.candidates} candidates of the same "
                f"class for {_share(a.identification)}, more than the {percent(limit)} allowed{bound}."
            )
            evidence = _evidence(defense.spec, a, a.identification, limit) | {"candidates": a.candidates}
            found.append(Finding("identification-above-limit", "error", message, evidence))
        if rebuilds(a, result.baselines):
            message = (
                f"{defense.spec}: the attack {a.name} rebuilds pictures far closer to the private ones (median "
                f"{a.psnr.value or 0.0:.1f} dB, at least {a.psnr.low or 0.0:.1f} dB with 95% confidence) than a guess "
                f"without the update ({known:.1f} dB){bound}."
            )
            evidence = _evidence(defense.spec, a, a.psnr, known + SHARP) | {"guess": known, "unit": "dB"}
            found.append(Finding("reconstruction-close", "error", message, evidence))
    return found


def _unscored(defense: DefenseResult, attack: AttackResult, counted: bool, said: set[str]) -> Finding | None:
    """Return what is missing of an attack. A reason of the verdict that tells it is used, and noted in `said`.

    One that does not apply says nothing of a defense, and neither does what a pass has already weighed: info.
    """
    done, total = scored(attack)
    if done >= total:
        return None
    inapplicable = {status for status, count in attack.statuses.items() if count} == {"not-applicable"}
    if inapplicable and attack.role == "standard":
        return None
    told = next((r for r in defense.reasons if _names(r, attack.name) and "victims (" in r), None)
    if told:
        said.add(told)
    why = attack.reason or attack.identification.reason or "no reason was recorded"
    text = told or f"The attack {attack.name} has no score on {total - done} of {total} victims ({why.rstrip('.')})."
    open_ = counted and defense.verdict != "pass" and not inapplicable
    evidence: dict[str, Value] = {
        "defense": defense.spec,
        "attack": attack.name,
        "role": attack.role,
        "scored": done,
        "victims": total,
        "statuses": statuses(attack),
    }
    return Finding("attack-not-scored", "warning" if open_ else "info", f"{defense.spec}: {text}", evidence)


def _undecided(result: AuditResult, defense: DefenseResult, said: set[str]) -> list[Finding]:
    """Return one finding for each stored reason why a defense is undecided that no other finding tells."""
    found = []
    for reason in defense.reasons:
        if reason in said or "on the undefended model, so" in reason:  # the latter is `control-does-not-leak`
            continue
        attack = next((a for a in defense.attacks if _names(reason, a.name)), None)
        evidence: dict[str, Value] = {"defense": defense.spec}
        if attack is not None:
            evidence = _evidence(defense.spec, attack, attack.identification, result.max_identification)
        found.append(Finding("undecided", "warning", f"{defense.spec}: {reason}", evidence))
    return found


def _gate(checks: Iterable[Check], own: Sequence[Finding]) -> list[Finding]:
    """Return one finding for each check that did not pass, but those that only repeat one of the audit's `own`."""
    found = []
    for check in checks:
        if check.status == "pass" or any(_repeats(check, finding) for finding in own):
            continue
        evidence = _estimate(check.measured, check.threshold)
        evidence |= {"defense": check.defense, "attack": check.attack, "status": check.status, "level": check.level}
        evidence = {k: v for k, v in (evidence | check.evidence).items() if v != ""}
        message = check.message if check.defense in check.message else f"{check.defense}: {check.message}"
        if check.waiver:
            message, evidence = _accepted(message, evidence, check.waiver)
        found.append(Finding(f"gate-{check.rule}", _severity(check), message, evidence, check.mend))
    return found


def _repeats(check: Check, finding: Finding) -> bool:
    """Return whether a check fails for nothing but a finding that is there anyway."""
    if check.rule == "complete":
        return finding.id == "audit-incomplete"
    same = check.defense == str(finding.evidence.get("defense") or "") and check.message == finding.message
    return check.rule == f"finding-{finding.id}" and same


def _severity(check: Check) -> Severity:
    """Return how bad a check is. A waiver makes nothing less bad; a check that only warns is a warning at most."""
    if check.status == "pass":
        return "info"
    return "error" if check.status == "fail" and check.level == "error" else "warning"


def _judges(check: Check, finding: Finding) -> bool:
    """Return whether a check judges again what a finding of the audit says: its severity is the gate's to give."""
    if _repeats(check, finding):
        return True
    metric, _, pattern = check.id.partition(f"/{check.defense}")[0].partition(":")
    if metric != "identification" or finding.id not in VERDICT or finding.evidence.get("defense") != check.defense:
        return False
    return not pattern or fnmatchcase(str(finding.evidence.get("attack") or ""), pattern)


def _retold(finding: Finding, checks: Iterable[Check]) -> bool:
    """Return whether a check says what the audit said, sentence for sentence or attack for attack."""
    spec, attack = finding.evidence.get("defense"), finding.evidence.get("attack")
    for check in checks:
        if check.status == "pass" or check.defense != spec:
            continue
        if check.rule.startswith("accuracy") and finding.id == "accuracy-not-measured":
            return True
        if not _judges(check, finding) or _repeats(check, finding):
            continue
        if finding.message.removeprefix(f"{spec}: ") in check.message:
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
    worst = min(own, key=lambda check: RANK[_severity(check)])
    severity = min(finding.severity, _severity(worst), key=lambda s: RANK[s])
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
            mend = unused_mend(waiver.rule, (check.rule for check in outcome.checks))
            found.append(Finding("waiver-unused", "info", message, evidence, mend))
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


def _names(sentence: str, name: str) -> bool:
    """Return whether a sentence names an attack: `dlg` is not named by `idlg`."""
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", sentence) is not None
