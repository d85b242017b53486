"""A result that follows from its own numbers leaves no doubt; one whose verdict or numbers were edited does."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from leakaudit import __version__
from leakaudit.gate.consistency import doubts, outcome_doubts, unaudited
from leakaudit.gate.decision import gate
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.outcome import WaiverState
from leakaudit.result.rounding import coarse
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Waiver
from tests.leakaudit.results import attack, defense, result, some


def honest(*rows: DefenseResult, **changes: Any) -> AuditResult:
    """Return a result whose verdicts are those of its numbers."""
    made = result(*rows, **{"environment": {"leakaudit": __version__}} | changes)
    given = tuple(
        replace(d, verdict=v, why=why, reasons=sentences(why)) for d in made.defenses for v, why in [rejudge(made, d)]
    )
    verdict, why = overall(given)
    return replace(made, defenses=given, verdict=verdict, why=why, reasons=sentences(why))


LEAKY = ("clip", attack(some(40), psnr=[9.0] * 40))


@pytest.mark.parametrize(("hits", "verdict"), [(0, "pass"), (7, "inconclusive"), (40, "fail")])
def test_a_result_as_it_was_made_leaves_no_doubt(hits: int, verdict: str) -> None:
    made = honest(defense("clip", attack(some(hits), psnr=[9.0] * 40)))
    assert made.verdict == verdict
    assert doubts(made) == ()
    worse = replace(made, verdict="fail", defenses=tuple(replace(d, verdict="fail") for d in made.defenses))
    assert doubts(worse) == ()  # stricter rules of another day are no forgery


def test_a_verdict_better_than_its_numbers_is_named() -> None:
    made = honest(defense(*LEAKY))
    rows = (made.defenses[0], replace(made.defenses[1], verdict="pass"))
    told = doubts(replace(made, defenses=rows, verdict="pass"))
    assert len(told) == 2
    assert "on clip is pass, its own numbers give fail" in told[0]
    assert f"by the rules of leakaudit {__version__}: " in told[0]
    assert "of the audit is pass" in told[1]
    assert len(doubts(replace(made, verdict="inconclusive"))) == 1


def test_another_versions_rules_are_said_to_be_others() -> None:
    made = replace(honest(defense(*LEAKY)), environment={"leakaudit": "0.0.1"}, verdict="pass")
    assert "made by leakaudit 0.0.1" in doubts(made)[0]


@pytest.mark.parametrize(
    "change", [{"settings": {"battery": "quick"}}, {"exposure": {"model_control": True}}, {"complete": False}]
)
def test_what_cannot_pass_is_no_pass(change: dict[str, Any]) -> None:
    made = honest(defense("clip", attack(some(0))))
    assert made.verdict == "pass"
    assert any("pass" in told for told in doubts(replace(made, **change)))


def test_numbers_that_are_not_those_of_the_records_are_named() -> None:
    made = honest(defense(*LEAKY))

    def edited(**changes: Any) -> tuple[str, ...]:
        changed = replace(made.defenses[1].attacks[0], **changes)
        rows = (made.defenses[0], replace(made.defenses[1], attacks=(changed,)))
        return tuple(told for told in doubts(replace(made, defenses=rows)) if told.startswith("On clip"))

    share = made.defenses[1].attacks[0].identification
    assert edited() == ()
    assert "40 of 40 are identified" in edited(identification=replace(share, value=0.0, low=0.0, high=0.1))[0]
    assert len(edited(identification=replace(share, n=4000))) == 1
    assert len(edited(identification=replace(share, low=0.1))) == 1
    assert len(edited(identification=Estimate(reason="none"))) == 1
    assert "PSNR" in edited(psnr=Estimate(9.0, 1.0, 9.0, 40))[0]
    assert "ended" in edited(statuses={"diverged": 40})[0]
    assert "no records" in edited(records=())[0]


def test_rounded_scores_are_their_records_as_far_as_rounding_goes() -> None:
    scores = [9.0 + 0.07 * i for i in range(40)]
    made = honest(defense("clip", attack(some(0), psnr=scores)), images="none")
    row = made.defenses[1].attacks[0]
    row = replace(row, records=tuple(replace(r, rank=None) for r in row.records))  # that is never shown then
    rounded = replace(row, psnr=coarse(row).psnr)
    far = replace(rounded, psnr=replace(rounded.psnr, low=1.0))

    def told(row: AttackResult, images: str) -> int:
        rows = (made.defenses[0], replace(made.defenses[1], attacks=(row,)))
        return sum("clip" in doubt for doubt in doubts(replace(made, defenses=rows, images=images)))

    assert told(rounded, "none") == 0
    assert told(coarse(rounded), "redacted") == 0
    assert told(rounded, "full") == 1
    assert told(far, "none") == 1


def test_a_finished_audit_has_a_row_for_every_defense() -> None:
    made = honest(defense("clip", attack(some(0))), settings={"battery": "standard", "defenses": "clip gaussian:std=1"})
    assert unaudited(made) == ("gaussian:std=1",)
    assert any("gaussian:std=1 has no row" in told for told in doubts(made))
    cut = replace(made, complete=False, verdict="inconclusive")
    assert doubts(cut) == ()
    assert unaudited(replace(made, settings={})) == ()


def test_an_outcome_follows_from_its_checks_and_waivers() -> None:
    made = honest(defense(*LEAKY))
    said = gate(made)
    assert outcome_doubts(said) == ()
    assert "its own checks and waivers give fail" in outcome_doubts(replace(said, verdict="pass"))[0]
    assert "give inconclusive" in outcome_doubts(replace(said, verdict="pass", checks=()))[0]
    turned = tuple(replace(c, status="pass") for c in said.checks)
    assert "is a pass, but" in outcome_doubts(replace(said, verdict="pass", checks=turned))[0]
    late = Waiver("*", "why", "2001-01-31")
    covered = tuple(replace(c, waiver=late) for c in said.checks)
    assert any("over by then" in told for told in outcome_doubts(replace(said, verdict="pass", checks=covered)))
    expired = replace(said, verdict="pass", checks=(), waivers=(WaiverState(late, "expired"),))
    assert "give fail" in outcome_doubts(expired)[0]


@pytest.mark.parametrize("hits", [0, 7, 40])
def test_what_the_gate_says_leaves_no_doubt(hits: int) -> None:
    made = honest(defense("clip", attack(some(hits), psnr=[9.0] * 40), accuracies=(0.8, 0.81, 0.82)))
    waiver = Waiver("*", "why", "2999-01-31")
    for said in (gate(made), gate(made, waivers=(waiver,)), gate(made, baseline=made)):
        assert outcome_doubts(said) == ()


def test_scores_without_records_and_accuracies_without_runs_are_named() -> None:
    made = honest(defense(*LEAKY, accuracies=(0.7, 0.8, 0.9)))
    assert doubts(made) == ()
    row = made.defenses[1]
    stripped = replace(row, attacks=tuple(replace(a, records=()) for a in row.attacks))
    other = replace(row, accuracy=replace(row.accuracy, value=0.99))
    nowhere = replace(row, accuracies=())
    for changed, words in ((stripped, "no records"), (other, "training runs"), (nowhere, "no training runs")):
        told = doubts(replace(made, defenses=(made.defenses[0], changed)))
        assert any(words in each for each in told), told


def test_checks_of_the_gate_are_judged_again_on_the_result() -> None:
    made = honest(defense("clip", attack(some(7), psnr=[9.0] * 40), accuracies=(0.7, 0.8, 0.9)))
    said = gate(made, today=dt.date(2026, 1, 1))
    assert outcome_doubts(said, made) == ()
    passing = tuple(replace(c, status="pass", measured=Estimate(0.005, 0.0, 0.01, 999)) for c in said.checks)
    assert any("judged again" in told for told in outcome_doubts(replace(said, verdict="pass", checks=passing), made))
    fewer = tuple(c for c in said.checks if c.rule == "findings")
    assert any(
        "no check of identification" in t for t in outcome_doubts(replace(said, verdict="pass", checks=fewer), made)
    )
    strange = honest(defense("clip[1]*", attack(some(0), psnr=[9.0] * 40), accuracies=(0.7, 0.8, 0.9)))
    assert outcome_doubts(gate(strange, today=dt.date(2026, 1, 1)), strange) == ()
