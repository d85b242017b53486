"""The gate as JUnit XML, which GitLab, Jenkins and most other CI servers show as tests.

One suite per defense, one test case per check, named by the check's id (GitLab keeps only the first of two cases of one
name). What becomes of a check:

- passed: a passed test, its numbers in `system-out`;
- failed: `<failure>`;
- inconclusive: `<error type="inconclusive">`. It did not fail, but nobody knows that it holds; every CI server counts
  an error as not passed, as the exit code 3 does;
- failed or inconclusive at level `warn`, or waived: `<skipped>` with the reason, the only state that CI servers show
  without failing for it;
- an expired waiver: `<failure>` in the suite `waivers`.

So the document is green exactly where the gate passes: whatever else decided the gate is a case of the suite `gate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from junitparser import Error, Failure, JUnitXml, Skipped, SystemOut, TestCase, TestSuite

from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.findings import accepted, unused_mend
from leakaudit.result.dates import commit_of, is_moment
from leakaudit.result.outcome import Check, Outcome
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, Finding, Verdict

STATES = {"failure": Failure, "error": Error, "skipped": Skipped}


@dataclass(frozen=True)
class Case:
    """A test case: `state` is "" where it passed, else failure, error or skipped with its `message`."""

    name: str
    state: str
    message: str
    text: str
    kind: str = ""  # the type of a failure or an error


def render(result: AuditResult, outcome: Outcome) -> str:
    """Return the gate's outcome as JUnit XML 1.0, as Jenkins' schema junit-10 and GitLab take it.

    Characters that XML 1.0 forbids are written out as `\\x..`. Findings about a defense stand in its suite's output.
    """
    suites = []
    specs = dict.fromkeys([*(d.spec for d in result.defenses), *(c.defense for c in outcome.checks)])
    findings = conclusions(result, outcome)
    for spec in specs:
        cases = [_case(check) for check in outcome.checks if check.defense == spec]
        if cases:
            suites.append(_suite(spec or "audit", cases, _properties(result, outcome, spec), _about(findings, spec)))
    if outcome.waivers:
        suites.append(_suite("waivers", _waivers(outcome), {}, ()))
    states = {what for suite in suites for what, n in (("fail", suite.failures), ("inconclusive", suite.errors)) if n}
    suites.append(_suite("gate", [_gate(outcome, states)], _properties(result, outcome, ""), _about(findings, "")))
    root = JUnitXml("leakaudit")
    for suite in suites:
        if is_moment(result.made):
            suite.timestamp = result.made.removesuffix("Z")  # JUnit's own form has no zone; it is UTC
        root.add_testsuite(suite)
    root.update_statistics()
    return _written(root)


def _written(root: JUnitXml) -> str:
    """Return the document in one form, whichever XML library junitparser found."""
    tree = ET.fromstring(root.tostring())
    for name in ("skipped", "time"):  # of the whole run, Jenkins' schema knows neither
        tree.attrib.pop(name, None)
    ET.indent(tree, " ")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(tree, encoding="unicode") + "\n"


def _case(check: Check) -> Case:
    details = [check.message]
    if check.attack:
        details.append(f"Attack: {check.attack}")
    if check.mend:
        details.append(f"Mend: {check.mend}")
    text = "\n".join(visible(line) for line in details)
    if check.status == "pass":
        return Case(check.id, "", "", text)
    if check.waiver:
        by = f" by {check.waiver.by}" if check.waiver.by else ""
        message = f"Waived{by} until {check.waiver.expires}: {check.waiver.reason}"
        return Case(check.id, "skipped", message, f"{visible(message)}\n{text}")
    if check.level == "warn":
        word = "failed" if check.status == "fail" else "inconclusive"
        return Case(check.id, "skipped", f"Only warned of, {word}: {check.message}", f"Only warned of, {word}: {text}")
    state = "failure" if check.status == "fail" else "error"
    return Case(check.id, state, check.message, text, check.rule if check.status == "fail" else "inconclusive")


def _waivers(outcome: Outcome) -> list[Case]:
    """Return one case for each waiver; only an expired one fails."""
    cases = []
    for number, state in enumerate(outcome.waivers, 1):
        waiver = state.waiver
        name = f"waiver {number}: {waiver.rule} on {waiver.defense}, attack {waiver.attack}, until {waiver.expires}"
        by = f", by {waiver.by}" if waiver.by else ""
        mend = [unused_mend(waiver.rule, (c.rule for c in outcome.checks))] if state.state == "unused" else []
        text = "\n".join(visible(line) for line in (f"{state.state}{by}: {waiver.reason}", *state.checks, *mend))
        if state.state == "expired":
            message = f"The waiver expired on {waiver.expires}: {waiver.reason}"
            cases.append(Case(name, "failure", message, text, "waiver-expired"))
        else:
            cases.append(Case(name, "", "", text))
    return cases


def _gate(outcome: Outcome, states: set[str]) -> Case:
    """Return the case of the gate itself, which fails only where no check and no waiver shows why."""
    lines = (f"The gate's verdict: {outcome.verdict}.", *outcome.reasons, *outcome.notes)
    text = "\n".join(map(visible, lines))
    message = " ".join(outcome.reasons) or f"The gate's verdict is {outcome.verdict}."
    shown: dict[Verdict, bool] = {"pass": True, "fail": "fail" in states, "inconclusive": "inconclusive" in states}
    if shown[outcome.verdict]:
        return Case("verdict", "", "", text)
    state = "failure" if outcome.verdict == "fail" else "error"
    return Case("verdict", state, message, text, outcome.verdict)


def _suite(name: str, cases: list[Case], properties: dict[str, str], findings: Iterable[Finding]) -> TestSuite:
    suite = TestSuite(visible(name))
    for key, value in properties.items():
        suite.add_property(visible(key), visible(value))
    suite.add_testcases([_element(name, case) for case in cases])
    lines = [
        visible(f"{f.severity}{', waived' if accepted(f) else ''}: {f.id}: {f.message} {f.mend}".rstrip())
        for f in findings
    ]
    if lines:
        suite.append(SystemOut("\n".join(lines)))
    return suite


def _element(suite: str, case: Case) -> TestCase:
    # Jenkins cuts a class name at its last dot into package and class: a dot within a setting must be none.
    element = TestCase(visible(case.name), f"leakaudit.{visible(suite).replace('.', '·')}", 0)
    if case.state:
        told = STATES[case.state](visible(case.message), visible(case.kind) if case.kind else None)
        told.text = case.text
        element.result = [told]
    else:
        element.system_out = case.text
    return element


def _about(findings: Iterable[Finding], spec: str) -> list[Finding]:
    """Return what is found of a defense, or of the whole audit, beyond the checks, which are cases already."""
    return [f for f in findings if str(f.evidence.get("defense") or "") == spec and not f.id.startswith("gate-")]


def _properties(result: AuditResult, outcome: Outcome, spec: str) -> dict[str, str]:
    """Return what a reader needs to find the numbers behind a suite."""
    defense = next((d for d in result.defenses if d.spec == spec), None)
    found = {
        "target": str(result.target.get("name") or ""),
        "verdict": defense.verdict if defense else outcome.verdict,
        "date": outcome.date,
        "audited": result.made,
        "leakaudit": str(result.environment.get("leakaudit") or ""),
        "commit": commit_of(result),
        "result": outcome.source,
        "result-sha256": outcome.result_digest,
        "baseline": outcome.baseline,
        "baseline-sha256": outcome.baseline_digest,
        "presets": " ".join(outcome.presets),
    }
    return {name: value for name, value in found.items() if value}
