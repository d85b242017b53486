"""What work says of itself: nothing where nobody listens, and nothing of it changes the work."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import Tensor

from leakaudit.audit.audit import audit
from leakaudit.audit.clock import Clock
from leakaudit.audit.costs import NOMINAL
from leakaudit.audit.pieces import Piece, outline
from leakaudit.protocol.amounts import Amount
from leakaudit.result.schema import AuditResult, to_json
from leakaudit.scene.plan import Plan
from leakaudit.watch.forecast import Forecast
from leakaudit.work.progress import (
    Monitor,
    Sight,
    Work,
    harmless,
    monitored,
    observe,
    paced,
    together,
    track,
    while_tuning,
)
from tests.leakaudit.audited import target
from tests.leaving import drawing

DLG = Piece(Work("dlg", "none"), Amount(slopes=100))


class Watching:
    """A listener that looks at everything and spoils what it is given."""

    def __init__(self) -> None:
        self.sights: list[tuple[Work, Sight]] = []
        self.work = Work("")
        self.results: list[AuditResult] = []

    def show(self, work: Work, done: int, total: int) -> None:
        self.work = work

    def look(self, sight: Sight) -> None:
        self.sights.append((self.work, sight))
        if sight.images is not None:
            sight.images.fill_(0.5)

    @property
    def monitor(self) -> Monitor:
        return Monitor(show=self.show, see=paced(self.look, 0.0), kept=self.results.append)


PLAN = Plan(
    defenses=("prune", "obscure:steps=1:epochs=1", "dp-sgd"),
    attacks=("dlg:steps=10", "inverting-gradients:steps=8:restarts=2"),
    battery="quick",
    all_attacks=True,
    records=4,
    seeds=1,
    epochs=1,
)


def test_a_watched_audit_gives_the_same_bytes_and_shows_every_kind_of_work(short_battery: None) -> None:
    watching, plan, file = Watching(), replace(PLAN, images="full"), io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=80, height=24)
    with monitored(together(watching.monitor, drawing(console, plan))):
        watched = audit(target(), plan, keep=watching.monitor.kept)
    assert "▀" in file.getvalue()
    alone = audit(target(), plan)
    assert to_json(replace(watched, timings={}, made="")) == to_json(replace(alone, timings={}, made=""))
    loops = {work for work, _ in watching.sights}
    attack = Work("inverting-gradients")
    assert {Work("dlg"), attack, replace(attack, tuning=True), Work("training, seed 1 of 1")} <= loops
    assert any("decoder" in work.name for work in loops)
    for work, sight in watching.sights:
        if work.name.startswith("training"):
            assert (sight.victims, sight.images) == (0, None)
        if work == attack:
            assert sight.victims == 4
            assert len(sight.losses) == 4  # restarts are one victim
            assert sight.images is not None
            assert sight.images.shape == (4, 1, 8, 8)
    one_by_one = [sight for work, sight in watching.sights if work == Work("dlg")]
    assert {s.shown for s in one_by_one} == {(0,), (1,), (2,), (3,)}
    assert {(s.victims, s.running) for s in one_by_one} == {(4, 1)}
    assert {str(p.work) for p in outline(PLAN)} | {"total"} == set(watched.timings)  # what was forecast was done
    assert len(watching.results) > len(PLAN.defenses)
    assert watching.results[-1].complete


def test_the_random_state_is_not_touched_and_nothing_is_asked_for_unless_wanted() -> None:
    asked: list[str] = []

    class Losses:
        def __getattr__(self, name: str) -> object:
            asked.append(name)
            raise AssertionError(name)

    observe(Losses())  # type: ignore[arg-type]
    with monitored(Monitor(see=lambda make: None)):  # somebody listens and does not look
        observe(Losses())  # type: ignore[arg-type]
    assert not asked
    before = torch.get_rng_state()
    with monitored(Watching().monitor):
        found = torch.get_rng_state()
        observe(torch.rand(2))
    assert torch.equal(before, found)


def seen(*args: Tensor, **kwargs: object) -> Sight:
    found: list[Sight] = []
    with monitored(Monitor(see=lambda make: found.append(make()))):
        observe(*args, **kwargs)  # type: ignore[arg-type]
    return found[0]


def test_a_sight_is_of_each_victims_best_restart() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1, 1).expand(6, 2, 3, 4, 4) / 10
    victims = torch.tensor([0, 0, 1, 1, 2, 2])
    losses = torch.tensor([3.0, 1.0, 2.0, 2.0, math.inf, math.nan], requires_grad=True)
    sight = seen(losses, images, victims, torch.tensor([0, 3]))
    assert sight.losses[:2] == (1.0, 2.0)
    assert (sight.victims, sight.running, sight.shown) == (3, 2, (0, 1, 2))
    assert sight.images is not None
    assert sight.images.shape == (3, 3, 4, 4)
    assert sight.images[:, 0, 0, 0].tolist() == pytest.approx([0.1, 0.2, 0.4])
    images = torch.zeros(1, 3, 4, 4)
    sight = seen(torch.tensor([1.0]), images, torch.tensor([5]), of=16)
    assert (sight.victims, sight.running, sight.shown) == (16, 1, (5,))
    assert sight.images is not None
    images.fill_(1)
    assert float(sight.images.sum()) == 0  # a copy
    assert seen(torch.tensor([1.0, 3.0])) == Sight((2.0,), 0, 0)
    assert seen(torch.tensor(2.0)) == Sight((2.0,), 0, 0)


def test_a_listener_that_fails_is_not_asked_again_and_harms_nothing() -> None:
    calls: list[int] = []

    def broken(make: object) -> None:
        calls.append(1)
        raise OSError("the terminal went away")

    with monitored(Monitor(see=harmless(broken))):
        observe(torch.zeros(1))
        observe(torch.zeros(1))
    assert calls == [1]

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harmless(interrupted)()


def test_looks_are_spaced_and_monitors_add_up() -> None:
    looks: list[Sight] = []
    rare, often = Watching(), Watching()
    look = paced(looks.append, 3600.0)
    both = together(rare.monitor, Monitor(), often.monitor, Monitor(see=look))
    with monitored(both):
        for _ in track("loop", 3):
            observe(torch.tensor([1.0]))
    assert len(looks) == 1
    assert len(rare.sights) == len(often.sights) == 3
    assert together(Monitor(), Monitor()).see is None
    assert together().see is None


def test_loops_that_tune_are_known_as_such() -> None:
    told: list[tuple[Work, int, int]] = []
    with monitored(Monitor(show=lambda *words: told.append(words))):
        with while_tuning():
            list(track("attack", 1))
        list(track("tuning: attack", 0))
    tuned = Work("attack", tuning=True)
    assert told == [(tuned, 0, 1), (tuned, 1, 1), (Work("tuning: attack"), 0, 0)]
    assert [str(w) for w in (tuned, Work("dlg"), Work("dlg", "none"))] == ["tuning: attack", "dlg", "none: dlg"]


def test_the_clock_hands_the_listener_on() -> None:
    watching = Watching()
    with monitored(watching.monitor), Clock(60.0, [DLG]).piece(DLG):
        observe(torch.tensor([1.0]))
    assert [work for work, _ in watching.sights] == [DLG.work]


def test_an_outline_begins_with_the_control() -> None:
    pieces = outline(Plan(defenses=("obscure", "prune"), utility=False))
    assert list(dict.fromkeys(p.work.defense for p in pieces)) == ["none", "obscure", "prune"]
    assert not any(p.work.name == "accuracy" for p in pieces)
    fits = {p.work.defense: p.weight for p in pieces if p.work.name == "fit"}
    assert fits["none"] < fits["prune"] < fits["obscure"]


def weighing(weight: float) -> Amount:
    return Amount(slopes=weight / NOMINAL.slope)


def test_a_forecast_learns_from_what_work_took() -> None:
    now = [0.0]
    work = (("dlg", 0.5), ("tuned", 2.0))
    pieces = tuple(Piece(Work(w, d), weighing(weight)) for d in ("none", "prune") for w, weight in work)
    forecast = Forecast(pieces, now=lambda: now[0])
    assert forecast.left() is None
    assert forecast.place() == (0, 2)
    forecast.begin(Work("dlg", "none"))
    now[0] = 1.0
    forecast.begin(Work("tuned", "none"))
    assert forecast.place() == (1, 2)
    assert forecast.left() is None  # a light piece does not say how fast the heavy ones are
    assert forecast.share() == pytest.approx(0.1)
    now[0] = 21.0
    forecast.begin(Work("dlg", "prune"))
    assert forecast.left() == pytest.approx(21.0)  # the same again
    assert forecast.share() == pytest.approx(0.5)
    now[0] = 31.0  # it takes longer than before
    assert forecast.left() == pytest.approx(20.0)
    share = forecast.share()
    forecast.begin(Work("tuned", "prune"))
    now[0] = 32.0
    assert forecast.place() == (2, 2)
    assert forecast.left() == pytest.approx(19.0)
    assert forecast.share() >= share
    now[0] = 100.0
    forecast.end()
    assert forecast.left() == 0
    assert forecast.share() == 1
    hurried = Forecast(pieces, budget=25.0, now=lambda: 100.0)
    assert hurried.left() == 25.0


def test_the_whole_moves_from_the_start_and_no_single_piece_says_how_fast_it_is() -> None:
    now = [0.0]
    pieces = tuple(Piece(Work(f"a{i}", "none"), weighing(10.0)) for i in range(8))
    forecast, shares, seconds = Forecast(pieces, now=lambda: now[0]), [], (100.0, 10.0, 10.0, 10.0, 10.0)
    for piece, took in zip(pieces, seconds, strict=False):
        forecast.begin(piece.work)
        for _ in range(4):
            now[0] += took / 4
            shares.append(forecast.share())
        if len(forecast.took) < 3:
            assert forecast.left() is None
            assert forecast.share() <= (len(forecast.took) + 1) / 8
    assert 0 < shares[0] < shares[1] < shares[2]
    assert shares == sorted(shares)
    forecast.begin(pieces[5].work)
    assert forecast.left() == pytest.approx(30.0)  # one that was ten times dearer is not all that is known


def test_several_at_once_take_a_share_of_the_time() -> None:
    now, heard = [0.0], []
    pieces = [Piece(Work("dlg", f"d{i}"), weighing(10.0)) for i in range(5)]
    forecast = Forecast((), now=lambda: now[0])
    with monitored(together(Monitor(ahead=forecast.revise), Monitor(ahead=lambda some, lanes: heard.append(lanes)))):
        Clock(None, pieces, lanes=2)
    forecast.begin(pieces[0].work)
    now[0] = 20.0
    forecast.end()
    assert forecast.left() == pytest.approx(40.0)
    assert heard == [2]
