"""What is skipped once a verdict is settled: nothing that could change it, nothing that anybody must see."""

from __future__ import annotations

import datetime as dt
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import leakaudit
from leakaudit.audit.clock import Clock
from leakaudit.audit.pieces import Piece, in_turn, pieces_of
from leakaudit.compare.advice import advise
from leakaudit.compare.changes import changes
from leakaudit.gate.assertions import PRESETS, RegressionRule, Rule
from leakaudit.gate.consistency import doubts
from leakaudit.gate.decision import gate
from leakaudit.gate.losses import judge_change
from leakaudit.gate.thresholds import judge_rule
from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.facts import facts_of
from leakaudit.judge.scope import not_tested
from leakaudit.judge.settled import drawer, settled
from leakaudit.judge.verdict import judge, rejudge
from leakaudit.protocol.amounts import Amount
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.reports import markdown
from leakaudit.reports.terminal import summary
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Known, Waiver, from_json, to_json
from leakaudit.scene import plan
from leakaudit.scene.plan import Plan
from leakaudit.stats.intervals import median
from leakaudit.watch.forecast import Forecast
from leakaudit.work.progress import Monitor, Work, monitored
from tests.leakaudit.results import attack, defense, passed_over, result, some
from tests.leakaudit.test_audit import data, dense, row
from tests.leakaudit.test_verdict_examined import case

TODAY = dt.date(2026, 11, 26)
FAST: dict[str, Any] = {
    "battery": "quick",
    "records": 8,
    "utility": False,
    "attacks": ("analytic", "linkage", "labels"),
}


def attacks_drawn() -> st.SearchStrategy[AttackResult]:
    """Attacks of every role that identify more or fewer of 40 records, and draw them nearer or less near."""
    return st.builds(
        lambda hits, name, role, kind, near: replace(
            attack(some(hits), name=name, role=role, kind=kind),
            psnr=median([near] * 40) if kind == "reconstruction" else median([], "none"),
        ),
        st.integers(0, 40),
        st.sampled_from("abcdefgh"),
        st.sampled_from(("standard", "adaptive", "bound")),
        st.sampled_from(("reconstruction", "linkage")),
        st.sampled_from((9.0, 12.9, 13.1, 30.0)),
    )


@given(st.lists(attacks_drawn(), min_size=1, max_size=4), st.lists(attacks_drawn(), max_size=3), st.booleans())
def test_no_further_attack_undoes_what_is_settled(
    ran: list[AttackResult], more: list[AttackResult], blank: bool
) -> None:
    before = case(*ran)
    if blank and before.examined is not None:
        before = replace(before, examined=replace(before.examined, independent=True))
    verdict, why = judge(before)
    if settled(why):
        assert verdict == "fail"
        later = judge(replace(before, attacks=(*ran, *more)))
        assert later[0] == "fail"
        assert settled(later[1])


def test_a_union_settles_nothing() -> None:
    spread = [replace(attack([8 * i <= k < 8 * i + 8 for k in range(40)], name=f"a{i}")) for i in range(3)]
    verdict, why = judge(case(*spread))
    assert (verdict, settled(why)) == ("fail", False)


def test_who_drew_best_draws_again() -> None:
    near, nearer = (attack(some(30), name=n, psnr=[db] * 40) for n, db in (("near", 20.0), ("nearer", 25.0)))
    linked, rarely = attack(some(40), kind="linkage", name="linkage"), attack(some(3), name="rarely", psnr=[40.0] * 40)
    handed = attack(some(40), name="handed", role="bound", psnr=[50.0] * 40)
    assert drawer([linked, near, nearer, rarely, handed]) == "nearer"
    assert drawer([linked]) == ""


def test_cheap_and_telling_attacks_go_first_and_bounds_last() -> None:
    pieces = pieces_of("obscure", parse_defense("obscure"), Plan())
    names = [piece.work.name for piece in in_turn(pieces)]
    assert sorted(names) == sorted(piece.work.name for piece in pieces)
    assert names[:3] == ["fit", "updates", "labels"]
    assert set(names[3:6]) == {"analytic", "peeling", "replay"}
    assert names[6] == "linkage"
    assert all(name.startswith("released") for name in names[-5:-2])
    assert names[-2:] == ["weakened", "accuracy"]


def scanned(**asked: Any) -> AuditResult:
    with pytest.MonkeyPatch.context() as patch:
        few = replace(plan.BATTERIES["quick"], steps=3, tuning_victims=2, decoder_steps=3)
        patch.setitem(plan.BATTERIES, "quick", few)
        return leakaudit.scan(dense(), data(), defense="clip", **FAST | asked)


@pytest.fixture(scope="module")
def short() -> AuditResult:
    """A scan of a defense that hides nothing, with what cannot change its verdict left out."""
    return scanned()


@pytest.fixture(scope="module")
def whole() -> AuditResult:
    return scanned(all_attacks=True)


