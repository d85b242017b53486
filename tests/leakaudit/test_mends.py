"""What mends a finding, and which rule a waiver that covers nothing was meant for."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from leakaudit.conclusions import conclusions
from leakaudit.mends import GATE_MENDS, MENDS, OTHERWISE, mend_of, unused_mend
from leakaudit.outcome import WaiverState
from leakaudit.reports import gate_terminal, junit, markdown
from leakaudit.result import Waiver
from tests.leakaudit.results import attack, defense, result, some
from tests.outcomes import check, outcome

RULES = ("identification", "accuracy-loss", "regression-accuracy", "finding-dead-parameters", "psnr")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gate-identification", "identification"),  # as alerts call it
        ("gate-regression-accuracy", "regression-accuracy"),
        ("identification/gaussian:std=0.1", "identification"),  # as the terminal lists checks
        ("identification:dlg/obscure", "identification"),
        ("identification-above-limit", "identification"),  # as the audit calls it
        ("dead-parameters", "finding-dead-parameters"),
        ("identifcation", "identification"),
        ("acuracy-loss", "accuracy-loss"),
        ("identification-above-limt", "identification"),
    ],
)
def test_the_rule_that_was_meant_is_named(given: str, meant: str) -> None:
    assert f'write rule = "{meant}"' in unused_mend(given, RULES)


@pytest.mark.parametrize("given", ["something-else", "bogus*", ""])
def test_otherwise_the_rules_that_there_are_are_listed(given: str) -> None:
    assert "use one of accuracy-loss, finding-dead-parameters, identification, " in unused_mend(given, RULES)


def test_a_rule_that_there_is_has_no_other_name() -> None:
    assert unused_mend("psnr", RULES) == MENDS["waiver-unused"] == unused_mend("x", ())


def test_every_format_names_the_rule() -> None:
    made = result(defense("obscure", attack(some(30))))
    state = WaiverState(Waiver("identifcation", "typo", "2031-01-01"), "unused")
    said = outcome(made, "fail", check("fail", "obscure"), waivers=(state,))
    console = Console(record=True, width=200, file=StringIO())
    gate_terminal.show(said, console)
    for text in (junit.render(made, said), markdown.render(made, said), console.export_text()):
        assert "write rule = " in text
    (found,) = [f for f in conclusions(made, said) if f.id == "waiver-unused"]
    assert found.mend == unused_mend("identifcation", ["identification"])


def test_checks_of_the_gate_have_mends_of_their_own() -> None:
    for rule, mend in GATE_MENDS.items():
        assert mend_of(f"gate-{rule}") == mend
    assert mend_of("gate-finding-undecided") == MENDS["undecided"]
    assert mend_of("unheard-of") == OTHERWISE
    assert "stronger" in mend_of("gate-odd-rule")
