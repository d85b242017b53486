"""Who is found by any attack: unions, their guess, and a tenth that is not chosen by what measures it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from leakaudit.gate.consistency import doubts
from leakaudit.judge.exposed import exact, exposed
from leakaudit.result.schema import AttackResult, Examined
from tests.leakaudit.results import attack, defense, result, some


def hit(by_chance: random.Random, records: int, chance: float, name: str, role: str = "adaptive") -> AttackResult:
    return attack([by_chance.random() < chance for _ in range(records)], name=name, role=role)


def test_the_union_is_over_the_records_that_anybody_was_asked_about() -> None:
    a, b = attack([True, False, False, False], name="a"), attack([False, True, False, False, False, True], name="b")
    c = attack([False] * 4, name="c", batch=2)  # (victim, place): of these, (0, 1) and (1, 1) are further records
    bound = attack([True] * 6, name="handed", role="bound")
    labels = replace(a, kind="labels", records=tuple(replace(r, identified=None) for r in a.records))
    found = exposed([a, b, bound, labels], 0.25)
    assert (found.union.value, found.union.n) == (3 / 6, 6)
    assert exposed([a, b, c], 0.25).union.n == 8
    assert exposed([a, b, bound], 0.25, bounds=True).union.value == 1.0
    assert found.by_class == {"cat": found.union}
    assert exposed([b, a, labels], 0.25).union == found.union
    assert exposed([], 0.25).union.reason
    assert exposed([bound], 0.25).union.value is None


def test_guessing_as_often_is_what_independent_guesses_find() -> None:
    by_chance = random.Random(1)
    attacks = [replace(hit(by_chance, 4000, 0.25, str(i)), candidates=4) for i in range(3)]
    found = exposed([*attacks, replace(hit(by_chance, 400, 0.1, "few"), candidates=10)], 0.01)
    expected = 1 - 0.75**3 * (3600 + 400 * 0.9) / 4000
    assert found.union_guess == pytest.approx(expected)
    assert found.union.low is not None
    assert found.union.high is not None
    assert found.union.low < found.union_guess < found.union.high


def test_classes_are_told_apart() -> None:
    a = attack(some(5, 20))
    records = tuple(replace(r, label="dog" if r.victim < 5 else "cat") for r in a.records)
    found = exposed([replace(a, records=records)], 0.01).by_class
    assert {name: (e.value, e.n) for name, e in found.items()} == {"cat": (0.0, 15), "dog": (1.0, 5)}


def test_chance_hits_make_no_exposed_tenth() -> None:
    """Ranked and measured by the same hits, all of the tenth would be found."""
    by_chance = random.Random(2)
    rates = []
    for _ in range(30):
        found = exposed([hit(by_chance, 200, 0.1, str(i)) for i in range(6)], 0.1)
        assert found.tenth.value is not None
        assert found.tenth.n == 20
        rates.append(found.tenth.value)
    assert sum(rates) / 30 == pytest.approx(1 - 0.9**3, abs=0.03)


def test_records_that_always_leak_are_the_exposed_tenth() -> None:
    by_chance = random.Random(3)
    always = [attack([i < 20 or by_chance.random() < 0.05 for i in range(200)], name=str(i)) for i in range(4)]
    found = exposed(always, 0.05)
    assert found.tenth.value is not None
    assert found.tenth.value > 0.95
    assert found.union.value is not None
    assert found.union.value < 0.35
    nobody = exposed([attack([False] * 40, name=n) for n in "ab"], 0.01).tenth
    assert (nobody.value, nobody.low, nobody.n) == (0.0, 0.0, 4)
    assert exposed(always[:1], 0.05).tenth.value is None
    assert exposed(always[:1], 0.05).tenth.reason


def test_exact_records_are_counted_once_and_by_how() -> None:
    def known(a: AttackResult, *victims: int) -> AttackResult:
        records = tuple(replace(r, exact=r.victim in victims) for r in a.records)
        return replace(a, records=records, exact=len(victims))

    drawn, other = known(attack(some(4), name="a"), 0, 1), known(attack(some(4), name="b"), 1, 2)
    linked = known(attack(some(4), name="c", kind="linkage"), 2, 3)
    handed = known(attack(some(6), name="d", role="bound"), 3, 4)
    found = exact([drawn, other, linked, handed])
    assert (found.rebuilt, found.confirmed, found.handed) == ({(0, 0), (1, 0), (2, 0)}, {(3, 0)}, {(4, 0)})


def test_a_result_whose_union_or_count_is_not_that_of_its_records_is_doubted() -> None:
    attacks = (attack(some(3), name="a"), attack(some(5), name="b"))
    found = exposed(attacks, 0.01, result().baselines)
    row = defense("clip", *attacks, verdict="inconclusive", examined=Examined(**found._asdict()))

    def told(changed: object) -> list[str]:
        made = result(changed, verdict="inconclusive", reasons=())  # type: ignore[arg-type]
        return [sentence for sentence in doubts(made) if sentence.startswith(("clip:", "On clip"))]

    assert told(row) == []
    fewer = exposed(attacks[:1], 0.01, result().baselines)
    assert row.examined is not None
    for field, words in (("union", "any attack"), ("by_class", "by class"), ("tenth", "exposed tenth")):
        changed = {field: getattr(fewer, field)}
        assert any(words in sentence for sentence in told(replace(row, examined=replace(row.examined, **changed))))
    less = replace(attacks[0], exact=1)
    assert any("exact" in sentence for sentence in told(replace(row, attacks=(less, attacks[1]))))