def test_what_is_skipped_is_said_and_changes_no_verdict(short: AuditResult, whole: AuditResult) -> None:
    ours, theirs = row(short, "clip"), row(whole, "clip")
    assert ours.verdict == theirs.verdict == "fail"
    assert [a.name for a in ours.attacks] == [a.name for a in theirs.attacks]
    assert [a.role for a in ours.attacks] == [a.role for a in theirs.attacks]
    skipped = [a for a in ours.attacks if a.settled_by]
    assert {a.settled_by for a in skipped} == {"analytic"}
    names = {a.name for a in skipped}
    assert names >= {"replay", "learned-inversion", "inverting-gradients"}
    assert not names & set(FAST["attacks"])  # asked for by name
    assert not any(a.settled_by for d in whole.defenses for a in d.attacks)
    assert not any(a.settled_by for a in row(short, "none").attacks)
    kept = [(a, b) for a, b in zip(ours.attacks, theirs.attacks, strict=True) if not a.settled_by]
    assert {a.name for a, _ in kept} == set(FAST["attacks"])
    assert all(a == b for a, b in kept)
    for a in skipped:
        assert a.statuses == {"skipped": 8}
        assert not a.records
        assert not facts_of(a).unfinished
        assert not facts_of(a).finished
        assert f"clip: {a.name}" not in short.timings
    assert any(a.gallery for a in ours.attacks)  # the leak can be seen
    assert from_json(to_json(short)) == short
    assert all("its battery is called quick" in told for told in doubts(short))  # which is shortened here


def test_a_full_battery_skips_nothing() -> None:
    assert Plan().skips
    assert not Plan(all_attacks=True).skips
    assert not Plan(battery="full").skips


def test_one_line_says_it(short: AuditResult) -> None:
    told = [f for f in conclusions(short) if "skipped" in f.message]
    assert [(f.id, f.severity) for f in told] == [("attacks-skipped", "info")]
    skipped = {a.name for a in row(short, "clip").attacks if a.settled_by}
    lost = {f.evidence["attack"] for f in conclusions(short) if f.id == "attack-not-scored"}
    assert not skipped & lost


def test_terminal_and_markdown_say_it_too(short: AuditResult) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    summary(short, console)
    count = sum(bool(a.settled_by) for d in short.defenses for a in d.attacks)
    assert f"{count} attacks skipped once a verdict was settled" in " ".join(console.export_text().split())
    assert "clip: skipped, since the verdict was settled by analytic" in markdown.render(short, None)


def rows(*attacks: AttackResult, **changes: Any) -> AuditResult:
    made = result(defense("prune", *attacks, requested=True, **changes))
    verdict, why = rejudge(made, made.defenses[1])
    control, own = made.defenses
    return replace(made, defenses=(control, replace(own, verdict=verdict, why=why)))


REPLAYED = attack(some(24), name="replay", kind="linkage")
HALF = rows(REPLAYED, passed_over("linkage"), passed_over("dlg"))


@pytest.mark.parametrize(
    ("limit", "status", "todo"),
    [(0.1, "fail", "strengthen"), (0.25, "fail", "strengthen"), (0.8, "inconclusive", "attacks-skipped")],
)
def test_no_limit_passes_by_what_was_not_measured(limit: float, status: str, todo: str) -> None:
    (check,) = judge_rule(HALF, Rule("identification", "max", limit))
    assert check.todo is not None
    assert (check.status, check.todo.id) == (status, todo)
    assert ("--all-attacks" in check.mend) is (todo == "attacks-skipped")


@pytest.mark.parametrize(("near", "limit", "status"), [(12.0, 20.0, "inconclusive"), (30.0, 20.0, "fail")])
def test_no_score_passes_by_what_was_not_measured(near: float, limit: float, status: str) -> None:
    drew = attack(some(40), name="inverting", psnr=[near] * 40)
    made = rows(
        REPLAYED,
        drew,
        passed_over("dlg"),
        passed_over("linkage", kind="linkage"),
    )
    (check,) = judge_rule(made, Rule("psnr", "max", limit))
    assert check.status == status
    assert ("dlg, PSNR is not known, since the attack was skipped" in check.message) is (status == "inconclusive")
    assert "linkage" not in check.message
    (named,) = judge_rule(made, Rule("psnr", "max", limit, attack="inverting"))
    assert named.status == ("pass" if near < limit else "fail")


def test_a_waiver_for_what_settled_it_does_not_cover_what_was_skipped() -> None:
    waiver = Waiver("identification", "known", "2027-01-01", attack="replay")
    outcome = gate(HALF, PRESETS["recommended"], waivers=(waiver,), today=TODAY)
    (check,) = [c for c in outcome.checks if c.rule == "identification"]
    assert check.status == "fail"
    assert check.waiver is None
    assert "--all-attacks" in check.mend
    ran = rows(REPLAYED, attack(some(0), name="dlg"))
    (covered,) = [
        c
        for c in gate(ran, PRESETS["recommended"], waivers=(waiver,), today=TODAY).checks
        if c.rule == "identification"
    ]
    assert covered.waiver == waiver


