"""Reasons are values: words are rendered from them, and nothing that is decided depends on a word."""

from __future__ import annotations

import ast
import datetime as dt
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from leakaudit.compare.advice import advise
from leakaudit.errors import Setting, UserError, as_argument, as_option, said, worded
from leakaudit.gate.assertions import PRESETS, parse
from leakaudit.gate.consistency import doubts, outcome_doubts
from leakaudit.gate.decision import conclude, gate
from leakaudit.gate.thresholds import mend_of_check, sentence_of_check
from leakaudit.judge import findings, words
from leakaudit.judge.caps import caps
from leakaudit.judge.captured import BROKEN, about_captured
from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.moments import over_stages
from leakaudit.judge.verdict import LEAKS, UNFINISHED, judge, overall, overall_reasons, reasons_of, rejudge
from leakaudit.result.attempts import Attempt
from leakaudit.result.outcome import Outcome
from leakaudit.result.rules import EXIT
from leakaudit.result.schema import (
    AttackResult,
    AuditResult,
    Estimate,
    Finding,
    Mend,
    Reason,
    Stage,
    Waiver,
    load,
)
from tests.leakaudit.results import attack, defense, lost, result, some
from tests.leakaudit.test_verdict_examined import CAPS, TABLE
from tests.outcomes import every

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "result-1.json"
# Fields that hold sentences, and keys of facts and evidence that do.
SENTENCES = {"reasons", "message", "mend", "reason", "notes", "statement", "assumes", "assumptions", "not_tested"}
SENTENCES |= {"description", "told"}
ASKED = {
    "strict": PRESETS["strict"],
    "recommended": PRESETS["recommended"],
    "scores": parse({"psnr": {"max": 20}, "ssim": {"max": 0.5, "attack": "dlg"}, "accuracy": {"min": 0.5}}),
}


def spoken() -> str:
    """Return every text that the judging half holds, as one: whatever word it looks for in a sentence is in here."""
    files = [
        file for wing in ("result", "judge", "compare", "gate") for file in (ROOT / "leakaudit" / wing).glob("*.py")
    ]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return " ".join(sorted({n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}))


# Of no word that anybody looks for, and of all of them.
OTHERS = {"none": "Lorem ipsum", "all": spoken()}


