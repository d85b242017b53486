"""The simulation of many participants against closed forms; the sweep it plans is the same for the same seed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import pytest

from benchmarks import scale, scalecosts, scalesim
from benchmarks.scalecosts import Costs, Napped, Row
from benchmarks.scalesim import CLAIM, FITS, LOAD, LOST, TAIL, VAIN, WORK, Fixed, Loss, Order, Scan, Unit, bound
from benchmarks.scalesim import simulate as simulated


def alone(count: int, seconds: float = 2.0, load: float = 0.0) -> list[Scan]:
    """Return scans of one unit each."""
    return [Scan((Unit(str(k), seconds),), load) for k in range(count)]


def fitted(scans: int, attacks: int) -> list[Scan]:
    """Return scans of one control, which they share, a fit, and attacks on what it made, some of them needless."""
    found = []
    for k in range(scans):
        last = [Unit(f"{k}a{i}", 3.0, (f"{k}f",), f"{k}a1" if i > 1 and k % 2 else "", i > 0, f"{k}u", 0.5)
                for i in range(attacks)]  # fmt: skip
        found.append(Scan((Unit("control", 7.0), Unit(f"{k}f", 11.0 + k % 3), *last), 1.5))
    return found


def test_one_participant_takes_the_sum_of_all() -> None:
    run = simulated(alone(10, 2.0, load=0.5), 1, Fixed(start=3.0, claim=0.25, assemble=1.0))
    assert run.makespan == pytest.approx(3 + 10 * (2 + 0.5 + 0.25))
    assert run.assembled == pytest.approx(run.makespan + 1)
    assert {cause: run.spent[cause] for cause in (scalesim.START, WORK, LOAD, CLAIM, VAIN, TAIL)} == pytest.approx(
        {scalesim.START: 3, WORK: 20, LOAD: 5, CLAIM: 2.5, VAIN: 0, TAIL: 0}
    )
    assert (run.claims, run.loads) == (10, 10)


@pytest.mark.parametrize(("count", "workers"), [(12, 4), (13, 4), (3, 5), (64, 64)])
def test_equal_pieces_take_as_many_rounds_as_they_fill(count: int, workers: int) -> None:
    orders: tuple[Order, ...] = ("one", "turn", "taken")
    for order in orders:
        run = simulated([Scan(tuple(Unit(str(k), 2.0) for k in range(count)))], workers, order=order)
        rounds = -(-count // workers)
        assert run.makespan == pytest.approx(2 * rounds)
        assert run.idle == pytest.approx(1 - count / (rounds * workers))


def test_a_chain_takes_its_length_however_many_there_are() -> None:
    chain = Scan(tuple(Unit(str(k), 2.0, needs=(str(k - 1),) if k else ()) for k in range(6)), load=1.0)
    run = simulated([chain], 5, Fixed(poll=0.5))
    assert run.makespan == pytest.approx(13)
    assert bound([chain], 5) == pytest.approx((12 / 5, 13))
    assert run.spent[FITS] + run.spent[TAIL] == pytest.approx(5 * 13 - 12 - 5)


def test_who_waits_looks_again_no_sooner_than_it_said() -> None:
    scan = Scan((Unit("fit", 10.0), Unit("a", 1.0, ("fit",)), Unit("b", 1.0, ("fit",))))
    assert simulated([scan], 2, Fixed(poll=4.0)).makespan == pytest.approx(12)  # one alone, before the other looks
    assert simulated([scan], 2, Fixed(poll=5.0)).makespan == pytest.approx(11)
    looks = [simulated([scan], 2, Fixed(poll=poll)).looks for poll in (5.0, 0.1)]
    assert looks[0] < looks[1]


def test_what_a_verdict_makes_needless_is_in_vain_only_where_it_is_not_known_yet() -> None:
    scan = Scan((Unit("a", 5.0), Unit("b", 2.0, unless="a"), Unit("c", 4.0)))
    one, two = simulated([scan], 1), simulated([scan], 2)
    assert (one.makespan, one.spent[VAIN]) == pytest.approx((9, 0))
    assert (two.makespan, two.spent[VAIN]) == pytest.approx((6, 2))


def test_scans_share_what_has_one_name_and_participants_repeat_what_they_hold() -> None:
    scans = fitted(4, 3)
    one = simulated(scans, 1)
    work = 7 + sum(11 + k % 3 for k in range(4)) + 4 * 0.5 + 3.0 * (3 + 2 + 3 + 2)
    assert one.spent[WORK] == pytest.approx(work)
    assert bound(scans, 1)[0] == pytest.approx(work)
    many = simulated(scans, 6)
    assert many.spent[WORK] == pytest.approx(work)
    assert many.spent[scalesim.AGAIN] > 0


@pytest.mark.parametrize("workers", [1, 2, 7, 40])
@pytest.mark.parametrize("order", get_args(Order))
def test_every_second_of_every_participant_is_told_and_no_run_beats_the_bound(workers: int, order: Order) -> None:
    scans, fixed = fitted(9, 5), Fixed(2.0, 0.1, 1.0, 60.0)
    run = simulated(scans, workers, fixed, order)
    assert sum(run.spent.values()) == pytest.approx(workers * run.makespan)
    assert run.makespan >= max(bound(scans, workers, fixed)) - 1e-9
    assert run == simulated(scans, workers, fixed, order)
    assert 0 <= run.idle < 1


def test_what_a_lost_participant_held_is_taken_over_once_its_claim_is_stale() -> None:
    scan = Scan((Unit("a", 10.0), Unit("b", 10.0)))
    lost = simulated([scan], 2, Fixed(poll=1.0, stale=60.0), loss=Loss(4.0, frozenset({1})))
    assert lost.makespan == pytest.approx(4 + 60 + 10)
    assert lost.spent[LOST] == pytest.approx(4)
    assert sum(lost.spent.values()) == pytest.approx(lost.makespan + 4)
    later = simulated([scan], 2, loss=Loss(11.0, frozenset({1})))
    assert (later.makespan, later.spent[LOST]) == pytest.approx((10, 0))


def test_walking_to_what_nobody_is_at_loads_each_target_once_where_walking_in_turn_does_not() -> None:
    scans = [Scan(tuple(Unit(f"{k}.{i}", 5.0) for i in range(4)), load=3.0) for k in range(32)]
    taken, turn = simulated(scans, 8), simulated(scans, 8, order="turn")
    assert 32 <= taken.loads < 32 + 8  # at the end some look at what others finish
    assert turn.loads > 100
    assert turn.makespan > 1.3 * taken.makespan


def test_all_in_one_scan_after_another_take_the_sum_of_what_each_takes_and_alone_the_longest_of_their_own() -> None:
    scans = [Scan((Unit(f"{k}a", 8.0), Unit(f"{k}b", 2.0)), load=1.0) for k in range(6)]
    assert simulated(scans, 3, order="one").makespan == pytest.approx(6 * (1 + 8))
    alone = simulated(scans, 3, order="alone")
    assert alone.makespan == pytest.approx(2 * (1 + 8 + 2))
    assert alone.loads == 6
    assert simulated(scans[:4], 3, order="alone").makespan == pytest.approx(2 * (1 + 8 + 2))
    assert simulated(scans[:4], 3, order="taken").makespan == pytest.approx(11 + 1 + 8)
    gone = simulated(scans, 3, order="alone", loss=Loss(4.0, frozenset({0})))
    assert gone.makespan == pytest.approx(64 + 1 + 8 + 2)


def test_what_may_be_needless_comes_last() -> None:
    scan = Scan((Unit("a", 5.0, held="u"), Unit("b", 2.0, unless="a", maybe=True, held="u"), Unit("c", 6.0)))
    assert simulated([scan], 2).spent[VAIN] == 0
    assert simulated([scan], 3).spent[VAIN] == pytest.approx(2)


@pytest.fixture
def costs() -> Costs:
    """Two models under a defense that an attack settles, at two strengths of another that nothing settles."""
    rows = []
    for model, factor in (("small", 1.0), ("large", 3.0)):
        rows += [Row(model, "none", piece, factor * s)
                 for piece, s in (("replay", 1.0), ("linkage", 2.0), ("updates", 0.5), ("accuracy", 6.0))]  # fmt: skip
        rows += [Row(model, "prune", piece, factor * s, by)
                 for piece, s, by in (("fit", 1.0, ""), ("linkage", 2.0, "replay"), ("replay", 1.0, ""))]  # fmt: skip
        rows += [Row(model, f"gaussian:std={std}", "linkage", factor * std) for std in (0.25, 0.5)]
    fixed = {"start": 1.0, "load": 0.5, "assemble": 0.25, "canary": 2.0, "again": 1.75, "whole": 20.0}
    one = Napped(1, (("clip: fit", 0.0, 3.0), ("clip: nap-1", 3.0, 5.0), ("clip: nap-2", 5.0, 7.0)))
    two = Napped(2, (("clip: fit", 0.0, 3.0), ("clip: nap-1", 3.0, 5.0), ("clip: nap-2", 4.0, 6.0)))
    shelf = {"look": 0.0, "pieces/s, 1": 90.0}
    return Costs("a card", scalecosts.in_order(rows), 3, fixed, shelf, (one, two))


def test_what_is_predicted_is_the_simulation_of_what_one_process_took(costs: Costs) -> None:
    lines = scale.check(costs, Fixed(poll=0.5)).lines
    assert lines == (("1", "7.0 s", "7.0 s", "+0 %"), ("2", "5.0 s", "6.0 s", "-17 %"))


def test_units_are_what_one_participant_claims(costs: Costs) -> None:
    found = {unit.key: unit for unit in scale.units(costs, "large", "prune", "p", 2.0)}
    assert list(found) == ["p/fit", "p/replay", "p/linkage"]  # in the order of a scan, whatever that of the file
    assert found["p/linkage"] == Unit("p/linkage", 12.0, ("p/fit",), "p/replay", True, "p/u", 0.0)
    control = {unit.key: unit for unit in scale.units(costs, "small", "none", "c")}
    assert [unit.seconds for key, unit in control.items() if "accuracy" in key] == [2.0, 2.0, 2.0]
    assert (control["c/replay"].held, control["c/replay"].first, control["c/replay"].maybe) == ("c/u", 0.5, False)


def test_a_sweep_shares_each_models_control_and_is_the_same_for_a_seed(costs: Costs) -> None:
    scans = scale.sweep(costs, 30, 0, 0.5)
    assert scans == scale.sweep(costs, 30, 0, 0.5) != scale.sweep(costs, 30, 1, 0.5)
    assert [scan.model for scan in scans] == ["0"] * 10 + ["1"] * 10 + ["2"] * 10
    control = [{unit.key for unit in scan.units if "/none/" in unit.key} for scan in scans]
    assert control[0] == control[9] != control[10]
    own = [{unit.key for unit in scan.units} - control[k] for k, scan in enumerate(scans)]
    assert sum(map(len, own)) == len(set().union(*own))


def test_a_unit_that_is_split_is_as_much_work_in_more_units_but_not_one_that_others_wait_for() -> None:
    scan = Scan((Unit("fit", 9.0), Unit("a", 8.0, ("fit",)), Unit("b", 1.0, unless="c"), Unit("c", 9.0)))
    smaller = scale.split(scan, 4.0)
    assert [unit.key for unit in smaller.units] == ["fit", "a/0", "a/1", "a/2", "a/3", "b", "c"]
    assert sum(unit.seconds for unit in smaller.units) == pytest.approx(27)


def test_every_table_is_made_of_measured_costs_and_of_those_of_a_card(costs: Costs, tmp_path: Path) -> None:
    found = scale.parts(costs, 12, 16, 0)
    text = "\n".join(part.markdown() for part in found)
    assert [part.title for part in found[:3]] == ["Measured", "Predicted and measured", "One scan"]
    assert "a card" in text
    assert "nan" not in text
    file = tmp_path / "costs.json"
    told = [{"card": "a GPU", "model": "conv", "piece": piece, "seconds": s, "ended": True}
            for piece, s in (("start", 4.0), ("set-up", 6.0), ("none: replay", 1.0), ("prune: fit", 2.0))]  # fmt: skip
    file.write_text(json.dumps(told), "utf-8")
    read = scalecosts.read(file)
    assert (read.device, read.fixed) == ("a GPU", {"start": 4.0, "load": 6.0})
    assert [(row.spec, row.piece, row.seconds) for row in read.rows] == [("none", "replay", 1.0), ("prune", "fit", 2.0)]
    file.write_text(json.dumps({"costs": asdict(costs)}), "utf-8")
    assert scalecosts.read(file) == costs


def test_claims_on_a_shelf_hold_among_processes() -> None:
    found = scalecosts.shelf(20, (1, 2))
    assert {"look", "claim", "store", "release", "pieces/s, 1", "pieces/s, 2"} <= found.keys()
