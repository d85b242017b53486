"""SARIF: valid against the official schema, stable fingerprints, suppressions, and what GitHub is given of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import pytest
import typer

from leakaudit.cli import gate as cli_gate
from leakaudit.gate.decision import gate
from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.findings import mend_of
from leakaudit.reports.sarif import alerts, located, render
from leakaudit.result.schema import AuditResult, Finding, load
from tests.outcomes import LEAKY, OPEN, WAIVER, check, every, outcome

HERE = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((HERE / "schemas" / "sarif-schema-2.1.0.json").read_text(encoding="utf-8"))
GOLDEN = HERE / "golden" / "result-1.json"
HOSTILE = '](http://evil.example) {0} <b>\x00\x1b[2J\ud800\u202e"\\ %SRCROOT% ../'


def valid(text: str) -> dict[str, Any]:
    """Return the only run of a log that the schema takes, with a relative reference (RFC 3986) for its file."""
    log = json.loads(text)
    assert [error.message for error in jsonschema.Draft4Validator(SCHEMA).iter_errors(log)] == []
    (run,) = log["runs"]
    uri = run["artifacts"][0]["location"]["uri"]
    assert re.fullmatch(r"(?!/)(?:[\w.~!$&'()*+,;=@/-]|%[0-9A-F]{2})+", uri, re.ASCII), uri
    return dict(run)


def named(result: AuditResult, name: str, command: str = "") -> AuditResult:
    environment = {**result.environment, "command": command}
    return replace(result, target={**result.target, "name": name}, environment=environment)


def test_the_schema_is_the_official_one_and_refuses_what_is_none(golden: AuditResult) -> None:
    assert SCHEMA["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/")
    broken = json.loads(render(golden))
    broken["runs"][0]["results"][0]["level"] = "severe"
    with pytest.raises(AssertionError):
        valid(json.dumps(broken))


@pytest.mark.parametrize("name", every(load(GOLDEN)))
def test_valid_for_whatever_the_gate_says(name: str, golden: AuditResult) -> None:
    result, said = every(golden)[name]
    for given in (None, said):
        text = render(result, given)
        run = valid(text)
        assert len(run["results"]) == len(conclusions(result, given))
        for found in run["results"]:
            assert run["tool"]["driver"]["rules"][found["ruleIndex"]]["id"] == found["ruleId"]
            assert found["locations"][0]["physicalLocation"]["region"]["startLine"] == 1
        valid(alerts(text))
        assert text == render(result, given)


def test_levels_and_kinds(golden: AuditResult) -> None:
    run = valid(render(golden))
    findings = conclusions(golden)
    expected = {"error": ("fail", "error"), "warning": ("fail", "warning"), "info": ("informational", "none")}
    found = [(r["kind"], r["level"]) for r in run["results"]]
    assert found == [expected[f.severity] for f in findings]
    assert {kind for kind, _ in found} == {"fail", "informational"}


def test_rules_say_what_they_are_and_what_to_do(golden: AuditResult) -> None:
    rules = valid(render(golden))["tool"]["driver"]["rules"]
    leak = next(rule for rule in rules if rule["id"] == "identification-above-limit")
    assert leak["name"] == "IdentificationAboveLimit"
    assert leak["defaultConfiguration"]["level"] == "error"
    assert "**What to do:** Choose a stronger setting" in leak["help"]["markdown"]
    assert leak["help"]["text"] == leak["fullDescription"]["text"]


def test_fingerprints_differ_within_a_run_and_stay_between_runs(golden: AuditResult) -> None:
    def prints(result: AuditResult) -> dict[tuple[str, str, str], str]:
        results = valid(render(result))["results"]
        hashes = [r["partialFingerprints"]["primaryLocationLineHash"] for r in results]
        assert len(set(hashes)) == len(hashes)
        keys = [(r["ruleId"], str(r["properties"].get("defense")), r["message"]["text"]) for r in results]
        return dict(zip(keys, hashes, strict=True))

    before = prints(golden)
    moved = tuple(
        replace(d, attacks=tuple(replace(a, psnr=replace(a.psnr, n=99)) for a in d.attacks)) for d in golden.defenses
    )
    again = prints(replace(golden, defenses=moved, timings={"total": 9.0}, environment={}))
    assert before == again
    renamed = tuple(replace(d, spec="gaussian:std=0.02") if d.spec == LEAKY else d for d in golden.defenses)
    other = prints(replace(golden, defenses=renamed))
    assert not {h for (rule, _, _), h in other.items() if rule == "identification-above-limit"} & set(before.values())


def test_a_waiver_is_an_external_suppression_with_its_reason(golden: AuditResult) -> None:
    result, said = every(golden)["waived"]
    text = render(result, said)
    (waived,) = [r for r in valid(text)["results"] if r["ruleId"] == "gate-identification"]
    (suppression,) = waived["suppressions"]
    assert (suppression["kind"], suppression["status"]) == ("external", "accepted")
    assert suppression["justification"] == f"Waived by the DPO until 2027-06-30: {WAIVER.reason}"
    assert (waived["kind"], waived["level"]) == ("fail", "error")
    kept = valid(alerts(text))["results"]
    assert "gate-identification" not in {r["ruleId"] for r in kept}
    assert kept == [r for r in valid(text)["results"] if r["kind"] == "fail" and "suppressions" not in r]


def test_an_expired_waiver_suppresses_nothing(golden: AuditResult) -> None:
    result, said = every(golden)["expired"]
    found = {r["ruleId"]: r for r in valid(alerts(render(result, said)))["results"]}
    assert found["waiver-expired"]["level"] == found["gate-identification"]["level"] == "error"


def test_an_interrupted_audit_is_an_unsuccessful_invocation(golden: AuditResult) -> None:
    result, said = every(golden)["incomplete"]
    (invocation,) = valid(render(result, said))["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["level"] == "error"
    assert invocation["exitCode"] == 3
    (whole,) = valid(render(golden))["invocations"]
    assert (whole["executionSuccessful"], whole["exitCode"]) == (True, 1)


@pytest.mark.parametrize(
    ("name", "command", "uri"),
    [
        ("model.py", "leakaudit scan src/models/model.py -d obscure", "src/models/model.py"),
        ("model.py", "leakaudit scan './a b/model.py:make' -d obscure", "a%20b/model.py"),
        ("model.py", "leakaudit scan /home/me/model.py", "model.py"),
        ("model.py", "leakaudit scan ../model.py", "model.py"),
        ("model.py", "an unclosed 'quote model.py", "model.py"),
        ("net.py", "leakaudit.scan(...)", "net.py"),
        ("package.module", "", "model.py"),
        ("/etc/passwd.py", "", "model.py"),
    ],
)
def test_results_point_at_the_models_file(name: str, command: str, uri: str, golden: AuditResult) -> None:
    run = valid(render(named(golden, name, command)))
    uris = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]}
    assert uris == {uri} == {run["artifacts"][0]["location"]["uri"]}


def test_a_given_location_wins(golden: AuditResult) -> None:
    assert valid(render(golden, location="nets/ünd.py"))["artifacts"][0]["location"]["uri"] == "nets/%C3%BCnd.py"


@pytest.mark.parametrize("marked", [".git", "GITHUB_WORKSPACE"])
@pytest.mark.parametrize(
    ("name", "command", "uri"),
    [
        ("model.py", "leakaudit scan model.py -d obscure", "ml/model.py"),
        ("model.py", "leakaudit scan src/model.py:make", "ml/src/model.py"),
        ("model.py", "leakaudit scan ../model.py", "model.py"),
        ("model.py", "leakaudit scan ../../model.py", "ml/model.py"),
        ("model.py", "leakaudit scan {root}/nets/model.py", "nets/model.py"),
        ("model.py", "leakaudit scan /elsewhere/model.py", "ml/model.py"),
        ("net.py", "leakaudit.scan(...)", "ml/net.py"),
    ],
)
def test_the_file_is_found_from_the_repositorys_root(
    name: str, command: str, uri: str, marked: str, golden: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan in a folder of its own (`working-directory: ml`) points at ml/model.py, not at model.py of the root."""
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    (tmp_path / "ml").mkdir()
    if marked == ".git":
        (tmp_path / ".git").mkdir()
    else:
        monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    result = named(golden, name, command.format(root=tmp_path))
    assert located(result, tmp_path / "ml") == uri
    assert valid(render(result, location=uri))["artifacts"][0]["location"]["uri"] == uri


