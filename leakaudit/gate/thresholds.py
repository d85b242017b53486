"""One assertion judged on one result: on the bound of an interval, never on a value.

Pass where the whole interval is on the allowed side, fail where none of it is, inconclusive between; with what it would
take to settle it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from leakaudit.compare.advice import FEWEST, loss
from leakaudit.errors import Setting, Spell, as_option
from leakaudit.gate.assertions import Rule
from leakaudit.judge.caps import caps_of, unplanted
from leakaudit.judge.conclusions import foremost, judged_at
from leakaudit.judge.facts import control_in, facts_of
from leakaudit.judge.findings import mend
from leakaudit.judge.verdict import DOUBT, SKIPPED, UNFINISHED
from leakaudit.judge.words import sentences
from leakaudit.result.outcome import Check
from leakaudit.result.rules import (
    PLANTING,
    guessing,
    judged,
    resolution,
    scored_statuses,
    worst_verdict,
)
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    DefenseResult,
    Estimate,
    Mend,
    Reason,
    Value,
    Verdict,
)
from leakaudit.result.scores import SCORES, Score, by_measure, of_attacks
from leakaudit.result.tasks import measure_of
from leakaudit.stats.intervals import mean, rate

MOST = 1_000_000  # records or seeds beyond which nobody is told to go


def judge_rule(result: AuditResult, rule: Rule) -> list[Check]:
    """Return one check for each defense the rule speaks of; one inconclusive check where it speaks of none."""
    if rule.defense is None:
        defenses: Sequence[DefenseResult] = judged(result)
    else:
        defenses = [d for d in result.defenses if fnmatchcase(d.spec, rule.defense)]
    if not defenses:
        missing = f"no defense matches {rule.defense!r}" if rule.defense else "no requested defense was audited"
        message = f"{_title(rule)}: {missing}."
        return [_check(rule, rule.defense or "*", "inconclusive", message, Mend("scan-defense"))]
    found: list[Check] = []
    for defense in defenses:
        if rule.metric == "accuracy-loss":
            if defense.spec != "none":
                found.append(_accuracy_loss(result, defense, rule))
            elif rule.defense == "none":
                words = "the undefended model is what a loss is measured against, so the rule says nothing of it."
                message = f"{_title(rule)}: {words}"
                found.append(_check(rule, defense.spec, "inconclusive", message, Mend("mend-pattern")))
        elif rule.metric == "accuracy":
            found.append(_accuracy(result, defense, rule))
        elif rule.metric == "identification" and rule.attack is None:
            found.append(_identification(result, defense, rule))
        else:
            found.append(_scores(result, defense, rule))
    return found


def without(result: AuditResult, spec: str, names: Collection[str]) -> AuditResult:
    """Return a result in which some attacks on a defense found nothing: what is left once their leaks are accepted.

    They still count as having been run. One without a score stays without: nobody knows what it would have found.
    """
    row = next(d for d in result.defenses if d.spec == spec)
    changed = replace(row, attacks=tuple(_harmless(a) if a.name in names else a for a in row.attacks))
    return replace(result, defenses=tuple(changed if d is row else d for d in result.defenses))


def _harmless(attack: AttackResult) -> AttackResult:
    if not facts_of(attack).finished:
        return attack
    nothing = Estimate(reason="waived")
    n = attack.identification.n
    none: dict[str, Any] = dict.fromkeys((score.field for score in of_attacks()), nothing)
    return replace(attack, **none | {"identification": rate(0, n) if n else nothing})


def _identification(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    """Judge as the audit judges, by the rules of `leakaudit.judge.verdict`, at the rule's limit."""
    verdict, reasons = judged_at(result, defense, rule.threshold)
    limit = max(rule.threshold, guessing(result.chance_identification, result.baselines))
    known = [facts_of(a, limit, result.baselines) for a in defense.attacks]
    scored = [f.attack for f in known if f.attack.identification.value is not None]
    leaking = [f.attack for f in known if f.identifies] + [f.attack for f in known if f.rebuilds]
    open_ = [f.attack for f in known if f.asked and _high(f.attack) > rule.threshold]
    deciding = {"fail": leaking, "inconclusive": open_, "pass": scored}[verdict]
    worst = max(deciding or scored, key=lambda a: (a.identification.value or 0.0, _high(a)), default=None)
    names = [worst.name, *(a.name for a in deciding)] if verdict == "fail" and worst else [a.name for a in deciding]
    mends = {"fail": Mend("strengthen"), "inconclusive": _more_evidence(result, reasons), "pass": None}
    check = _check(
        rule,
        defense.spec,
        verdict,
        "",
        mends[verdict],
        measured=worst.identification if worst else Estimate(reason="no attack was scored"),
        attack=worst.name if worst else "",
        evidence={"attacks": ", ".join(dict.fromkeys(names))} if verdict != "pass" else {},
    )
    check = replace(check, why=foremost(verdict, reasons, check.attack))
    return replace(check, message=sentence_of_check(check))


