"""The verdict in one sentence, and what to do next: for somebody who will read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leakaudit.judge import advice
from leakaudit.result.numbers import percent
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import judged
from leakaudit.result.schema import AuditResult, Verdict

NAMED, LONG = 3, 60  # more defenses than these, or longer names in all, are counted and not named


@dataclass(frozen=True)
class Step:
    """One sentence, and the section that says more."""

    text: str
    anchor: str = ""
    more: str = ""


def headline(result: AuditResult) -> str:
    """Return the verdict in one sentence without terms of the trade."""
    specs = _by_verdict(result)
    many = len(judged(result))
    failed, open_ = specs["fail"], specs["inconclusive"]
    if result.verdict == "fail":
        held = (
            ""
            if not specs["pass"]
            else f"; {_named(specs['pass'], many, 'and')} held against every attack that was tried"
        )
        if not failed:
            return "Private records can be recovered from what the clients share."
        return (
            f"Somebody who sees what the clients share can recover private records {_with(failed, many)}, more often "
            f"or more clearly than this audit allows{held}."
        )
    if result.verdict == "pass" and not specs["pass"]:
        return "This result calls itself a pass, and no defense in it passed."
    if result.verdict == "pass":
        return (
            f"No attack that was tried recovers private records {_with(specs['pass'], many)} more often than this "
            f"audit allows, which is {percent(result.max_identification)} of them."
        )
    if not open_:
        return "This audit does not settle whether private records are safe."
    return (
        f"This audit does not settle whether private records are safe {_with(open_, many)}: no clear leak was found, "
        "and too little was measured to rule one out."
    )


def steps(result: AuditResult, outcome: Outcome | None = None) -> tuple[Step, ...]:
    """Return what the verdict means for the reader, and what to do next, most important first."""
    specs, many, found = _by_verdict(result), len(judged(result)), []
    if specs["fail"]:
        found.append(Step(f"Do not share updates {_with(specs['fail'], many)}.", "findings", "Findings"))
    if specs["inconclusive"]:
        what = f"Treat updates {_with(specs['inconclusive'], many)} as unsafe until a further scan settles it."
        found.append(Step(what, "findings", "Findings"))
    if specs["pass"]:
        what = f"The limit was kept {_with(specs['pass'], many)}, under the assumptions stated here and no others."
        found.append(Step(what, "scope", "Scope and assumptions"))
    told = advice.advise(result)
    if told.found != "nothing":
        found.append(Step(told.sentences[1], "advice", "Which setting to choose"))
    if outcome is not None:
        words = {"pass": "passes", "fail": "fails", "inconclusive": "is undecided"}[outcome.verdict]
        found.append(Step(f"The gate {words}: {_first(outcome.reasons)}", "gate", "Checks of the gate"))
    found.append(
        Step("Read what was not tested before relying on any number here.", "not-tested", "What was not tested")
    )
    if result.images == "full" and any(a.gallery for d in result.defenses for a in d.attacks):
        found.append(Step("This file holds private pictures: keep it as you keep the records.", "pictures", "Pictures"))
    found.append(Step("Audit again when the model, the data, the training or the defense changes."))
    return tuple(found)


def _by_verdict(result: AuditResult) -> dict[Verdict, list[str]]:
    found: dict[Verdict, list[str]] = {"pass": [], "fail": [], "inconclusive": []}
    for defense in judged(result):
        found[defense.verdict].append(defense.spec)
    return found


def _with(specs: Sequence[str], many: int) -> str:
    return "without a defense" if list(specs) == ["none"] else f"with {_named(specs, many, 'or')} in place"


def _named(specs: Sequence[str], many: int, joint: str) -> str:
    if len(specs) == many > 1:
        either = {"or": ("either", "any"), "and": ("both", "all")}[joint]
        return f"{either[0]} of the 2 defenses tried" if many == 2 else f"{either[1]} of the {many} defenses tried"
    if len(specs) > NAMED or (len(specs) > 1 and sum(map(len, specs)) > LONG):
        return f"{'any of ' if joint == 'or' else ''}{len(specs)} of the {many} defenses tried"
    return specs[0] if len(specs) == 1 else f"{', '.join(specs[:-1])} {joint} {specs[-1]}"


def _first(reasons: Sequence[str]) -> str:
    return reasons[0] if reasons else "no reason is recorded."
