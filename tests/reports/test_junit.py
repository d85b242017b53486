"""JUnit XML: valid for Jenkins, read by a parser of its own, and green exactly where the gate passes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import junitparser
import pytest
from lxml import etree

from leakaudit.gate.decision import gate
from leakaudit.reports.junit import render
from leakaudit.result.outcome import WaiverState
from leakaudit.result.schema import AuditResult, load
from tests.outcomes import LEAKY, OPEN, SAFE, WAIVER, check, every, outcome

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "junit-10.xsd"
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"
HOSTILE = "</testcase>]]>&amp;\x00\x1b[2J\x0b￾\ud800\u202e\"' <!-- \n <script>"


@pytest.fixture(scope="module")
def jenkins() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(SCHEMA))


def parsed(text: str) -> junitparser.JUnitXml:
    return junitparser.JUnitXml.fromstring(text.encode())


def cases(text: str) -> dict[str, junitparser.TestCase]:
    found = {case.name: case for suite in parsed(text) for case in suite if isinstance(case, junitparser.TestCase)}
    assert found
    return found


@pytest.mark.parametrize("name", every(load(GOLDEN)))
def test_valid_and_green_exactly_where_the_gate_passes(
    name: str, golden: AuditResult, jenkins: etree.XMLSchema
) -> None:
    result, said = every(golden)[name]
    text = render(result, said)
    jenkins.assertValid(etree.fromstring(text.encode()))
    document = parsed(text)
    suites = list(document)
    assert (document.failures + document.errors == 0) is (said.verdict == "pass")
    assert (
        document.tests
        == sum(suite.tests for suite in suites)
        == len(list(etree.fromstring(text.encode()).iter("testcase")))
    )
    for suite in suites:
        states = [type(result).__name__.lower() for case in suite for result in case.result]
        assert suite.failures == states.count("failure")
        assert suite.errors == states.count("error")
        assert suite.skipped == states.count("skipped")


def test_what_becomes_of_each_check(golden: AuditResult) -> None:
    states = {
        f"identification/{LEAKY}": check("fail"),
        f"identification/{OPEN}": check("inconclusive", OPEN),
        f"identification/{SAFE}": check("pass", SAFE),
        f"accuracy/{SAFE}": check("fail", SAFE, "accuracy", level="warn"),
        f"psnr/{SAFE}": check("fail", SAFE, "psnr", waiver=WAIVER),
    }
    found = cases(render(golden, outcome(golden, "fail", *states.values())))
    (failed,) = found[f"identification/{LEAKY}"].result
    assert isinstance(failed, junitparser.Failure)
    assert failed.type == "identification"
    assert "Strengthen the defense." in failed.text
    (open_,) = found[f"identification/{OPEN}"].result
    assert isinstance(open_, junitparser.Error)
    assert open_.type == "inconclusive"
    assert found[f"identification/{SAFE}"].is_passed
    assert "identified few enough" in found[f"identification/{SAFE}"].system_out
    (warned,) = found[f"accuracy/{SAFE}"].result
    assert isinstance(warned, junitparser.Skipped)
    assert "Only warned of, failed" in warned.text
    (waived,) = found[f"psnr/{SAFE}"].result
    assert isinstance(waived, junitparser.Skipped)
    assert "the DPO until 2027-06-30: Accepted by the board" in waived.message
    assert waived.message in waived.text  # GitLab shows the text, Jenkins the message


def test_names_are_unique_and_a_dot_of_a_setting_makes_no_package(golden: AuditResult) -> None:
    twice = replace(WAIVER, reason="again")
    waivers = (WaiverState(WAIVER, "in-force"), WaiverState(twice, "in-force"))
    text = render(golden, outcome(golden, "pass", check("pass"), check("pass", SAFE), waivers=waivers))
    elements = list(etree.fromstring(text.encode()).iter("testcase"))
    assert len({(e.get("classname"), e.get("name")) for e in elements}) == len(elements)
    assert {e.get("classname").count(".") for e in elements} == {1}


def test_an_expired_waiver_fails_and_the_others_do_not(golden: AuditResult) -> None:
    states = tuple(WaiverState(replace(WAIVER, rule=state), state) for state in ("in-force", "expired", "unused"))
    found = cases(render(golden, outcome(golden, "fail", waivers=states)))  # type: ignore[arg-type]
    failed = [name for name, case in found.items() if case.result]
    assert len(failed) == 1
    assert failed[0].startswith("waiver 2: expired on")


def test_a_verdict_that_no_case_shows_is_a_case(golden: AuditResult) -> None:
    for verdict, kind in (("fail", junitparser.Failure), ("inconclusive", junitparser.Error)):
        found = cases(render(golden, outcome(golden, verdict, check("pass"), reasons=("For a reason.",))))
        (told,) = found["verdict"].result
        assert isinstance(told, kind)
        assert told.message == "For a reason."


def test_findings_stand_beside_the_defense_they_are_of(golden: AuditResult) -> None:
    text = render(golden, outcome(golden, "pass", check("pass", OPEN)))
    suites = {suite.name: suite for suite in parsed(text)}
    assert "attack-not-scored" in suites[OPEN]._elem.find("system-out").text
    assert "dead-parameters" in suites["gate"]._elem.find("system-out").text
    digests = {p.name: p.value for p in suites[OPEN].properties()}
    assert len(digests["result-sha256"]) == 64


def test_third_party_text_stays_text(golden: AuditResult, jenkins: etree.XMLSchema) -> None:
    waiver = replace(WAIVER, rule=HOSTILE, reason=HOSTILE, by=HOSTILE)
    odd = check("fail", HOSTILE, HOSTILE, attack=HOSTILE, message=HOSTILE, mend=HOSTILE)
    waived = replace(odd, id="other", waiver=waiver)
    said = outcome(golden, "fail", odd, waived, waivers=(WaiverState(waiver, "expired"),), source=HOSTILE)
    text = render(golden, replace(said, reasons=(HOSTILE,), presets=(HOSTILE,)))
    root = etree.fromstring(text.encode())
    jenkins.assertValid(root)
    plain = etree.fromstring(render(golden, outcome(golden, "fail", check("fail"))).encode())
    assert {e.tag for e in root.iter()} <= {e.tag for e in plain.iter()} | {"skipped", "properties"}
    assert "\\x1b[2J" in (root.find(".//failure").text or "")


def test_the_real_gate_on_the_golden_result(golden: AuditResult, jenkins: etree.XMLSchema) -> None:
    said = gate(golden)
    text = render(golden, said)
    jenkins.assertValid(etree.fromstring(text.encode()))
    assert {c.id for c in said.checks} <= cases(text).keys()