def test_a_baseline_that_ran_what_is_skipped_now_is_not_known_to_be_kept() -> None:
    before = rows(REPLAYED, attack(some(9), name="linkage"), attack(some(1), name="dlg"))
    (change,) = [c for c in changes(before, HALF) if c.metric == "identification" and c.defense == "prune"]
    assert change.lost == ("linkage, dlg (skipped, since the verdict was settled by replay)",)
    check = judge_change(change, RegressionRule("identification", "error", 0.1), 1.0)
    assert check.todo is not None
    assert (check.status, check.todo.id) == ("inconclusive", "attacks-skipped")
    (same,) = [c for c in changes(HALF, HALF) if c.metric == "identification" and c.defense == "prune"]
    assert same.lost == ()


def test_a_baseline_that_skipped_an_attack_knows_nothing_of_what_it_finds_now() -> None:
    rule = RegressionRule("identification", "error", 0.3)

    def now(hits: int) -> tuple[Any, Any]:
        after = rows(REPLAYED, attack(some(hits), name="dlg"))
        (change,) = [c for c in changes(HALF, after) if c.metric == "identification" and c.defense == "prune"]
        return change, judge_change(change, rule, 1.0)

    change, check = now(40)
    assert change.lost == ("dlg (skipped, there, since the verdict was settled by replay)",)
    assert check.status == "inconclusive"
    assert check.todo.id == "attacks-skipped"
    change, check = now(4)  # all of them records that the baseline identified by another attack
    assert change.lost == ()
    assert check.status == "pass"


def test_what_was_tuned_there_and_skipped_here_is_said_to_be_skipped() -> None:
    tuned = replace(attack(some(9), name="dlg"), settings={"tv": 0.1}, tuned={"tv": 0.1})
    here = rows(REPLAYED, passed_over("dlg", settings={"tv": 0.2}))
    (change,) = [
        c for c in changes(rows(REPLAYED, tuned), here) if c.metric == "identification" if c.defense == "prune"
    ]
    assert change.lost == ("dlg (skipped, since the verdict was settled by replay)",)


def test_advice_compares_by_what_ran_on_all() -> None:
    def option(spec: str, replayed: int, *more: AttackResult) -> DefenseResult:
        ran = attack(some(replayed), name="replay", kind="linkage")
        return defense(spec, ran, *more, accuracies=(0.8, 0.81, 0.82), verdict="fail")

    # By all that ran on each, `much` would look weaker: one attack more ran on it.
    much = option("much", 20, attack(some(40), name="linkage"))
    little = option("little", 24, passed_over("linkage"))
    told = " ".join(advise(result(much, little)).sentences)
    assert "much leaks least to the attacks that ran on all: 50% identified" in told
    assert "--all-attacks" in told
    apart = result(option("one", 20, passed_over("linkage")), defense("two", passed_over("replay"), attack(some(9))))
    apart = replace(apart, defenses=tuple(replace(d, verdict="fail") for d in apart.defenses))
    assert "it is not known which leaks least" in " ".join(advise(apart).sentences)


def test_what_was_skipped_wherever_it_would_run_was_not_tested() -> None:
    known = (Known("replay"), Known("dlg"), Known("linkage"))
    (told, *_) = not_tested(HALF.defenses, known)
    assert told == "Attacks known here but not run in this scan: dlg."  # linkage ran on the control


def test_a_result_cannot_call_skipped_what_had_to_run(short: AuditResult) -> None:
    control, clipped = short.defenses
    forged = tuple(passed_over(a.name, "analytic", 8, requires=a.requires, role=a.role) for a in control.attacks[-1:])
    made = replace(short, defenses=(replace(control, attacks=(*control.attacks[:-1], *forged)), clipped))
    assert any("had to run on it, and is said to be skipped" in told for told in doubts(made))
    asked = replace(short, settings=short.settings | {"all_attacks": True})
    assert any("had to run on it, and is said to be skipped" in told for told in doubts(asked))
    ran = replace(clipped, attacks=tuple(replace(a, settled_by="") for a in clipped.attacks))
    assert any("was skipped and ran, or was not" in told for told in doubts(replace(short, defenses=(control, ran))))


def test_a_forecast_drops_what_was_passed_over() -> None:
    now, ran = [0.0], parse_attack("dlg")
    pieces = [
        Piece(Work(name, spec), Amount(slopes=1000), ran if name == "dlg" else None)
        for spec in ("none", "clip")
        for name in ("updates", "dlg", "accuracy")
    ]
    forecast = Forecast((), now=lambda: now[0])
    monitor = Monitor(lambda work, done, total: forecast.begin(work), ahead=forecast.revise)
    with monitored(monitor):
        clock = Clock(None, pieces)
        for piece in pieces[:4]:
            with clock.piece(piece):
                now[0] += 5.0
        assert forecast.left() == pytest.approx(10.0)  # the attack and the accuracy
        clock.skip([pieces[4]])
        assert forecast.left() == pytest.approx(5.0)
        with clock.piece(pieces[5]):
            assert forecast.left() == pytest.approx(5.0)
            assert forecast.place() == (2, 2)