def sentence_of_check(check: Check, spell: Spell = as_option) -> str:
    """Return the sentence of a check, with the settings in it as `spell` has them."""
    if not check.why:
        return check.message
    attacks = str(check.evidence.get("attacks") or "").split(", ")
    also = f" It fails against {', '.join(attacks[1:])}, too." if check.status == "fail" and attacks[1:] else ""
    told = [each if each.endswith(".") else f"{each}." for each in sentences(check.why, spell)]  # errors may end bare
    return f"{check.defense}: {' '.join(told)}{also}"


def mend_of_check(check: Check, spell: Spell = as_option) -> str:
    """Return what to do about a check, with the settings in it as `spell` has them."""
    return mend(check.todo, spell) if check.todo else check.mend


def _more_evidence(result: AuditResult, reasons: Sequence[Reason]) -> Mend:
    """Return what would settle an undecided check: by what its reasons need, all of them and not those told alone."""
    if result.settings.get("battery") == "quick":
        return Mend("not-quick")
    doubts = [r for r in reasons if r.id not in (DOUBT, UNFINISHED) or r.facts.get("weight")]
    if any(r.id == SKIPPED for r in doubts):
        return Mend(SKIPPED)
    open_ = [r for r in doubts if r.id == "may-exceed-limit"]
    needed = [int(need.value or 0) for r in open_ for need in r.needs if need.name == "records"]
    least = [int(r.facts["least"] or 0) for r in doubts if r.id == "too-few-scored"]
    if len(open_) + len(least) < len(doubts):  # more records alone settle nothing
        return Mend("measure")
    if len(needed) < len(open_) or max(needed, default=0) > MOST:
        return Mend("strengthen")
    if needed:
        return Mend("more-records", (Setting("records", _rounded(result, max(needed))),))
    return Mend("enough-records", (Setting("records", _rounded(result, max(least))),)) if least else Mend("measure")


