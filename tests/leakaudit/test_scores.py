"""The table of scores is the only one: every number of an attack is in it, and whoever judges or shows reads it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from leakaudit.gate.assertions import parse
from leakaudit.judge.findings import describe
from leakaudit.result.rules import SEVERITIES, VERDICTS, worst_severity, worst_verdict
from leakaudit.result.schema import AttackResult, Estimate
from leakaudit.result.scores import SCORES, Score, assertable, of_attacks, of_rule

ROOT = Path(__file__).resolve().parents[2]


def test_every_number_of_an_attack_is_in_the_table_once() -> None:
    estimates = {f.name for f in fields(AttackResult) if f.type == "Estimate"}
    assert {score.field for score in of_attacks()} == estimates
    assert len(of_attacks()) == len(estimates) >= 7
    assert [name for name, score in SCORES.items() if name != score.name] == []


@pytest.mark.parametrize("score", SCORES.values(), ids=lambda score: score.name)
def test_a_score_says_what_is_asked_of_it(score: Score) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z]+)*", score.name)
    assert score.title
    assert score.heading
    if score.limits is not None:
        low, high = score.limits
        assert low < high
        assert score.asks in describe(f"gate-{score.name}")
        (rule,) = parse({"preset": "none", score.name: {score.direction: (low + high) / 2}}).rules
        assert (rule.metric, rule.direction, rule.threshold) == (score.name, score.direction, (low + high) / 2)
    if score.share:
        assert not score.step  # a count of records is no fingerprint of one


def test_the_units_of_a_change_are_those_of_its_score() -> None:
    moved = Estimate(0.125, -0.01, 0.26, 16)
    assert SCORES["identification"].shifted(moved) == "+12.5 points (−1 to +26)"
    assert SCORES["identification"].measured(moved) == "12.5% (−1 to 26)"
    assert SCORES["psnr"].shifted(Estimate(-1.5, -2.0, 0.0, 9)) == "−1.5 dB (−2.0 to 0.0)"
    assert SCORES["psnr"].measured(Estimate(12.34)) == "12.3 dB"
    assert SCORES["psnr"].write(12.34, unit=False) == "12.3"
    assert SCORES["accuracy-loss"].measured(Estimate(0.01, -0.005, 0.025, 3)) == "1 point (−0.5 to 2.5)"
    assert SCORES["ssim"].measured(Estimate(0.5, 0.25, 0.75, 9)) == "0.50 (0.25 to 0.75)"
    assert {score.measured(Estimate()) for score in SCORES.values()} == {""}


def test_a_rule_of_the_gate_names_its_score_or_none() -> None:
    assert of_rule("regression-psnr") is of_rule("psnr") is SCORES["psnr"]
    assert of_rule("coverage").write(0.5) == "0.50"  # whatever an outcome of somebody else's calls a rule
    assert [s.name for s in assertable()] == [
        "identification",
        "psnr",
        "ssim",
        "lpips",
        "label-accuracy",
        "accuracy",
        "accuracy-loss",
    ]


def test_there_is_one_order_of_verdicts_and_of_severities() -> None:
    assert worst_verdict(VERDICTS) == worst_verdict(reversed(VERDICTS)) == "fail"
    assert worst_verdict(("pass", "inconclusive")) == "inconclusive"
    assert worst_severity(SEVERITIES) == "error"
    assert worst_severity(("info", "warning")) == "warning"
    with pytest.raises(ValueError):
        worst_verdict(())
    ranked = [
        file.relative_to(ROOT).as_posix()
        for folder in ("leakaudit", "reports")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if _ranks(node)
    ]
    assert ranked == ["leakaudit/result/rules.py"] * 3  # both orders, and the exit codes


def _ranks(node: ast.AST) -> bool:
    """Return whether an assignment puts the verdicts or severities in an order, or gives them numbers."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    items: Sequence[ast.expr | None] = ()
    if isinstance(value, ast.Tuple | ast.List):
        items = value.elts
    elif isinstance(value, ast.Dict) and all(isinstance(_constant(each), int) for each in value.values):
        items = value.keys
    return {_constant(item) for item in items} in ({*VERDICTS}, {*SEVERITIES})


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None
