"""What a quick scan fits in short: settings that a spec leaves open, and that the result says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leakaudit.audit.audit import examined
from leakaudit.audit.pieces import chosen
from leakaudit.compare.comparable import unlike
from leakaudit.defenses.gaussian import Gaussian
from leakaudit.defenses.obscure import Obscure
from leakaudit.defenses.obscurer_fit import parsed
from leakaudit.errors import UserError
from leakaudit.protocol import registry
from leakaudit.protocol.amounts import Sizes
from leakaudit.protocol.registry import defenses, parse_defense, settings_values
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import set_scene
from leakaudit.scene.told import quick_fit
from tests.leakaudit.audited import target

PLAN = Plan(
    defenses=("gaussian",),
    attacks=("labels",),
    battery="quick",
    exposure="honest-but-curious",
    records=4,
    candidates=4,
    utility=False,
)


@pytest.fixture
def noisier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a quick scan have `gaussian` with a deviation of 0.5."""
    monkeypatch.setattr(Gaussian, "quick", {"std": 0.5})
    monkeypatch.setattr(Gaussian, "quick_costs", "a point")


def std(spec: str, **named: Any) -> object:
    return settings_values(parse_defense(spec, **named))["std"]


@pytest.mark.usefixtures("noisier")
def test_a_quick_setting_is_taken_where_the_spec_leaves_it_open() -> None:
    assert std("gaussian", quick=True) == 0.5
    assert std("gaussian:std=0.2", quick=True) == 0.2
    assert std("gaussian") == std("gaussian", quick=False) == Gaussian().std
    chain = parse_defense("clip,gaussian", quick=True)
    assert (
        "clip,gaussian: a quick scan fits it with gaussian.std=0.5"
        in quick_fit("clip,gaussian", chain, "full")[0].message
    )


@pytest.mark.usefixtures("noisier")
@pytest.mark.parametrize("battery", ["standard", "full"])
def test_only_a_quick_scan_takes_it(battery: str) -> None:
    for plan, expected in ((PLAN, 0.5), (replace(PLAN, battery=battery), Gaussian().std)):
        (_, defense) = chosen(plan)[1]
        assert settings_values(defense)["std"] == expected
    assert unlike(PLAN.settings(), replace(PLAN, battery=battery).settings())  # which are never compared


@pytest.mark.usefixtures("noisier")
def test_the_result_has_the_settings_that_were_used_and_says_what_that_costs() -> None:
    result = examined(set_scene(target(), PLAN, None, "", ()), chosen(PLAN))
    row = next(row for row in result.defenses if row.spec == "gaussian")
    assert row.settings["std"] == 0.5
    (found,) = (finding for finding in result.findings if finding.id == "quick-fit")
    assert found.message == (
        "gaussian: a quick scan fits it with std=0.5, which costs a point; settings that the spec gives are kept."
    )
    assert quick_fit("gaussian:std=0.5", parse_defense("gaussian:std=0.5", quick=True), "full") == ()


def test_a_generator_that_is_fitted_as_a_file_takes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Obscure, "quick", {"epochs": 7, "pictures": 1})
    assert (parsed("steps=3", quick=True).epochs, parsed("steps=3", quick=True).steps) == (7, 3)
    assert parsed("epochs=9", quick=True).epochs == 9
    assert parsed("").epochs == Obscure().epochs


def test_what_no_setting_is_cannot_be_quick(tmp_path: Path) -> None:
    text = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from leakaudit.protocol.defense import Defense\nfrom leakaudit.protocol.registry import register_defense\n"
        "@register_defense\n@dataclass(frozen=True, kw_only=True)\nclass Mine(Defense):\n"
        "    name: ClassVar = 'mine'\n    quick: ClassVar = {'steps': 1}\n"
    )
    (tmp_path / "my.py").write_text(text)
    with pytest.raises(UserError, match="its `quick` names 'steps'"):
        parse_defense(f"{tmp_path / 'my.py'}:Mine")


@pytest.mark.parametrize("name", sorted(registry.defenses()))
def test_every_quick_defense_can_be_built_and_is_no_more_work(name: str) -> None:
    sizes = Sizes(victims=16, asked=64, candidates=400, line_up=100, private=1000, auxiliary=500)
    full, quick = parse_defense(name), parse_defense(name, quick=True)
    assert quick.amount(sizes).own <= full.amount(sizes).own
    assert not defenses()[name].quick or quick != full


def test_what_has_no_part_is_not_fitted_in_short_and_said_to_cost_nothing() -> None:
    for spec, left in (("obscure:epsilon=8", Obscure(epsilon=8.0)), ("obscure:public=true", None)):
        quick = parse_defense(spec, quick=True)
        assert left is None or quick == left
        assert not quick.idle & {name for name in Obscure.quick if getattr(quick, name) != getattr(Obscure(), name)}
    assert quick_fit("obscure:epsilon=8", parse_defense("obscure:epsilon=8", quick=True), "full") == ()
    assert quick_fit("obscure", parse_defense("obscure", quick=True), "full")
