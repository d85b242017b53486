"""Whoever changes something meets the families that are built for it, and they find more than those that are not."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from leakaudit.audit.attacking import attacked
from leakaudit.audit.canary import leaky
from leakaudit.protocol.attack import FAMILIES, Attack, family_of
from leakaudit.protocol.registry import attacks, defenses, parse_attack, parse_defense
from leakaudit.protocol.stages import declared
from leakaudit.protocol.target import PixelModel
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.rules import beats, guessing, most_successful
from leakaudit.result.schema import AttackResult
from leakaudit.scene.examine import examine
from leakaudit.scene.plan import Plan, attacks_for
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.scene.updates import Updates
from leakaudit.work.seeding import forked

# By what a defense changes, the families of adaptive attacks (no bounds) that must meet it.
MEETS = {
    "records": {"replay", "learned"},
    "labels": {"replay", "learned"},
    "model": {"replay", "learned", "matching"},
    "examples": {"replay", "learned", "matching"},
    "update": {"replay", "learned", "matching"},
}
BUILT_IN = [name for name in defenses() if name != "none"]
NAIVE = "inverting-gradients:steps=40"
AGAINST = {  # besides `replay`; `linkage` where nothing stands here
    "prune": "masked-matching:steps=40",
    "sign": "sign-matching:steps=40",
    "qsgd": "quantisation-aware:steps=40",
    "soteria": "omitting-layers:steps=40",
    "precode": "omitting-layers:steps=40",
    "mixup": "demixing:steps=40",
    "instahide": "demixing:steps=40",
}
SMALL = {"obscure": "obscure:epochs=2:steps=2:pictures=1:latent=16"}
# Where the strongest adaptive attack finds no more than the strongest naive one, and why.
NOT_BEATEN = {
    "class-conditional": "what is shared depends on nothing but the class: nobody is above chance",
    "obscure": "the same, at rate 0",
    "instahide": "of 8 records the adaptive one names 2 and the naive one 1: too few to be above chance",
    "dp-sgd": "noise as large as what a record may add at most: neither is above chance",
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_defense_meets_the_families_of_what_it_changes(name: str) -> None:
    defense = parse_defense(name)
    chosen = attacks_for(defense, BATTERIES["standard"])
    met = {family_of(type(attack)) for attack, role in chosen if role == "adaptive"}
    wanted = {family for change in declared(defense) for family in MEETS[change]}
    assert wanted <= met


def test_every_attack_is_of_one_family_and_every_family_has_one() -> None:
    told = {name: family_of(cls) for name, cls in attacks().items()}
    assert set(told.values()) == set(FAMILIES)
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| .+ \| (.+) \|$", page.split("## Families")[1], re.MULTILINE))
    for name, family in told.items():
        assert f"`{name}`" in rows[family], f"docs/attacks.md names {name} beside no family"


def test_no_attack_has_its_family_from_another_by_accident() -> None:
    """What derives from `inverting-gradients` may rest on another idea: each says its own, or has it of a base."""
    registered = set(attacks().values())
    for name, cls in attacks().items():
        says = next(base for base in cls.__mro__ if vars(base).get("family"))
        assert says is cls or says not in registered, f"{name} has its family of {says.__name__}"
    for name in ("imprint", "trap-weights", "fishing"):
        assert family_of(attacks()[name]) == "malicious-server"


def test_the_page_names_every_family_once() -> None:
    page = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text(encoding="utf-8")
    section = page.split("## Families")[1].split("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE) == list(dict.fromkeys(FAMILIES))


def test_an_attack_that_says_nothing_has_the_family_of_what_it_is() -> None:
    class Own(Attack):
        name = "own"

    assert family_of(Own) == "matching"
    for changes, family in (
        ({"kind": "linkage"}, "linkage"),
        ({"kind": "labels", "closed_form": True}, "labels"),
        ({"closed_form": True}, "closed-form"),
        ({"requires": frozenset({"model_control"})}, "malicious-server"),
        ({"family": "unmixing", "kind": "linkage"}, "unmixing"),
    ):
        assert family_of(type("Mine", (Own,), changes)) == family


@cache
def scene() -> Scene:
    """A small network with sigmoids on made pictures, 8 of them attacked; nothing is tuned, to be quick."""
    with forked(0):
        network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 64, 10))
        target = replace(leaky(0), model=PixelModel(network))
    made = set_scene(target, Plan(records=8, candidates=20, utility=False), None, "", ())
    return replace(made, rehearsal=made.rehearsal[:0])


@cache
def strongest(name: str) -> tuple[AttackResult, AttackResult]:
    """The naive attack that draws, and the better of `replay` and one that was built against the defense."""
    spec = SMALL.get(name, name)
    with forked(0):
        fitted = parse_defense(spec).fit(scene().target, torch.Generator().manual_seed(0))
    subject = examine(scene(), spec, fitted)
    updates = Updates(scene(), subject, 0)
    naive = attacked(updates, parse_attack(NAIVE), "standard")
    adaptive = [attacked(updates, parse_attack(each), "adaptive") for each in ("replay", AGAINST.get(name, "linkage"))]
    best = most_successful(adaptive)
    assert best is not None, [a.reason for a in adaptive]
    return naive, best


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_strongest_adaptive_attack_finds_no_less_than_the_naive_one(name: str) -> None:
    naive, adaptive = strongest(name)
    if name in NOT_BEATEN:
        chance = guessing(scene().candidates.chance, scene().baselines)
        assert not beats(naive, chance)
        assert not beats(adaptive, chance)
        return
    assert adaptive.identification.value is not None
    assert adaptive.identification.value >= (naive.identification.value or 0.0)
    assert beats(adaptive, scene().candidates.chance)


def test_somewhere_it_finds_more() -> None:
    pairs = [strongest(name) for name in BUILT_IN if name not in NOT_BEATEN]
    more = [a for n, a in pairs if (a.identification.value or 0.0) > (n.identification.value or 0.0)]
    assert len(more) > len(pairs) / 2  # noise at its default, and clipping, hide nothing from either in this scene
