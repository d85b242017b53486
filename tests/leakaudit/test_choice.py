"""What `list attacks --defense` says would run is what a scan runs, whatever it sees a defense change."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from leakaudit.audit.choice import Choice, choices
from leakaudit.protocol.exposure import PRESETS
from leakaudit.protocol.registry import attacks, defenses, parse_defense
from leakaudit.protocol.stages import CHANGES
from leakaudit.result.batteries import BATTERIES
from leakaudit.scene.plan import attacks_for
from tests.leakaudit.command_line import Run, caller, sentence

SPECS = [*defenses(), "obscure,dp-sgd", "clip,prune,mixup"]


@pytest.mark.parametrize("spec", SPECS)
def test_the_attacks_are_those_of_a_plan_with_their_roles(spec: str) -> None:
    defense = parse_defense(spec)
    planned = {attack.name: role for attack, role in attacks_for(defense, BATTERIES["standard"])}
    assert {c.attack: c.role for c in choices(defense) if c.runs in ("always", "expected")} == planned


@pytest.mark.parametrize("spec", SPECS)
def test_what_a_scan_sees_adds_those_that_it_was_said_to_add(spec: str) -> None:
    defense = parse_defense(spec)
    found = choices(defense)
    assert {c.attack for c in found} == set(attacks())

    def runs(choice: Choice, seen: set[str]) -> bool:
        changes = {change for why in choice.why if why.id == "changes" for change in why.of}
        return choice.runs == "always" or (choice.runs != "asked" and bool(changes & seen))

    every = {change for size in (0, 1, 2, len(CHANGES)) for change in combinations(CHANGES, size)}
    for seen in every:
        planned = {attack.name for attack, _ in attacks_for(defense, BATTERIES["standard"], frozenset(seen))}
        told = {c.attack for c in found if runs(c, set(seen))}
        # Of an attack that is expected only those changes are named that the code may make: others may add it as well.
        assert told <= planned
        assert planned - told <= {c.attack for c in found if c.runs == "expected"}


def test_where_an_attack_is_not_applicable_it_needs_what_is_not_granted() -> None:
    for choice in choices(parse_defense("none")):
        wanted = attacks()[choice.attack].requires - {"released"}
        assert {name for name, preset in PRESETS.items() if not wanted <= preset.facts()} == set(choice.lacks)


def test_it_is_shown_and_given_as_values(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = caller(monkeypatch, tmp_path, capsys, "")
    rows = json.loads(run("list", "attacks", "--defense", "gaussian", "--json").out)
    shown = run("list", "attacks", "--defense", "gaussian").out
    assert all(row["attack"] in shown for row in rows)
    assert "expectation built against gaussian" in " ".join(shown.split())
    assert "gaussian may change, as its code tells: the update of the batch" in shown
    sentence(run("list", "attacks", "-d", "gausian"), "did you mean 'gaussian'")
    sentence(run("list", "metrics", "-d", "gaussian"), "leakaudit list attacks --defense")


def test_a_defense_that_an_attack_needs_is_called_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = caller(monkeypatch, tmp_path, capsys, "")
    assert "needs the defense gaussian" in run("list", "attacks").out
