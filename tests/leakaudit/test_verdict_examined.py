"""The rules that ask what was found out by trying a defense: what fails in sum, what proves, and what supports none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leakaudit.judge.caps import PROVEN, WEAKENED, capped, caps, caps_of
from leakaudit.judge.proof import by_chance, within
from leakaudit.judge.verdict import Case, errors_of, judge, rejudge
from leakaudit.judge.words import sentences
from leakaudit.result.schema import (
    AttackResult,
    Baseline,
    Controls,
    Estimate,
    Examined,
    Finding,
    Guarantee,
    Reason,
    Verdict,
)
from leakaudit.stats.intervals import median, rate
from tests.leakaudit.results import attack, defense, lost, passed_over, result, some

LIMIT, RECORDS = 0.25, 40
EXAMINED = Examined(changes=("update",), independent=False, strength=0.1, weakened=rate(20, 20))
GUESS = Baseline("class-mean", "", rate(0, RECORDS), median([10.0] * RECORDS), Estimate(), Estimate())
CONTROL = (attack(some(40), name="inverting", role="standard"),)
PROOF = Guarantee("No more than 5% are picked out.", "proven", "that it was fitted well", 0.05, 100)


def replay(hits: int = 0, of: int = RECORDS, **changes: Any) -> AttackResult:
    return replace(attack(some(hits, of), name="replay", kind="linkage"), **changes)


def drawn(hits: int = 0, name: str = "inverting", first: int = 0, **changes: Any) -> AttackResult:
    """An attack that draws pictures, and identifies so many from the `first` on."""
    marks = [first <= i < first + hits for i in range(RECORDS)]
    changes.setdefault("role", "standard")
    return replace(attack(marks, name=name), **changes)


def of_class(name: str, hits: int, of: int = 7) -> AttackResult:
    """An attack that identifies so many of a class of a few records, and no other."""
    found = drawn(hits)
    return replace(
        found, records=tuple(replace(r, label=name if i < of else "common") for i, r in enumerate(found.records))
    )


def case(*attacks: AttackResult, **changes: Any) -> Case:
    given: dict[str, Any] = {"control": CONTROL, "baselines": (GUESS,), "chance": 0.01, "limit": LIMIT}
    return Case(attacks=attacks or (replay(), drawn()), **given | {"examined": EXAMINED} | changes)


def planted(hits: int) -> AttackResult:
    """An attack that changes the model, and identifies so many."""
    return drawn(hits, "imprint", requires=PLANTS, role="adaptive")


def with_exact(found: AttackResult) -> AttackResult:
    (first, *rest) = found.records
    return replace(found, records=(replace(first, exact=True), *rest), exact=1)


def blank(**changes: Any) -> dict[str, Any]:
    return {"examined": replace(EXAMINED, independent=True, strength=None, **changes)}


def candidates(found: AttackResult, size: int) -> AttackResult:
    return replace(found, candidates=size)


PLANTS = ("auxiliary", "model_control")
SERVER: dict[str, Any] = {"planting": True, "control": (*CONTROL, planted(40))}
SPREAD = tuple(drawn(8, f"a{i}", 8 * i) for i in range(3))  # none above the limit, together 24 of 40
FEW = tuple(candidates(each, 3) for each in SPREAD)
SHARP = drawn(psnr=median([25.0] * RECORDS))
OVERFITTED = drawn(doubts={"overfitted": "on 9 pairs"})
LUCKY = candidates(drawn(6), 10)  # as guesses among ten bring

# name: (case, verdict, ids of the reasons)
TABLE: dict[str, tuple[Case, Verdict, set[str]]] = {
    "it held": (case(), "pass", {"within-limit", "control-leaks"}),
    "attacks together": (case(replay(), *SPREAD), "fail", {"union-above-limit"}),
    "the same records": (case(replay(), *(drawn(8, f"a{i}") for i in range(3))), "inconclusive", {"may-exceed-limit"}),
    "together as guesses": (case(candidates(replay(), 3), *FEW), "pass", {"within-limit", "control-leaks"}),
    "one above is enough": (case(replay(30), *SPREAD), "fail", {"identification-above-limit"}),
    "skipped, and it fails": (case(replay(30), passed_over("linkage")), "fail", {"identification-above-limit"}),
    "skipped, at another limit": (case(replay(), drawn(), passed_over("a")), "inconclusive", {"attacks-skipped"}),
    "skipped, proven": (case(replay(), drawn(), passed_over("a"), **blank()), "inconclusive", {"attacks-skipped"}),
    "a bound is no part of it": (
        case(replay(), drawn(), *(replace(each, role="bound") for each in SPREAD)),
        "inconclusive",
        {"may-exceed-limit"},
    ),
    "one class": (case(replay(), of_class("rare", 7)), "fail", {"class-above-limit"}),
    "one class, few": (case(replay(), of_class("rare", 2)), "pass", {"within-limit", "control-leaks"}),
    "it keeps a state": (case(examined=replace(EXAMINED, repeats=False)), "inconclusive", {"does-not-repeat"}),
    "confirmed exactly": (case(with_exact(replay(1)), drawn()), "fail", {"known-exactly"}),
    "rebuilt exactly": (case(replay(), with_exact(drawn(1))), "fail", {"known-exactly"}),
    "exact as handed over": (
        case(replay(), drawn(), with_exact(drawn(1, role="bound"))),
        "pass",
        {"within-limit", "control-leaks"},
    ),
    "nothing is left": (case(**blank()), "pass", {"independent"}),
    "nothing is left, chance hits": (case(replay(2), LUCKY, **blank()), "pass", {"independent"}),
    "nothing is left, hits beyond chance": (case(replay(4), drawn(), **blank()), "inconclusive", {"not-seen-weakened"}),
    "nothing is left, never replayed": (
        case(lost("replay", "failed", RECORDS), drawn(), **blank()),
        "inconclusive",
        {"not-seen-weakened", "no-adaptive-attack", "attack-unfinished", "no-family"},
    ),
    "nothing is left, half replayed": (
        case(replay(0, 20, statuses={"converged": 20, "budget": 20}), drawn(), **blank()),
        "inconclusive",
        {"not-seen-weakened", "attack-unfinished"},
    ),
    "nothing is left, little scored": (case(replay(0, 4), drawn(), **blank()), "pass", {"independent"}),
    "nothing is left, close pictures": (case(replay(), SHARP, **blank()), "pass", {"independent"}),
    "nothing is left, found": (case(replay(), drawn(30), **blank()), "fail", {"identification-above-limit"}),
    "nothing is left, handed over": (
        case(replay(), drawn(30, role="bound"), **blank()),
        "pass",
        {"independent"},
    ),
    "nothing is left, an error": (
        case(**blank(), errors=("label-stuffing",)),
        "inconclusive",
        {"error-noticed", "not-seen-weakened"},
    ),
    "not known": (
        case(examined=replace(EXAMINED, independent=None)),
        "pass",
        {"within-limit", "control-leaks"},
    ),
    "close pictures": (case(replay(), SHARP), "fail", {"reconstruction-close"}),
    "proven": (case(replay(1), drawn(6), guarantees=(PROOF,)), "pass", {"proven", "within-limit", "control-leaks"}),
    "proven, few records": (
        case(replay(0, 4), drawn(0, records=(), identification=rate(0, 4)), guarantees=(PROOF,)),
        "pass",
        {"proven", "within-limit", "control-leaks"},
    ),
    "proven, and refuted": (case(replay(9), drawn(), guarantees=(PROOF,)), "inconclusive", {"may-exceed-limit"}),
    "proven too little": (
        case(replay(), drawn(6), guarantees=(replace(PROOF, identification=0.3),)),
        "inconclusive",
        {"may-exceed-limit"},
    ),
    "not bounded": (
        case(replay(), drawn(6), guarantees=(replace(PROOF, kind="not-bounded"),)),
        "inconclusive",
        {"may-exceed-limit"},
    ),
    "proven of nothing that was replayed": (
        case(lost("replay", "failed", RECORDS), drawn(6, role="adaptive"), guarantees=(PROOF,)),
        "inconclusive",
        {"attack-unfinished", "may-exceed-limit", "no-family"},
    ),
    "proven, an error": (case(guarantees=(PROOF,), errors=("bound-exceeded",)), "inconclusive", {"error-noticed"}),
    "a weak control": (
        case(control=(drawn(10),)),
        "inconclusive",
        {"control-within-limit"},
    ),
    "a control that shows nothing": (case(control=(drawn(0),)), "inconclusive", {"control-does-not-leak"}),
    "no control": (case(control=()), "inconclusive", {"control-not-scored"}),
    "never seen to work": (
        case(examined=replace(EXAMINED, strength=None)),
        "inconclusive",
        {"not-seen-weakened"},
    ),
    "nothing to see through": (
        case(examined=replace(EXAMINED, changes=(), strength=None)),
        "pass",
        {"within-limit", "control-leaks"},
    ),
    "the server may change the model": (case(planting=True), "inconclusive", {"malicious-server"}),
    "it plants": (case(replay(), drawn(), planted(0), **SERVER), "pass", {"within-limit", "control-leaks"}),
    "it plants, and finds": (case(replay(), drawn(), planted(30), **SERVER), "fail", {"identification-above-limit"}),
    "it plants, with no score": (
        case(replay(), drawn(), replace(lost("imprint", "not-applicable", RECORDS), requires=PLANTS), **SERVER),
        "inconclusive",
        {"malicious-server"},
    ),
    "it plants in vain": (
        case(replay(), drawn(), planted(0), **SERVER | {"control": (*CONTROL, planted(0))}),
        "inconclusive",
        {"malicious-server"},
    ),
    "it plants, and nothing is left": (case(replay(), planted(0), **SERVER, **blank()), "pass", {"independent"}),
    "nothing is left of what is not planted": (
        case(replay(), drawn(), planting=True, **blank()),
        "inconclusive",
        {"malicious-server", "not-seen-weakened"},
    ),
    "no pictures": (case(replay()), "inconclusive", {"no-family"}),
    "nobody links": (case(drawn(), drawn(name="masked", role="adaptive")), "inconclusive", {"no-family"}),
    "only a bound links": (
        case(drawn(role="adaptive"), replay(name="released-replay", role="bound")),
        "inconclusive",
        {"no-family"},
    ),
    "overfitted": (case(replay(), OVERFITTED), "inconclusive", {"doubt"}),
    "another doubt": (
        case(replay(), drawn(doubts={"odd": "see"})),
        "pass",
        {"within-limit", "control-leaks", "doubt"},
    ),
    "an error": (case(errors=("label-stuffing", "label-stuffing")), "inconclusive", {"error-noticed"}),
    "hits by luck": (case(replay(), LUCKY), "pass", {"within-limit", "control-leaks"}),
    "hits beyond luck": (case(replay(), drawn(6)), "inconclusive", {"may-exceed-limit"}),
    "hits by luck, replay unsettled": (case(replay(5), LUCKY), "inconclusive", {"may-exceed-limit"}),
    "hits by luck, never replayed": (
        case(drawn(role="adaptive"), LUCKY, replay(name="linkage")),
        "inconclusive",
        {"may-exceed-limit"},
    ),
    "too few": (case(replay(0, 4), drawn()), "inconclusive", {"too-few-scored"}),
    "fewer than asked": (case(least=50), "inconclusive", {"too-few-scored"}),
    "no bound": (case(replaces_records=True), "inconclusive", {"no-bound"}),
    "guesses suffice": (case(chance=0.5), "inconclusive", {"guess-above-limit"}),
    "a limit of nothing": (
        case(limit=0.0, chance=0.0),
        "inconclusive",
        {"limit-of-nothing"},
    ),
    "no score at all": (
        case(lost("replay", "failed", RECORDS)),
        "inconclusive",
        {"no-adaptive-attack", "attack-unfinished", "no-attack-scored"},
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_rule(name: str) -> None:
    given, verdict, ids = TABLE[name]
    found, why = judge(given)
    assert (found, {reason.id for reason in why}) == (verdict, ids)
    assert all(told.endswith(".") for told in sentences(why))


def test_what_another_attack_found_beyond_chance_is_no_proof_of_nothing() -> None:
    assert judge(case(replay(), drawn(9), **blank()))[0] != "pass"  # 9 of 40 in line-ups of 100


def test_what_a_reason_tells_is_what_was_counted() -> None:
    def only(name: str) -> Reason:
        (reason,) = judge(TABLE[name][0])[1]
        return reason

    assert only("attacks together").measured == rate(24, RECORDS)
    assert only("confirmed exactly").facts == {"rebuilt": 0, "confirmed": 1, "asked": RECORDS}
    assert only("rebuilt exactly").facts == {"rebuilt": 1, "confirmed": 0, "asked": RECORDS}
    assert only("no pictures").facts == {"family": "reconstruction"}
    assert only("nobody links").facts == {"family": "linkage"}
    assert only("never seen to work").measured == EXAMINED.weakened
    assert only("an error").facts == {"finding": "label-stuffing"}
    within_limit = judge(TABLE["hits by luck"][0])[1][0]
    assert within_limit.facts["lucky"] == "inverting"
    assert within_limit.facts["highest"] == replay().identification.high
    proven = judge(TABLE["proven"][0])[1][0]
    assert proven.facts == {"bound": 0.05, "assumes": PROOF.assumes, "candidates": 100}
    assert PROOF.assumes in sentences([proven])[0]


# What the rules of results without `examined` do not ask.
BEFORE = {
    "attacks together": "inconclusive",
    "confirmed exactly": "pass",
    "rebuilt exactly": "pass",
    "hits by luck, never replayed": "inconclusive",
    "nothing is left, close pictures": "fail",
    "proven, few records": "inconclusive",
    "a weak control": "pass",
    "never seen to work": "pass",
    "no pictures": "pass",
    "nobody links": "pass",
    "overfitted": "pass",
}


@pytest.mark.parametrize("name", BEFORE)
def test_results_from_before_are_judged_as_they_were(name: str) -> None:
    assert judge(replace(TABLE[name][0], examined=None))[0] == BEFORE[name]


def test_chance_and_the_limit_at_their_edges() -> None:
    assert within(replay(), 0.25)
    assert not within(replay(), 0.01)
    assert not within(lost("replay", "failed", 4), 0.25)
    assert by_chance(replay(0), (), 1)
    hits = [by_chance(replay(n), (), 1) for n in range(6)]
    assert hits == sorted(hits, reverse=True)
    assert not hits[-1]
    (edge,) = [n for n in range(1, 6) if hits[n - 1] and not hits[n]]
    assert by_chance(replay(edge), (), 100)  # one of so many attacks
    assert by_chance(replay(edge), (), 1, 0.2)  # at a rate that a proof allows


CONTROLS = Controls("fail", "")
FULL = {"defense": True, "auxiliary": True}
OWN_IDS = ("auxiliary-differs", "auxiliary-few")
OWN = tuple(Finding(name, "warning", "It was noticed.") for name in OWN_IDS)
CAPS: dict[str, tuple[tuple[Any, ...], set[str]]] = {
    "nothing": (({}, FULL, CONTROLS), set()),
    "before there were controls": (({}, {}, None, OWN), set()),
    "a first look": (({"battery": "quick"}, FULL, CONTROLS), {"quick-battery"}),
    "a first look, before": (({"battery": "quick"}, {}, None), {"quick-battery"}),
    "without the defense": (({}, {"auxiliary": True}, CONTROLS), {"weak-adversary"}),
    "without records": (({}, {"defense": True, "auxiliary": False}, CONTROLS), {"weak-adversary"}),
    "less effort": (({}, FULL, replace(CONTROLS, lowered=("dlg",))), {"effort-lowered"}),
    "left out": (({}, FULL, replace(CONTROLS, left_out=("dlg", "linkage"))), {"attacks-left-out"}),
    "canary passed": (({}, FULL, replace(CONTROLS, canary="pass")), {"canary-missed"}),
    "canary unclear": (({}, FULL, replace(CONTROLS, canary="inconclusive", canary_told="broken")), {"canary-missed"}),
    "canary cut off": (({}, FULL, Controls("inconclusive", canary_ended="budget")), {"canary-unfinished"}),
    "no canary": (({}, FULL, replace(CONTROLS, canary=None)), set()),
    "others' records": (({}, FULL, replace(CONTROLS, auxiliary=Estimate(0.9, 0.8, 0.95, 60)), OWN), {*OWN_IDS}),
    "records a little apart": (({}, FULL, replace(CONTROLS, auxiliary=Estimate(0.7, 0.6, 0.8, 60)), OWN), {OWN_IDS[1]}),
}
WAIVED = {"quick-battery", "auxiliary-differs", "auxiliary-few"}  # where a proof carries the pass


@pytest.mark.parametrize("name", CAPS)
def test_what_an_audit_cannot_support(name: str) -> None:
    given, ids = CAPS[name]
    found = caps(*given)
    assert {cap.id for cap in found} == ids
    assert all(told.endswith(".") for told in sentences(found))
    for row in ("it held", "proven", "nothing is left"):
        verdict, why = judge(TABLE[row][0])
        after, told = capped(verdict, why, found)
        counts = ids - WAIVED if {reason.id for reason in why} & set(PROVEN) else ids
        assert after == ("inconclusive" if counts else "pass")
        assert {reason.id for reason in told} == counts | {reason.id for reason in why}
        assert told[len(counts) :] == why
    for row in ("confirmed exactly", "overfitted"):  # what is no pass stays what it is
        verdict, why = judge(TABLE[row][0])
        weaker = tuple(cap for cap in found if cap.id in WEAKENED and verdict == "inconclusive")
        assert capped(verdict, why, found) == (verdict, (*weaker, *why))


def test_a_stored_defense_is_judged_again_by_all_of_it() -> None:
    def again(**changes: Any) -> tuple[Verdict, set[str]]:
        row = defense("obscure", replay(), drawn(), examined=EXAMINED, **changes.pop("row", {}))
        made = replace(result(row), **{"exposure": FULL, "controls": CONTROLS} | changes)
        verdict, why = rejudge(made, made.defenses[1])
        return verdict, {reason.id for reason in why}

    assert again()[0] == "pass"
    assert again(row={"guarantees": (PROOF,)})[1] >= {"proven"}
    error = Finding("label-stuffing", "error", "It was noticed.", {"defense": "obscure"})
    assert again(findings=(error,)) == ("inconclusive", {"error-noticed"})
    assert again(findings=(replace(error, evidence={"defense": "prune"}),))[0] == "pass"
    assert again(findings=(replace(error, severity="warning"),))[0] == "pass"
    assert again(controls=replace(CONTROLS, canary="pass"))[0] == "inconclusive"
    assert again(settings={"battery": "quick"})[1] == {"quick-battery", "within-limit", "control-leaks"}
    assert errors_of("obscure", (error, error)) == ("label-stuffing",) * 2
    assert caps_of(replace(result(), exposure=FULL, controls=CONTROLS)) == ()


def test_a_class_of_few_is_not_blamed_for_luck_among_many() -> None:
    """Three of three is 29 % at the lower bound, and happens by chance where many classes of three are asked about."""
    hits = of_class("rare", 3, 3)
    many = tuple(replace(r, label=f"c{i // 3}") for i, r in enumerate(hits.records[3:]))
    spread = candidates(replace(hits, records=(*hits.records[:3], *many)), 5)
    assert judge(case(candidates(replay(), 5), spread))[0] != "fail"
    alone = candidates(of_class("rare", 7), 5)
    assert judge(case(candidates(replay(), 5), alone))[0] == "fail"


def test_buffers_are_no_work_of_a_defense() -> None:
    from leakaudit.audit.pieces import pieces_of
    from leakaudit.protocol.defense import Defense
    from leakaudit.result.rules import WEAKENED
    from leakaudit.scene.plan import Plan

    pieces = pieces_of("none", Defense(), Plan(), frozenset({"buffers"}))
    assert {piece.role for piece in pieces if piece.attack} == {"standard"}
    assert WEAKENED not in {piece.role for piece in pieces}
