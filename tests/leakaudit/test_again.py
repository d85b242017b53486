"""What a time budget left out is tried again while time is left; what is known takes none; a fit that is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from leakaudit.audit import audit as audit_module
from leakaudit.audit.audit import audit
from leakaudit.audit.canary import Planting
from leakaudit.audit.costs import NOMINAL
from leakaudit.audit.pieces import outline
from leakaudit.audit.weaker import Seen
from leakaudit.defenses.clip import Clip
from leakaudit.errors import UserError, quotes
from leakaudit.judge.proof import REPLAY
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.target import Target
from leakaudit.result.rules import FIT, UPDATES
from leakaudit.result.schema import Estimate
from leakaudit.scene.plan import Plan
from leakaudit.scene.updates import Updates
from leakaudit.score.scoring import failed
from leakaudit.units import desk
from leakaudit.units.shelf import Shelf
from leakaudit.units.unit import Unit
from leakaudit.work.progress import Monitor, Work, expired, monitored
from tests.leakaudit.audited import target
from tests.leakaudit.timed import Time, within

FAST: dict[str, Any] = {"battery": "quick", "records": 4, "utility": False}


def test_what_was_left_out_is_tried_again_with_the_time_that_is_left(
    short_battery: None, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time stands still, and so everything takes less than reckoned: half of what `replay` needs is left."""
    calls: list[tuple[str, str, bool]] = []

    def tried(updates: Updates, attack: Attack, role: str, too_long: str) -> object:
        calls.append((updates.subject.spec, attack.name, bool(too_long)))
        status = "budget" if too_long else "failed"
        return failed(attack, role, {}, 4, status, too_long or "nothing came of it")

    monkeypatch.setattr(audit_module, "measured", lambda *_: NOMINAL)
    monkeypatch.setattr(audit_module, "attacked", tried)
    plan = Plan(defenses=("clip",), **FAST)
    made = target()
    whole = next(p for p in outline(plan) if p.work == Work(REPLAY, "clip"))
    monkeypatch.setattr("leakaudit.attacks.replay.Replay.amount", lambda *_: whole.amount)
    result = audit(made, Plan(defenses=("clip",), budget=0.55 * NOMINAL.seconds(whole.amount), **FAST))
    ours = [late for spec, name, late in calls if (spec, name) == ("clip", REPLAY)]
    assert ours == [True, False]
    rows = {row.spec: {a.name: dict(a.statuses) for a in row.attacks} for row in result.defenses}
    assert rows["clip"][REPLAY] == {"failed": 4}
    assert [a.name for a in result.defenses[1].attacks].count(REPLAY) == 1
    assert not any("budget" in statuses for row in rows.values() for statuses in row.values())
    assert result.complete


@pytest.mark.parametrize("budget", [None, 600.0])
def test_under_a_budget_what_verdicts_rest_on_is_done_of_all_before_the_rest_of_any(
    short_battery: None, clock: Time, monkeypatch: pytest.MonkeyPatch, budget: float | None
) -> None:
    order: list[str] = []

    def tried(updates: Updates, attack: Attack, role: str, too_long: str) -> object:
        order.append(attack.name)
        return failed(attack, role, {}, 4, "failed", "nothing came of it")

    monkeypatch.setattr("leakaudit.audit.canary._planted", {(0, quotes()): Planting("fail")})
    monkeypatch.setattr(audit_module, "measured", lambda *_: NOMINAL)
    monkeypatch.setattr(audit_module, "attacked", tried)
    result = audit(target(), Plan(defenses=("clip", "prune"), budget=budget, **FAST))
    told = [[a.name for a in row.attacks] for row in result.defenses]
    assert sorted(order) == sorted(name for names in told for name in names)
    replayed = [i for i, name in enumerate(order) if name == REPLAY]
    drawn = [i for i, name in enumerate(order) if name == "inverting-gradients"]
    assert len(replayed) == len(drawn) == 3
    assert (max(replayed) < min(drawn)) is (budget is not None)
    assert all(row.verdict == "inconclusive" for row in result.defenses)