def _rounded(result: AuditResult, records: int) -> int:
    batch = result.settings.get("batch_size")
    size = batch if isinstance(batch, int) and batch > 0 else 1
    return -(-records // size) * size


def _scores(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    """Judge a score of each attack the rule names; the worst status is the check's."""
    named = _named(defense, rule)
    if not named:
        what = f"no attack matches {rule.attack!r}" if rule.attack else "no attack was run"
        message = f"{_title(rule)}: {what} on {defense.spec}."
        return _check(rule, defense.spec, "inconclusive", message, Mend("run-or-mend-pattern"))
    told = [(verdict, a, words) for a in named if (found := _score(a, rule)) for verdict, words in [found]]
    if not told:
        words = f"{_title(rule)}: no attack on {defense.spec} gives this score, so nothing bounds it."
        if all(facts_of(a).inapplicable for a in named):
            words = f"{_title(rule)}: {', '.join(a.name for a in named)} cannot be run on this model."
            return _check(rule, defense.spec, "inconclusive", words, Mend("name-what-runs"))
        return _check(rule, defense.spec, "inconclusive", words, Mend("run-what-scores"))
    status = worst_verdict(verdict for verdict, _, _ in told)
    deciding = [(a, words) for verdict, a, words in told if verdict == status]
    first, words = max(deciding, key=lambda pair: _leak(_estimate(pair[0], rule), rule))
    also = f" ({len(deciding) - 1} more attack{'s' if len(deciding) > 2 else ''} so)" if len(deciding) > 1 else ""
    todo = _todo(status, "strengthen", _settles(_estimate(first, rule), rule, "records"))
    if status == "inconclusive" and any(a.settled_by for a, _ in deciding):
        todo = Mend(SKIPPED)
    elif status == "inconclusive" and _side(_estimate(first, rule), rule) == "pass":
        todo = Mend("run-to-end")
    names = tuple(a.name for a, _ in deciding) if status != "pass" else ()
    message = f"{defense.spec}: {words}{also}."
    why = why_no_pass(result, defense) if status == "pass" else ()
    if why:
        status, message = "inconclusive", f"{message} {' '.join(sentences(why))}"
        todo = _more_evidence(result, why)
    return _check(
        rule,
        defense.spec,
        status,
        message,
        todo,
        measured=_estimate(first, rule),
        attack=first.name,
        evidence={"attacks": ", ".join(names)} if names else {},
    )


def deciding(defense: DefenseResult, rule: Rule) -> frozenset[str]:
    """Return the attacks that have a say in a rule on scores; none where the rule judges as the audit does."""
    if rule.metric == "identification" and rule.attack is None:
        return frozenset()
    return frozenset(a.name for a in _named(defense, rule) if _score(a, rule))


def _named(defense: DefenseResult, rule: Rule) -> list[AttackResult]:
    """Return the attacks that a rule names, of those that can have such a score."""
    kinds = SCORES[rule.metric].kinds
    named = [a for a in defense.attacks if rule.attack is None or fnmatchcase(a.name, rule.attack)]
    return [a for a in named if not kinds or a.kind in kinds]


def why_no_pass(result: AuditResult, defense: DefenseResult) -> tuple[Reason, ...]:
    """Return why no score of a defense may pass, whatever it is: the reasons that hold for its verdict as well."""
    return (*caps_of(result), *uncontrolled(result), *_unplanted(result, defense))


def _unplanted(result: AuditResult, defense: DefenseResult) -> tuple[Reason, ...]:
    """Return why nothing follows of a server that may change the model: what worked without a defense was not tried."""
    control = result.control()
    row = control.attacks if control else ()
    return unplanted(defense.attacks, row, control_in(result).floor) if result.exposure.get(PLANTING) else ()


def uncontrolled(result: AuditResult) -> tuple[Reason, ...]:
    """Return why the attacks were not seen to work on the undefended model, empty where they were."""
    doubt = control_in(result).doubt
    return (Reason(doubt),) if doubt else ()


def _score(attack: AttackResult, rule: Rule) -> tuple[Verdict, str] | None:
    """Return the verdict on one attack's score and the words for it; None where it has none and need not have one."""
    estimate = _estimate(attack, rule)
    name = f"{attack.name}, {_title(rule)}"
    if attack.settled_by:
        return "inconclusive", f"{name} is not known, since the attack was skipped ({attack.reason})"
    lost = {
        s: n for s, n in attack.statuses.items() if n and s not in (*scored_statuses(attack.kind), "not-applicable")
    }
    if not facts_of(attack).began and attack.statuses.get("budget"):
        lost["budget"] = attack.statuses["budget"]  # it never began
    if estimate.value is None:
        unmeasured = rule.metric == "lpips" and attack.psnr.value is not None  # there is a picture, but no weights
        if not lost and not unmeasured:  # it gives no such score, or does not apply: nothing is missed
            return None
        return "inconclusive", f"{name} has no value ({_why(attack, estimate)})"
    verdict, score = _side(estimate, rule), SCORES[rule.metric]
    if verdict == "pass":
        lost |= {s: n for s, n in attack.statuses.items() if n and s == "budget"}  # a cut-short attack may do better
    if verdict == "pass" and lost:
        ended = ", ".join(f"{n} {s}" for s, n in sorted(lost.items()))
        return (
            "inconclusive",
            f"{name} is {_shown(estimate, score)}, but not every victim was attacked to the end ({ended})",
        )
    return verdict, f"{name} is {_shown(estimate, score)}, {_against(rule, score)}"


def _leak(estimate: Estimate, rule: Rule) -> float:
    """Return how bad a value is, so that the worst comes first; none is the worst."""
    if estimate.value is None:
        return math.inf
    return estimate.value if rule.direction == "max" else -estimate.value


def accuracy_of(result: AuditResult, defense: DefenseResult) -> Estimate:
    """Return a defense's accuracy with the interval that the gate judges: from its runs where they are known."""
    if not defense.accuracies:
        return defense.accuracy
    return mean(defense.accuracies, (measure_of(result.measure).least, 1.0), least=resolution(result))


def _accuracy(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    return _utility(result, defense, rule, accuracy_of(result, defense))


def _accuracy_loss(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    return _utility(result, defense, rule, loss(result, defense))


def _utility(result: AuditResult, defense: DefenseResult, rule: Rule, estimate: Estimate) -> Check:
    score = by_measure(rule.metric, result.measure)
    name = score.title
    if estimate.value is None:
        message = (
            f"{defense.spec}: {name} was not measured ({(estimate.reason or 'no reason was recorded').rstrip('.')})."
        )
        todo = Mend("train", (Setting("seeds", FEWEST),))
        if result.settings.get("utility"):  # it was trained: a training broke off, or the control learned nothing
            trained = [defense, *filter(None, [result.control()])]
            todo = Mend("train-to-end" if any(d.accuracy.value is None for d in trained) else "train-control")
        check = _check(rule, defense.spec, "inconclusive", message, todo, measured=estimate)
        return replace(check, measure=result.measure)
    status = _side(estimate, rule)
    message = f"{defense.spec}: {name} is {_shown(estimate, score)}, {_against(rule, score)}."
    what = _todo(status, "costs-less", _settles(estimate, rule, "seeds"))
    return replace(_check(rule, defense.spec, status, message, what, measured=estimate), measure=result.measure)


def _todo(status: Verdict, failed: str, open_: Mend) -> Mend | None:
    return {"fail": Mend(failed), "inconclusive": open_, "pass": None}[status]


def _side(estimate: Estimate, rule: Rule) -> Verdict:
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    least, most = (estimate.low, estimate.high) if rule.direction == "max" else (-estimate.high, -estimate.low)
    limit = rule.threshold if rule.direction == "max" else -rule.threshold
    return "pass" if most <= limit else "fail" if least > limit else "inconclusive"


def _settles(estimate: Estimate, rule: Rule, unit: str) -> Mend:
    """Return how many records (or seeds) would bring the interval to one side of the threshold, if the value stays."""
    least = 6 if unit == "records" else FEWEST
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None:
        return Mend("measure")
    if low is None or high is None:
        return Mend(f"{unit}-for-interval", (Setting(unit, max(least, estimate.n + 1)),))
    gap = abs(rule.threshold - value)
    reach = (high - value if value <= rule.threshold else value - low) or 0.0
    needed = math.inf if gap == 0 else estimate.n * (reach / gap) ** 2  # an interval shrinks with √n
    if needed > MOST:
        return Mend("at-threshold")
    return Mend(f"{unit}-settle", (Setting(unit, max(least, math.ceil(needed))),))


def _estimate(attack: AttackResult, rule: Rule) -> Estimate:
    found: Estimate = getattr(attack, SCORES[rule.metric].field)
    return found


def _high(attack: AttackResult) -> float:
    return 1.0 if attack.identification.high is None else attack.identification.high


def _why(attack: AttackResult, estimate: Estimate) -> str:
    return (estimate.reason or attack.reason or "no reason was recorded").rstrip(".")


def _shown(estimate: Estimate, score: Score) -> str:
    return score.measured(estimate) + ("" if score.ends(estimate) else " (no interval)")


def _against(rule: Rule, score: Score) -> str:
    side = "at most" if rule.direction == "max" else "at least"
    return f"{side} {score.write(rule.threshold)} allowed"


def _title(rule: Rule) -> str:
    return SCORES[rule.metric].title


def _check(
    rule: Rule,
    defense: str,
    status: Verdict,
    message: str,
    todo: Mend | None = None,
    *,
    measured: Estimate | None = None,
    attack: str = "",
    evidence: dict[str, Value] | None = None,
) -> Check:
    scope = f":{rule.attack}" if rule.attack else ""
    return Check(
        id=f"{rule.metric}{scope}/{defense}",
        rule=rule.metric,
        level=rule.level,
        defense=defense,
        attack=attack,
        status=status,
        message=message,
        mend=mend(todo) if todo else "",
        measured=measured or Estimate(reason="not measured"),
        threshold=rule.threshold,
        direction=rule.direction,
        evidence=evidence or {},
        todo=todo,
    )
