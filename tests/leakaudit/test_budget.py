"""A time budget: who gets how much of it, what is not begun, and that nothing is scored which had hardly begun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.audit import audit as audit_module
from leakaudit.audit import updates as updates_module
from leakaudit.audit.attacking import attacked
from leakaudit.audit.audit import audit
from leakaudit.audit.canary import leaky as made_records
from leakaudit.audit.clock import SAFE, Clock, shared_out
from leakaudit.audit.costs import NOMINAL, measured
from leakaudit.audit.estimate import SAMPLE, bought, estimates
from leakaudit.audit.examine import examine
from leakaudit.audit.pieces import FIT, UPDATES, Piece, outline, pieces_of
from leakaudit.audit.plan import Plan
from leakaudit.audit.scene import Scene, set_scene
from leakaudit.audit.updates import Updates
from leakaudit.errors import OutOfTime
from leakaudit.judge.facts import facts_of
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import attacks, parse_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.result.rules import cut_victims, scored_victims
from leakaudit.result.schema import to_json
from leakaudit.score.scoring import failed
from leakaudit.work.progress import Monitor, Work, expired, followed, monitored, track
from tests.leakaudit.audited import target

STEPS = 100


class Time:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture(scope="module")
def scene() -> Scene:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = made_records(0)
    return set_scene(made, Plan(battery="quick", records=8, candidates=20, utility=False), None, "", ())


@contextmanager
def within(clock: Time, seconds: float) -> Iterator[None]:
    with monitored(Monitor(deadline=clock.now + seconds)):
        yield


@dataclass(frozen=True, kw_only=True)
class Slow(Attack):
    """Draws noise, a step a second."""

    name: ClassVar[str] = "slow"

    clock: Time
    steps: int = STEPS

    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        for _ in track("slow", self.steps):
            self.clock.now += 1
        shape = (update.victims, update.batch_size, *update.input_shape)
        status = "budget" if expired() else "converged"
        return Reconstruction(
            torch.rand(shape, generator=generator), None, torch.zeros(update.victims), (status,) * update.victims
        )


def updates(scene: Scene) -> Updates:
    return Updates(scene, examine(scene, "none", Defense()))


@pytest.mark.parametrize(("made", "scored"), [(5, False), (9, False), (10, True), (50, True), (STEPS, True)])
def test_what_made_fewer_than_a_tenth_of_its_steps_has_no_score(
    scene: Scene, clock: Time, made: int, scored: bool
) -> None:
    given = updates(scene)
    with within(clock, made):
        result = attacked(given, Slow(clock=clock), "standard")
    statuses = {"budget": 8} if made < STEPS else {"converged": 8}
    # The last step ends when the time does: whether it was the last of all, an attack cannot know.
    assert result.statuses in (statuses, {"budget": 8})
    assert (result.psnr.value is not None) is scored
    assert (result.identification.value is not None) is scored
    assert bool(result.gallery) is scored
    assert {r.psnr is not None for r in result.records} == {scored}
    assert scored_victims(result) == (8 if scored else 0)
    facts = facts_of(result)
    assert (facts.lost, facts.cut, facts.began) == ((0, 8, True) if scored else (8, 0, False))
    assert ("fewer than a tenth" in (result.reason or "")) is not scored


def test_an_attack_on_one_victim_after_another_is_scored_on_those_it_had_begun(
    scene: Scene, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, dlg = updates(scene), parse_attack("dlg:steps=100")
    given.compute()
    kind = type(dlg)
    invert = kind._invert  # type: ignore[attr-defined]

    def slow(self: Attack, model: PixelModel, *rest: object) -> object:
        handle = model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 1))
        try:
            return invert(self, model, *rest)
        finally:
            handle.remove()

    monkeypatch.setattr(kind, "_invert", slow)
    with within(clock, 60):
        result = attacked(given, dlg, "standard")
    begun = {r.victim for r in result.records if r.psnr is not None}
    assert 0 < len(begun) < 8
    assert result.identification.n == len(begun) == scored_victims(result)
    assert cut_victims(result) == len(begun) - result.statuses.get("converged", 0)
    assert facts_of(result).lost == 8 - len(begun)
    assert all(p.victim in begun for p in result.gallery)


def test_an_attack_whose_tuning_does_not_end_runs_at_its_own_settings_and_says_so(scene: Scene, clock: Time) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Tuned(Slow):
        grid: ClassVar = {"weight": (1.0, 2.0, 3.0)}

        weight: float = 0.5

    given = updates(scene)
    with within(clock, 3 * STEPS):  # half of it does for one run and a half
        result = attacked(given, Tuned(clock=clock), "standard")
    assert result.tuned == {}
    assert result.settings["weight"] == 0.5
    assert result.statuses == {"budget": 8}  # it made all of its steps, at settings that may be weaker
    assert result.psnr.value is not None
    assert "default settings" in (result.reason or "")
    with within(clock, 100 * STEPS):
        whole = attacked(given, Tuned(clock=clock), "standard")
    assert whole.statuses == {"converged": 8}
    assert whole.tuned["weight"] in (1.0, 2.0, 3.0)


def test_inverting_gradients_never_scores_its_grey_start(scene: Scene) -> None:
    given = updates(scene)
    given.compute()
    with monitored(Monitor(deadline=time.monotonic() + 1e-3)):
        result = attacked(given, InvertingGradients(steps=300), "standard")
    assert result.statuses == {"budget": 8}
    assert result.psnr.value is None
    assert not result.gallery


def test_a_start_that_nothing_was_better_than_is_not_scored_when_the_time_ends(
    scene: Scene, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the steps are made, and every one is worse than grey: what would be scored is the start."""

    def worse(self: InvertingGradients, *_: object) -> Match:
        def match(images: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            clock.now += 1
            return torch.full((len(images),), clock.now), torch.ones_like(images)

        return match

    monkeypatch.setattr(InvertingGradients, "matching", worse)
    given, attack = updates(scene), InvertingGradients(steps=STEPS, tv=0.0)
    given.compute()
    with within(clock, 1e6):
        ended = attacked(given, replace(attack, tv=0.0), "standard")
    assert ended.statuses == {"converged": 8}  # against a defense that works that is how it ends
    monkeypatch.setattr(InvertingGradients, "grid", {})
    with within(clock, STEPS / 2):
        cut = attacked(given, attack, "standard")
    assert cut.statuses == {"budget": 8}
    assert cut.psnr.value is None


def test_an_attack_that_does_not_look_at_the_clock_is_cut_all_the_same(scene: Scene, clock: Time) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Blind(Slow):
        def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
            found = super().__call__(model, update, generator)
            return replace(found, statuses=("converged",) * update.victims)

    given = updates(scene)
    for made, scored in ((5, False), (50, True)):
        with within(clock, made):
            result = attacked(given, Blind(clock=clock), "standard")
        assert result.statuses == {"budget": 8}
        assert (result.psnr.value is not None) is scored


@pytest.mark.parametrize("name", ["two-stage-decoder", "untransform"])
def test_what_follows_the_inversion_is_cut_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inversion ends in time, and what decodes or undoes does not: no victim is done."""
    from leakaudit.protocol.registry import attacks as registered
    from leakaudit.work import progress

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = made_records(0)
    plan = Plan(battery="quick", records=4, candidates=20, utility=False)
    inverted = set_scene(made, plan, None, "", ())
    given = Updates(inverted, examine(inverted, "mine", Inverted()))
    attack = registered()[name](steps=2, rehearsals=0)  # type: ignore[call-arg]
    with monitored(Monitor(deadline=time.monotonic() + 1000)):
        whole = attacked(given, attack, "adaptive")
    assert whole.statuses == {"converged": 4}
    real = progress.track

    def ends(label: str, total: int) -> Iterator[int]:
        if label == attack.name and total != 2:  # its own loop, after the inversion's
            course = progress._course.get()
            assert course is not None
            course.least = 0.0
            monkeypatch.setattr("leakaudit.attacks._attacking.expired", lambda: True)
            return iter(())
        return real(label, total)

    for module in ("attacks._regression", "attacks.untransform"):
        monkeypatch.setattr(f"leakaudit.{module}.track", ends)
    cut = attacked(given, attack, "adaptive")
    assert cut.statuses == {"budget": 4}
    assert cut.psnr.value is None


@dataclass(frozen=True, kw_only=True)
class Inverted(Defense):
    """A record stage that anybody can undo."""

    name: ClassVar[str] = "inverted"

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return 1 - images, labels


def test_a_victim_is_done_when_all_of_its_restarts_are(scene: Scene) -> None:
    from leakaudit.attacks._optimise import Descent, best_restart

    update = updates(scene).victims(parse_attack("labels"), released=False)
    images, labels = torch.rand(16, 1, *update.input_shape), torch.zeros(8, 1, dtype=torch.long)
    ends = ("converged", "budget") + ("converged",) * 14
    found = best_restart(update, Descent(images, torch.arange(16.0), ends), labels, 2)
    assert found.statuses == ("budget",) + ("converged",) * 7


def test_what_was_not_scored_tells_nothing_of_what_the_next_will_take(clock: Time) -> None:
    one, other = (Piece(Work("dlg", spec), Amount(slopes=1000), least=0.1) for spec in ("clip", "sign"))
    ticking = Clock(1000.0, [one, other], NOMINAL, clock.now)
    with ticking.piece(one):
        clock.now += 0.01  # not applicable, say
    ticking.took.pop("dlg")  # as the audit does of an attack without a score
    assert ticking.expected(other) == pytest.approx(1000 * NOMINAL.slope)


def test_half_of_what_is_over_is_there_for_each_in_turn(clock: Time) -> None:
    pieces = [Piece(Work(name, "none"), Amount(slopes=1 / NOMINAL.slope), least=0.1) for name in ("a", "b", "c")]
    ticking = Clock(104.0, pieces, NOMINAL, clock.now)  # of which 4 are kept
    assert ticking.share(pieces[0]) == pytest.approx(1 + 97 / 2)


def test_what_says_nonsense_of_its_work_ends_nothing() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Nonsense(Defense):
        name: ClassVar[str] = "nonsense"
        said: ClassVar[object] = None

        def amount(self, sizes: Sizes) -> Amount:
            if self.said is None:
                raise KeyError(3)
            return Amount(own=float(str(self.said)))

    for said in (None, "nan", "-5", "inf"):
        Nonsense.said = said
        fit = pieces_of("nonsense", Nonsense(), Plan())[0]
        assert 0 < fit.weight < 10


def test_only_bounds_see_what_was_released(scene: Scene) -> None:
    given, attack = updates(scene), parse_attack("labels")
    for update in (given.victims(attack, released=False), given.rehearsal(released=False)[0]):
        assert (update.released, update.released_labels, update.exposure.released) == (None, None, False)
    assert given.victims(attack, released=True).released is not None


def test_updates_are_computed_once_and_handed_to_every_attack(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    real = updates_module.share

    def counting(*args: object, **settings: object) -> SharedUpdate:
        update: SharedUpdate = real(*args, **settings)  # type: ignore[arg-type]
        computed.append(update.victims)
        return update

    monkeypatch.setattr(updates_module, "share", counting)
    given = Updates(scene, examine(scene, "none", Defense()), most=64)
    given.compute()
    names = ("labels", "linkage", "replay", "analytic", "peeling", "inverting-gradients:steps=2")
    for name in names:
        attacked(given, parse_attack(name), "standard")
    assert sorted(computed) == [4, len(scene.asked)]  # the rehearsal's, and the victims' with whom else is asked about


def test_the_first_victims_are_the_same_however_many_are_asked_about(scene: Scene) -> None:
    subject, attack = examine(scene, "none", Defense()), parse_attack("labels")
    few = Updates(scene, subject).victims(attack, released=False)
    many = Updates(scene, subject, most=64).victims(attack, released=False)
    assert few.victims == many.victims == 8
    assert all(torch.equal(a, b) for a, b in zip(few.gradients, many.gradients, strict=True))


def test_labels_that_change_places_are_noticed(scene: Scene) -> None:
    update = updates(scene).victims(parse_attack("labels"), released=True)
    before = updates_module.state_of(update)
    assert update.released_labels is not None
    update.released_labels.numpy()[...] = update.released_labels.numpy()[::-1].copy()
    assert updates_module.state_of(update) != before


@pytest.mark.parametrize("through", ["torch", "data", "numpy"])
def test_what_an_attack_writes_into_is_computed_anew(scene: Scene, through: str) -> None:
    given, attack = updates(scene), parse_attack("labels")
    first = given.victims(attack, released=False).gradients[0]
    before = first.clone()
    ruined: Tensor = first.data if through == "data" else first
    if through == "numpy":
        first.numpy()[...] = 0
    else:
        ruined.zero_()
    assert torch.equal(given.victims(attack, released=False).gradients[0], before)


def test_updates_that_the_time_ends_leave_every_attack_without_a_score(scene: Scene, clock: Time) -> None:
    given = updates(scene)
    with within(clock, 0):
        given.compute()
    seen = iter([False] * 3 + [True] * 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leakaudit.work.progress.expired", lambda: next(seen))
        with pytest.raises(OutOfTime, match="before the updates were computed"):
            given.victims(parse_attack("labels"), released=False)


def test_shares_are_what_is_needed_or_a_level_that_suffices() -> None:
    assert shared_out(100, [10, 30], [1, 1]) == pytest.approx([25, 75])
    assert shared_out(30, [1, 100, 100], [0.1, 0.1, 0.1]) == pytest.approx([SAFE, (30 - SAFE) / 2, (30 - SAFE) / 2])
    assert shared_out(0, [1, 2], [1, 1]) == [0, 0]
    assert shared_out(-5, [1], [1]) == [0]
    # None of the dear ones would make a tenth: the last leaves its time to the first.
    assert shared_out(12, [1, 100, 100], [0.1, 0.1, 0.1]) == pytest.approx([SAFE, 12 - SAFE, 0])
    assert shared_out(12, [1, 400], [0.1, 0.1]) == pytest.approx([SAFE, 0])


@pytest.mark.parametrize("seed", range(20))
def test_shares_never_exceed_what_there_is_and_never_give_less_than_what_something_comes_of(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    needs = (10 ** (4 * torch.rand(9, generator=generator) - 1)).tolist()
    least = torch.rand(9, generator=generator).tolist()
    left = float(10 ** (4 * torch.rand(1, generator=generator) - 1))
    given = shared_out(left, needs, least)
    assert sum(given) <= left * (1 + 1e-9)
    assert all(g == 0 or g >= a * need * (1 - 1e-9) for g, a, need in zip(given, least, needs, strict=True))
    more = shared_out(2 * left, needs, least)
    assert sum(more) >= sum(given) * (1 - 1e-9)


def test_what_a_piece_took_under_one_defense_is_expected_under_the_next(clock: Time) -> None:
    def piece(name: str, spec: str, amount: Amount) -> Piece:
        return Piece(Work(name, spec), amount, least=0.1)

    one, same = (piece("dlg", spec, Amount(slopes=100)) for spec in ("clip", "sign"))
    updating = piece(UPDATES, "clip", Amount(updates=10))
    ticking = Clock(1000.0, [updating, one, same], NOMINAL, clock.now)
    other = piece("replay", "clip", Amount(updates=100))
    assert ticking.expected(other) == pytest.approx(100 * NOMINAL.update)
    with ticking.piece(updating) as why:
        clock.now += 10 * 10 * NOMINAL.update  # ten times as dear as without a defense
    assert why == ""
    assert ticking.expected(other) == pytest.approx(10 * 100 * NOMINAL.update)
    with ticking.piece(one):
        clock.now += 77
    assert ticking.expected(same) == 77
    assert ticking.timings == {"clip: updates": pytest.approx(0.5), "clip: dlg": 77}


def test_an_outer_deadline_holds_within_a_clock_without_a_budget(clock: Time) -> None:
    piece = Piece(Work("dlg", "none"), Amount())
    with within(clock, 5), Clock(None, []).piece(piece):
        clock.now += 6
        assert expired()


def test_all_are_fitted_before_anything_is_attacked(short_battery: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Work] = []
    plan = Plan(
        defenses=("class-conditional", "clip"),
        attacks=("labels",),
        battery="quick",
        records=4,
        budget=600.0,
        utility=False,
        exposure="honest-but-curious",
    )
    monkeypatch.setattr(audit_module, "measured", lambda *_: NOMINAL)
    monkeypatch.setattr(audit_module, "attacked", lambda _, a, role, why: failed(a, role, {}, 4, "failed", "not tried"))
    with monitored(Monitor(show=lambda work, done, total: shown.append(work) if total == 0 else None)):
        result = audit(target(), plan)
    assert [w.defense for w in shown if w.name == FIT] == ["none", "class-conditional", "clip"]
    assert {w.name for w in shown[:3]} == {FIT}
    assert [row.spec for row in result.defenses] == ["none", "class-conditional", "clip"]


def test_a_budget_that_is_spent_leaves_a_whole_result_without_a_score(
    short_battery: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "_planted", {})
    plan = Plan(defenses=("obscure:steps=1:epochs=1",), battery="quick", records=4, budget=1e-3)
    result = audit(target(), plan)
    assert result.complete
    assert result.verdict == "inconclusive"
    none, obscure = result.defenses
    assert {status for a in none.attacks for status in a.statuses} == {"budget"}
    assert all("time budget" in (a.reason or "") for a in none.attacks)
    assert "time budget" in obscure.reasons[0]
    assert "time budget" in (none.accuracy.reason or "")
    assert result.controls is not None
    assert result.controls.canary == "inconclusive"
    to_json(result)


def test_the_clock_starts_with_the_process(short_battery: None) -> None:
    plan = Plan(battery="quick", records=4, budget=1000.0, utility=False, attacks=("labels",))
    with monitored(Monitor(started=time.monotonic() - 2000)):
        result = audit(target(), plan)
    assert {status for a in result.defenses[0].attacks for status in a.statuses} == {"budget"}


def test_every_attack_and_fit_says_how_much_work_it_is(scene: Scene) -> None:
    sizes = scene.sizes()
    twice = replace(sizes, victims=2 * sizes.victims, candidates=2 * sizes.candidates)
    for name in attacks():
        amount = parse_attack(name).amount(sizes)
        assert min(amount.updates, amount.slopes, amount.training, amount.own) >= 0
        assert NOMINAL.seconds(amount) > 0
        assert NOMINAL.seconds(parse_attack(name).amount(twice)) > NOMINAL.seconds(amount)
    weights = {p.work.defense: p.weight for p in outline(Plan(defenses=("clip", "obscure")), sizes) if p.all_or_nothing}
    assert weights["none"] < weights["clip"] < weights["obscure"]


def test_costs_are_measured_and_leave_model_and_random_states_alone() -> None:
    made, plan = target(), Plan(records=4)
    before = {k: v.clone() for k, v in made.model.state_dict().items()}
    state = torch.get_rng_state()
    costs = measured(made, plan)
    assert min(costs.update, costs.slope, costs.training, costs.own) > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())
    broken = replace(made, loss=lambda *_: 1 / 0)
    assert measured(broken, plan) == NOMINAL


def test_more_budget_buys_more_and_a_longer_battery_takes_longer() -> None:
    made, plan = target(), Plan(records=4)
    quick, standard, full = estimates(made, plan, NOMINAL)
    assert quick.control < standard.control < full.control
    assert set(full.more) == set(SAMPLE)
    assert all(quick.more[s] < standard.more[s] < full.more[s] for s in SAMPLE)
    small, large = (bought(made, plan, NOMINAL, budget) for budget in (30.0, 30_000.0))
    assert small.whole < large.whole
    assert small.left_out
    assert not large.left_out
    assert not large.cut


def test_an_untuned_attack_is_noted_where_it_tunes_itself() -> None:
    from leakaudit.work.progress import note_untuned

    note_untuned()  # nobody follows: nothing happens
    with followed() as course:
        note_untuned()
        for _ in track("loop", 3):
            pass
    assert course.untuned
    assert course.least == 1
