"""Who gets how much of a time budget: what a verdict rests on first, and what is left at the end is given back."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from leakaudit.audit.clock import Clock
from leakaudit.audit.costs import NOMINAL
from leakaudit.audit.pieces import Piece, outline, pieces_of, rank
from leakaudit.audit.shares import FITS, SHORT, share_of, shared_out
from leakaudit.judge.proof import REPLAY
from leakaudit.protocol.amounts import Amount
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.result.rules import ACCURACY, FIT, WEAKENED
from leakaudit.scene.plan import Plan
from leakaudit.units.unit import Elsewhere
from leakaudit.work.progress import Monitor, Work, current, monitored
from tests.leakaudit.timed import Time

ATTACKS = {name: parse_attack(name) for name in (REPLAY, "analytic", "linkage", "inverting-gradients")}


def piece(name: str, spec: str, seconds: float, *, least: float = 0.1, role: str = "standard") -> Piece:
    """Return a piece of work that is reckoned to take so long."""
    attack = ATTACKS.get(name)
    least = 1.0 if attack is not None and attack.kind == "linkage" else least
    return Piece(Work(name, spec), Amount(slopes=seconds / NOMINAL.slope), attack, role if attack else "", least)


def some(generator: random.Random, specs: int) -> list[Piece]:
    """Return pieces of some defenses, each taking anything between a tenth of a second and ten minutes."""
    found = []
    for i in range(specs):
        for name in (*ATTACKS, ACCURACY):
            found.append(piece(name, f"d{i}", 10 ** generator.uniform(-1, 2.8)))
        found.append(piece("inverting-gradients", f"d{i} bound", 10 ** generator.uniform(-1, 2.8), role="bound"))
    return found


def test_what_a_verdict_rests_on_comes_first_and_bounds_last() -> None:
    pieces = pieces_of("obscure", parse_defense("obscure"), Plan())
    ranks = {p.work.name: rank(p) for p in pieces}
    assert ranks[FIT] == ranks[REPLAY] == ranks["analytic"] == 0
    assert 0 < ranks["linkage"] < ranks[WEAKENED] < ranks[ACCURACY] < ranks["inverting-gradients"]
    assert {rank(p) for p in pieces if p.role == "bound"} == {max(ranks.values())}
    assert max(rank(p) for p in pieces if p.role != "bound") < max(ranks.values())


@pytest.mark.parametrize("seed", range(30))
def test_nothing_is_dropped_for_what_says_less(seed: int) -> None:
    generator = random.Random(seed)
    count = 12
    needs = [10 ** generator.uniform(-1, 3) for _ in range(count)]
    least = [generator.random() for _ in range(count)]
    ranks = [generator.randrange(4) for _ in range(count)]
    left = 10 ** generator.uniform(-1, 3.5)
    given = shared_out(left, needs, least, ranks)
    assert sum(given) <= left * (1 + 1e-9)
    for i in range(count):
        if given[i]:
            assert given[i] >= least[i] * needs[i] * (1 - 1e-9)
            continue
        # What says as much or more was given time, and beside the least of that there is none for this one.
        before = [j for j in range(count) if given[j] and (ranks[j], needs[j]) <= (ranks[i], needs[i])]
        assert sum(least[j] * needs[j] for j in before) + least[i] * needs[i] > left


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_no_share_is_more_than_what_is_left_of_a_lane(lanes: int, seed: int) -> None:
    generator = random.Random(seed)
    pieces = some(generator, 4)
    left = 10 ** generator.uniform(0, 3)
    for i, one in enumerate(pieces):
        turn = [one, *pieces[:i], *pieces[i + 1 :]]
        needs = [NOMINAL.seconds(p.amount) for p in turn]
        given = share_of(left, turn, needs, lanes)
        assert 0 <= given <= left
        assert not given or given >= one.least * needs[0] * (1 - 1e-9)  # which no number of lanes makes shorter


def test_more_lanes_do_more_of_what_one_lane_can_do() -> None:
    pieces = [piece(REPLAY, f"d{i}", 30.0) for i in range(9)]
    dear = piece(REPLAY, "dear", 110.0)
    begun = {}
    for lanes in (1, 2, 4):
        free, ahead, begun[lanes] = [0.0] * lanes, pieces, 0  # when each lane is free
        while ahead:
            free.sort()
            at_work = pieces[begun[lanes] - sum(end > free[0] for end in free) : begun[lanes]]
            turn = [ahead[0], *at_work, *ahead[1:]]
            if not share_of(100.0 - free[0], turn, [30.0] * len(turn), lanes):
                break
            free[0] += 30.0
            ahead, begun[lanes] = ahead[1:], begun[lanes] + 1
        assert not share_of(100.0, [dear, *pieces], [110.0, *[30.0] * 9], lanes)
    assert begun == {1: 3, 2: 6, 4: 9}


@pytest.mark.parametrize("seed", range(20))
def test_a_scan_ends_in_time_and_leaves_out_nothing_decisive_that_there_is_time_for(seed: int, clock: Time) -> None:
    """Each takes what it is reckoned to take, or as long as it may; then what is left is given back."""
    generator = random.Random(seed)
    pieces, budget = some(generator, 5), 10 ** generator.uniform(1, 3.3)
    ticking = Clock(budget, pieces, NOMINAL, clock.now)
    end = clock.now + budget
    for one in pieces:
        room = ticking.left()
        with ticking.piece(one) as why:
            if why:
                decisive = [other for other in ticking.ahead if not rank(other)]
                assert rank(one) or sum(max(SHORT, ticking.expected(other)) for other in decisive) > room
            else:
                clock.now += min(allowed(clock), ticking.expected(one))
    left, tried = ticking.left(), 0
    while (again := ticking.again()) is not None:
        with ticking.piece(again, last=True) as why:
            assert not why
            clock.now += min(allowed(clock), generator.choice([0.0, 0.5, 3.0]) * ticking.expected(again))
        tried += 1
        assert tried <= 3 * len(pieces)
    assert clock.now <= end
    if left > 1:
        assert tried or not ticking.short or left < min(0.35 * ticking.expected(p) for p, _ in ticking.short.values())


def allowed(clock: Time) -> float:
    """Return the seconds that the piece at work has left."""
    deadline = current().deadline
    assert deadline is not None
    return max(0.0, deadline - clock.now)


def test_what_was_left_out_is_tried_again_the_most_telling_first_and_not_for_ever(clock: Time) -> None:
    dear, cheap = (piece("inverting-gradients", spec, seconds) for spec, seconds in (("dear", 80.0), ("cheap", 40.0)))
    settling = piece(REPLAY, "slow", 30.0)
    ticking = Clock(104.0, [dear, cheap, settling], NOMINAL, clock.now)  # of which 4 are kept
    ticking.ahead = []
    ticking.short = {p.work: (p, had) for p, had in ((dear, 0.0), (cheap, 2.0), (settling, 20.0))}
    for expected in (settling, cheap, dear):
        assert ticking.again() == expected
        with ticking.piece(expected, last=True) as why:
            assert not why
            assert allowed(clock) == pytest.approx(ticking.left())  # nobody waits for it any more
            clock.now += 10.0
    assert ticking.again() is None
    ticking.cut(cheap)  # its outcome says so, and there is not much more time than it had
    assert ticking.again() is None
    ticking.short = {dear.work: (dear, 20.0)}
    assert ticking.again() == dear
    with ticking.piece(dear, last=True):
        clock.now += ticking.left()
    assert ticking.again() is None
    assert Clock(None, [dear]).again() is None


def test_what_is_known_takes_no_time_and_tells_nothing_of_what_others_take(clock: Time) -> None:
    done, ahead = piece(REPLAY, "a", 80.0), piece(REPLAY, "b", 90.0)
    heard: list[list[Work]] = []
    with monitored(Monitor(ahead=lambda pieces, lanes: heard.append([work for work, _ in pieces]))):
        ticking = Clock(104.0, [done, ahead], NOMINAL, clock.now)
        assert not ticking.share(ahead)
        ticking.known([done])
        assert ticking.share(ahead) >= 90.0
        ticking.found("a", [done, piece("linkage", "a", 1.0)])
        with ticking.piece(done) as why:
            assert not why
    assert heard[0] == [done.work, ahead.work]
    assert sorted(work.name for work in heard[-1]) == ["linkage", REPLAY]
    assert ticking.expected(ahead) == pytest.approx(90.0)
    assert ticking.again() is None


def test_what_another_participant_is_at_stays_ahead_and_tells_nothing(clock: Time) -> None:
    one, same = piece(REPLAY, "a", 20.0), piece(REPLAY, "b", 20.0)
    ticking = Clock(104.0, [one, same], NOMINAL, clock.now, lanes=2)

    def taken() -> None:
        clock.now += 0.3
        raise Elsewhere("a: replay")

    with pytest.raises(Elsewhere), ticking.piece(one):
        taken()
    assert ticking.ahead == [one, same]
    assert ticking.expected(same) == pytest.approx(20.0)
    assert ticking.timings == {}


@pytest.mark.parametrize(("others", "most"), [(5.0, 95.0), (50.0, 60.0), (80.0, 60.0)])
def test_a_fit_may_take_what_the_rest_will_not_need(others: float, most: float) -> None:
    fit = piece(FIT, "obscure", 400.0)
    attack = piece("inverting-gradients", "none", others)
    given = share_of(100.0, [replace(fit, least=0.1), attack], [400.0, others])
    assert given == pytest.approx(most)


def test_a_fit_leaves_what_other_verdicts_rest_on_but_no_more_than_the_rest_of_its_own_share() -> None:
    fit, settling = piece(FIT, "obscure", 400.0), piece(REPLAY, "clip", 55.0)
    assert share_of(100.0, [fit, settling], [400.0, 55.0]) == pytest.approx(45.0)
    assert share_of(100.0, [fit, settling], [400.0, 1000.0]) == pytest.approx(100 * (1 - FITS))


def test_what_was_begun_is_not_starved_by_the_attacks_that_draw(clock: Time) -> None:
    """Five defenses in less time than half of their attacks take: `replay` runs on every one of them."""
    plan = Plan(defenses=("gaussian", "prune", "clip", "qsgd", "dp-sgd"), battery="quick", records=8)
    pieces = outline(plan)
    whole = sum(NOMINAL.seconds(p.amount) for p in pieces)
    settling = sum(NOMINAL.seconds(p.amount) for p in pieces if p.work.name == REPLAY)
    assert settling < whole / 3
    ticking, ran = Clock(whole / 2.5, pieces, NOMINAL, clock.now), set()
    for one in pieces:
        with ticking.piece(one) as why:
            if not why:
                ran.add((one.work.name, one.work.defense))
                clock.now += min(allowed(clock), 1.2 * ticking.expected(one))  # the machine is slower than reckoned
    assert {spec for name, spec in ran if name == REPLAY} == {"none", *plan.defenses}
    assert {spec for name, spec in ran if name == FIT} == {"none", *plan.defenses}
