"""The history reads what is there, in the order people read, and joins only runs that can be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from leakaudit.cli import history as cli_history
from leakaudit.compare.history import History, order, read
from leakaudit.errors import UserError
from leakaudit.result.schema import AuditResult, to_json
from tests.leakaudit.results import attack, defense, lost, result, some


def store(folder: Path, *results: AuditResult) -> Path:
    """Write each result to a folder of its own, run-1, run-2, …"""
    for i, each in enumerate(results):
        path = folder / f"run-{i + 1}" / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(to_json(each))
    return folder


def follows(history: History, name: str) -> list[bool]:
    series = next(s for s in history.series if s.name == name)
    return [p.follows for p in series.points]


def test_results_are_read_in_natural_order_and_everything_else_is_named(tmp_path: Path) -> None:
    store(tmp_path, *[result(defense("obscure", attack(some(i)))) for i in range(11)])
    (tmp_path / "notes.json").write_text("{}")
    (tmp_path / "run-2" / "gate.json").write_text(json.dumps({"schema": "leakaudit.gate/1"}))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "result.json").write_text(to_json(result()))
    history = read(tmp_path)
    assert [run.path for run in history.runs] == [f"run-{i}/result.json" for i in range(1, 12)]
    assert [run.number for run in history.runs] == list(range(1, 12))
    assert history.skipped == ("binary.json", "broken.json", "notes.json", "run-2/gate.json")
    assert [s.name for s in history.series] == ["none", "obscure"]
    assert [round(40 * (p.identification.value or 0)) for p in history.series[1].points] == list(range(11))


@given(st.lists(st.from_regex(r"[aA0-9./-]{1,8}", fullmatch=True), max_size=6))
def test_the_order_does_not_depend_on_that_of_the_file_system(paths: list[str]) -> None:
    listed = list(reversed(paths))
    assert sorted(listed, key=order) == sorted(paths, key=order)


@pytest.mark.parametrize(
    ("before", "after"),
    [("run-2/a", "run-10/a"), ("a/z", "a1/a"), ("Run-1/x", "run-2/x"), ("9/a", "a/a"), ("1", "1a"), ("v1.9", "v1.10")],
)
def test_numbers_count_by_value(before: str, after: str) -> None:
    assert order(before) < order(after)


def test_a_run_that_measured_something_else_breaks_every_line(tmp_path: Path) -> None:
    one = result(defense("obscure", attack(some(1))))
    other = replace(one, settings={**one.settings, "seed": 7})
    data = replace(other, hashes={**other.hashes, "victims": "b2"})
    history = read(store(tmp_path, one, one, other, other, data))
    assert [bool(run.breaks) for run in history.runs] == [False, False, True, False, True]
    assert history.runs[2].breaks == ("--seed is 0 there and 7 here",)
    assert "which records are attacked" in history.runs[4].breaks[0]
    assert follows(history, "obscure") == [False, True, False, True, False]
    assert follows(history, "none") == [False, True, False, True, False]


def test_a_weakened_attack_breaks_the_line_it_draws(tmp_path: Path) -> None:
    """31 of 32 records, then none since the attack took one step instead of 400: that is no protection."""
    strong = replace(
        attack(some(39), name="inverting-gradients"), settings={"steps": 400, "tv": 0.1}, tuned={"tv": 0.1}
    )
    tuned = replace(strong, settings={"steps": 400, "tv": 0.2}, tuned={"tv": 0.2})
    weak = replace(attack(some(0), name="inverting-gradients"), settings={"steps": 1, "tv": 0.1}, tuned={"tv": 0.1})
    runs = [result(defense("none", a, requested=True)) for a in (strong, tuned, weak, weak)]
    points = read(store(tmp_path, *runs)).series[0].points
    assert [bool(p.attacked) for p in points] == [False, False, True, False]
    assert points[2].attacked == "inverting-gradients ran with other settings (steps 400 there, 1 here)"
    assert [p.follows for p in points] == [False, True, True, True]  # accuracy is another experiment


def test_steps_that_an_attack_tunes_below_what_it_was_given_are_compared_by_what_it_was_given(tmp_path: Path) -> None:
    """As scans store them: `steps` is among what was tuned, and what was asked for stands beside."""

    def scanned(hits: int, steps: int, asked: int) -> AuditResult:
        ran = replace(attack(some(hits), name="dlg"), settings={"steps": steps}, tuned={"steps": steps})
        return result(defense("obscure", replace(ran, asked={"steps": asked})))

    runs = [scanned(39, 400, 400), scanned(39, 200, 400), scanned(0, 1, 1)]
    points = read(store(tmp_path, *runs)).series[1].points
    assert [p.attacked for p in points] == ["", "", "dlg ran with other settings (steps asked for 400 there, 1 here)"]


def test_attacks_that_are_gone_new_or_cut_short_break_the_line(tmp_path: Path) -> None:
    one, other = attack(some(30), name="dlg"), attack(some(3), name="linkage")
    cut = replace(attack(some(1, 10), name="dlg"), reason="the budget was spent")
    gone = lost("dlg", "not-applicable", 40, "no dense layer")
    rows = [(one, other), (other,), (one, other), (cut, other), (one, other), (lost("dlg", "failed", 40), other)]
    runs = [result(defense("obscure", *row)) for row in [*rows, (gone, other)]]
    points = read(store(tmp_path, *runs)).series[1].points
    assert [p.attacked for p in points] == [
        "",
        "dlg is not run any more",
        "dlg is new",
        "dlg was scored on 10 records, on 40 there (the budget was spent)",
        "",
        "dlg was scored on 0 records, on 40 there (it crashed)",
        "",
    ]
    inapplicable = read(store(tmp_path / "b", runs[0], runs[-1])).series[1].points[1]
    assert not inapplicable.attacked


def test_other_versions_are_noted_but_break_nothing(tmp_path: Path) -> None:
    one = result(defense("obscure", attack(some(1))))
    history = read(store(tmp_path, one, replace(one, environment={**one.environment, "torch": "3"})))
    assert not history.runs[1].breaks
    assert "torch 2 there, 3 here" in history.runs[1].notes[0]


def test_another_setting_is_a_change_of_the_same_defense_and_breaks_only_its_line(tmp_path: Path) -> None:
    runs = [
        result(
            defense(f"gaussian:std={std}", attack(some(1)), settings={"std": std}), defense("prune", attack(some(2)))
        )
        for std in (0.1, 0.1, 0.2)
    ]
    history = read(store(tmp_path, *runs))
    assert [s.name for s in history.series] == ["none", "gaussian:std=0.2", "prune"]
    assert follows(history, "gaussian:std=0.2") == [False, True, False]
    assert history.series[1].points[2].changed == "std was 0.1, is 0.2"
    assert follows(history, "prune") == [False, True, True]


def test_a_defense_with_two_settings_in_one_run_is_followed_as_written(tmp_path: Path) -> None:
    rows = [defense(f"gaussian:std={std}", attack(some(1)), settings={"std": std}) for std in (0.1, 0.2)]
    history = read(store(tmp_path, result(*rows), result(rows[1])))
    assert [s.name for s in history.series] == ["none", "gaussian:std=0.1", "gaussian:std=0.2"]
    assert [p.run for p in history.series[1].points] == [1]
    assert follows(history, "gaussian:std=0.2") == [False, True]


def test_a_run_without_the_defense_is_a_gap(tmp_path: Path) -> None:
    both = result(defense("obscure", attack(some(1))), defense("prune", attack(some(1))))
    history = read(store(tmp_path, both, result(defense("prune", attack(some(1)))), both))
    assert follows(history, "obscure") == [False, False]
    assert follows(history, "prune") == [False, True, True]


def test_the_worst_attack_is_one_an_adversary_can_run(tmp_path: Path) -> None:
    rows = (
        attack(some(9), name="released", role="bound"),
        attack(some(3), name="dlg"),
        attack(some(4), name="linkage"),
        lost("crash", "failed", 40),
    )
    history = read(store(tmp_path, result(defense("obscure", *rows)), result(defense("obscure", rows[3]))))
    first, second = history.series[1].points
    assert (first.attack, first.identification.value) == ("linkage", 0.1)
    assert (second.attack, second.identification.value) == ("", None)
    assert second.identification.reason


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_a_folder_without_results_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.json").write_text("[]")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


def test_the_command_writes_the_page_and_says_what_it_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store(
        tmp_path / "results", result(defense("obscure", attack(some(1)))), result(defense("obscure", attack(some(30))))
    )
    (tmp_path / "results" / "x.json").write_text("{}")
    app = typer.Typer()
    cli_history.add(app)
    app.callback()(lambda: None)
    done = CliRunner().invoke(app, ["history", "results", "-o", "out/trend.html"])
    assert done.exit_code == 0, done.output
    assert "2 runs in results" in done.output
    assert "x.json" in done.output
    assert done.output.endswith("history  out/trend.html\n")
    assert "<h1>results: 2 runs</h1>" in (tmp_path / "out/trend.html").read_text()
    with pytest.raises(UserError, match="--output"):
        CliRunner().invoke(app, ["history", "results", "-o", "results"], catch_exceptions=False)
