"""Nothing on the first screen is milder than the numbers and the verdict: bounds, luck, contradictions, few records."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leakaudit.judge import ranking
from leakaudit.reports import first_screen, steps
from leakaudit.reports.brief import brief
from leakaudit.result.schema import AuditResult, DefenseResult, Reason
from tests.leakaudit.results import attack, defense, result

LEAK = "identification-above-limit"


def hits(n: int, of: int) -> list[bool]:
    return [i < n for i in range(of)]


def lines(made: AuditResult, spec: str) -> str:
    return " ".join(next(card for card in first_screen.strip(made).cards if card.spec == spec).lines)


def handed(role: str = "bound") -> DefenseResult:
    """A defense that falls to an attack which is handed the replaced records, and to no other."""
    rows = attack(hits(0, 40)), attack(hits(0, 40), name="dlg"), attack(hits(40, 40), name="handed", role="bound")
    return defense("swap", *rows, verdict="fail", why=(Reason(LEAK, attack="handed", role=role),))


def test_the_bound_that_failed_a_defense_is_named() -> None:
    made = result(handed(), verdict="fail")
    assert lines(made, "swap").startswith("40 of 40 identified by handed, handed the replaced record")
    assert "40 of 40 identified by handed" in brief(made)
    assert steps.headline(made).startswith(
        "Handed the records that replace the private ones under swap, an attacker can"
    )


def test_an_attack_on_the_update_that_failed_it_too_is_named_instead() -> None:
    why = Reason(LEAK, attack="linkage", role="adaptive"), Reason(LEAK, attack="handed", role="bound")
    made = result(replace(handed(), why=why), verdict="fail")
    assert "handed" not in lines(made, "swap")
    assert steps.headline(made).startswith("From what a client shares under swap")


def test_none_of_several_is_said_only_where_all_were_asked_about_the_same_records() -> None:
    alike = defense("clip", attack(hits(0, 40)), attack(hits(0, 40), name="dlg"), verdict="inconclusive")
    fewer = defense("clip", attack(hits(0, 40)), attack(hits(0, 2), name="dlg"), verdict="inconclusive")
    assert ranking.fruitless(alike) == 2
    assert ranking.fruitless(fewer) == 0
    assert "0 of 40 identified by any of 2 attacks" in lines(result(alike, verdict="inconclusive"), "clip")
    found = lines(result(fewer, verdict="inconclusive"), "clip")
    assert "any of" not in found
    assert "by linkage" in found or "0 of 2 identified by dlg" in found


@pytest.mark.parametrize(("many", "said"), [(20, "a proof carries the pass"), (0, "No attack that was tried")])
def test_luck_beyond_the_limit_is_not_called_within_it(many: int, said: str) -> None:
    row = defense("obscure", attack(hits(many, 40), name="dlg"), verdict="pass", why=(Reason("independent"),))
    told = steps.headline(result(row, verdict="pass"))
    assert said in told
    assert ("recovers" in told) is (many == 0)


def test_only_the_defense_that_a_proof_carries_is_said_to_be_proven() -> None:
    lucky = defense("obscure", attack(hits(20, 40), name="dlg"), verdict="pass", why=(Reason("independent"),))
    told = steps.headline(result(lucky, defense("clip", attack(hits(0, 40)), verdict="pass"), verdict="pass"))
    assert "recovers private records under clip more often" in told
    assert "Under obscure a proof carries the pass" in told


def test_numbers_that_contradict_a_pass_calm_nobody() -> None:
    made = result(defense("clip", attack(hits(40, 40)), verdict="pass"), verdict="pass")
    shown = first_screen.first(made)
    assert shown["doubts"]
    assert shown["contradicted"]
    assert "its own numbers contradict that" in str(shown["headline"])
    assert [task.text for task in shown["tasks"]] == ["Do not rely on this file: have the audit run again."]
