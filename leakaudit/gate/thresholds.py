"""One assertion judged on one result: on the bound of an interval, never on a value.

Pass where the whole interval is on the allowed side, fail where none of it is, inconclusive between; with what it would
take to settle it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from leakaudit.gate.assertions import Rule
from leakaudit.judge.advice import loss
from leakaudit.judge.verdict import rejudge
from leakaudit.result.outcome import Check
from leakaudit.result.rules import (
    beats,
    guessing,
    identifies,
    judged,
    most_telling,
    rebuilds,
    resolution,
    scored_statuses,
    scored_victims,
    unsupported,
)
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Value, Verdict
from leakaudit.stats.intervals import mean, rate, records_needed

FIELDS = {
    "identification": "identification",
    "psnr": "psnr",
    "ssim": "ssim",
    "lpips": "lpips",
    "label-accuracy": "label_accuracy",
}
KINDS: dict[str, tuple[str, ...]] = {  # of the attacks that can have such a score
    "identification": ("reconstruction", "linkage"),
    "psnr": ("reconstruction",),
    "ssim": ("reconstruction",),
    "lpips": ("reconstruction",),
}
SHARES = ("identification", "label-accuracy", "accuracy", "accuracy-loss")
STRONGER = "Strengthen the defense or choose another one (the frontier in the report shows what each costs)."
MOST = 1_000_000  # records or seeds beyond which nobody is told to go


def judge_rule(result: AuditResult, rule: Rule) -> list[Check]:
    """Return one check for each defense the rule speaks of; one inconclusive check where it speaks of none."""
    if rule.defense is None:
        defenses: Sequence[DefenseResult] = judged(result)
    else:
        defenses = [d for d in result.defenses if fnmatchcase(d.spec, rule.defense)]
    if not defenses:
        missing = f"no defense matches {rule.defense!r}" if rule.defense else "no requested defense was audited"
        mend = "Scan the defense (-d), or mend the pattern in [tool.leakaudit.assert]."
        return [_check(rule, rule.defense or "*", "inconclusive", f"{_title(rule)}: {missing}.", mend)]
    found: list[Check] = []
    for defense in defenses:
        if rule.metric == "accuracy-loss":
            if defense.spec != "none":
                found.append(_accuracy_loss(result, defense, rule))
            elif rule.defense == "none":
                words = "the undefended model is what a loss is measured against, so the rule says nothing of it."
                mend = "Mend the pattern in [tool.leakaudit.assert]."
                found.append(_check(rule, defense.spec, "inconclusive", f"{_title(rule)}: {words}", mend))
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
    if not finished(attack):
        return attack
    nothing = Estimate(reason="waived")
    n = attack.identification.n
    return replace(
        attack,
        identification=rate(0, n) if n else nothing,
        psnr=nothing,
        ssim=nothing,
        lpips=nothing,
        label_accuracy=nothing,
    )


def _scored(attack: AttackResult) -> bool:
    return any(e.value is not None for e in (attack.identification, attack.psnr, attack.label_accuracy))


def _identification(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    """Judge as the audit judges, by the rules of `leakaudit.judge.verdict`, at the rule's limit."""
    verdict, reasons = rejudge(result, defense, rule.threshold)
    if not defense.attacks:  # it could not be applied; its own reason says why
        reasons = (*defense.reasons, *reasons)
    limit = max(rule.threshold, guessing(result.chance_identification, result.baselines))
    scored = [a for a in defense.attacks if a.identification.value is not None]
    leaking = [a for a in scored if identifies(a, limit)] + [
        a for a in defense.attacks if rebuilds(a, result.baselines)
    ]
    open_ = [a for a in defense.attacks if a.kind != "labels" and _high(a) > rule.threshold]
    deciding = {"fail": leaking, "inconclusive": open_, "pass": scored}[verdict]
    worst = max(deciding or scored, key=lambda a: (a.identification.value or 0.0, _high(a)), default=None)
    told = {"fail": 1, "inconclusive": 3, "pass": 1}[verdict]  # doubts differ, and each wants its own mend
    also = [a for a in dict.fromkeys(a.name for a in leaking) if verdict == "fail"][1:]
    more = f" So did {', '.join(also)}." if also else ""
    message = f"{defense.spec}: {' '.join(reasons[:told])}{more}"
    mend = {"fail": STRONGER, "inconclusive": _more_evidence(result, defense, verdict, rule), "pass": ""}[verdict]
    return _check(
        rule,
        defense.spec,
        verdict,
        message,
        mend,
        measured=worst.identification if worst else Estimate(reason="no attack was scored"),
        attack=worst.name if worst else "",
        evidence={"attacks": ", ".join(dict.fromkeys(a.name for a in deciding))} if verdict != "pass" else {},
    )


