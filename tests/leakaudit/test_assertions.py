"""What may be written in [tool.leakaudit.assert] and [[tool.leakaudit.waiver]], and what is refused how."""

from __future__ import annotations

import datetime as dt
import tomllib
from typing import Any

import pytest

from leakaudit.errors import UserError
from leakaudit.gate import assertions, waivers
from leakaudit.gate.assertions import PRESETS, RegressionRule, Rule

TEXT = """
preset = "strict"
identification = { max = 0.25 }
psnr = [{ max = 20, level = "warn", attack = "inverting-gradients" }, { max = 25 }]
accuracy = { min = 0.70, defense = "obscure*" }
findings = false
[regression]
identification = { detect = 0.2 }
psnr = false
"""


def test_the_documented_table_is_read() -> None:
    read = assertions.parse(tomllib.loads(TEXT))
    assert read.presets == ("strict",)
    assert read.findings is None
    assert Rule("identification", "max", 0.25) in read.rules
    assert Rule("psnr", "max", 20, "warn", attack="inverting-gradients") in read.rules
    assert Rule("psnr", "max", 25) in read.rules
    assert Rule("accuracy", "min", 0.7, defense="obscure*") in read.rules
    assert Rule("accuracy-loss", "max", 0.05) in read.rules  # of the preset
    assert [r for r in read.rules if r.metric == "identification"] == [Rule("identification", "max", 0.25)]
    assert read.regressions == (
        RegressionRule("identification", detect=0.2),
        RegressionRule("accuracy", detect=0.05),
    )


def test_nothing_written_is_the_recommended_preset() -> None:
    assert assertions.parse({}) == PRESETS["recommended"]
    assert assertions.parse({"preset": "none"}).rules == ()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"preset": "lax"}, ("preset", "recommended")),
        ({"identifikation": {"max": 0.1}}, ("identifikation", "known")),
        ({"identification": 0.1}, ("identification", "max = ")),
        ({"identification": {"max": 1.5}}, ("identification max", "from 0 to 1")),
        ({"identification": {"max": True}}, ("identification max",)),
        ({"identification": {}}, ("identification max", "missing")),
        ({"identification": {"min": 0.1}}, ("'min'", "known")),
        ({"accuracy": {"min": 0.5, "attack": "dlg"}}, ("'attack'", "known")),
        ({"accuracy": {"min": 0.5, "defense": 3}}, ("defense", "pattern")),
        ({"identification": []}, ("identification", "empty")),
        ({"psnr": [{"max": 20, "level": "fatal"}]}, ("level", "'fatal'")),
        ({"findings": {"severity": "fatal"}}, ("findings", "severity")),
        ({"findings": True}, ("findings",)),
        ({"regression": {"ssim": {}}}, ("ssim", "known")),
        ({"regression": {"psnr": {"detect": 1}}}, ("psnr", "known")),
        ({"regression": {"accuracy": {"detect": "much"}}}, ("detect", "'much'")),
        ({"regression": True}, ("regression", "false")),
    ],
)
def test_a_mistake_is_named_with_its_mend(table: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        assertions.parse(table)
    for word in ("[tool.leakaudit.assert", *words):
        assert word in str(caught.value)


def block(**changes: Any) -> dict[str, Any]:
    return {"rule": "identification", "reason": "accepted by the board", "expires": dt.date(2027, 1, 31)} | changes


def test_waivers_take_days_in_either_form() -> None:
    first, second = waivers.parse([block(), block(expires="2027-01-31", by="dpo")])
    assert first.expires == second.expires == "2027-01-31"
    assert not waivers.is_over(first, dt.date(2027, 1, 31))
    assert waivers.is_over(first, dt.date(2027, 2, 1))


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        (block(reason=" "), "reason"),
        ({"rule": "psnr", "reason": "x"}, "expires"),
        ({"reason": "x", "expires": "2027-01-31"}, "rule"),
        (block(expires="soon"), "2027-01-31"),
        (block(until="2027-01-31"), "'until'"),
        (block(by=3), "by"),
        ("identification", "block"),
    ],
)
def test_a_waiver_without_reason_or_day_is_refused(entry: Any, word: str) -> None:
    with pytest.raises(UserError, match=r"tool\.leakaudit\.waiver") as caught:
        waivers.parse([entry])
    assert word in str(caught.value)


def test_waivers_for_all_attacks_come_first() -> None:
    one, every = waivers.parse([block(attack="linkage"), block()])
    day = dt.date(2026, 1, 1)
    assert waivers.in_force([one, every], "identification", "clip", day) == (every, one)
    assert waivers.in_force([one], "psnr", "clip", day) == ()
    assert waivers.in_force([one], "identification", "clip", dt.date(2027, 2, 1)) == ()
    assert waivers.names_attack([one], "linkage")
    assert not waivers.names_attack([one], "dlg")


def test_a_rule_for_one_attack_stands_beside_the_presets_for_all() -> None:
    read = assertions.parse({"identification": {"max": 0.5, "attack": "linkage"}})
    assert [r.attack for r in read.rules if r.metric == "identification"] == [None, "linkage"]
    assert read.follow_limit
    assert not assertions.parse({"identification": {"max": 0.5}}).follow_limit
