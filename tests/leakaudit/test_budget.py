"""A time budget: who gets how much of it, what is not begun, and that nothing is scored which had hardly begun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from leakaudit.attacks.inverting_gradients import InvertingGradients, Match
from leakaudit.audit.attacking import attacked
from leakaudit.errors import OutOfTime
from leakaudit.judge.facts import facts_of
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.result.rules import cut_victims, scored_victims
from leakaudit.scene import updates as updates_module
from leakaudit.scene.examine import examine
from leakaudit.scene.scene import Scene
from leakaudit.scene.updates import Updates
from leakaudit.work.progress import Monitor, expired, followed, monitored, track
from tests.leakaudit.timed import Time, small_scene, within

STEPS = 100


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

    inverted = small_scene(4)
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


def test_an_untuned_attack_is_noted_where_it_tunes_itself() -> None:
    from leakaudit.work.progress import note_untuned

    note_untuned()  # nobody follows: nothing happens
    with followed() as course:
        note_untuned()
        for _ in track("loop", 3):
            pass
    assert course.untuned
    assert course.least == 1