def _more_evidence(result: AuditResult, defense: DefenseResult, verdict: Verdict, rule: Rule) -> str:
    if verdict != "inconclusive":
        return ""
    if result.settings.get("battery") == "quick":
        return "Scan again without --quick."
    shares = [a.identification for a in defense.attacks if a.identification.value is not None]
    worst = max((e.value or 0.0 for e in shares), default=0.0)
    needed = records_needed(rule.threshold, worst)
    fewest = min((e.n for e in shares), default=0)
    if shares and needed is not None and fewest < needed <= MOST:
        return f"Scan again with --records {_rounded(result, needed)}: so many would settle it if the shares stay."
    return "Scan again so that what the message names is measured."


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
        return _check(rule, defense.spec, "inconclusive", message, "Run it (-a), or mend the pattern.")
    order: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")
    told = [(verdict, a, words) for a in named if (found := _score(a, rule)) for verdict, words in [found]]
    if not told:
        words = f"{_title(rule)}: no attack on {defense.spec} gives this score, so nothing bounds it."
        if all(_inapplicable(a) for a in named):
            words = f"{_title(rule)}: {', '.join(a.name for a in named)} cannot be run on this model."
            return _check(rule, defense.spec, "inconclusive", words, "Name an attack that can, or leave the rule out.")
        return _check(rule, defense.spec, "inconclusive", words, "Run an attack that gives it (-a).")
    status = next(v for v in order if any(v == verdict for verdict, _, _ in told))
    deciding = [(a, words) for verdict, a, words in told if verdict == status]
    first, words = max(deciding, key=lambda pair: _leak(_estimate(pair[0], rule), rule))
    also = f" ({len(deciding) - 1} more attack{'s' if len(deciding) > 2 else ''} so)" if len(deciding) > 1 else ""
    mend = {"fail": STRONGER, "inconclusive": _settles(_estimate(first, rule), rule, "records"), "pass": ""}[status]
    if status == "inconclusive" and _side(_estimate(first, rule), rule) == "pass":
        mend = "Scan again so that these attacks run to their end."
    names = tuple(a.name for a, _ in deciding) if status != "pass" else ()
    message = f"{defense.spec}: {words}{also}."
    why = doubts(result) if status == "pass" else ()
    if why:
        status, message = "inconclusive", f"{message} {' '.join(why)}"
        mend = _more_evidence(result, defense, status, rule)
    return _check(
        rule,
        defense.spec,
        status,
        message,
        mend,
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
    kinds = KINDS.get(rule.metric)
    named = [a for a in defense.attacks if rule.attack is None or fnmatchcase(a.name, rule.attack)]
    return [a for a in named if kinds is None or a.kind in kinds]


def doubts(result: AuditResult) -> tuple[str, ...]:
    """Return why no score of this audit may pass, whatever it is: the reasons that hold for its verdict as well."""
    why = unsupported(str(result.settings.get("battery", "")), bool(result.exposure.get("model_control")))
    control = uncontrolled(result)
    return (*why, control) if control else why


def uncontrolled(result: AuditResult) -> str:
    """Return why the attacks were not seen to work on the undefended model, empty where they were."""
    control = result.control()
    floor = guessing(result.chance_identification, result.baselines)
    best = most_telling(control.attacks, floor) if control else None
    if best is None:
        return "No attack was scored on the undefended model, so nothing shows that these attacks work at all."
    if not beats(best, floor):
        return "The attacks do not beat guessing on the undefended model, so their failure here proves nothing."
    return ""


def finished(attack: AttackResult) -> bool:
    """Return whether an attack was scored on every victim, none of them cut short."""
    return (
        _scored(attack)
        and scored_victims(attack) == sum(attack.statuses.values())
        and not attack.statuses.get("budget")
    )


def _score(attack: AttackResult, rule: Rule) -> tuple[Verdict, str] | None:
    """Return the verdict on one attack's score and the words for it; None where it has none and need not have one."""
    estimate = _estimate(attack, rule)
    name = f"{attack.name}, {_title(rule)}"
    lost = {
        s: n for s, n in attack.statuses.items() if n and s not in (*scored_statuses(attack.kind), "not-applicable")
    }
    if not _scored(attack) and attack.statuses.get("budget"):
        lost["budget"] = attack.statuses["budget"]  # it never began
    if estimate.value is None:
        unmeasured = rule.metric == "lpips" and attack.psnr.value is not None  # there is a picture, but no weights
        if not lost and not unmeasured:  # it gives no such score, or does not apply: nothing is missed
            return None
        return "inconclusive", f"{name} has no value ({_why(attack, estimate)})"
    verdict = _side(estimate, rule)
    if verdict == "pass":
        lost |= {s: n for s, n in attack.statuses.items() if n and s == "budget"}  # a cut-short attack may do better
    if verdict == "pass" and lost:
        ended = ", ".join(f"{n} {s}" for s, n in sorted(lost.items()))
        return (
            "inconclusive",
            f"{name} is {_shown(estimate, rule)}, but not every victim was attacked to the end ({ended})",
        )
    return verdict, f"{name} is {_shown(estimate, rule)}, {_against(rule)}"


def _leak(estimate: Estimate, rule: Rule) -> float:
    """Return how bad a value is, so that the worst comes first; none is the worst."""
    if estimate.value is None:
        return math.inf
    return estimate.value if rule.direction == "max" else -estimate.value


def _accuracy(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    known = defense.accuracy
    if defense.accuracies:
        known = mean(defense.accuracies, (0.0, 1.0), least=resolution(result))
    return _utility(defense, rule, known, "test accuracy")


def _accuracy_loss(result: AuditResult, defense: DefenseResult, rule: Rule) -> Check:
    return _utility(defense, rule, loss(result, defense), "accuracy lost against no defense")


def _utility(defense: DefenseResult, rule: Rule, estimate: Estimate, name: str) -> Check:
    if estimate.value is None:
        message = (
            f"{defense.spec}: {name} was not measured ({(estimate.reason or 'no reason was recorded').rstrip('.')})."
        )
        mend = "Scan again with training runs (no --no-utility, at least 3 --seeds)."
        return _check(rule, defense.spec, "inconclusive", message, mend, measured=estimate)
    status = _side(estimate, rule)
    message = f"{defense.spec}: {name} is {_shown(estimate, rule)}, {_against(rule)}."
    cheaper = "Choose a defense or a setting that costs less (the frontier in the report), or train longer."
    mend = {"fail": cheaper, "inconclusive": _settles(estimate, rule, "seeds"), "pass": ""}[status]
    return _check(rule, defense.spec, status, message, mend, measured=estimate)


def _side(estimate: Estimate, rule: Rule) -> Verdict:
    if estimate.low is None or estimate.high is None:
        return "inconclusive"
    least, most = (estimate.low, estimate.high) if rule.direction == "max" else (-estimate.high, -estimate.low)
    limit = rule.threshold if rule.direction == "max" else -rule.threshold
    return "pass" if most <= limit else "fail" if least > limit else "inconclusive"


def _settles(estimate: Estimate, rule: Rule, unit: str) -> str:
    """Say how many records (or seeds) would bring the interval to one side of the threshold, if the value stays."""
    least = 6 if unit == "records" else 3
    option = f"--{unit}"
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None:
        return "Scan again so that it is measured."
    if low is None or high is None:
        return f"An interval takes at least {least} {unit}: scan again with {option} {max(least, estimate.n + 1)}."
    gap = abs(rule.threshold - value)
    reach = (high - value if value <= rule.threshold else value - low) or 0.0
    needed = math.inf if gap == 0 else estimate.n * (reach / gap) ** 2  # an interval shrinks with √n
    if needed > MOST:
        return f"The value is at the threshold itself: no number of {unit} settles it; move one of them."
    return f"If the value stays, about {max(least, math.ceil(needed))} {unit} would settle it ({option})."


def _estimate(attack: AttackResult, rule: Rule) -> Estimate:
    found: Estimate = getattr(attack, FIELDS[rule.metric])
    return found


def _inapplicable(attack: AttackResult) -> bool:
    return {s for s, n in attack.statuses.items() if n} == {"not-applicable"}


def _high(attack: AttackResult) -> float:
    return 1.0 if attack.identification.high is None else attack.identification.high


def _why(attack: AttackResult, estimate: Estimate) -> str:
    return (estimate.reason or attack.reason or "no reason was recorded").rstrip(".")


def _shown(estimate: Estimate, rule: Rule) -> str:
    share = rule.metric in SHARES
    words = [_number(v, share) for v in (estimate.value, estimate.low, estimate.high) if v is not None]
    return f"{words[0]} ({words[1]} to {words[2]})" if len(words) == 3 else f"{words[0]} (no interval)"


def _against(rule: Rule) -> str:
    side = "at most" if rule.direction == "max" else "at least"
    return f"{side} {_number(rule.threshold, rule.metric in SHARES)} allowed"


def _number(value: float, share: bool) -> str:
    return f"{100 * value:.1f}%" if share else f"{value:.2f}"


def _title(rule: Rule) -> str:
    return {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}.get(rule.metric, rule.metric.replace("-", " "))


def _check(
    rule: Rule,
    defense: str,
    status: Verdict,
    message: str,
    mend: str = "",
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
        mend=mend,
        measured=measured or Estimate(reason="not measured"),
        threshold=rule.threshold,
        direction=rule.direction,
        evidence=evidence or {},
    )