def test_a_fit_that_was_not_begun_is_tried_again_and_its_defense_is_attacked_then(
    short_battery: None, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_module, "measured", lambda *_: NOMINAL)
    monkeypatch.setattr(audit_module, "attacked", lambda _, a, role, why: failed(a, role, {}, 4, "failed", "tried"))
    spec = "obscure:steps=1:epochs=1:pictures=1"
    (fit,) = (p for p in outline(Plan(defenses=(spec,), **FAST)) if p.work == Work(FIT, spec))
    monkeypatch.setattr("leakaudit.defenses.obscure.Obscure.amount", lambda *_: fit.amount)
    monkeypatch.setattr("leakaudit.audit.shares._for_fits", lambda room, every: 0.2)  # at first there is none for it
    result = audit(target(), Plan(defenses=(spec,), budget=2 * NOMINAL.seconds(fit.amount), **FAST))
    assert result.defenses[1].attacks
    assert result.defenses[1].reasons
    assert "time budget" not in result.defenses[1].reasons[0]


def test_a_defense_that_does_not_suit_the_target_is_a_row_and_ends_nothing(
    short_battery: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Clip, target: Target, generator: torch.Generator) -> Defense:
        raise UserError("clip needs something else: leave it out.")

    monkeypatch.setattr(Clip, "fit", refused)
    plan = Plan(defenses=("clip", "prune"), attacks=("labels",), exposure="honest-but-curious", **FAST)
    result = audit(target(), plan)
    assert [row.spec for row in result.defenses] == ["none", "clip", "prune"]
    clip = result.defenses[1]
    assert clip.verdict == "inconclusive"
    assert "clip needs something else: leave it out" in clip.reasons[0]
    assert result.defenses[2].attacks
    assert result.verdict != "pass"


def test_what_cannot_be_audited_at_all_ends_the_scan(short_battery: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Defense, target: Target, generator: torch.Generator) -> Defense:
        raise UserError("no defense can be fitted on this.")

    monkeypatch.setattr(Defense, "fit", refused)
    with pytest.raises(UserError, match="can be fitted on this"):
        audit(target(), Plan(defenses=("clip",), **FAST))


def test_what_is_on_the_shelf_is_not_ahead_any_more(short_battery: None, tmp_path: Path) -> None:
    def heard(defenses: tuple[str, ...]) -> tuple[list[list[Work]], list[Work]]:
        ahead: list[list[Work]] = []
        begun: list[Work] = []
        monitor = Monitor(
            lambda work, done, total: begun.append(work) if total == 0 else None,
            ahead=lambda pieces, lanes: ahead.append([work for work, _ in pieces]),
        )
        plan = Plan(defenses=defenses, attacks=("labels",), exposure="honest-but-curious", **FAST)
        with monitored(monitor), desk.at(desk.Desk(Shelf(tmp_path))):
            audit(target(), plan)
        return ahead, begun

    first, begun = heard(("clip",))
    names = {work.name for work in begun if work.defense == "clip"}
    assert {REPLAY, "labels"} <= names
    assert first[0]
    assert not first[-1]
    second, again = heard(("clip", "prune"))
    at = again.index(Work(UPDATES, "clip"))  # when it is fitted, what is known of it is looked for
    known = [pieces for pieces in second if Work(UPDATES, "prune") in pieces and Work(FIT, "clip") not in pieces]
    assert again[at:]
    assert {work.name for work in known[-1] if work.defense == "clip"} <= {UPDATES}
    assert Work(REPLAY, "prune") in known[-1]


def test_what_the_time_ended_is_done_again_only_where_that_is_asked_for(tmp_path: Path, clock: Time) -> None:
    unit, there, computed = Unit("attack", "clip: replay", {"a": 1}), desk.Desk(Shelf(tmp_path)), []

    def compute() -> Seen:
        computed.append(expired())
        return Seen(float(len(computed)), Estimate(reason="tried"))

    with desk.at(there):
        assert not desk.is_known(unit, whole=True)
        with within(clock, 0):
            assert desk.done(unit, Seen, compute).strength == 1
        assert desk.done(unit, Seen, compute).strength == 1  # for this run it stands
        assert not desk.is_known(unit, whole=True)
        with desk.anew():
            assert desk.done(unit, Seen, compute).strength == 2
            assert desk.done(unit, Seen, compute).strength == 2
        assert desk.is_known(unit, whole=True)
    with desk.at(desk.Desk(Shelf(tmp_path))), desk.anew():  # of another run the whole outcome stands
        assert desk.is_known(unit, whole=True)
        assert desk.done(unit, Seen, compute).strength == 2
    assert computed == [True, False]
    with desk.at(desk.Desk(Shelf(tmp_path), fresh=True)):
        assert not desk.is_known(unit, whole=True)
    with desk.anew():
        assert not desk.is_known(unit, whole=True)
