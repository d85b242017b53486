"""The gate: thresholds on interval bounds, regressions, waivers, and the verdict that becomes an exit code."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from leakaudit.errors import UserError
from leakaudit.gate import assertions, waivers
from leakaudit.gate.decision import gate
from leakaudit.result import outcome
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.schema import AuditResult, Estimate, Finding, digest, from_json
from tests.leakaudit.results import attack, defense, lost, result, some

DAY = dt.date(2026, 11, 23)


def judged(made: AuditResult, table: dict[str, Any], **more: Any) -> Outcome:
    return gate(made, assertions.parse({"preset": "none", **table}), today=DAY, **more)


def only(said: Outcome) -> Check:
    (check,) = said.checks
    return check


@pytest.mark.parametrize(
    ("hits", "limit", "status"),
    [
        (0, 0.25, "pass"),  # upper bound 8.8 %
        (0, 0.05, "inconclusive"),
        (6, 0.25, "inconclusive"),  # 15 %, up to 29.8 %
        (36, 0.25, "fail"),
    ],
)
def test_identification_is_judged_on_the_bound(hits: int, limit: float, status: str) -> None:
    said = judged(result(defense("clip", attack(some(hits)))), {"identification": {"max": limit}})
    assert only(said).status == status
    assert said.verdict == status
    assert only(said).measured.value == hits / 40
    assert only(said).attack == "linkage"


def test_too_little_evidence_says_how_many_records_it_takes() -> None:
    said = judged(result(defense("clip", attack(some(0, 16)))), {"identification": {"max": 0.10}})
    assert only(said).status == "inconclusive"
    assert "--records 36" in only(said).mend
    enough = judged(result(defense("clip", attack(some(0, 36)))), {"identification": {"max": 0.10}})
    assert only(enough).status == "pass"


def test_too_few_records_are_asked_for_even_where_the_rate_so_far_is_too_high() -> None:
    said = judged(result(defense("clip", attack(some(2, 4)))), {"identification": {"max": 0.25}})
    assert only(said).status == "inconclusive"
    assert "at least 13" in only(said).message
    assert "--records 13" in only(said).mend


def test_a_failure_tells_of_the_attack_whose_share_it_measures() -> None:
    made = result(defense("clip", attack(some(22), name="dlg"), attack(some(40)), attack(some(30), name="idlg")))
    said = only(judged(made, {"identification": {"max": 0.25}}))
    assert said.status == "fail"
    assert (said.attack, said.measured.value) == ("linkage", 1.0)
    assert "linkage " in said.message
    assert "40 of 40" in said.message
    assert said.message.endswith("It fails against dlg, idlg, too.")
    assert said.evidence["attacks"] == "linkage, dlg, idlg"


@pytest.mark.parametrize(
    ("utility", "control", "runs", "asked"),
    [
        (False, (), (), "without --no-utility"),
        (True, (0.1, 0.1, 0.1), (0.1, 0.1, 0.1), "clearly above chance"),
        (True, (0.8, 0.8, 0.8), (), "what the reason names"),
        (True, (), (0.8, 0.8, 0.8), "what the reason names"),
    ],
)
def test_accuracy_that_was_not_measured_is_mended_where_it_went_wrong(
    utility: bool, control: tuple[float, ...], runs: tuple[float, ...], asked: str
) -> None:
    rows = defense("none", attack([True] * 40), accuracies=control), defense("clip", attack(some(0)), accuracies=runs)
    made = result(*rows)
    said = only(judged(replace(made, settings={**made.settings, "utility": utility}), {"accuracy-loss": {"max": 0.1}}))
    assert said.status == "inconclusive"
    assert asked in said.mend


def test_a_quick_audit_never_passes() -> None:
    made = result(defense("clip", attack(some(0))), settings={"battery": "quick"})
    said = judged(made, {"identification": {"max": 0.25}})
    assert said.verdict == "inconclusive"
    assert "--quick" in only(said).mend


def test_a_crashed_attack_is_not_safe() -> None:
    made = result(defense("clip", attack(some(0)), lost("dlg", "failed", 40)))
    assert judged(made, {"identification": {"max": 0.25}}).verdict == "inconclusive"
    assert judged(made, {"identification": {"max": 0.25, "attack": "linkage"}}).verdict == "pass"
    assert judged(made, {"identification": {"max": 0.25, "attack": "dlg"}}).verdict == "inconclusive"
    absent = judged(made, {"identification": {"max": 0.25, "attack": "idlg"}})
    assert absent.verdict == "inconclusive"
    assert "'idlg'" in only(absent).message


def test_scores_without_an_interval_are_open() -> None:
    few = result(defense("clip", attack(some(0, 4), psnr=[12.0] * 4)))
    said = judged(few, {"psnr": {"max": 20}})
    assert said.verdict == "inconclusive"
    assert "--records 6" in only(said).mend
    many = result(defense("clip", attack(some(0), psnr=[12.0] * 40)))
    assert judged(many, {"psnr": {"max": 20}}).verdict == "pass"
    assert judged(many, {"psnr": {"max": 11}}).verdict == "fail"


def test_the_worst_attack_decides_and_the_others_are_named() -> None:
    attacks = [attack(some(0), name=n, psnr=[p] * 40) for n, p in (("dlg", 12.0), ("idlg", 25.0), ("a", 22.0))]
    check = only(judged(result(defense("clip", *attacks)), {"psnr": {"max": 20}}))
    assert (check.status, check.attack) == ("fail", "idlg")
    assert check.evidence["attacks"] == "idlg, a"


@pytest.mark.parametrize(
    ("accuracies", "least", "status"),
    [
        ((0.80, 0.81, 0.82), 0.70, "pass"),
        ((0.60, 0.61, 0.62), 0.70, "fail"),
        ((0.70, 0.72, 0.74), 0.70, "inconclusive"),
        ((0.80, 0.81), 0.70, "inconclusive"),
        ((), 0.70, "inconclusive"),
    ],
)
def test_accuracy_is_judged_on_the_bound(accuracies: tuple[float, ...], least: float, status: str) -> None:
    made = result(defense("clip", attack(some(0)), accuracies=accuracies))
    check = only(judged(made, {"accuracy": {"min": least}}))
    assert check.status == status
    assert (status == "pass") or "seeds" in check.mend or status == "fail"


def test_accuracy_lost_is_against_the_control() -> None:
    made = result(defense("clip", attack(some(0)), accuracies=(0.70, 0.71, 0.72)))
    assert only(judged(made, {"accuracy-loss": {"max": 0.15}})).status == "pass"
    check = only(judged(made, {"accuracy-loss": {"max": 0.05}}))
    assert check.status == "fail"
    assert check.measured.value == pytest.approx(0.10)


def test_a_rule_of_level_warn_fails_nothing() -> None:
    made = result(defense("clip", attack(some(40))))
    said = judged(made, {"identification": {"max": 0.25, "level": "warn"}})
    assert only(said).status == "fail"
    assert said.verdict == "pass"
    assert "1 only warned of" in said.reasons[0]


def test_a_defense_nobody_scanned_is_open() -> None:
    said = judged(result(defense("clip", attack(some(0)))), {"accuracy": {"min": 0.5, "defense": "dp-sgd*"}})
    assert said.verdict == "inconclusive"
    assert "'dp-sgd*'" in only(said).message


def test_the_preset_gives_way_to_a_stricter_scan() -> None:
    made = result(defense("clip", attack(some(0))), max_identification=0.05)
    preset = [c for c in gate(made, today=DAY).checks if c.rule == "identification"]
    assert [c.threshold for c in preset] == [0.05]
    own = judged(made, {"identification": {"max": 0.25}})
    assert only(own).threshold == 0.25


def test_findings_and_interruptions_count() -> None:
    finding = Finding("copies-private-records", "error", "clip: it copies", {"defense": "clip"})
    made = result(defense("clip", attack(some(0))), findings=(finding,), complete=False)
    said = judged(made, {"findings": {"severity": "error"}})
    assert {(c.rule, c.status) for c in said.checks} == {
        ("finding-copies-private-records", "fail"),
        ("complete", "inconclusive"),
    }
    assert said.verdict == "fail"


def waiver(**changes: Any) -> list[Any]:
    entry = {"rule": "identification", "reason": "accepted", "expires": "2027-01-31"} | changes
    return list(waivers.parse([entry]))


def test_a_waiver_accepts_a_failure_and_stays_visible() -> None:
    made = result(defense("clip", attack(some(40))))
    said = judged(made, {"identification": {"max": 0.25}}, waivers=waiver())
    assert said.verdict == "pass"
    assert only(said).status == "fail"
    assert only(said).waiver == said.waivers[0].waiver
    assert (said.waivers[0].state, said.waivers[0].checks) == ("in-force", ("identification/clip",))
    assert "1 waived" in said.reasons[0]


@pytest.mark.parametrize(
    ("other", "table"),
    [
        (attack(some(5), name="expectation"), {"identification": {"max": 0.25}}),  # up to 27 %: open by itself
        (lost("expectation", "failed", 40), {"identification": {"max": 0.25}}),
        (attack(some(0), name="dlg", psnr=[12.0] * 40), {"psnr": {"max": 12}}),
    ],
)
def test_a_waiver_for_one_attack_hides_nothing_else(other: Any, table: dict[str, Any]) -> None:
    made = result(defense("clip", attack(some(40), psnr=[30.0] * 40), other))
    said = judged(made, table, waivers=waiver(rule="*", attack="linkage"))
    assert said.verdict == ("pass" if "psnr" in table else "fail")
    alone = result(defense("clip", attack(some(40), psnr=[30.0] * 40)))
    assert judged(alone, table, waivers=waiver(rule="*", attack="linkage")).verdict == "pass"


def test_a_waiver_for_one_attack_does_not_mend_a_useless_control() -> None:
    weak = defense("none", attack(some(0)))
    made = result(weak, defense("clip", attack(some(20))))
    assert judged(made, {"identification": {"max": 0.25}}, waivers=waiver(attack="linkage")).verdict == "fail"
    assert judged(made, {"identification": {"max": 0.25}}, waivers=waiver()).verdict == "pass"


@pytest.mark.parametrize("metric", ["identification", "psnr"])
def test_a_rule_for_one_attack_keeps_the_audits_safeguards(metric: str) -> None:
    row = defense("clip", attack(some(0), psnr=[9.0] * 40))
    table = {metric: {"max": 0.25 if metric == "identification" else 20, "attack": "*"}}
    assert judged(result(row), table).verdict == "pass"
    quick = result(row, settings={"battery": "quick"})
    useless = result(defense("none", attack(some(0))), row)
    nobody = replace(result(row), defenses=(row,))
    cut = result(defense("clip", replace(attack(some(0), psnr=[9.0] * 40), statuses={"budget": 40})))
    malicious = result(row, exposure={"model_control": True})
    for made in (quick, useless, nobody, cut, malicious):
        assert judged(made, table).verdict == "inconclusive"


@pytest.mark.parametrize("table", [{"psnr": {"max": 20}}, {"identification": {"max": 0.25, "attack": "*"}}])
def test_an_attack_that_never_began_is_not_skipped(table: dict[str, Any]) -> None:
    row = defense("clip", attack(some(0), psnr=[9.0] * 40), lost("expectation", "budget", 40, "the budget was spent"))
    assert judged(result(row), table).verdict == "inconclusive"


def test_an_attack_that_cannot_be_run_shows_nothing() -> None:
    made = result(defense("clip", attack(some(0)), lost("analytic", "not-applicable", 40, "no dense layer")))
    for asked in ("analytic", "ana*"):
        assert judged(made, {"identification": {"max": 0.25, "attack": asked}}).verdict == "inconclusive"


def test_a_waiver_finds_its_defense_whatever_its_name() -> None:
    made = result(defense("clip[1]*", attack(some(40))))
    said = judged(
        made, {"psnr": {"max": 20}, "identification": {"max": 0.25}}, waivers=waiver(rule="*", attack="linkage")
    )
    assert [c.waiver is not None for c in said.checks if c.rule == "identification"] == [True]


@pytest.mark.parametrize("metric", ["identification", "psnr"])
def test_a_waiver_for_one_attack_covers_no_safeguard(metric: str) -> None:
    leak = attack(some(40), psnr=[30.0] * 40)
    table = {metric: {"max": 0.25 if metric == "identification" else 20, "attack": "link*"}}
    one = waiver(rule="*", attack="link*")
    assert judged(result(defense("clip", leak)), table, waivers=one).verdict == "pass"
    quick = result(defense("clip", leak), settings={"battery": "quick"})
    useless = result(defense("none", attack(some(0))), defense("clip", leak))
    crashed = result(defense("clip", lost("linkage", "failed", 40)))
    for made in (quick, useless, crashed):
        assert judged(made, table, waivers=one).verdict != "pass"
    assert judged(crashed, {"identification": {"max": 0.25}}, waivers=waiver(attack="?*")).verdict != "pass"


def test_no_rise_is_no_pass_where_the_attacks_do_not_work() -> None:
    useless = result(defense("none", attack(some(0))), defense("clip", attack(some(0))))
    said = judged(useless, {"regression": {"identification": {}}}, baseline=useless)
    assert said.verdict == "inconclusive"


def test_a_rule_on_the_loss_of_the_undefended_model_is_said_to_be_none() -> None:
    made = result(defense("clip", attack(some(0)), accuracies=(0.8, 0.8, 0.8)))
    assert judged(made, {"accuracy-loss": {"max": 0.1, "defense": "none"}}).verdict == "inconclusive"


def test_equal_runs_are_no_certainty_about_accuracy() -> None:
    made = result(defense("clip", attack(some(0)), accuracies=(0.6, 0.6, 0.6)))
    made = replace(made, target={**made.target, "test_records": 40})
    assert judged(made, {"accuracy": {"min": 0.5999}}).verdict == "inconclusive"
    assert judged(made, {"accuracy": {"min": 0.5}}).verdict == "pass"


def test_the_same_result_again_is_no_regression_and_no_doubt() -> None:
    made = result(defense("clip", attack(some(3), psnr=[12.0] * 40), accuracies=(0.3, 0.9, 0.6)))
    said = judged(
        made,
        {"regression": {"identification": {"detect": 0.35}, "psnr": {}, "accuracy": {"detect": 0.1}}},
        baseline=made,
    )
    assert said.verdict == "pass"


def test_an_expired_waiver_fails_even_where_all_is_well() -> None:
    made = result(defense("clip", attack(some(0))))
    said = judged(made, {"identification": {"max": 0.25}}, waivers=waiver(expires="2026-11-22"))
    assert said.verdict == "fail"
    assert "expired on 2026-11-22" in said.reasons[0]
    today = judged(made, {"identification": {"max": 0.25}}, waivers=waiver(expires="2026-11-23"))
    assert today.verdict == "pass"
    assert today.waivers[0].state == "unused"


def test_nothing_asserted_is_no_pass() -> None:
    assert judged(result(), {}).verdict == "inconclusive"


def both(before: list[bool], after: list[bool], **more: Any) -> Outcome:
    first, second = (result(defense("clip", attack(hits))) for hits in (before, after))
    return judged(second, {"regression": {"identification": {"detect": 0.35}}}, baseline=first, **more)


def test_no_change_passes_and_a_planted_leak_fails() -> None:
    assert both(some(3), some(3)).verdict == "pass"
    assert both(some(3), some(2)).verdict == "pass"
    leak = both(some(3), some(20))
    assert leak.verdict == "fail"
    assert "from 3 to 20 of 40 records" in only(leak).message
    assert both(some(20), some(3)).verdict == "pass"  # a gain is no regression


def test_a_few_more_hits_are_no_alarm_but_may_be_too_little_evidence() -> None:
    assert both(some(0, 16), some(1, 16)).verdict == "pass"
    open_ = both(some(0, 16), some(4, 16))
    assert open_.verdict == "inconclusive"
    assert "--records" in only(open_).mend


def test_lost_accuracy_fails_and_its_noise_does_not() -> None:
    table = {"regression": {"accuracy": {"detect": 0.10}}}

    def said(after: tuple[float, ...]) -> str:
        first = result(defense("clip", attack(some(0)), accuracies=(0.800, 0.805, 0.795)))
        second = result(defense("clip", attack(some(0)), accuracies=after))
        return judged(second, table, baseline=first).verdict

    assert said((0.795, 0.800, 0.790)) == "pass"
    assert said((0.70, 0.705, 0.71)) == "fail"
    assert said((0.85, 0.70, 0.78)) == "inconclusive"


def test_a_defense_of_the_baseline_that_is_gone_is_open() -> None:
    first = result(defense("clip", attack(some(0))), defense("obscure", attack(some(0))))
    second = result(defense("clip", attack(some(0))))
    said = judged(second, {"regression": {"identification": {}}}, baseline=first)
    assert {c.id: c.status for c in said.checks} == {
        "regression-identification/clip": "pass",
        "regression-coverage/obscure": "inconclusive",
    }


def test_an_incomparable_baseline_is_refused_by_name() -> None:
    other = replace(result(), hashes={**result().hashes, "private": "b2"})
    with pytest.raises(UserError, match=r"main\.json cannot be compared.*the private records are others"):
        gate(result(), baseline=other, baseline_source="main.json", today=DAY)


def test_warnings_take_no_power_from_errors() -> None:
    first, second = result(defense("clip", attack(some(0)))), result(defense("clip", attack(some(7))))
    alone = judged(second, {"regression": {"identification": {}}}, baseline=first)
    beside = judged(second, {"regression": {"identification": {}, "accuracy": {"level": "warn"}}}, baseline=first)
    assert only(alone).evidence["p_corrected"] == beside.checks[0].evidence["p_corrected"]
    assert alone.verdict == "fail"


def test_the_outcome_is_a_file(tmp_path: Any) -> None:
    said = both(some(3), some(20), waivers=waiver(rule="regression-*"))
    path = tmp_path / "gate.json"
    path.write_text(outcome.to_json(said))
    assert outcome.load(path) == said
    assert said.result_digest == digest(result(defense("clip", attack(some(20)))))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"gate\.json has schema None"):
        outcome.load(path)


def test_ids_are_unique() -> None:
    said = judged(
        result(defense("clip", attack(some(8)))),
        {"identification": [{"max": 0.1}, {"max": 0.25, "level": "warn"}, {"max": 0.5, "attack": "l*"}]},
    )
    assert len({c.id for c in said.checks}) == 3
    assert Estimate() not in [c.measured for c in said.checks]


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "line 1"), ('{"schema": NaN}', "NaN"), ("[" * 100_000, "nested"), ("[]", "schema None"), ("9" * 5000, "is")],
)
def test_a_file_that_is_no_result_is_refused_in_a_sentence(text: str, word: str) -> None:
    with pytest.raises(UserError, match=r"result\.json") as caught:
        from_json(text)
    assert word in str(caught.value)
