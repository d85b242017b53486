"""The benchmark of verdicts: what is planted is what it is said to be, by an attacker of its own, and stays at home."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import replaying, verdicts
from benchmarks.planted import KNOWN, registered
from benchmarks.plantedscenes import PLACES, SHOTS, pictures, records, seeded
from benchmarks.replaying import best, exchange
from benchmarks.verdicts import LEAKY, OPEN, SAFE, Row, SetUp, chosen, confirmed, main, summary
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.registry import defenses, parse_defense
from leakaudit.protocol.target import Target
from leakaudit.scene.plan import Plan

target_at = cache(lambda place: PLACES[place].target())
SLOW = ("obscure", "class-conditional")  # built in, tested at home, and long to fit


@pytest.fixture(autouse=True)
def planted() -> Iterator[None]:
    with registered():
        yield


def truth(setup: SetUp) -> replaying.Found:
    target: Target = target_at(setup.place)
    fitted = parse_defense(setup.spec).fit(target, torch.Generator().manual_seed(0))
    many = setup.place == "many"  # only a tenth of its updates leak
    sizes = {} if many else {"victims": 12, "groups": 2, "line_up": 8}
    return confirmed(setup, target, PLACES[setup.place], fitted, draws=1, **sizes)


@pytest.mark.parametrize("setup", [*LEAKY, *OPEN], ids=lambda setup: setup.name)
def test_what_is_said_to_leak_leaks(setup: SetUp) -> None:
    assert truth(setup).leaky


@pytest.mark.parametrize("setup", [s for s in SAFE if s.spec not in SLOW], ids=lambda setup: setup.name)
def test_what_is_said_to_be_safe_is_at_chance(setup: SetUp) -> None:
    found = truth(setup)
    assert not found.leaky
    assert found.level > 0.01


def test_there_are_enough_of_every_kind_and_a_quick_run_takes_a_third() -> None:
    assert len(LEAKY) >= 24
    assert len(SAFE) >= 12
    stages = {setup.stage for setup in chosen(True, ()) if setup.leaky}  # of every kind in a quick run, too
    assert stages >= {"record", "labels", "model", "example", "update", "buffers", "batch", "persons"}
    every = chosen(False, ())
    assert len({setup.name for setup in (*every, *OPEN)}) == len(every) + len(OPEN)
    assert not set(every) & set(OPEN)
    quick = chosen(True, ())
    assert set(quick) < set(every)
    assert len(quick) == pytest.approx(len(every) / 3, abs=1)
    assert chosen(False, ("safe", "zeros", "inverted")) == (*SAFE, LEAKY[0])


def test_planted_defenses_are_known_within_only() -> None:
    assert set(KNOWN) <= set(defenses())
    assert {setup.spec for setup in (*LEAKY, *SAFE)} & set(KNOWN)
    for name in KNOWN:
        assert KNOWN[name].name == name
        assert KNOWN[name].__doc__
    with registered():
        pass
    assert not set(KNOWN) & set(defenses())


def test_the_attacker_shares_no_code_with_attacks_scores_or_the_audit() -> None:
    tree = ast.parse(Path(replaying.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m for m in modules if m and m.startswith("leakaudit")} == {
        "leakaudit.protocol.defense",
        "leakaudit.protocol.target",
    }


def test_an_exchange_is_the_gradient_and_guessing_is_no_leak() -> None:
    target = target_at("dense")
    seen = exchange(replaying.Client(target, Defense()), [3, 4], 0)
    known = mean_gradient(target.model, target.loss, target.private.images[3:5], target.private.labels[3:5])
    assert torch.allclose(seen["everything"], torch.cat([g.flatten() for g in known]), atol=1e-6)
    random = torch.Generator().manual_seed(0)
    guesses = [(int(torch.randint(20, (1,), generator=random)), i % 20) for i in range(64)]
    assert not best({"guessing": guesses, "silence": [(None, 0)] * 64}, 20).leaky
    assert best({"knowing": [(t, t) for _, t in guesses[:8]]}, 20).leaky


def test_pictures_differ_and_their_places_hold_what_they_say() -> None:
    first = records(400, 2)
    assert torch.equal(first.images, records(400, 2).images)
    assert len(torch.unique(first.images.flatten(1), dim=0)) == 400
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert pictures(torch.zeros(0, dtype=torch.long), seeded(0)).shape == (0, 1, 16, 16)
    bursts = target_at("bursts")
    who = PLACES["bursts"].person
    assert who is not None
    shots = bursts.private.images[who(bursts) == 5]
    others = bursts.private.images[::SHOTS][bursts.private.labels[::SHOTS] == bursts.private.labels[5 * SHOTS]]
    assert len(shots) == SHOTS
    assert torch.pdist(shots.flatten(1)).max() < torch.pdist(others.flatten(1)).min()


def test_rows_are_written_printed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fooled(target: Target, plan: Plan, *, keep_learned: Callable[[str, Defense], None]) -> SimpleNamespace:
        assert (plan.records, plan.battery, plan.utility, plan.attacks) == (16, "standard", False, ())
        for spec in plan.defenses:
            keep_learned(spec, parse_defense(spec).fit(target, seeded(0)))
        said = [SimpleNamespace(spec=spec, verdict="pass", reasons=("so it is", "more")) for spec in plan.defenses]
        return SimpleNamespace(defenses=said)

    monkeypatch.setattr(verdicts, "audit", fooled)
    monkeypatch.setattr(verdicts, "look", partial(replaying.look, line_up=10, groups=2, draws=1))
    file = tmp_path / "rows.json"
    main(["--only", "zeros", "only-clipped", "--json", str(file)])
    rows = json.loads(file.read_text(encoding="utf-8"))
    zeros = {"name": "zeros", "truth": "safe", "verdict": "pass", "right": True, "reason": "so it is"}
    assert rows == [zeros, {**zeros, "name": "only-clipped", "truth": "leaky", "right": False}]
    printed = capsys.readouterr().out
    assert "FALSE PASS" in printed
    assert "NOT CONFIRMED" not in printed
    assert "leaky: 1 false pass, 0 inconclusive of 1; safe: 0 false fail, 0 inconclusive of 1" in printed
    assert not set(KNOWN) & set(defenses())


def test_the_counts_keep_what_deceives_apart_from_what_does_not_decide() -> None:
    said = [(LEAKY[0], "pass"), (LEAKY[1], "inconclusive"), (LEAKY[2], "fail"), (SAFE[0], "fail"), (SAFE[1], "pass")]
    rows = [(setup, Row(setup.name, "", verdict, False, "")) for setup, verdict in (*said, (OPEN[0], "pass"))]
    assert summary(rows) == "leaky: 1 false pass, 1 inconclusive of 3; safe: 1 false fail, 0 inconclusive of 2"


def test_help_and_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--quick", "--json", "--only"))
    with pytest.raises(SystemExit) as ended:
        main(["--only", "nobody"])
    assert ended.value.code == 2
    assert "nobody" in capsys.readouterr().err
