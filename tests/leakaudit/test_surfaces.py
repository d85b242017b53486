"""What was not tested: a surface stays a sentence until an attack on it was scored."""

from __future__ import annotations

import pytest

from leakaudit.judge.scope import not_tested
from leakaudit.result.surfaces import SURFACES
from leakaudit.scene.plan import catalogue
from tests.leakaudit.results import attack, defense, lost

UNTESTED = {surface.name: surface.untested for surface in SURFACES}
ON = {
    "generative-prior": ("generative-prior",),
    "layer-by-layer": ("spear", "april", "r-gap", "cocktail-party"),
    "malicious-server": ("imprint", "trap-weights", "fishing"),
    "batchnorm-statistics": ("batch-statistics",),
    "local-steps": ("through-local-steps", "surrogate"),
}
PAIRS = [(surface, name) for surface, names in ON.items() for name in names]


@pytest.mark.parametrize(("surface", "name"), PAIRS)
def test_an_attack_takes_away_the_sentence_of_its_surface_alone_and_only_where_it_was_scored(
    surface: str, name: str
) -> None:
    scored = not_tested((defense("none", attack([True], name=name)),), catalogue())
    assert {other for other, words in UNTESTED.items() if words not in scored} == {surface, "generator-weights"}
    failed = not_tested((defense("none", lost(name, "not-applicable", 1)),), catalogue())
    assert UNTESTED[surface] in failed


def test_no_other_attack_built_in_takes_one_away() -> None:
    others = [attack([True], name=known.name) for known in catalogue() if known.name not in dict(map(reversed, PAIRS))]
    said = not_tested((defense("none", *others),), catalogue())
    assert set(UNTESTED.values()) - set(said) == {UNTESTED["generator-weights"]}  # no defense replaced a record


def test_several_rounds_are_tested_where_the_client_sends_in_several() -> None:
    rows = (defense("none", attack([True], name="replay")),)
    told = UNTESTED["several-rounds"]
    assert told in not_tested(rows, catalogue(), {"client": "fedsgd"})
    assert told not in not_tested(rows, catalogue(), {"client": "fedsgd:rounds=4"})
    assert told in not_tested((), catalogue(), {"client": "fedsgd:rounds=4"})  # nothing ran on them