def reworded(value: Any, word: str, field: str = "") -> Any:
    """Return a value in which every sentence is another one."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {f.name: reworded(getattr(value, f.name), word, f.name) for f in fields(value)}
        if isinstance(value, Waiver):  # somebody's own words, which name what they are about
            return replace(value, reason=word)
        return replace(value, **kept)
    if isinstance(value, tuple):
        return tuple(reworded(item, word, field) for item in value)
    if isinstance(value, dict):
        return {name: reworded(item, word, str(name)) for name, item in value.items()}
    return word if field in SENTENCES and isinstance(value, str) and value else value


def scenes() -> dict[str, tuple[AuditResult, Outcome | None]]:
    """Return results and outcomes of every kind: old and new ones, each verdict, waivers, baselines."""
    golden = load(GOLDEN)
    found: dict[str, tuple[AuditResult, Outcome | None]] = {"golden": (golden, None), **every(golden)}
    rows = {
        "leaks": defense("obscure", attack(some(30)), attack(some(20), name="dlg", role="standard")),
        "pictures": defense("prune", attack(some(0), psnr=[30.0] * 40)),
        "held": defense("obscure", attack(some(0)), accuracies=(0.79, 0.8, 0.81)),
        "open": defense("gaussian", attack(some(7)), lost("dlg", "failed", 40)),
        "unbounded": defense("obscure", attack(some(0)), replaces_records=True),
        "few": defense("gaussian", attack(some(0, 4))),
        "crashed": defense("gaussian", lost("linkage", "out-of-memory", 40)),
        "bound": defense("obscure", attack(some(0)), attack(some(30), role="bound"), replaces_records=True),
        "inapplicable": defense("obscure", attack(some(0)), lost("dlg", "not-applicable", 40, role="standard")),
        "broken": defense("obscure", attack(some(0)), lost("dlg", "failed", 40, role="standard")),
        "mute": defense("gaussian", lost("dlg", "not-applicable", 40, "it needs another model")),
    }
    noticed = (
        Finding("label-stuffing", "error", "It was noticed.", {"defense": "obscure"}),
        Finding("label-stuffing", "error", "It was noticed again.", {"defense": "obscure", "share": 0.5}),
        Finding("memory", "warning", "It is little."),
    )
    today = dt.date(2026, 11, 26)
    waiver = Waiver("identification", "Accepted.", "2027-01-01", "obscure", "linkage", "me")
    for name, row in rows.items():
        for old in (False, True):
            made = replace(result(row), findings=noticed if name == "held" else ())
            told = [(d, *rejudge(made, d)) for d in made.defenses]
            judged = tuple(
                replace(d, verdict=v, reasons=words.sentences(why), why=() if old else why) for d, v, why in told
            )
            verdict, why = overall([replace(d, verdict=v, why=w) for d, v, w in told])
            made = replace(made, defenses=judged, verdict=verdict, reasons=words.sentences(why))
            made = replace(made, why=() if old else why)
            outcome = gate(made, PRESETS["strict"], waivers=(waiver,), today=today)
            found[f"{name}{', old' if old else ''}"] = (made, outcome)
    weak = result(defense("none", attack(some(0))), defense("obscure", attack(some(0))))
    rows_ = tuple(replace(d, verdict="inconclusive", why=rejudge(weak, d)[1]) for d in weak.defenses)
    found["weak control"] = (replace(weak, defenses=rows_, verdict="inconclusive"), None)
    leaky, _ = found["leaks, old"]
    forged = tuple(replace(d, verdict="pass", reasons=("measured",)) for d in leaky.defenses)
    return found | {"forged": (replace(leaky, defenses=forged, verdict="pass"), None)}


def decided(made: AuditResult, outcome: Outcome | None) -> list[object]:
    """Return all that anybody acts on: ids, severities, verdicts, exit codes, what is doubted, what is advised."""
    told: list[object] = [made.verdict, EXIT[made.verdict], len(doubts(made)), advise(made).found]
    told += [(d.spec, d.verdict, [r.id for r in reasons_of(made, d)]) for d in made.defenses if d.why]
    told += [*_listed(made, None), *_listed(made, outcome)]
    waivers = [state.waiver for state in outcome.waivers] if outcome else []
    for asked in ASKED.values():
        again = gate(made, asked, waivers=waivers, today=dt.date(2026, 11, 26))
        told += [(c.id, c.status, c.level, c.attack, c.todo, c.waiver is None) for c in again.checks] + [again.verdict]
    if outcome is not None:
        told += [outcome.verdict, EXIT[outcome.verdict], conclude(outcome.checks, outcome.waivers)[0]]
        told += [(c.id, c.status, c.waiver is not None) for c in outcome.checks]
        told.append(len(outcome_doubts(outcome)))
    return told


def _listed(made: AuditResult, outcome: Outcome | None) -> list[object]:
    """Return the findings without their words."""
    return [
        (f.id, f.severity, f.evidence.get("defense"), f.evidence.get("attack"), findings.accepted(f))
        for f in conclusions(made, outcome)
    ]


SCENES = scenes()


@pytest.mark.parametrize("word", OTHERS)
@pytest.mark.parametrize("name", SCENES)
def test_other_words_change_nothing_that_is_decided(name: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (made, outcome), text = SCENES[name], OTHERS[word]
    before, listed = decided(made, outcome), _listed(made, outcome)
    other, said_otherwise = reworded(made, text), reworded(outcome, text)
    assert other != made
    assert decided(other, said_otherwise) == before
    assert _listed(other, outcome) == _listed(made, said_otherwise) == listed  # of one of them alone
    # The same where the tables of words are others.
    monkeypatch.setattr(words, "REASONS", dict.fromkeys(words.REASONS, lambda *_: (text, " ipsum.")))
    monkeypatch.setattr(words, "_LEAK", dict.fromkeys(words._LEAK, lambda _: (text, "")))
    plain = text.replace("{", "").replace("}", "")  # braces name a setting
    for table in ("MENDS", "GATE_MENDS", "RULES"):
        monkeypatch.setattr(findings, table, dict.fromkeys(getattr(findings, table), plain))
    assert decided(made, outcome) == before


def test_every_reason_that_a_verdict_gives_has_words_that_end_and_a_brief_form() -> None:
    met: set[str] = set()
    for made, _ in SCENES.values():
        for d in made.defenses:
            for group in words.grouped(rejudge(made, d)[1]):
                met |= {reason.id for reason in group}
                assert words.sentence(group).endswith(".")
                assert words.sentence(group).startswith(words.brief(group))
                assert "(" not in words.brief(group)
    assert met >= {
        *LEAKS,
        UNFINISHED,
        "within-limit",
        "control-leaks",
        "may-exceed-limit",
        "too-few-scored",
        "no-bound",
    }


def given_by_the_judge() -> list[Reason]:
    """Return reasons of every kind, as a verdict, an audit or a stored result gives them."""
    made = [reason for given, _, _ in TABLE.values() for reason in judge(given)[1]]
    made += [cap for given, _ in CAPS.values() for cap in caps(*given)]
    broken = replace(defense("x"), verdict="inconclusive", why=(Reason("not-applied", facts={"told": "it broke"}),))
    made += [*overall([broken])[1], *overall([])[1]]
    taken = replace(attack(some(3)), captured=(Attempt(0, "converged", certified=2),))
    for attacks in ((taken,), (attack(some(3)),), ()):
        for errors in ((), (BROKEN,)):
            made += about_captured("pass", (), "x", attacks, {"defense": "x", "known": False}, errors)[1]
    early = [Stage("early", 1, 0.5, each, "replay", Estimate(0.5, 0.4, 0.6, 40)) for each in ("fail", "inconclusive")]
    made += [reason for stage in early for reason in over_stages("pass", (), (stage,), 0.25)[1]]
    made += over_stages("pass", (), (Stage("init", 0, 0.1, "fail"),), 0.25)[1]
    made += over_stages("pass", (), (), 0.25, ("trained",))[1]
    old = replace(defense("x"), reasons=("It was (once) so.",))
    return [*made, *reasons_of(result(old), old), *overall_reasons(result(old, complete=False))]


def test_every_reason_has_words_for_the_values_that_the_judge_makes() -> None:
    made = given_by_the_judge()
    assert {reason.id for reason in made} >= {*LEAKS, *words.REASONS}
    for reason in made:
        (told,) = words.sentences((reason,))
        assert told.endswith(".") or reason.id == "not-applied"  # which ends as the error does
        assert not told.endswith("..")
        assert "None" not in told
        assert not told.startswith("A reason about")
        assert told.startswith((f"{reason.defense}: " if reason.defense else "") + words.brief((reason,)))


def test_every_brief_form_leaves_out_its_detail() -> None:
    assert {reason.id for reason in given_by_the_judge() if "(" in words.brief((reason,))} == set()


def test_a_reason_that_nobody_here_knows_is_told_and_does_not_crash() -> None:
    told = words.sentences((Reason("of-a-later-version", attack="dlg", facts={"told": "more is known"}),))
    assert told == ("A reason about the attack dlg: of-a-later-version (more is known).",)


@pytest.mark.parametrize("identifier", [*LEAKS, *words.REASONS])
def test_a_stored_reason_without_the_facts_that_its_words_name_is_told(identifier: str) -> None:
    huge = Estimate(1e308, 1e308, 1e308, 10**9)
    for reason in (Reason(identifier), Reason(identifier, attack="dlg", measured=huge, limit=1e308)):
        (told,) = words.sentences((reason,))
        assert told.endswith(".")
        assert words.brief((reason,))


@pytest.mark.parametrize("name", ["overfitted", *LEAKS, UNFINISHED, "control-not-scored", "stored", "of-a-plug-in"])
def test_no_doubt_that_an_attack_names_is_taken_for_a_reason_of_the_verdict(name: str) -> None:
    plain, doubted = (
        result(defense("obscure", replace(attack(some(0)), doubts=doubts_))) for doubts_ in ({}, {name: "see"})
    )
    (verdict, why), (same, more) = (rejudge(made, made.defenses[1]) for made in (plain, doubted))
    assert (same, more[: len(why)]) == (verdict, why)
    (doubt,) = more[len(why) :]
    assert "The attack linkage" in words.sentence((doubt,)) or name in words.sentence((doubt,))
    assert "see" in words.sentence((doubt,))


def test_advice_bears_needs_that_are_no_counts() -> None:
    made = result(defense("gaussian", attack(some(1))))
    odd = tuple(Reason("may-exceed-limit", needs=(Setting("records", value),)) for value in ("many", None, 7.5))
    rows = tuple(replace(d, verdict="inconclusive", why=odd) for d in made.defenses)
    assert [o.leakage_needs for o in advise(replace(made, defenses=rows)).options] == [""]


SPELLED = [
    (Setting("records", 40), "--records 40", "records=40"),
    (Setting("batch_size"), "--batch-size", "batch_size"),
    (Setting("mode", "eval"), "--mode eval", "mode='eval'"),
    (Setting("battery", "quick"), "--quick", "battery='quick'"),
    (Setting("utility", False), "--no-utility", "utility=False"),
    (Setting("attacks"), "--attack", "attacks"),
    (Setting("data"), "--data", "the data"),
]


@pytest.mark.parametrize(("setting", "option", "argument"), SPELLED)
def test_a_setting_is_spelled_as_each_surface_takes_it(setting: Setting, option: str, argument: str) -> None:
    assert (as_option(setting), as_argument(setting)) == (option, argument)
    error = UserError("give ", setting, " {not a template}.")
    assert str(error) == f"give {option} {{not a template}}."
    assert error.spelled(as_argument) == f"give {argument} {{not a template}}."


def test_templates_take_their_values_from_the_needs() -> None:
    needs = (Setting("records", 8),)
    parts = worded("Use {--mode eval} or {--records=}, not {--records} {n}.", needs, n=3)
    assert said(parts) == "Use --mode eval or --records 8, not --records 3."
    assert said(parts, as_argument) == "Use mode='eval' or records=8, not records 3."


@pytest.mark.parametrize("table", [findings.MENDS, findings.GATE_MENDS], ids=["MENDS", "GATE_MENDS"])
def test_every_mend_names_settings_that_a_scan_has(table: dict[str, str]) -> None:
    from leakaudit.scene.plan import Plan

    known = {f.name for f in fields(Plan)} | {"defense", "checkpoint", "output", "data", "device"}
    for template in table.values():
        needs = [Setting(name, 1) for name in known]
        for part in worded(template, needs):
            assert isinstance(part, str) or part.name in known, template


def test_a_check_speaks_the_language_of_who_shows_it() -> None:
    made = result(defense("gaussian", attack(some(1))))
    (check,) = gate(made, PRESETS["strict"]).checks[:1]
    assert check.status == "inconclusive"
    for tell, spell, wanted in (
        (sentence_of_check, as_option, "(--records "),
        (sentence_of_check, as_argument, "(records="),
        (mend_of_check, as_option, "--records "),
        (mend_of_check, as_argument, "records="),
    ):
        assert wanted in tell(check, spell)
    assert (sentence_of_check(check), mend_of_check(check)) == (check.message, check.mend)


def test_what_would_settle_a_check_goes_by_all_of_its_reasons() -> None:
    def todo(*attacks: AttackResult, **changes: object) -> Mend | None:
        made = result(defense("gaussian", *attacks), **changes)
        return next(c for c in gate(made, PRESETS["strict"]).checks if c.rule == "identification").todo

    once, twice = attack(some(1)), attack(some(2), name="masked")
    made = result(defense("gaussian", once, twice))
    wanted = [reason.needs[0] for reason in rejudge(made, made.defenses[1], 0.1)[1]]
    assert todo(once, twice) == Mend("more-records", (max(wanted, key=lambda need: int(need.value or 0)),))
    noted = replace(once, doubts={"overfitted": "on its own pairs"})
    assert todo(noted) == todo(once) != Mend("measure")  # what an attack doubts of itself is no reason for the verdict
    assert todo(attack(some(0, 4))) == Mend("enough-records", (Setting("records", 36),))
    assert todo(attack(some(1), role="standard")) == Mend("measure")  # no number of records is an adaptive attack
    assert todo(attack(some(5))) == Mend("strengthen")  # above the limit, and not yet shown to be
    assert todo(once, settings={"battery": "quick"}) == Mend("not-quick")


@pytest.mark.parametrize("place", ["leakaudit/judge", "leakaudit/gate", "leakaudit/testing.py"])
def test_nobody_looks_for_a_pattern_in_a_sentence(place: str) -> None:
    files = [ROOT / place] if place.endswith(".py") else sorted((ROOT / place).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            told = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            told += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "re" not in told, f"{file}:{node.lineno}"
