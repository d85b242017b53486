"""`leakaudit sweep` from end to end: each scan is what its command does, and one that fails ends no other."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from leakaudit.result.schema import digest, load
from leakaudit.result.sweep import load as load_sweep
from leakaudit.scans import sweep as loop
from leakaudit.units.desk import Desk
from leakaudit.units.unit import Unit
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.test_cli import MODEL

pytestmark = pytest.mark.usefixtures("short_battery")
SWEEP = """
models = ["model.py", "broken.py"]
defenses = [{ spec = "gaussian", std = [0.001, 1.0] }]

[scan]
quick = true
records = 4
epochs = 1
attack = "inverting-gradients:steps=3"
"""
LOUD = "with open('loaded', 'a') as file:\n    file.write('.')\n"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    called = caller(monkeypatch, tmp_path, capsys, MODEL + LOUD)
    (tmp_path / "broken.py").write_text("x = 1\n")
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return called


def plain(path: Path) -> dict[str, Any]:
    """A stored result without what differs between equal runs."""
    found: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in found.items() if key not in ("timings", "made")}


def test_each_scan_is_what_its_command_does_and_a_broken_model_is_a_row(run: Run, tmp_path: Path) -> None:
    done = run("sweep", "sweep.toml", "-o", "out")
    assert done.code == 1, done.err  # the weak noise leaks
    assert "scan 4 of 4: broken-gaussian-std=1.0" in done.err
    assert done.err.count("it defines no `model`") == 2
    assert "not audited" in done.out
    assert (tmp_path / "loaded").read_text() == "."  # a model is loaded once
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["model-gaussian-std=0.001", "model-gaussian-std=1.0"]
    found = load_sweep(tmp_path / "out" / "sweep.json")
    weak, strong, *broken = [row for front in found.fronts for row in front.rows]
    assert (weak.verdict, strong.verdict, found.verdict) == ("fail", "inconclusive", "fail")
    assert [row.state for row in broken] == ["failed", "failed"]
    for row in (weak, strong):
        assert row.digest == digest(load(tmp_path / "out" / row.name / "result.json"))
        assert f'href="{row.name}/report.html"' in (tmp_path / "out" / "sweep.html").read_text()
        assert (tmp_path / "out" / row.name / "report.html").is_file()
    stored = tmp_path / "out" / strong.name / "result.json"
    command = str(load(stored).environment["command"]).split()
    again = run(*command[1:], "-o", "again", "-q", "--fresh")
    assert again.code == 3
    own = plain(tmp_path / "again" / "result.json")
    own["environment"]["command"] = own["environment"]["command"].removesuffix(" -q")
    assert own == plain(stored) | {"hashes": own["hashes"]}  # of which one is of the environment, the command in it
    assert run("gate", f"out/{weak.name}").code == 1


def test_a_dry_run_lists_and_does_nothing(run: Run, tmp_path: Path) -> None:
    done = run("sweep", "sweep.toml", "--dry-run")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "sweep.toml: 4 scans (2 models, 2 defenses and strengths)"
    assert lines[1].split()[:5] == ["model-gaussian-std=0.001", "leakaudit", "scan", "model.py", "--defense"]
    assert not (tmp_path / "leakaudit-sweep").exists()
    assert not (tmp_path / "loaded").exists()


def test_a_mistake_is_one_sentence_before_anything_is_done(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("gaussian", "gausian"))
    sentence(run("sweep", "sweep.toml", "-o", "out"), "sweep.toml", "'gausian'", "'gaussian'")
    sentence(run("sweep", "gone.toml"), "gone.toml")
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_audited_it_is_a_matter_of_use(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.replace('"model.py", ', ""))
    done = run("sweep", "sweep.toml", "-o", "out", "-q", "--exit-zero")
    assert done.code == 2
    assert load_sweep(tmp_path / "out" / "sweep.json").verdict is None
    assert "Nothing was audited, so nothing is known." in (tmp_path / "out" / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (RuntimeError("broken"), 4, "internal error"),
        (SystemExit(0), 2, "exits"),
        (OSError(28, "No space left on device", "somewhere"), 2, "No space left"),
    ],
)
def test_whatever_ends_a_scan_ends_no_other(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, told: str
) -> None:
    def scanned(*args: object, **settings: object) -> None:
        raise raised

    monkeypatch.setattr(loop, "scanned", scanned)
    done = run("sweep", "sweep.toml", "-o", "out")
    assert done.code == code
    rows = [row for front in load_sweep(tmp_path / "out" / "sweep.json").fronts for row in front.rows]
    assert len(rows) == 4
    assert all(told in row.trouble for row in rows)
    assert done.err.count(told) == 4


def test_an_interrupt_keeps_what_was_measured_and_begins_nothing_more(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    real, begun = loop.scanned, []

    def scanned(*args: Any, **settings: Any) -> Any:
        begun.append(args)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **settings)

    monkeypatch.setattr(loop, "scanned", scanned)
    try:
        done = run("sweep", "sweep.toml", "-o", "out")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done.code == 3
    assert "interrupted" in done.err
    rows = [row for front in load_sweep(tmp_path / "out" / "sweep.json").fronts for row in front.rows]
    assert [row.state for row in rows] == ["audited", "waiting", "waiting", "waiting"]


def test_below_full_pictures_no_text_of_an_exception_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    (tmp_path / "sweep.toml").write_text(SWEEP.replace('"model.py", ', ""))
    (tmp_path / "broken.py").write_text("raise ValueError('a row of pixels')\n")
    done = run("sweep", str(tmp_path / "sweep.toml"), "-o", "out")
    written = [(tmp_path / "out" / name).read_text() for name in ("sweep.html", "sweep.json")]
    for text in (done.out, done.err, *written):
        assert "a row of pixels" not in text
        assert "ValueError" in text
    assert all(str(tmp_path) not in text for text in written)


def test_what_scans_share_is_computed_once_and_nothing_private_stays(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, computed = Desk._computed, []

    def noted(desk: Desk, unit: Unit, *given: Any) -> Any:
        computed.append((unit.work, unit.key))
        return real(desk, unit, *given)

    monkeypatch.setattr(Desk, "_computed", noted)
    shared = SWEEP.replace(', "broken.py"', "").replace("defenses", 'stages = ["early"]\ndefenses', 1)
    (tmp_path / "sweep.toml").write_text(shared)
    done = run("sweep", "sweep.toml", "-o", "out", "--cache", "kept", "--fresh")
    assert done.code == 1, done.err
    said = [line.removeprefix("leakaudit: ") for line in done.err.splitlines() if line.startswith("leakaudit: ")]
    assert said[-1] == "scan 2 of 2: model-early-gaussian-std=1.0"
    assert len(computed) == len(set(computed)) > 10  # though nothing that was known before is taken up
    assert [work for work, _ in computed if "early" in work]  # the model was trained to its moment, and that once, too
    assert [path for path in (tmp_path / "kept" / "outcomes").rglob("*") if path.is_file()]
    assert not [path for path in (tmp_path / "kept" / "private").rglob("*") if path.is_file()]
    assert not list((tmp_path / "kept" / "jobs").iterdir())


def test_a_scan_that_cannot_be_done_is_none_to_go_on_with(run: Run, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP.replace('"model.py", ', ""))
    assert run("sweep", "sweep.toml", "-o", "out", "--cache", "kept", "-q").code == 2
    assert not list((tmp_path / "kept" / "jobs").iterdir())
