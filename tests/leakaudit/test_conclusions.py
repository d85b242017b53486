"""The one list of findings: what is in it, how severe it is, that it is said once, and that a gate governs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.gate.assertions import PRESETS, parse
from leakaudit.gate.decision import gate
from leakaudit.judge.conclusions import RULES, conclusions
from leakaudit.judge.findings import MENDS, OTHERWISE, describe, mend_of
from leakaudit.judge.verdict import rejudge
from leakaudit.load import preflight
from leakaudit.result.outcome import Outcome
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate, Finding, Reason, load
from leakaudit.score import copies, diagnosis
from tests.leakaudit.results import attack, defense, lost, result, some
from tests.outcomes import LEAKY, OPEN, SAFE, WAIVER, check, every, outcome

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"
RANK = {"error": 0, "warning": 1, "info": 2}


@pytest.fixture
def golden() -> AuditResult:
    return load(GOLDEN)


def by_id(findings: tuple[Finding, ...], identifier: str, defense: str | None = None) -> list[Finding]:
    return [f for f in findings if f.id == identifier and defense in (None, f.evidence.get("defense"))]


def with_defense(result: AuditResult, spec: str, **changes: object) -> AuditResult:
    defenses = tuple(replace(d, **changes) if d.spec == spec else d for d in result.defenses)  # type: ignore[arg-type]
    return replace(result, defenses=defenses)


def row(result: AuditResult, spec: str) -> DefenseResult:
    return next(d for d in result.defenses if d.spec == spec)


def attack_of(result: AuditResult, spec: str, name: str, **changes: object) -> AuditResult:
    attacks = tuple(
        replace(a, **changes) if a.name == name else a  # type: ignore[arg-type]
        for a in row(result, spec).attacks
    )
    return with_defense(result, spec, attacks=attacks)


def test_a_leak_is_an_error_with_its_numbers_and_a_mend(golden: AuditResult) -> None:
    (leak,) = by_id(conclusions(golden), "identification-above-limit")
    assert leak.severity == "error"
    assert leak.mend
    assert leak.evidence["defense"] == LEAKY
    assert leak.evidence["attack"] == "expectation-over-noise"
    assert leak.evidence["limit"] == 0.3
    assert leak.evidence["measured"] == 0.75
    assert "3 of 4" in leak.message


def test_close_pictures_are_an_error_of_their_own(golden: AuditResult) -> None:
    close = attack_of(golden, SAFE, "linkage", psnr=Estimate(30.0, 28.0, 32.0, 40))
    (found,) = by_id(conclusions(close), "reconstruction-close")
    assert (found.severity, found.evidence["defense"], found.evidence["limit"]) == ("error", SAFE, 14.9)


def test_the_controls_leak_is_expected_where_another_defense_is_asked_for(golden: AuditResult) -> None:
    found = conclusions(golden)
    assert not by_id(found, "identification-above-limit", "none")
    assert [f.severity for f in by_id(found, "undefended-leaks")] == ["info"]
    alone = replace(golden, defenses=(replace(row(golden, "none"), requested=True),))
    assert [f.severity for f in by_id(conclusions(alone), "identification-above-limit", "none")] == ["error"]
    assert not by_id(conclusions(alone), "undefended-leaks")


def test_a_control_that_does_not_leak_is_a_warning(golden: AuditResult) -> None:
    quiet = attack_of(golden, "none", "inverting-gradients", identification=Estimate(0.25, 0.01, 0.7, 3))
    assert [f.severity for f in by_id(conclusions(quiet), "control-does-not-leak")] == ["warning"]
    silent = with_defense(golden, "none", attacks=())
    assert (
        "No attack that identifies records could be scored"
        in by_id(conclusions(silent), "control-does-not-leak")[0].message
    )


def test_what_is_undecided_are_the_reasons_of_the_verdict(golden: AuditResult) -> None:
    """Of an old result, which stored sentences alone, those by which it is judged again."""
    _, why = rejudge(golden, row(golden, OPEN))
    told = [reason for reason in why if reason.id != "attack-unfinished"]
    found = by_id(conclusions(golden), "undecided", OPEN)
    assert [f.why for f in found] == [(reason,) for reason in told]
    kept = (Reason("no-adaptive-attack"), Reason("heard-of-later", facts={"told": "x"}))
    (first, second) = by_id(conclusions(with_defense(golden, OPEN, why=kept)), "undecided", OPEN)
    assert first.message.endswith("has not been tested in earnest.")
    assert second.message == f"{OPEN}: A reason about the verdict: heard-of-later (x)."


def test_a_reason_that_names_an_attack_without_score_is_not_said_twice(golden: AuditResult) -> None:
    facts = {"lost": 4, "cut": 0, "victims": 4, "ended": "4 failed", "told": "x", "weight": "adaptive"}
    why = Reason("attack-unfinished", attack="expectation-over-noise", role="adaptive", facts=facts)
    found = conclusions(with_defense(golden, OPEN, why=(why,)))
    assert not by_id(found, "undecided", OPEN)
    (told,) = by_id(found, "attack-not-scored", OPEN)
    assert told.why == (why,)
    assert told.message == (
        f"{OPEN}: The attack expectation-over-noise was built against this defense but has no score on 4 of 4 victims "
        "(4 failed; x)."
    )


def test_a_missing_score_is_a_warning_unless_it_was_weighed_or_is_the_controls(golden: AuditResult) -> None:
    assert {f.severity for f in by_id(conclusions(golden), "attack-not-scored", "none")} == {"info"}
    assert {f.severity for f in by_id(conclusions(golden), "attack-not-scored", OPEN)} == {"warning"}
    weighed = with_defense(golden, OPEN, verdict="pass", reasons=("Fine.",))
    assert {f.severity for f in by_id(conclusions(weighed), "attack-not-scored", OPEN)} == {"info"}


def test_a_failed_defense_whose_leak_no_rule_finds_still_fails(golden: AuditResult) -> None:
    odd = with_defense(golden, SAFE, verdict="fail", reasons=("Something else leaked.",))
    assert [f.message for f in by_id(conclusions(odd), "leak-found", SAFE)] == [f"{SAFE}: Something else leaked."]
    silent = with_defense(golden, SAFE, verdict="fail", reasons=())
    assert len(by_id(conclusions(silent), "leak-found", SAFE)) == 1


def test_accuracy_that_was_not_measured_is_told(golden: AuditResult) -> None:
    (found,) = by_id(conclusions(golden), "accuracy-not-measured")
    assert (found.severity, found.evidence["defense"]) == ("warning", OPEN)
    off = replace(golden, settings={**golden.settings, "utility": False})
    assert by_id(conclusions(off), "accuracy-not-measured")[0].severity == "info"


@pytest.mark.parametrize("case", every(load(GOLDEN)))
def test_sorted_unique_and_each_error_and_warning_has_a_mend(case: str, golden: AuditResult) -> None:
    result, said = every(golden)[case]
    for given in (None, said):
        found = conclusions(result, given)
        assert [RANK[f.severity] for f in found] == sorted(RANK[f.severity] for f in found)
        keys = [(f.id, f.message, f.evidence.get("defense"), f.evidence.get("attack")) for f in found]
        assert len(set(keys)) == len(keys)
        assert all(f.mend for f in found if f.severity != "info")
        assert all(describe(f.id) for f in found)
        for finding in result.findings:
            assert any(f.message.startswith(finding.message) and f.id == finding.id for f in found)


def test_an_incomplete_audit_says_so_once(golden: AuditResult) -> None:
    result, said = every(golden)["incomplete"]
    assert [f.severity for f in by_id(conclusions(result), "audit-incomplete")] == ["warning"]
    both = conclusions(result, said)
    assert len(by_id(both, "audit-incomplete")) == 1
    assert not by_id(both, "gate-complete")


def test_a_failed_check_takes_the_place_of_the_leak_behind_it(golden: AuditResult) -> None:
    found = conclusions(golden, outcome(golden, "fail", check("fail")))
    assert not by_id(found, "identification-above-limit", LEAKY)
    (said,) = by_id(found, "gate-identification", LEAKY)
    assert (said.severity, said.evidence["measured"], said.evidence["limit"]) == ("error", 0.75, 0.3)


def test_a_leak_by_another_attack_than_the_check_names_stays(golden: AuditResult) -> None:
    other = check("fail", attack="dlg", evidence={"attacks": "dlg"}, message=f"{LEAKY}: dlg leaks.")
    found = conclusions(golden, outcome(golden, "fail", other))
    assert len(by_id(found, "identification-above-limit", LEAKY)) == 1


def test_what_the_gate_allows_stays_what_the_audit_found(golden: AuditResult) -> None:
    found = conclusions(golden, outcome(golden, "pass", check("pass", LEAKY), check("pass", OPEN)))
    (leak,) = by_id(found, "identification-above-limit", LEAKY)
    assert leak.severity == "error"
    assert leak.message.endswith("The gate allows it.")
    assert {f.severity for f in by_id(found, "undecided", OPEN)} == {"warning"}


def test_a_check_of_one_attack_judges_only_that_attack(golden: AuditResult) -> None:
    scoped = check("pass", LEAKY, id=f"identification:dlg*/{LEAKY}")
    assert by_id(conclusions(golden, outcome(golden, "pass", scoped)), "identification-above-limit")[0].severity == (
        "error"
    )
    named = check("pass", LEAKY, id=f"identification:expectation*/{LEAKY}#2")
    (leak,) = by_id(conclusions(golden, outcome(golden, "pass", named)), "identification-above-limit")
    assert leak.severity == "error"  # the audit's own limit stands
    assert leak.message.endswith("The gate allows it.")


def test_levels_become_severities(golden: AuditResult) -> None:
    expected = {("fail", "error"): "error", ("inconclusive", "error"): "warning"}
    expected |= {("fail", "warn"): "warning", ("inconclusive", "warn"): "warning"}
    for (status, level), severity in expected.items():
        said = outcome(golden, "fail", check(status, SAFE, level=level))  # type: ignore[arg-type]
        assert [f.severity for f in by_id(conclusions(golden, said), "gate-identification")] == [severity]


def test_a_waived_check_is_as_severe_as_before_with_its_reason_and_last_day(golden: AuditResult) -> None:
    result, said = every(golden)["waived"]
    found = conclusions(result, said)
    (waived,) = by_id(found, "gate-identification")
    assert waived.severity == "error"
    assert waived.evidence["waived"] == WAIVER.reason
    assert (waived.evidence["waived_until"], waived.evidence["waived_by"]) == ("2027-06-30", "the DPO")
    assert "until 2027-06-30" in waived.message
    assert not by_id(found, "identification-above-limit", LEAKY)
    assert [f.severity for f in by_id(found, "waiver-unused")] == ["info"]


def test_an_expired_waiver_is_an_error_and_hides_nothing(golden: AuditResult) -> None:
    result, said = every(golden)["expired"]
    found = conclusions(result, said)
    assert [f.severity for f in by_id(found, "waiver-expired")] == ["error"]
    assert [f.severity for f in by_id(found, "gate-identification")] == ["error"]


def test_a_check_of_findings_raises_the_finding_and_is_not_a_second_one(golden: AuditResult) -> None:
    few = next(f for f in golden.findings if f.severity == "warning")
    strict = check("fail", "", f"finding-{few.id}", message=few.message)
    found = conclusions(golden, outcome(golden, "fail", strict))
    assert [f.severity for f in by_id(found, few.id)] == ["error"]
    assert not by_id(found, f"gate-finding-{few.id}")
    accepted = replace(strict, waiver=replace(WAIVER, rule=f"finding-{few.id}", defense="*"))
    (waived,) = by_id(conclusions(golden, outcome(golden, "pass", accepted)), few.id)
    assert (waived.severity, waived.evidence["waived"]) == ("error", WAIVER.reason)


def test_a_finding_brings_its_own_mend_or_gets_one(golden: AuditResult) -> None:
    own = Finding("mine", "warning", "Odd.", {}, "Do this.")
    found = conclusions(replace(golden, findings=(own, replace(own, id="other", mend=""))))
    assert by_id(found, "mine")[0].mend == "Do this."
    assert by_id(found, "other")[0].mend == OTHERWISE


def test_the_real_gates_checks_are_understood(golden: AuditResult) -> None:
    """The gate of this package on the golden result: no leak is left beside a check that names its attack."""
    found = conclusions(golden, gate(golden))
    assert by_id(found, "gate-identification", LEAKY)[0].severity == "error"
    assert not by_id(found, "identification-above-limit", LEAKY)
    assert not by_id(found, "gate-finding-dead-parameters")
    assert [f.severity for f in by_id(found, "dead-parameters")] == ["error"]


def test_every_id_that_checks_and_diagnosis_give_is_described_and_mended() -> None:
    import re

    for module, least in ((preflight, 5), (diagnosis, 4), (copies, 1)):
        text = Path(str(module.__file__)).read_text(encoding="utf-8")
        ids = set(re.findall(r'(?:_error|_warning|Finding|_finding)\(\s*"([a-z-]+)"', text))
        assert len(ids) >= least
        for identifier in ids:
            assert identifier in RULES, identifier
            assert identifier in MENDS or identifier == "cost", identifier


def test_ids_of_the_gate_are_described_by_their_rule() -> None:
    assert "accuracy" in describe("gate-accuracy-loss")
    assert "baseline" in describe("gate-regression-identification")
    assert RULES["label-stuffing"] in describe("gate-finding-label-stuffing")
    assert "odd-rule" in describe("gate-odd-rule")
    assert mend_of("gate-odd-rule")


def _gated(*attacks: AttackResult, old: bool = False) -> tuple[AuditResult, Outcome]:
    """Return a result with one defense, and what the strict gate says of it: without values, as an older one did."""
    made = result(defense("obscure", *attacks))
    rows = tuple(replace(d, verdict=v, why=why) for d in made.defenses for v, why in [rejudge(made, d)])
    made = replace(made, defenses=rows)
    outcome = gate(made, PRESETS["strict"])
    checks = tuple(replace(c, why=(), todo=None, finding={}) for c in outcome.checks) if old else outcome.checks
    return made, replace(outcome, checks=checks)


@pytest.mark.parametrize("old", [False, True])
def test_a_check_hides_no_more_than_it_tells(old: bool) -> None:
    made, outcome = _gated(attack(some(30)), lost("dlg", "failed", 40), old=old)
    assert [f.id for f in conclusions(made, outcome) if f.severity == "error"] == [
        "gate-identification",
        "attack-not-scored",
    ]


def test_what_is_unfinished_is_said_once_where_the_gate_allows_less() -> None:
    cut = replace(attack(some(0, 30)), statuses={"converged": 30, "failed": 10})
    made, outcome = _gated(attack(some(0, 200), name="dlg"), cut)
    found = [f for f in conclusions(made, outcome) if any(r.id == "attack-unfinished" for r in f.why)]
    assert [f.id for f in found] == ["gate-identification"]
    assert [r.limit for d in made.defenses for r in d.why if r.id == "attack-unfinished"] == [0.25]


def test_of_two_checks_that_say_the_same_the_worse_is_a_finding() -> None:
    made, _ = _gated(attack(some(0), psnr=[30.0] * 40))
    rules = parse({"identification": [{"max": 0.2, "level": "warn"}, {"max": 0.25}], "preset": "none"})
    assert [check.level for check in gate(made, rules).checks] == ["warn", "error"]
    found = by_id(conclusions(made, gate(made, rules)), "gate-identification")
    assert [f.severity for f in found] == ["error"]