def test_without_a_repository_the_file_is_where_the_scan_ran(
    golden: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    assert located(named(golden, "model.py", "leakaudit scan a/model.py"), tmp_path) == "a/model.py"


def test_the_gate_command_points_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml").mkdir()
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.chdir(tmp_path / "ml")
    with pytest.raises(typer.Exit):
        cli_gate.gate(GOLDEN, sarif=Path("leakaudit.sarif"))
    assert valid(Path("leakaudit.sarif").read_text())["artifacts"][0]["location"]["uri"].startswith("ml/")


def test_a_rules_help_does_not_cost_what_it_asks_for(golden: AuditResult) -> None:
    """A stronger setting of a defense costs more accuracy: it is no mend for a check of accuracy."""
    rules = ("accuracy", "accuracy-loss", "regression-accuracy", "complete", "regression-coverage", "coverage")
    checks = [check("fail", rule=rule, attack="") for rule in (*rules, "identification")]
    run = valid(render(golden, outcome(golden, "fail", *checks)))
    help_ = {rule["id"]: rule["help"]["text"] for rule in run["tool"]["driver"]["rules"]}
    for rule in rules:
        assert mend_of(f"gate-{rule}") in help_[f"gate-{rule}"]
        assert "stronger" not in help_[f"gate-{rule}"], rule
    assert "stronger" in help_["gate-identification"]
    assert len({help_[f"gate-{rule}"].rpartition(". ")[2] for rule in ("accuracy", "complete", "coverage")}) == 3


def test_the_category_is_the_targets(golden: AuditResult) -> None:
    assert valid(render(named(golden, "a/b.py")))["automationDetails"]["id"] == "leakaudit/a%2Fb.py/"


def test_third_party_text_stays_text(golden: AuditResult) -> None:
    evidence = {"tags": HOSTILE, HOSTILE: HOSTILE, "defense": HOSTILE, "attack": HOSTILE}
    odd = Finding(HOSTILE, "error", HOSTILE, evidence, HOSTILE)  # type: ignore[arg-type]
    result = replace(named(golden, HOSTILE, HOSTILE), findings=(odd,), not_tested=(HOSTILE,))
    said = outcome(result, "fail", check("fail", HOSTILE, HOSTILE, message=HOSTILE, mend=HOSTILE), reasons=(HOSTILE,))
    run = valid(render(result, said))
    text = json.dumps(run, ensure_ascii=False)
    assert "](" not in "".join(r["message"]["text"] for r in run["results"])
    assert "\x1b" not in text
    assert "\u202e" not in text
    (uri,) = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]}
    assert ".." not in unquote(uri)
    for rule in run["tool"]["driver"]["rules"]:
        assert "<b>" not in rule["help"]["markdown"]


def test_the_real_gate_on_the_golden_result(golden: AuditResult) -> None:
    found = valid(render(golden, gate(golden)))["results"]
    assert {"gate-identification", "dead-parameters"} <= {r["ruleId"] for r in found}
    assert OPEN in {r["properties"].get("defense") for r in found}
