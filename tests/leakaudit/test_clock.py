"""The clock of an audit: who gets how much of a time budget, in which order, and what a scan is expected to take."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from leakaudit.audit import audit as audit_module
from leakaudit.audit.audit import audit
from leakaudit.audit.clock import Clock
from leakaudit.audit.costs import NOMINAL, measured
from leakaudit.audit.pieces import Piece, outline, pieces_of
from leakaudit.audit.shares import SAFE, shared_out
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import attacks, parse_attack
from leakaudit.result.rules import FIT, UPDATES
from leakaudit.result.schema import to_json
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import Scene
from leakaudit.score.scoring import failed
from leakaudit.watch.estimate import SAMPLE, bought, estimates
from leakaudit.work.progress import Monitor, Work, expired, monitored
from tests.attacks.task_scenes import target as task_target
from tests.leakaudit.audited import target
from tests.leakaudit.timed import Time, within


def test_what_was_not_scored_tells_nothing_of_what_the_next_will_take(clock: Time) -> None:
    one, other = (Piece(Work("dlg", spec), Amount(slopes=1000), least=0.1) for spec in ("clip", "sign"))
    ticking = Clock(1000.0, [one, other], NOMINAL, clock.now)
    with ticking.piece(one):
        clock.now += 0.01  # not applicable, say
    ticking.forget(one)
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


def test_shares_are_what_is_needed_or_a_level_that_suffices() -> None:
    assert shared_out(100, [10, 30], [1, 1]) == [10, 30]
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
    assert ticking.expected(other) == pytest.approx(5 * 100 * NOMINAL.update)  # a factor of two is no news
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
    clocks: list[Clock] = []

    def noted(*given: Any) -> Clock:
        clocks.append(Clock(*given))
        return clocks[-1]

    monkeypatch.setattr(audit_module, "Clock", noted)
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
    (own,) = (made for made in clocks if made.budget == 600)  # the planted leak has a clock, too
    assert "labels" not in own.pace  # it failed, and so says nothing of what it will take


def test_a_budget_that_is_spent_leaves_a_whole_result_without_a_score(
    short_battery: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leakaudit.audit.canary._planted", {})
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
    assert any("default settings" in sentence for sentence in result.assumptions)


def test_every_attack_and_fit_says_how_much_work_it_is(scene: Scene) -> None:
    sizes = replace(scene.sizes(), generator=True)
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


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("kind", ["one logit", "multi-label", "one number", "mask of classes"])
def test_costs_are_measured_whatever_labels_are(kind: str, batch_size: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a loss that is given targets of another shape says so
        assert measured(task_target(kind), Plan(records=6, batch_size=batch_size)) != NOMINAL


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
