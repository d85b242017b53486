"""Specs from the command line become typed settings, or one clear sentence."""

from __future__ import annotations

import pytest

from leakaudit.errors import UserError
from leakaudit.protocol import registry
from leakaudit.protocol.defense import Chain, parts_of


def test_every_attack_and_defense_builds_from_its_name_and_says_what_it_is() -> None:
    assert set(registry.attacks()) >= {"analytic", "labels", "dlg", "idlg", "inverting-gradients"}
    assert set(registry.defenses()) >= {"none", "gaussian", "laplace", "clip", "prune", "dp-sgd", "obscure"}
    for name, attack in registry.attacks().items():
        assert registry.parse_attack(name).name == name
        assert attack.summary
    for name, defense in registry.defenses().items():
        assert parts_of(registry.parse_defense(name))[0].name == name
        assert defense.summary


def test_every_adaptive_attack_a_defense_names_exists() -> None:
    for name, defense in registry.defenses().items():
        for spec in defense.adaptive:
            registry.parse_attack(spec)
        assert defense.adaptive or name == "none", f"{name} has no adaptive attack, so it could never pass"


def test_settings_are_typed() -> None:
    (defense,) = parts_of(registry.parse_defense("dp-sgd:noise_multiplier=2:max-norm=0.5"))
    assert registry.settings_values(defense)["noise_multiplier"] == 2.0
    assert registry.settings_values(defense)["max_norm"] == 0.5
    attack = registry.parse_attack("inverting-gradients:steps=7")
    assert registry.settings_values(attack)["steps"] == 7


def test_commas_chain() -> None:
    chained = registry.parse_defense("prune:sparsity=0.5, gaussian:std=0.1")
    assert isinstance(chained, Chain)
    assert [part.name for part in chained.parts] == ["prune", "gaussian"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("obscur", "did you mean 'obscure'"),
        ("nothing-like-it", "unknown defense"),
        ("gaussian:std", "setting=value"),
        ("gaussian:sdt=1", "did you mean 'std'"),
        ("gaussian:std=much", "a finite number"),
        ("gaussian:std=nan", "a finite number"),
        ("gaussian:std=-1", "gaussian"),
        ("prune:sparsity=2", "prune"),
        ("none:x=1", "its settings: none"),
        ("prune,,gaussian", "unknown defense ''"),
    ],
)
def test_a_wrong_defense_is_one_sentence(spec: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.parse_defense(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_attack_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"a whole number, not .1\.5."):
        registry.parse_attack("inverting-gradients:steps=1.5")


def test_attacks_do_not_chain_and_the_error_says_what_to_type() -> None:
    for spec in ("spear,april", "dlg:steps=2, idlg"):
        with pytest.raises(UserError, match=r"is 2 attacks, .*: give each by an --attack of its own"):
            registry.parse_attack(spec)
    with pytest.raises(registry.UnknownName, match="unknown attack 'spear,nobody'"):
        registry.parse_attack("spear,nobody")
