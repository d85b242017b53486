"""A malicious server: what an attack plants is sent to the victims, knows none of their records, and counts."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from leakaudit.audit import attacking
from leakaudit.audit.attacking import attacked
from leakaudit.audit.pieces import pieces_of
from leakaudit.errors import UserError
from leakaudit.gate.assertions import Rule
from leakaudit.gate.thresholds import judge_rule
from leakaudit.judge.verdict import Case, judge
from leakaudit.protocol.attack import Attack, Beforehand, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import attacks, parse_attack, parse_defense, register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.result.rules import PLANTING
from leakaudit.result.schema import AttackResult, Examined, Verdict
from leakaudit.scene import updates
from leakaudit.scene.examine import Subject
from leakaudit.scene.plan import Plan, attacks_for
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.scene.updates import Updates
from tests.leakaudit.audited import target
from tests.leakaudit.results import attack, defense, lost, result, some

FACTS = ("defense", "auxiliary", PLANTING)

PLAN = Plan(exposure="malicious-server", records=8, candidates=8, utility=False, battery="quick", images="full")
PLANTERS = {name for name, cls in attacks().items() if cls.plants()}


@dataclass(frozen=True, kw_only=True)
class Spy(Attack):
    """Doubles the first weight of what it is given, and notes what it was told."""

    name: ClassVar[str] = "spy"
    requires: ClassVar[frozenset[str]] = frozenset({PLANTING})
    seen: ClassVar[list[Any]] = []

    def plant(self, model: PixelModel, known: Beforehand, generator: torch.Generator) -> PixelModel:
        self.seen.append(known)
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return model

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        self.seen.append((next(model.parameters()).detach().clone(), update))
        images = torch.full((update.victims, update.batch_size, *update.input_shape), 0.5)
        return Reconstruction(images, None, torch.zeros(update.victims), ("converged",) * update.victims)


def scene(plan: Plan = PLAN) -> Scene:
    return set_scene(target(), plan, None, "", ())


def subject(of: Scene) -> Subject:
    return Subject("none", Defense(), of.target.private, frozenset(), False, None)


def test_the_victims_get_what_is_planted_and_nobody_else_does() -> None:
    of, spy = scene(), Spy()
    spy.seen.clear()
    shared = Updates(of, subject(of))
    before = shared.victims(spy, released=False).gradients[0]
    attacked(shared, spy, "standard")
    known, (weight, update) = spy.seen
    real = next(of.target.model.parameters())
    assert torch.equal(weight, 2 * real)
    assert not torch.allclose(update.gradients[0], before)
    assert torch.equal(shared.victims(spy, released=False).gradients[0], before)  # those of the real model, still
    again = attacked(Updates(of, subject(of)), spy, "standard")
    assert again.identification.n == len(of.victims)
    assert torch.equal(spy.seen[-1][1].gradients[0], update.gradients[0])
    assert isinstance(known, Beforehand)


def test_what_is_planted_knows_no_private_record() -> None:
    of = scene(replace(PLAN, batch_size=2))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    of = replace(of, target=replace(of.target, model=PixelModel(network)))  # each of them can plant in it
    Spy.seen.clear()
    others = replace(of.target.private, images=1 - of.target.private.images)
    elsewhere = replace(of, target=replace(of.target, private=others))
    for name in sorted(PLANTERS):
        planted = [
            updates.planted(s, parse_attack(name), copy.deepcopy(of.target.model)).state_dict() for s in (of, elsewhere)
        ]
        assert planted[0].keys() == planted[1].keys()
        assert all(torch.equal(planted[0][key], planted[1][key]) for key in planted[0])
    attacked(Updates(of, subject(of)), Spy(), "standard")
    known = Spy.seen[0]
    assert known.auxiliary is not None
    private = {tuple(picture.flatten().tolist()) for picture in of.target.private.images}
    assert not private & {tuple(picture.flatten().tolist()) for picture in known.auxiliary.images}
    assert set(vars(known)) == {"input_shape", "classes", "batch_size", "loss", "mode", "auxiliary", "task"}


@pytest.mark.parametrize("scored", [True, False])
def test_no_score_passes_a_defense_that_planted_attacks_were_not_tried_on(scored: bool) -> None:
    def planted(hits: int) -> AttackResult:
        return replace(attack(some(hits), name="imprint", psnr=[8.0] * 40), requires=(PLANTING,))

    lacks = replace(lost("imprint", "not-applicable", 40, "no bins are in the model"), requires=(PLANTING,))
    row = defense("strip", attack(some(0), psnr=[8.0] * 40), planted(0) if scored else lacks)
    control = defense("none", attack(some(40), psnr=[40.0] * 40), planted(40))
    made = result(control, row, exposure={"preset": "malicious-server", **dict.fromkeys(FACTS, True)})
    for rule in (Rule("psnr", "max", 20.0), Rule("identification", "max", 0.25, attack="*")):
        (check,) = [c for c in judge_rule(made, rule) if c.defense == "strip"]
        assert check.status == ("pass" if scored else "inconclusive"), check.message


def test_what_is_planted_must_be_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    of = scene()
    monkeypatch.setattr(Spy, "plant", lambda *_: torch.nn.Linear(2, 2))
    found = attacked(Updates(of, subject(of)), Spy(), "standard")
    assert found.statuses == {"failed": 8}
    assert "not a PixelModel" in (found.reason or "")


def test_a_planter_must_say_so() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Quiet(Spy):
        name: ClassVar[str] = "quiet"
        requires: ClassVar[frozenset[str]] = frozenset()

    with pytest.raises(UserError, match="model_control"):
        register_attack(Quiet)


def test_planters_are_part_of_an_audit_only_where_the_server_may_plant() -> None:
    assert PLANTERS
    for exposure in ("adaptive", "honest-but-curious", "malicious-server"):
        plan = replace(PLAN, exposure=exposure)
        names = {p.work.name for p in pieces_of("clip", Defense(), plan)}
        assert names & PLANTERS == (PLANTERS if exposure == "malicious-server" else set())
    assert not PLANTERS & {attack.name for attack, _ in attacks_for(Defense(), PLAN.effort())}
    for name in PLANTERS:
        (piece,) = (p for p in pieces_of("clip", Defense(), PLAN) if p.work.name == name)
        assert piece.amount.updates >= 8  # the victims' updates on what is planted, at least


def test_one_that_is_asked_for_where_it_may_not_plant_says_why() -> None:
    of = scene(replace(PLAN, exposure="adaptive"))
    found = attacking.attacked(Updates(of, subject(of)), parse_attack("imprint"), "standard")
    assert found.reason == "needs model_control, not exposed"


# spec: the verdict where the server plants, and where it does not
VERDICTS: dict[str, tuple[Verdict, Verdict]] = {
    "clip": ("fail", "fail"),
    "gaussian:std=30": ("fail", "pass"),  # the server makes the gradient larger than any noise
    "dp-sgd:noise_multiplier=20": ("pass", "pass"),  # what clips each record's gradient bounds it
}


def ran(of: Scene, spec: str) -> list[AttackResult]:
    """Run the attacks that say most, as they are run under the exposure of a scene."""
    defense = parse_defense(spec)
    own = Subject(spec, defense, of.target.private, frozenset({"update"}), False, True)
    names = ["imprint"] if of.exposure.model_control else []
    role = "standard" if spec == "none" else "adaptive"
    return [attacked(Updates(of, own), parse_attack(n), role) for n in (*names, "replay", "expectation:steps=8")]


@pytest.mark.parametrize("spec", VERDICTS)
def test_what_a_malicious_server_adds_to_a_verdict(spec: str) -> None:
    for exposure, wanted in zip(("malicious-server", "adaptive"), VERDICTS[spec], strict=True):
        of = scene(replace(PLAN, exposure=exposure, records=16))
        control, own = ran(of, "none"), ran(of, spec)
        verdict, why = judge(
            Case(
                attacks=own,
                control=control,
                chance=of.candidates.chance,
                limit=0.6,
                planting=of.exposure.model_control,
                examined=Examined(changes=("update",), independent=False, strength=0.1),
            )
        )
        assert verdict == wanted, why
