"""What trying a defense finds out, who is asked about beside the victims, and that attacks are seen to work at all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from leakaudit.attacks.replay import Replay
from leakaudit.audit import weaker
from leakaudit.audit.attacking import attacked
from leakaudit.audit.canary import KeyedPermutation
from leakaudit.audit.canary import leaky as made_records
from leakaudit.audit.clock import Clock
from leakaudit.audit.course import Course, Measured
from leakaudit.audit.pieces import pieces_of
from leakaudit.audit.rows import row_of
from leakaudit.audit.weaker import AMONG, SHARES, seen_weakened
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, chain
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import attacks, parse_attack, parse_defense
from leakaudit.protocol.target import Records, Target
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.rules import PLANTING, WEAKENED
from leakaudit.result.schema import AttackResult, Controls, Estimate
from leakaudit.scene.examine import Subject, examine, released_by
from leakaudit.scene.plan import Plan, attacks_for, left_out, lowered
from leakaudit.scene.scene import MOST, Scene, set_scene
from leakaudit.scene.updates import Updates, asked_by
from leakaudit.work.progress import Monitor, monitored
from tests import leaky

RECORDS, LINE_UP = 8, 20


@cache
def target(units: bool = False) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = made_records(0)
    if units:  # of three records each
        private = replace(made.private, units=torch.arange(len(made.private)) // 3)
        others = [replace(side, units=torch.full((len(side),), -1)) for side in (made.test, made.auxiliary)]
        made = replace(made, private=private, test=others[0], auxiliary=others[1])
    return made


@cache
def scene(batch: int = 1, units: bool = False, mode: str = "eval") -> Scene:
    plan = Plan(
        battery="quick",
        records=RECORDS,
        batch_size=batch,
        candidates=LINE_UP,
        utility=False,
        mode=mode,
        defenses=("x",),
    )
    return set_scene(target(units), plan, None, "", ())


def subject(defense: Defense, of: Scene | None = None) -> Subject:
    return examine(of or scene(), "x", defense.fit(target(), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("cls", leaky.BLANK)
@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_the_same_whichever_record_is_independent(cls: type[Defense], batch: int) -> None:
    assert subject(cls(), scene(batch)).independent is True


@pytest.mark.parametrize(
    "defense",
    [
        parse_defense("gaussian:std=1000"),
        parse_defense("prune:sparsity=0.9995"),
        parse_defense("sign"),
        KeyedPermutation(),
        leaky.Distilled(len(target().classes)),
        leaky.Pseudonyms(),
        leaky.Negative(),
    ],
    ids=lambda d: type(d).__name__,
)
def test_whatever_is_left_of_a_record_is_seen(defense: Defense) -> None:
    assert subject(defense).independent is False


def test_a_defense_that_fails_in_a_tenth_of_draws_is_not_independent() -> None:
    failing = [leaky.Failing(), leaky.FailingNoise()]
    scenes = [replace(scene(), plan=replace(scene().plan, seed=seed)) for seed in range(3)]
    found = [subject(defense, of).independent for defense in failing for of in scenes]
    assert found.count(False) >= len(found) - 1  # of 48 pairs all miss it once in 150


def test_of_an_undefended_exchange_nobody_says_that_it_is_independent() -> None:
    found = subject(Defense())
    assert (found.changes, found.independent, found.replaced) == (frozenset(), False, False)


def test_without_two_records_of_a_class_it_is_not_known() -> None:
    whole = target()
    alone = [Records(side.images[:4], torch.arange(4)) for side in (whole.private, whole.test, whole.auxiliary)]
    lonely = Target("alone", whole.model, whole.loss, *alone, whole.classes)
    nobody = replace(scene().candidates[:4], sizes=torch.ones(4, dtype=torch.long))
    odd = replace(scene(), target=lonely, victims=torch.arange(4), asked=torch.arange(4), candidates=nobody)
    odd = replace(odd, plan=replace(scene().plan, records=4))
    assert subject(leaky.Zeros(), odd).independent is None


def test_buffers_that_leak_beside_zeros_are_seen() -> None:
    batchnorm = copy.deepcopy(target().model)
    batchnorm.network[1] = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32))  # type: ignore[index]
    trained = scene(4, mode="train")
    trained = replace(trained, target=replace(target(), model=batchnorm))
    found = subject(leaky.Zeros(), trained)
    assert found.changes == {"update", "buffers"}
    assert found.independent is False


def test_the_last_record_of_a_batch_counts_too() -> None:
    assert subject(leaky.LastOfBatch(), scene(4)).independent is False


def test_zeros_with_signs_are_not_the_same_bit_for_bit() -> None:
    assert subject(leaky.SignedZeros()).independent is False


def test_a_record_stage_that_needs_more_records_is_examined_all_the_same() -> None:
    assert subject(leaky.NearestFive()).replaced


def test_examining_leaves_the_target_as_it_was() -> None:
    kept = {name: value.clone() for name, value in target().model.state_dict().items()}
    images, random = target().private.images.clone(), torch.random.get_rng_state()
    for defense in (parse_defense("soteria"), KeyedPermutation(), leaky.Negative()):
        subject(defense)
    assert all(torch.equal(kept[name], value) for name, value in target().model.state_dict().items())
    assert torch.equal(target().private.images, images)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_record_stage_that_says_nothing_of_itself_is_examined() -> None:
    found = subject(leaky.Negative())
    assert found.replaced
    assert found.changes == {"records"}
    assert torch.equal(found.released.images, 1 - target().private.images)
    pairs = {attack.name: role for attack, role in attacks_for(leaky.Negative(), BATTERIES["quick"], found.changes)}
    bound = [name for name, cls in attacks().items() if "records" in cls.examines and "released" in cls.requires]
    assert bound
    assert {pairs[name] for name in bound} == {"bound"}
    assert pairs["replay"] == "adaptive"


def test_the_row_of_a_defense_says_what_was_seen_and_not_what_is_declared() -> None:
    course = Course(scene(), Clock(None, ()), Controls())
    found = subject(chain(leaky.Negative(), KeyedPermutation()))
    row = row_of(course, found, [], Measured())
    assert row.replaces_records
    assert row.examined is not None
    assert row.examined.changes == ("records", "update")  # in the order of the stages
    assert row.examined.independent is False
    assert not row_of(course, subject(KeyedPermutation()), [], Measured()).replaces_records


@pytest.mark.parametrize("changes", [frozenset(), frozenset({"update"}), frozenset({"records", "labels"})])
def test_examiners_are_chosen_by_what_was_seen(changes: frozenset[str]) -> None:
    names = [attack.name for attack, _ in attacks_for(leaky.Negative(), BATTERIES["quick"], changes)]
    assert len(set(names)) == len(names)
    # Here no server may plant, and nobody gave a generator.
    own = {n: cls for n, cls in attacks().items() if PLANTING not in cls.requires and not cls.needs.generator}
    wanted = {name for name, cls in own.items() if cls.examines & (changes | {"anything"})}
    assert set(names) == wanted | set(BATTERIES["quick"].attacks)


def test_clients_release_their_records_one_by_one() -> None:
    found = subject(leaky.ReusedRecordNoise())  # whose noise depends on the place among those released together
    noise = leaky.keyed((1, *target().input_shape))
    asked = scene().asked
    wanted = (target().private.images[asked] + 0.3 * noise).clamp(0, 1)
    torch.testing.assert_close(found.released.images[asked], wanted, rtol=0, atol=0)
    mixing = parse_defense("mixup").fit(target(), torch.Generator().manual_seed(0))
    together = released_by(scene(), "x", mixing)
    assert len(together) == len(target().private)
    assert together.labels.is_floating_point()


def test_record_noise_that_is_used_again_is_found() -> None:
    found = subject(leaky.ReusedRecordNoise())
    for name, role in (("replay", "adaptive"), ("released-replay", "bound")):
        result = attacked(Updates(scene(), found), parse_attack(name), role)
        assert result.identification.value == 1.0
        assert result.identification.n == len(asked_by(scene(), parse_attack(name)))
        assert result.exact == result.identification.n


def result_of(hits: Estimate, role: str = "adaptive") -> AttackResult:
    nothing = Estimate(reason="not measured")
    return AttackResult("replay", "linkage", role, {}, {}, (), {"converged": hits.n}, None, hits, 20, *[nothing] * 6)


def seen(found: Subject, others: Sequence[AttackResult] = ()) -> tuple[float | None, Estimate]:
    told = seen_weakened(scene(), found, found.defense, others)
    return told.strength, told.weakened


@pytest.fixture
def short_line_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weaker, "AMONG", 6)


@pytest.mark.usefixtures("short_line_ups")
def test_what_works_at_full_strength_need_not_be_tried_at_less() -> None:
    sure, unsure = Estimate(0.9, 0.7, 1.0, 16), Estimate(0.3, 0.1, 0.5, 16)
    found = subject(KeyedPermutation())
    assert seen(found, [result_of(unsure), result_of(sure)]) == (1.0, sure)
    for others in ([], [result_of(unsure), result_of(sure, "standard"), result_of(sure, "bound")]):
        strength, told = seen(found, others)
        assert strength == SHARES[0]
        assert told.value is not None
        assert told.value > 0.9


class Drowning(leaky.Pure):
    """Noise that drowns the gradient, a tenth of it still."""

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        return tuple(g + 10 * torch.randn(g.shape, generator=generator) for g in gradients)


@pytest.mark.usefixtures("short_line_ups")
def test_the_strength_is_turned_down_until_an_attack_works(monkeypatch: pytest.MonkeyPatch) -> None:
    strength, told = seen(subject(Drowning()))
    assert strength is not None
    assert strength < SHARES[0]
    assert (told.low or 0.0) > scene().plan.max_identification
    assert told.n == RECORDS  # few are enough
    monkeypatch.setattr(weaker, "SHARES", SHARES[:1])
    strength, told = seen(subject(Drowning()))
    assert strength is None
    assert told.value is not None  # what was found is told


def test_a_spent_budget_or_an_attack_that_cannot_run_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = subject(Drowning())
    with monitored(Monitor(deadline=0.0)):
        strength, told = seen(found)
    assert strength is None
    assert "budget" in str(told.reason)

    def crash(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Replay, "link", crash)
    strength, told = seen(found)
    assert strength is None
    assert told.reason


def test_the_weakened_piece_runs_where_there_is_something_to_weaken() -> None:
    def tried(plan: Plan, changes: frozenset[str]) -> bool:
        return any(piece.role == WEAKENED for piece in pieces_of("x", KeyedPermutation(), plan, changes))

    plan = scene().plan
    assert tried(plan, frozenset({"update"}))
    assert not tried(plan, frozenset())
    assert not tried(replace(plan, exposure="honest-but-curious"), frozenset({"update"}))


@pytest.mark.parametrize("units", [False, True])
def test_further_victims_are_of_other_units_and_stand_anywhere_in_their_line_ups(units: bool) -> None:
    made = scene(units=units)
    whose = target(units).private.units
    asked, sets = made.asked.tolist(), made.line_ups
    assert torch.equal(made.asked[:RECORDS], made.victims)
    assert RECORDS < len(asked) <= MOST
    assert max(asked) < len(target().private)
    of = asked if whose is None else whose[made.asked].tolist()
    assert len(set(of[RECORDS:]) | set(of[:RECORDS])) >= len(set(of[:RECORDS])) + len(of[RECORDS:])  # each of its own
    assert len(sets) == len(asked)
    first = sets[slice(RECORDS)]
    assert torch.equal(first.indices, made.candidates.indices)
    for row, position, size, record in zip(
        sets.indices.tolist(), sets.position.tolist(), sets.sizes.tolist(), asked, strict=True
    ):
        shown = row[:size]
        assert shown.count(record) == 1
        assert shown[position] == record
        assert len(set(shown)) == size
        labels = {int(sets.labels[i]) for i in shown}
        assert labels == {int(target().private.labels[record])}


def test_the_places_of_further_victims_are_uniform() -> None:
    places: list[float] = []
    for seed in range(6):
        made = set_scene(target(), replace(scene().plan, seed=seed), None, "", ())
        places += ((made.line_ups.position + 0.5) / made.line_ups.sizes)[RECORDS:].tolist()
    found = torch.tensor(places)
    assert len(found) > 100
    assert abs(float(found.mean()) - 0.5) < 4 * (1 / 12 / len(found)) ** 0.5


def test_batches_have_no_further_victims() -> None:
    made = scene(4)
    assert torch.equal(made.asked, made.victims)
    assert len(made.line_ups) == RECORDS


def test_only_attacks_that_link_are_asked_about_them() -> None:
    assert len(asked_by(scene(), parse_attack("replay"))) == min(len(scene().asked), Replay.asks)
    asking: list[Attack] = [parse_attack(name) for name in ("inverting-gradients", "labels")]
    assert [len(asked_by(scene(), attack)) for attack in asking] == [RECORDS, RECORDS]


@pytest.mark.parametrize(
    ("specs", "less"),
    [
        ((), ()),
        (("inverting-gradients",), ()),
        (("inverting-gradients:steps=149", "analytic"), ("inverting-gradients",)),
        (("inverting-gradients:steps=150", "dlg:steps=5000"), ()),
        (("dlg:restarts=0.5",), None),
        (("replay:draws=1", "released-replay:draws=16"), ("replay",)),
    ],
)
def test_effort_below_the_batterys_is_noted(specs: tuple[str, ...], less: tuple[str, ...] | None) -> None:
    plan = Plan(attacks=specs, battery="quick")
    if less is None:
        with pytest.raises(Exception, match="restarts"):
            lowered(plan)
    else:
        assert lowered(plan) == less


def test_attacks_that_are_left_out_are_noted() -> None:
    assert left_out(Plan(battery="quick")) == ()
    few = Plan(battery="quick", attacks=("analytic", "linkage:draws=2", "dlg"))
    assert left_out(few) == tuple(a for a in BATTERIES["quick"].attacks if a not in ("analytic", "linkage"))


def test_a_shorter_line_up_keeps_the_truth() -> None:
    sets = scene().line_ups.shortened(5)
    assert sets.columns == 5
    chosen = sets.indices.gather(1, sets.position[:, None])[:, 0]
    assert torch.equal(chosen, scene().asked)
    assert AMONG <= LINE_UP


class Counting(leaky.Planted):
    """Noise whose seed counts the updates, kept in the object."""

    counted = 0

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        object.__setattr__(self, "counted", self.counted + 1)
        own = torch.Generator().manual_seed(self.counted)
        return tuple(g + torch.randn(g.shape, generator=own) for g in gradients)


def test_a_defense_that_keeps_a_state_is_noticed() -> None:
    assert subject(Counting()).repeats is False
    assert subject(parse_defense("gaussian")).repeats is True
    assert subject(parse_defense("none")).repeats is None  # nothing is changed, so nothing is drawn
