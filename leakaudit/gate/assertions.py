"""`[tool.leakaudit.assert]`: what the gate asks of a result, checked before anything is judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from leakaudit.errors import UserError
from leakaudit.files.reading import short
from leakaudit.result.outcome import Level
from leakaudit.result.rules import SEVERITIES
from leakaudit.result.schema import Severity
from leakaudit.result.scores import Direction, Score, assertable

WHERE = "[tool.leakaudit.assert]"


@dataclass(frozen=True)
class Rule:
    """One assertion. `attack` and `defense` are patterns with `*`; None means all that the verdict speaks of."""

    metric: str
    direction: Direction
    threshold: float
    level: Level = "error"
    attack: str | None = None
    defense: str | None = None


@dataclass(frozen=True)
class RegressionRule:
    """A metric compared with the baseline: `detect` is the loss that must be ruled out, None where none must."""

    metric: str
    level: Level = "error"
    detect: float | None = None


@dataclass(frozen=True)
class Assertions:
    """All that is asked. `findings` is the least severity of a finding that fails, None where none does."""

    rules: tuple[Rule, ...]
    regressions: tuple[RegressionRule, ...]
    findings: Severity | None
    presets: tuple[str, ...] = ()
    follow_limit: bool = False  # the preset's limit on identification gives way to a stricter one of the scan


PRESETS: dict[str, Assertions] = {
    "recommended": Assertions(
        rules=(Rule("identification", "max", 0.25), Rule("accuracy-loss", "max", 0.10, "warn")),
        regressions=(
            # One chance hit among 16 records leaves up to 34 points open: that alone is not to stop a build.
            RegressionRule("identification", detect=0.35),
            RegressionRule("psnr"),
            RegressionRule("accuracy", detect=0.10),
        ),
        findings="error",
        presets=("recommended",),
        follow_limit=True,
    ),
    "strict": Assertions(
        rules=(Rule("identification", "max", 0.10), Rule("accuracy-loss", "max", 0.05)),
        regressions=(
            RegressionRule("identification", detect=0.10),
            RegressionRule("psnr"),
            RegressionRule("accuracy", detect=0.05),
        ),
        findings="warning",
        presets=("strict",),
        follow_limit=True,
    ),
}


def parse(table: Mapping[str, Any]) -> Assertions:
    """Read the table; an empty one is the preset `recommended`. Raises UserError naming the setting and the mend.

    An entry that names neither attack nor defense replaces the preset's for its metric; others stand beside it.
    """
    given = dict(table)
    name = given.pop("preset", "recommended")
    if name == "none":
        base = Assertions((), (), None)
    elif isinstance(name, str) and name in PRESETS:
        base = PRESETS[name]
    else:
        raise UserError(f"{WHERE} has preset = {short(name)}: use one of {', '.join(PRESETS)} or none.")
    if "regression" in given:
        base = replace(base, regressions=_regressions(given.pop("regression"), base.regressions))
    if "findings" in given:
        base = replace(base, findings=_findings(given.pop("findings")))
    scores = {score.name: score for score in assertable()}
    for metric, entry in given.items():
        if metric not in scores:
            known = ", ".join([*scores, "findings", "regression", "preset"])
            raise UserError(f"{WHERE} has no metric {short(metric)}; known: {known}.")
        entries = entry if isinstance(entry, list) else [entry]
        if not entries:
            raise UserError(f"{WHERE} {metric} is an empty list: give a rule, or leave the line out.")
        own = tuple(_rule(scores[metric], each) for each in entries)
        # What speaks of some attacks or defenses only stands beside the preset's rule for all.
        general = any(rule.attack is None and rule.defense is None for rule in own)
        kept = tuple(rule for rule in base.rules if rule.metric != metric or not general)
        base = replace(base, rules=(*kept, *own))
        if general and metric == "identification":
            base = replace(base, follow_limit=False)
    return base


def _rule(score: Score, entry: Any) -> Rule:
    assert score.limits is not None  # it is one of `assertable`
    metric, direction, (low, high) = score.name, score.direction, score.limits
    what = f"{WHERE} {metric}"
    example = f"{metric} = {{ {direction} = {0.25 if high <= 1 else 20} }}"
    if not isinstance(entry, dict):
        raise UserError(f"{what} is {short(entry)}: write it like {example}.")
    known = (direction, "level", "defense", *(("attack",) if score.field else ()))
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise UserError(f"{what} has no setting {short(unknown[0])}; known: {', '.join(known)}.")
    threshold = _number(entry.get(direction), f"{what} {direction}", low, high, example)
    for key in ("attack", "defense"):
        if key in entry and not isinstance(entry[key], str):
            raise UserError(f"{what} {key} is {short(entry[key])}: write a name or a pattern like 'obscure*'.")
    return Rule(metric, direction, threshold, _level(entry, what), entry.get("attack"), entry.get("defense"))


def _regressions(table: Any, base: tuple[RegressionRule, ...]) -> tuple[RegressionRule, ...]:
    what = f"{WHERE[:-1]}.regression]"
    if table is False:
        return ()
    if not isinstance(table, dict):
        raise UserError(f"{what} is {short(table)}: make it a table, or false for none.")
    rules = {rule.metric: rule for rule in base}
    comparable = [score.name for score in assertable() if score.compared]  # the bound goes with identification
    for metric, entry in table.items():
        if metric not in comparable:
            raise UserError(f"{what} has no metric {short(metric)}; known: {', '.join(comparable)}.")
        example = f"{metric} = {{ level = 'warn' }}, or false"
        if entry is False:
            rules.pop(metric, None)
            continue
        known = ("level",) if metric == "psnr" else ("level", "detect")
        if not isinstance(entry, dict) or set(entry) - set(known):
            raise UserError(f"{what} {metric} is {short(entry)}: write it like {example}; known: {', '.join(known)}.")
        before = rules.get(metric, RegressionRule(metric))
        detect = before.detect
        if "detect" in entry:
            detect = _number(entry["detect"], f"{what} {metric} detect", 0.0, 1.0, f"{metric} = {{ detect = 0.25 }}")
        rules[metric] = RegressionRule(metric, _level(entry, f"{what} {metric}", before.level), detect)
    return tuple(rules.values())


def _findings(entry: Any) -> Severity | None:
    if entry is False:
        return None
    wanted = entry.get("severity") if isinstance(entry, dict) and set(entry) == {"severity"} else None
    for severity in SEVERITIES:
        if severity == wanted:
            return severity
    raise UserError(f"{WHERE} findings is {short(entry)}: write findings = {{ severity = 'error' }}, or false.")


def _level(entry: Mapping[str, Any], what: str, default: Level = "error") -> Level:
    level = entry.get("level", default)
    if level not in get_args(Level):
        raise UserError(f"{what} level is {short(level)}: use 'error', which fails the gate, or 'warn'.")
    found: Level = level
    return found


def _number(value: Any, what: str, low: float, high: float, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        given = "missing" if value is None else short(value)
        raise UserError(f"{what} is {given}: give a number from {low:g} to {high:g}, like {example}.")
    return float(value)
