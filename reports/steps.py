"""The verdict in one sentence, and who has to do what: for somebody who will read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from leakaudit.compare import advice
from leakaudit.judge.caps import PROVEN
from leakaudit.judge.captured import BROKEN, CERTIFIED, UNSCORED
from leakaudit.judge.verdict import LEAKS, reasons_of
from leakaudit.judge.words import sentence
from leakaudit.result.numbers import percent
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import judged
from leakaudit.result.schema import AuditResult, DefenseResult, Verdict

# What an attacker can do, by the reason of a verdict that says so.
DOES = {
    LEAKS[0]: "tell which private record it was",
    LEAKS[1]: "draw it far closer than a guess",
    "union-above-limit": "recover private records more often than allowed",
    "class-above-limit": "recover the records of one class more often than allowed",
}
NAMES = {"pass": "a pass", "fail": "a fail", "inconclusive": "inconclusive"}
NAMED, LONG = 3, 60  # more defenses than these, or longer names in all, are counted and not named


@dataclass(frozen=True)
class Task:
    """What one reader has to do, and the sections that say more: pairs of an anchor and how the link reads."""

    who: str
    text: str
    links: tuple[tuple[str, str], ...] = ()


def headline(result: AuditResult, trusted: bool = True) -> str:
    """Return the verdict in one sentence without terms of the trade.

    Of a result that is not `trusted`, whose numbers contradict it, nothing reassuring is said.
    """
    if not trusted:
        return f"This file calls itself {NAMES[result.verdict]}, and its own numbers contradict that."
    specs = _by_verdict(result)
    many = len(judged(result))
    failed, open_ = specs["fail"], specs["inconclusive"]
    own = [r for d in judged(result) for r in reasons_of(result, d) if r.id in (BROKEN, CERTIFIED, UNSCORED)]
    if own:
        return sentence((replace(own[0], defense="", measured=None),))
    if result.verdict == "fail":
        held = _named(specs["pass"], many, "and") if specs["pass"] else ""
        told = f" {_first_large(held) if ' defenses' in held else held} held against every attack tried."
        if not failed:
            return "Private records can be recovered from what a client shares."
        leaks = [r for d in judged(result) if d.verdict == "fail" for r in reasons_of(result, d) if r.id in DOES]
        handed = bool(leaks) and all(r.role == "bound" for r in leaks)
        seen = "Handed the records that replace the private ones" if handed else "From what a client shares"
        return f"{seen} {_with(failed, many)}, an attacker can {_recovered(result)}." + (told if held else "")
    if result.verdict == "pass" and not specs["pass"]:
        return "This result calls itself a pass, and no defense in it passed."
    if result.verdict == "pass":
        return _passed(result, specs["pass"], many)
    if not open_:
        return "This audit does not settle whether private records are safe."
    return (
        f"This audit does not settle whether private records are safe {_with(open_, many)}: no clear leak was found, "
        "and too little was measured to rule one out."
    )


def _passed(result: AuditResult, specs: Sequence[str], many: int) -> str:
    """Return what a pass says: of defenses within the limit, and of those that a proof carries beyond it."""
    lucky = [d.spec for d in judged(result) if _lucky(result, d)]
    others = [spec for spec in specs if spec not in lucky]
    told = []
    if others:
        told.append(
            f"No attack that was tried recovers private records {_with(others, many)} more often than this audit "
            f"allows ({percent(result.max_identification)} of them)."
        )
    if lucky:
        told.append(
            f"{_first_large(_with(lucky, many))} a proof carries the pass, and replaying the defense on every "
            "candidate agrees: what attacks identified beyond the limit counts as chance."
        )
    return " ".join(told)


def _lucky(result: AuditResult, defense: DefenseResult) -> bool:
    """Whether more was identified than the limit allows, and a proof carries the pass all the same."""
    over = any((a.identification.value or 0.0) > result.max_identification for a in defense.attacks)
    return over and any(r.id in PROVEN for r in reasons_of(result, defense))


def tasks(result: AuditResult, outcome: Outcome | None = None, trusted: bool = True) -> tuple[Task, ...]:
    """Return who must do what, in at most five lines: an engineer, a privacy officer, a reviewer, a gate, everybody."""
    if not trusted:
        return (Task("Everybody", "Do not rely on this file: have the audit run again."),)
    specs, many = _by_verdict(result), len(judged(result))
    engineer = []
    if specs["fail"]:
        engineer.append(f"Do not share updates {_with(specs['fail'], many)}.")
    if specs["inconclusive"]:
        engineer.append(
            f"Treat updates {_with(specs['inconclusive'], many)} as unsafe until a further scan settles it."
        )
    if specs["pass"]:
        engineer.append(f"The limit was kept {_with(specs['pass'], many)}, under the assumptions stated and no others.")
    told = advice.advise(result)
    if told.found == "none" and not specs["pass"]:
        engineer.append(told.sentences[1])
    engineer += [told.silent] if told.silent else []
    private = result.images == "full" and any(a.gallery for d in result.defenses for a in d.attacks)
    keep = " This file holds private pictures: keep it as you keep the records." if private else ""
    found = [
        Task("Engineer", " ".join(engineer), (("findings", "Findings"), ("advice", "Which setting to choose"))),
        Task(
            "Privacy officer",
            f"{_approval(result, specs)}{keep}",
            (("not-tested", "What was not tested"), ("scope", "Assumptions"), ("mapping", "Clauses")),
        ),
        Task(
            "Reviewer",
            "See that the attacks work where nothing protects, and that this report says what its result says.",
            (("controls", "Controls"), ("attacks", "Every attack"), ("sign-off", "Verify")),
        ),
    ]
    if outcome is not None:
        words = {"pass": "passes", "fail": "fails", "inconclusive": "is undecided"}[outcome.verdict]
        found.append(Task("Gate", f"The gate {words}: {_first(outcome.reasons)}", (("gate", "Checks of the gate"),)))
    found.append(Task("Everybody", "Audit again when the model, the data, the training or the defense changes."))
    return tuple(task for task in found if task.text)


def _approval(result: AuditResult, specs: Mapping[Verdict, Sequence[str]]) -> str:
    """Return what who approves the sharing of updates has to do, by the verdict."""
    many = len(judged(result))
    if result.verdict == "pass" and result.complete:
        return "A pass speaks of the attacks tried alone: approve only after reading what was not tested."
    if result.verdict == "fail":
        failed = f" {_with(specs['fail'], many)}" if specs["fail"] else ""
        others = f", nor yet {_with(specs['inconclusive'], many)}" if failed and specs["inconclusive"] else ""
        held = f" {_first_large(_with(specs['pass'], many))}, read first what was not tested." if specs["pass"] else ""
        return f"Do not approve sharing{failed}{others}.{held}"
    return "Do not approve yet: undecided is not safe."


def _first_large(text: str) -> str:
    return text[:1].upper() + text[1:]


def _recovered(result: AuditResult) -> str:
    """Return what an attacker can do, by the reasons of the defenses that failed."""
    ids = {r.id for d in judged(result) if d.verdict == "fail" for r in reasons_of(result, d)}
    told = [words for id_, words in DOES.items() if id_ in ids]
    return " and ".join(told) if told else "recover private records"


def _by_verdict(result: AuditResult) -> dict[Verdict, list[str]]:
    found: dict[Verdict, list[str]] = {"pass": [], "fail": [], "inconclusive": []}
    for defense in judged(result):
        found[defense.verdict].append(defense.spec)
    return found


def _with(specs: Sequence[str], many: int) -> str:
    return "without a defense" if list(specs) == ["none"] else f"under {_named(specs, many, 'or')}"


def _named(specs: Sequence[str], many: int, joint: str) -> str:
    if len(specs) == many > 1:
        if many == 2:
            return {"or": "either defense", "and": "both defenses"}[joint]
        return {"or": f"any of the {many} defenses", "and": f"all {many} defenses"}[joint]
    if len(specs) > NAMED or (len(specs) > 1 and sum(map(len, specs)) > LONG):
        return f"{len(specs)} of the {many} defenses"
    return specs[0] if len(specs) == 1 else f"{', '.join(specs[:-1])} {joint} {specs[-1]}"


def _first(reasons: Sequence[str]) -> str:
    return reasons[0] if reasons else "no reason is recorded."
