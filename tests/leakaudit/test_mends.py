"""What mends a finding, and which rule a waiver that covers nothing was meant for."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from leakaudit.errors import said as said_of
from leakaudit.errors import worded
from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.findings import GATE_MENDS, MENDS, OTHERWISE, accepted, mend_of, unused_mend
from leakaudit.reports import gate_terminal, junit, markdown, sarif
from leakaudit.result.outcome import WaiverState
from leakaudit.result.schema import Waiver
from tests.leakaudit.results import attack, defense, result, some
from tests.outcomes import check, outcome

RULES = ("identification", "accuracy-loss", "regression-accuracy", "finding-undecided", "psnr")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gate-identification", "identification"),  # as alerts call it
        ("identifcation", "identification"),
        ("acuracy-loss", "accuracy-loss"),
        ("regression-acuracy", "regression-accuracy"),
    ],
)
def test_the_rule_that_was_meant_is_named(given: str, meant: str) -> None:
    assert f'Perhaps rule = "{meant}" was meant.' in unused_mend(given, RULES)


@pytest.mark.parametrize("given", ["something-else", "bogus*", ""])
def test_otherwise_the_rules_that_there_are_are_listed(given: str) -> None:
    assert "the rules are accuracy-loss, finding-undecided, identification, " in unused_mend(given, RULES)
    assert "the only rule is psnr." in unused_mend(given, ["psnr"])
    assert "Perhaps" not in unused_mend(given, RULES)


def test_a_rule_that_there_is_has_no_other_name() -> None:
    assert unused_mend("psnr", RULES) == MENDS["waiver-unused"] == unused_mend("x", ())
    assert unused_mend("regression-*", RULES) == MENDS["waiver-unused"]  # its defense or attack, or nothing is wrong


def test_what_a_waiver_accepts_is_as_severe_and_said_to_be_waived() -> None:
    """Beyond the check itself: a finding of the audit that the check judges again, which it does not retell."""
    two = (attack(some(30), name="dlg"), attack(some(39), name="linkage"))
    made = result(defense("obscure", *two, verdict="fail"))
    waived = check(
        "fail", "obscure", attack="dlg", evidence={"attacks": "dlg"}, waiver=Waiver("*", "why", "2031-01-01")
    )
    said = outcome(made, "pass", waived)
    (found,) = [f for f in conclusions(made, said) if f.id == "identification-above-limit"]
    assert (found.severity, accepted(found)) == ("error", True)
    assert "❌ error, waived, <code>identification-above-limit</code>" in markdown.render(made, said)
    assert "error, waived: identification-above-limit: obscure" in junit.render(made, said)
    log = sarif.render(made, said)
    assert "identification-above-limit" not in {
        r["ruleId"] for r in json.loads(sarif.alerts(log))["runs"][0]["results"]
    }


def test_every_format_names_the_rule() -> None:
    made = result(defense("obscure", attack(some(30))))
    state = WaiverState(Waiver("identifcation", "typo", "2031-01-01"), "unused")
    said = outcome(made, "fail", check("fail", "obscure"), waivers=(state,))
    console = Console(record=True, width=200, file=StringIO())
    gate_terminal.show(said, console, verbose=True)
    for text in (junit.render(made, said), markdown.render(made, said), console.export_text()):
        assert "Perhaps rule = " in text.replace("\n", " ")
    (found,) = [f for f in conclusions(made, said) if f.id == "waiver-unused"]
    assert found.mend == unused_mend("identifcation", ["identification"])


def test_checks_of_the_gate_have_mends_of_their_own() -> None:
    for rule, mend in GATE_MENDS.items():
        assert mend_of(f"gate-{rule}") == said_of(worded(mend))
    assert mend_of("gate-finding-undecided") == said_of(worded(MENDS["undecided"]))
    assert mend_of("unheard-of") == OTHERWISE
    assert "stronger" in mend_of("gate-odd-rule")
