"""Frontier advice: which measured setting of which defense keeps both limits, which may, or that none does.

Leakage is what the stored verdict says, which was judged on the interval's bound. The loss of accuracy is judged on the
bound of the 95 % interval of its difference to the undefended model, from the training runs of both (Welch 1947).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leakaudit.errors import Setting, as_option
from leakaudit.judge import ranking
from leakaudit.judge.facts import facts_of
from leakaudit.judge.ranking import worst
from leakaudit.judge.verdict import DOUBT, UNFINISHED, reasons_of
from leakaudit.judge.words import named
from leakaudit.result.numbers import lost, percent
from leakaudit.result.rules import resolution, worst_verdict
from leakaudit.result.schema import AuditResult, DefenseResult, Estimate, Verdict
from leakaudit.result.scores import by_measure
from leakaudit.result.specs import names, split
from leakaudit.result.tasks import spoken
from leakaudit.stats.paired import change_of_means, runs_needed

FEWEST = 3  # training runs on either side: two have no useful interval
MOST = 100  # training runs that an advice asks for


@dataclass(frozen=True)
class Option:
    """One measured setting of one defense against both limits."""

    spec: str
    leakage: Verdict
    leakage_needs: str  # where it is undecided: how many records would settle it, as far as the verdict says
    identification: Estimate  # of the worst attack
    compared: Estimate  # of the worst of those attacks that were scored on every option, where some were skipped
    loss: Estimate  # accuracy without a defense minus accuracy with it; its `reason` says why there is no interval
    accuracy: Verdict | None  # of the loss; None where the result has no limit for it, or nothing is known of any loss
    measure: str = "accuracy"  # what the loss is of

    @property
    def both(self) -> Verdict:
        """Whether both limits are kept; only leakage counts where there is no limit for the loss."""
        return worst_verdict((self.leakage, self.accuracy or "pass"))


@dataclass(frozen=True)
class Advice:
    """What the frontier says to somebody who has to choose. `found` is the best that any option reaches."""

    max_identification: float
    max_accuracy_loss: float | None
    options: tuple[Option, ...]  # the requested defenses, in the result's order; never the control
    found: Literal["meets", "may", "none", "nothing"]  # nothing: no defense was measured
    sentences: tuple[str, ...]
    brief: tuple[str, ...]  # the answer, and what to do next, or where there is nothing to do what it stands on
    silent: str  # why nothing is known of the loss of accuracy, empty where something is


@dataclass(frozen=True)
class Told:
    """What is said of the options: the answer, what it stands on, what to do next."""

    answer: str
    grounds: tuple[str, ...] = ()
    todo: tuple[str, ...] = ()


def advise(result: AuditResult) -> Advice:
    """Return the advice for a result; one without a limit for the loss of accuracy is judged by leakage alone.

    So is one that cannot say what any defense costs (`no_accuracy`).
    """
    return among(result, [(result, d) for d in result.defenses if d.requested and d.spec != "none"])


def among(result: AuditResult, rows: Sequence[tuple[AuditResult, DefenseResult]]) -> Advice:
    """Return the advice on defenses of several scans of one target, each with the result that it is a row of.

    `result` holds all of them, and the control and the limits that they share.
    """
    limit = None if no_accuracy(result) else loss_limit(result)
    options = tuple(_option(own, d, limit, _on_all([d for _, d in rows])) for own, d in rows)
    best = {o.both for o in options}
    found: Literal["meets", "may", "none", "nothing"] = (
        "nothing" if not options else "meets" if "pass" in best else "may" if "inconclusive" in best else "none"
    )
    told = {"meets": _meets, "may": _may, "none": _none, "nothing": _nothing}[found](result, options, limit)
    silent = no_accuracy(result) if options else ""
    answer = (told.answer, silent) if silent else (told.answer,)
    said, brief = (*answer, *told.grounds, *told.todo), (*answer, *(told.todo or told.grounds))
    found, asked = "may" if silent and found == "meets" else found, loss_limit(result)
    return Advice(result.max_identification, asked, options, found, (_limits(result, asked), *said), brief, silent)


def sentences(result: AuditResult) -> tuple[str, ...]:
    """Return the advice in plain sentences: first the limits, then what keeps them."""
    return advise(result).sentences


def loss_limit(result: AuditResult) -> float | None:
    """Return the share of accuracy that a defense may cost, None where the result does not say."""
    value = result.settings.get("max_accuracy_loss")
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits and value is not None else None


def no_accuracy(result: AuditResult) -> str:
    """Return why a result cannot say what any defense costs, and what would; empty where it can, or need not."""
    control = result.control()
    if loss_limit(result) is None or control is None:
        return ""
    if result.settings.get("utility") is False:
        return spoken(
            "Accuracy was not measured (--no-utility): nothing here says what a defense costs.", result.measure
        )
    if control.accuracy.value is None:
        why = (control.accuracy.reason or "no reason was recorded").rstrip(".")
        told = spoken("Accuracy says nothing here: without a defense it was not measured", result.measure)
        return f"{told} ({why})."
    return ranking.pointless(result)


def loss(result: AuditResult, defense: DefenseResult) -> Estimate:
    """Return the accuracy that `defense` costs, as a share, with Welch's interval over the training runs.

    A run's standard deviation is at least one test record: equal runs are a coincidence, not certainty. Without an
    interval (fewer than three runs on a side), or a value (no accuracy, or an undefended model that learned
    nothing, so that nothing can be lost), `reason` says why.
    """
    control = result.control()
    if defense.accuracy.value is None:
        return Estimate(reason=defense.accuracy.reason or f"its {result.measure} was not measured")
    if control is None or control.accuracy.value is None:
        return Estimate(reason=f"the {result.measure} without a defense was not measured")
    if ranking.at_chance(result):
        return Estimate(reason=f"without a defense the {result.measure} is not clearly above chance")
    value = control.accuracy.value - defense.accuracy.value
    fewest = min(len(control.accuracies), len(defense.accuracies))
    if fewest < FEWEST:
        runs = {0: "no training runs are recorded", 1: "there is one training run"}.get(fewest, "there are two runs")
        return Estimate(value, n=fewest, reason=f"{runs}: an interval takes {FEWEST}")
    return change_of_means(defense.accuracies, control.accuracies, resolution(result))


def _on_all(rows: Sequence[DefenseResult]) -> frozenset[str]:
    """Return the attacks by which defenses can be compared: all, or where some were skipped those scored on each."""
    named = [frozenset(a.name for a in d.attacks) for d in rows]
    if any(a.settled_by for d in rows for a in d.attacks):
        return frozenset.intersection(*(frozenset(a.name for a in d.attacks if facts_of(a).began) for d in rows))
    return frozenset().union(*named)


def _option(result: AuditResult, defense: DefenseResult, limit: float | None, on_all: frozenset[str]) -> Option:
    attack, cost = worst(defense), loss(result, defense)
    alike = worst(replace(defense, attacks=tuple(a for a in defense.attacks if a.name in on_all)))
    judged: Verdict | None = None
    if limit is not None:
        known = cost.low is not None and cost.high is not None
        judged = "inconclusive"
        if known and (cost.high or 0.0) <= limit:
            judged = "pass"
        elif known and (cost.low or 0.0) > limit:
            judged = "fail"
    identified = attack.identification if attack else Estimate(reason="no attack was scored")
    told = reasons_of(result, defense)
    doubts = [r for r in told if r.id not in (DOUBT, UNFINISHED) or r.facts.get("weight")]
    needs = [need.value for reason in doubts for need in reason.needs if need.name == "records"]
    settled = all(r.needs or r.id == "too-few-scored" for r in doubts)  # by records alone: other doubts stay
    most = max((value for value in needs if isinstance(value, int) and settled), default=None)
    wanted = f": about {most} records would settle it ({as_option(Setting('records', most))})" if most else ""
    compared = alike.identification if alike else Estimate(reason="no attack was scored on all of them")
    return Option(defense.spec, defense.verdict, wanted, identified, compared, cost, judged, result.measure)


def _limits(result: AuditResult, limit: float | None) -> str:
    first = f"Limit of leakage: {percent(result.max_identification)} of the records identified"
    if limit is None:
        return (
            f"{first}. This result records no limit for the loss of {result.measure}, so only leakage is judged here."
        )
    return f"{first}. Limit of cost: {lost(limit, result.measure)} below no defense."


def _meets(result: AuditResult, options: Sequence[Option], limit: float | None) -> Told:
    good = sorted((o for o in options if o.both == "pass"), key=_cost)
    which = "both limits" if limit is not None else "the leakage limit"
    answer = f"{named([o.spec for o in good], len(options))} {'keeps' if len(good) == 1 else 'keep'} {which}."
    grounds = tuple(f"{o.spec}: {_identified(o)}; {_lost(o)}." for o in good)
    cheapest = (f"Of these, {good[0].spec} costs least.",) if len(good) > 1 and good[0].loss.value is not None else ()
    return Told(answer, grounds, (*cheapest, *_open(result, [o for o in options if o.both == "inconclusive"], limit)))


def _may(result: AuditResult, options: Sequence[Option], limit: float | None) -> Told:
    which = "both limits" if limit is not None else "the leakage limit"
    unclear = sorted((o for o in options if o.both == "inconclusive"), key=_cost)
    seen = [o for o in unclear if o.identification.value is not None]
    first = f"No setting measured here is shown to keep {which}"
    unseen = [f"{o.spec}: no attack was scored, so nothing is known of it." for o in unclear if o not in seen]
    told = (
        f"{first}; {named([o.spec for o in seen], len(options))} {'is' if len(seen) == 1 else 'are'} undecided."
        if seen
        else f"{first}."
    )
    return Told(told, todo=(*_quick(result), *_open(result, seen, limit), *unseen))


def _none(result: AuditResult, options: Sequence[Option], limit: float | None) -> Told:
    private = sorted((o for o in options if o.leakage == "pass"), key=_cost)
    useful = sorted((o for o in options if o.accuracy == "pass"), key=_leak)
    if limit is None:
        least = min(options, key=_leak)
        grounds = (_leaks_least(result, least),)
        ahead = sorted(options, key=_leak)
        return Told("No setting measured here keeps the leakage limit.", grounds, _next(result, [], ahead))
    told: list[str] = []
    if private:
        told.append(f"Of those that keep the leakage limit, {private[0].spec} costs least: {_lost(private[0])}.")
    if useful:
        told.append(f"Of those that keep the {result.measure}, {_leaks_least(result, useful[0])}")
    if not private:
        told.append("None is shown to keep the leakage limit.")
    if not useful:
        told.append(f"None is shown to keep the {result.measure}.")
    if not private and not useful:
        least = min(options, key=_leak)
        if len(options) > 1:
            told.append(_leaks_least(result, least, f"; {_lost(least)}"))
        kept = [o for o in sorted(options, key=_leak) if o.accuracy != "fail"]
        useful = kept if least in kept else []  # more private would cost even more
    answer = "No setting measured here keeps both limits."
    return Told(answer, tuple(told), (*_quick(result), *_next(result, private, useful)))


def _nothing(result: AuditResult, options: Sequence[Option], limit: float | None) -> Told:
    control = result.control()
    if not result.complete:
        return Told("No defense was measured before the run was interrupted.")
    if control is not None and control.verdict == "pass":
        return Told("Only the undefended model was measured, and it keeps the leakage limit as it is.")
    return Told("No defense was measured, so there is nothing to choose from: name one with --defense.")


def _quick(result: AuditResult) -> tuple[str, ...]:
    if result.settings.get("battery") != "quick":
        return ()
    return ("A quick battery passes only what is proven: run the scan with the standard one for an answer.",)


def _open(result: AuditResult, unclear: Iterable[Option], limit: float | None) -> tuple[str, ...]:
    """Return what each undecided option would take."""
    told = []
    for o in unclear:
        parts = []
        if o.leakage == "inconclusive":
            parts.append(f"leakage is undecided{o.leakage_needs}")
        if o.accuracy == "inconclusive":
            parts.append(f"the loss of {o.measure} is undecided: {_what_settles(result, o, limit or 0.0)}")
        told.append(f"{o.spec}: {'; '.join(parts)}.")
    return tuple(told)


def _what_settles(result: AuditResult, option: Option, limit: float) -> str:
    e = option.loss
    if e.value is not None and e.high is None and e.n < FEWEST:
        return f"{_lost(option)} ({as_option(Setting('seeds', FEWEST))})"
    if e.value is None or e.high is None or not e.n:
        return _lost(option)
    if e.value >= limit:
        return f"{_lost(option)}, and more training runs would hardly bring it under the limit"
    control = result.control()
    runs = next(d.accuracies for d in result.defenses if d.spec == option.spec)
    there = control.accuracies if control else ()
    needed = runs_needed(there, runs, limit - e.value, resolution(result), MOST)
    if needed is None:
        return f"{_lost(option)}, so close to the limit that more training runs would hardly settle it"
    return f"{_lost(option)}; if the runs keep differing as they do, --seeds {needed} would settle it"


def _next(result: AuditResult, private: Sequence[Option], useful: Sequence[Option]) -> tuple[str, ...]:
    """Return which way to turn which setting, where that is known."""
    by_spec = {d.spec: d for d in result.defenses}
    pairs = [(by_spec[p.spec], by_spec[u.spec]) for p in private for u in useful]
    for strong, weak in pairs:
        differing = _between(strong, weak)
        if differing:
            name, low, high = differing
            return (f"Next, try {','.join(names(strong.spec))} with {name} between {low:g} and {high:g}.",)
    told = []
    for options, way, gain in ((private, -1, "more accurate"), (useful, 1, "more private")):
        wanted = [by_spec[o.spec] for o in options]
        words = [w for d in wanted if (w := _turn(d, way, result.defenses, wanted))]
        if words:
            told.append(f"{words[0]} ({gain})")
    return (f"Next, try {' or '.join(told)}.",) if told else ()


def _between(strong: DefenseResult, weak: DefenseResult) -> tuple[str, float, float] | None:
    """Return the one numeric setting in which two settings of one defense differ, with its values in order."""
    if names(strong.spec) != names(weak.spec) or strong.settings.keys() != weak.settings.keys():
        return None
    differing = [name for name, value in strong.settings.items() if value != weak.settings[name]]
    if len(differing) != 1:
        return None
    a, b = strong.settings[differing[0]], weak.settings[differing[0]]
    if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return None
    return differing[0], min(a, b), max(a, b)


def _turn(defense: DefenseResult, way: int, measured: Sequence[DefenseResult], wanted: Sequence[DefenseResult]) -> str:
    """Return in words how to turn a setting by which the defense says it gets more private (`way` 1), or less.

    It is turned further than it was `measured`: not at all where the furthest is none of those `wanted`.
    """
    name = split(defense.spec)[0]
    for setting, up in defense.stronger.items():
        value = defense.settings.get(setting)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        down = way * up < 0
        furthest, value = defense, float(value)
        for other in measured:
            there = _beside(other, defense, setting)
            if there is not None and (there < value if down else there > value):
                furthest, value = other, there
        if furthest not in wanted:
            continue
        if down and value <= defense.lowest.get(setting, 0.0):
            continue
        return f"{name} with a {'lower' if down else 'higher'} {setting} than {value:g}"
    return ""


def _beside(other: DefenseResult, defense: DefenseResult, setting: str) -> float | None:
    """Return the value of a setting in which alone two settings of one defense may differ; None where they are not."""
    if names(other.spec) != names(defense.spec) or other.settings.keys() != defense.settings.keys():
        return None
    if any(value != other.settings[name] for name, value in defense.settings.items() if name != setting):
        return None
    value = other.settings[setting]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cost(option: Option) -> float:
    return option.loss.value if option.loss.value is not None else math.inf


def _leak(option: Option) -> tuple[float, float]:
    known = option.compared.value
    return (known if known is not None else math.inf), _cost(option)


def _leaks_least(result: AuditResult, option: Option, more: str = "") -> str:
    """Return that an option leaks least, as far as that was measured: an attack skipped on some compares none."""
    rows = [d for d in result.defenses if d.requested and d.spec != "none"]
    if not any(a.settled_by for d in rows for a in d.attacks):
        return f"{option.spec} leaks least: {_identified(option)}{more}."
    if option.compared.value is None:
        return "it is not known which leaks least, since attacks were skipped (--all-attacks runs them)."
    alike = _identified(replace(option, identification=option.compared))
    by = f"{option.spec} leaks least to the attacks that ran on all: {alike}{more}"
    return f"{by} (others were skipped; --all-attacks runs them)."


def _identified(option: Option) -> str:
    e = option.identification
    if e.value is None:
        return "its identification was not measured"
    if e.high is None:
        return f"{percent(e.value)} identified"
    return f"{percent(e.value)} identified, at most {percent(e.high)} with 95% confidence"


def _lost(option: Option) -> str:
    e = option.loss
    if e.value is None:
        return f"no cost is known ({(e.reason or 'not measured').rstrip('.')})"
    words = f"{lost(abs(e.value), option.measure)} {'above' if e.value < 0 else 'below'} no defense"
    if e.low is None or e.high is None:
        return f"{words}; {e.reason}" if e.reason else words
    told = Estimate(-e.value, -e.high, -e.low) if e.value < 0 else e
    return f"{words} ({by_measure('accuracy-loss', option.measure).ends(told)} with 95% confidence)"
