"""The command line as a user meets it: exit codes, one sentence for bad input, nothing lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.leakaudit.command_line import Run, caller, sentence

pytestmark = pytest.mark.usefixtures("short_battery")

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

g = torch.Generator().manual_seed(0)
images, labels = torch.rand(80, 1, 8, 8, generator=g), torch.arange(80) % 2
train_data = TensorDataset(images, labels)
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(256, 2))
"""
FAST = ("--quick", "--records", "4", "--epochs", "1", "--attack", "inverting-gradients:steps=3")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder that holds a model.py."""
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def test_help_is_quick_and_names_every_command() -> None:
    """Heavy imports wait: no torch for --help. (The half second is measured by hand; a test asserts no times.)"""
    code = (
        "import sys; from leakaudit.cli import main; sys.argv = ['leakaudit', '--help']\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("scan", "demo", "report", "doctor", "list", "gate", "compare"):
        assert command in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("scan", "missing.py"), ("missing.py",)),
        (("scan", "model.py", "-d", "obscur"), ("did you mean 'obscure'",)),
        (("scan", "model.py", "-a", "dgl"), ("did you mean",)),
        (("scan", "model.py", "-d", "gaussian:std=x"), ("'std'", "'x'")),
        (("scan", "model.py", "--budget", "soon"), ("--budget", "'soon'")),
        (("scan", "model.py", "--memory", "lots"), ("--memory", "'lots'")),
        (("scan", "model.py", "--memory", "4"), ("--memory", "unit", "'4'")),
        (("scan", "model.py", "--quick", "--full"), ("--quick", "--full")),
        (("scan", "model.py", "--records", "0"), ("--records",)),
        (("scan", "model.py", "--records", "5", "--batch-size", "2"), ("multiple",)),
        (("scan", "model.py", "--records", "2", "--batch-size", "4"), ("--batch-size",)),
        (("scan", "model.py", "--records", "4000"), ("records",)),
        (("scan", "model.py", "--max-identification", "2"), ("--max-identification",)),
        (("scan", "model.py", "-o", "model.py"), ("model.py", "file")),
        (("scan", "model.py", "-d", "prune", "-d", "prune"), ("twice",)),
        (("scan", "model.py", "--lpips-weights", "no.pth"), ("no.pth",)),
        (("scan", "model.py", "--device", "toaster"), ("toaster",)),
        (("report", "missing.json"), ("missing.json",)),
        (("report", "model.py"), ("model.py", "not JSON")),
    ],
)
def test_bad_input_is_one_sentence(run: Run, words: tuple[str, ...], expected: tuple[str, ...]) -> None:
    sentence(run(*words), *expected)


def test_usage_errors_exit_2(run: Run) -> None:
    assert run("scan", "model.py", "other.py").code == 2
    assert run("scan", "model.py", "--no-such-option").code == 2
    assert run("list", "nothing").code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_output(run: Run, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    sentence(run("scan", "model.py", "-o", "locked/out"), "locked/out")


def test_output_below_a_file_cannot_be_written(run: Run) -> None:
    sentence(run("scan", "model.py", "-o", "model.py/out"), "cannot write")


def test_wrong_schema_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": "somebody/2"}')
    sentence(run("report", "other.json"), "somebody/2")
    (tmp_path / "cut.json").write_text('{"schema": "leakaudit.result/1"}')
    sentence(run("report", "cut.json"), "cut.json")


def test_scan_writes_result_and_report_and_is_reproducible(run: Run, tmp_path: Path) -> None:
    first = run("scan", "model.py", "-d", "prune", "-o", "out", *FAST)
    assert first.code in (0, 1, 3), first.err
    data = json.loads((tmp_path / "out/result.json").read_text())
    assert data["complete"] is True
    assert data["environment"]["target"] == "model.py"
    assert [d["spec"] for d in data["defenses"]] == ["none", "prune"]
    assert {a["name"] for a in data["defenses"][1]["attacks"]} >= {"inverting-gradients", "masked-matching"}
    assert data["defenses"][0]["accuracy"]["value"] is not None
    assert "prune" in (tmp_path / "out/report.html").read_text()
    assert {"pass": 0, "fail": 1, "inconclusive": 3}[data["verdict"]] == first.code
    # The golden rule of determinism: same command, same file, its date and timings apart.
    time.sleep(0.01)
    run("scan", "model.py", "-d", "prune", "-o", "out", *FAST)
    again = json.loads((tmp_path / "out/result.json").read_text())
    for each in (data, again):
        each.pop("timings")
        assert each.pop("made").endswith("Z")
    assert json.dumps(again, sort_keys=True) == json.dumps(data, sort_keys=True)
    # The report can be made again from the file alone, model and data gone.
    (tmp_path / "model.py").unlink()
    assert run("report", "out/result.json", "-o", "again.html").code == 0
    assert (tmp_path / "again.html").stat().st_size > 1000
    assert run("report", "out/result.json", "-o", "out").code == 2


def test_few_records_are_inconclusive_and_exit_zero_opts_out(run: Run) -> None:
    words = ("scan", "model.py", "-d", "gaussian:std=10", *FAST, "--no-utility")
    outcome = run(*words)
    assert outcome.code == 3, outcome
    assert run(*words, "--exit-zero").code == 0


def test_pictures_are_redacted_in_ci(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CI", "true")
    run("scan", "model.py", *FAST, "--no-utility")
    assert json.loads((tmp_path / "leakaudit-out/result.json").read_text())["images"] == "redacted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_was_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    from leakaudit.attacks import masked

    def stop(*args: object) -> None:
        signal.raise_signal(number)

    monkeypatch.setattr(masked.MaskedMatching, "__call__", stop)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background is deaf to it
    outcome = run("scan", "model.py", "-d", "prune", "--all-attacks", *FAST)
    signal.signal(signal.SIGINT, before)
    assert outcome.code == 3
    assert {p.name for p in (tmp_path / "leakaudit-out").iterdir()} == {"report.html", "result.json"}
    assert "Interrupted" in outcome.err
    data = json.loads((tmp_path / "leakaudit-out/result.json").read_text())
    assert data["complete"] is False
    assert data["verdict"] == "inconclusive"
    assert data["defenses"][0]["attacks"][0]["name"] == "inverting-gradients"
    assert [d["spec"] for d in data["defenses"]] == ["none", "prune"]


def test_an_attack_that_crashes_is_a_status_not_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from leakaudit.attacks import masked

    def crash(*args: object) -> None:
        raise ZeroDivisionError("by zero\nsecond line")

    monkeypatch.setattr(masked.MaskedMatching, "__call__", crash)
    outcome = run("scan", "model.py", "-d", "prune", "--all-attacks", *FAST, "--no-utility")
    assert outcome.code != 4
    attacks = json.loads((tmp_path / "leakaudit-out/result.json").read_text())["defenses"][1]["attacks"]
    (crashed,) = [a for a in attacks if a["name"] == "masked-matching"]
    assert crashed["statuses"] == {"failed": 4}
    assert "by zero" in crashed["reason"]
    assert crashed["identification"]["value"] is None


def test_a_spent_budget_is_shown_and_never_a_pass(run: Run, tmp_path: Path) -> None:
    outcome = run("scan", "model.py", "-d", "prune", "--budget", "0.01s", "--records", "16")
    assert outcome.code == 3
    data = json.loads((tmp_path / "leakaudit-out/result.json").read_text())
    statuses = {s for d in data["defenses"] for a in d["attacks"] for s in a["statuses"]}
    assert "budget" in statuses


def test_the_memory_is_recorded_and_part_of_the_command(run: Run, tmp_path: Path) -> None:
    words = ("scan", "model.py", "--memory", "1.5GiB", "--no-utility", *FAST)
    assert run(*words, "--exit-zero").code == 0
    data = json.loads((tmp_path / "leakaudit-out/result.json").read_text())
    assert data["settings"]["memory"] == 3 * 2**29
    assert "--memory 1.5GiB" in data["environment"]["command"]
    assert "--memory 1.5GiB" in (tmp_path / "leakaudit-out/report.html").read_text()


def test_settings_come_from_pyproject_and_the_command_line_wins(run: Run, tmp_path: Path) -> None:
    settings = '[tool.leakaudit]\nrecords = 4\nquick = true\nno-utility = true\ndefense = "clip"\n'
    (tmp_path / "pyproject.toml").write_text(settings + 'attack = ["inverting-gradients:steps=2"]\n')
    run("scan", "model.py", "-d", "prune")
    data = json.loads((tmp_path / "leakaudit-out/result.json").read_text())
    assert data["settings"]["records"] == 4
    assert data["settings"]["defenses"] == "prune"
    (tmp_path / "pyproject.toml").write_text("[tool.leakaudit]\nrecord = 4\n")
    sentence(run("scan", "model.py"), "'record'")


def test_list_speaks_json(run: Run) -> None:
    for kind in ("attacks", "defenses", "metrics"):
        rows = json.loads(run("list", kind, "--json").out)
        assert all(row["name"] and row["summary"] for row in rows)
        assert rows[0]["name"] in run("list", kind).out


def test_doctor_reports_and_exits_2_on_an_error(run: Run, tmp_path: Path) -> None:
    outcome = run("doctor", "model.py")
    assert outcome.code == 0, outcome
    assert "80" not in outcome.err
    for battery in ("quick", "standard", "full"):
        assert re.search(rf"^ *{battery} +\d.*(s|min|h) +\+ \d", outcome.out, re.M), outcome
    assert re.search(r"--budget 5m +of a standard scan with obscure: \d+ pieces in full, \d+ cut short", outcome.out), (
        outcome
    )
    assert outcome.out.splitlines()[-1].startswith("ready")
    (tmp_path / "fedavg.py").write_text(MODEL + "\nclient = 'fedavg:epochs=1:batch=2:lr=0.1'\n")
    outcome = run("doctor", "fedavg.py")
    assert "A client trains on its 8 records in batches of 2" in " ".join(outcome.out.split()), outcome
    outcome = run("doctor", "fedavg.py", "--client", "fedsgd")  # what is typed goes first
    assert "trains on" not in outcome.out, outcome
    (tmp_path / "nan.py").write_text(MODEL + "\nwith torch.no_grad(): model[0].weight.fill_(float('nan'))\n")
    outcome = run("doctor", "nan.py")
    assert outcome.code == 2
    assert "weight" in outcome.out + outcome.err


def test_an_internal_error_exits_4_in_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr("leakaudit.audit.audit.audit", broken)
    outcome = run("scan", "model.py")
    assert outcome.code == 4
    assert "bug in leakaudit" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_failed_scan_leaves_no_empty_folder(run: Run, tmp_path: Path) -> None:
    sentence(run("scan", "missing.py", "-o", "out"), "missing.py")
    assert not (tmp_path / "out").exists()


def test_with_no_room_anywhere_the_last_result_stays_and_the_verdict_is_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    full_after(monkeypatch, 3, lambda path: "cache-" not in str(path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = run("scan", "model.py", "-d", "prune", "--no-utility", *FAST)
    sentence(outcome, "No space left")
    assert "prune" in outcome.out
    assert json.loads((tmp_path / "leakaudit-out/result.json").read_text())["complete"] is False
    assert [p.name for p in (tmp_path / "leakaudit-out").iterdir()] == ["result.json"]
    assert [*tmp_path.glob("leakaudit-*")] == [tmp_path / "leakaudit-out"]


def test_a_disk_that_fills_ends_with_everything_elsewhere(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full_after(monkeypatch, 2, lambda path: path.parent.name == "leakaudit-out")
    outcome = run("scan", "model.py", "-d", "prune", "--no-utility", *FAST)
    assert outcome.code in (1, 3)
    assert outcome.err.count("going on in memory") == 1
    other = next(path for path in tmp_path.glob("leakaudit-*") if path.name != "leakaudit-out")
    assert f"all is in {other}" in outcome.err
    assert {p.name: p.stat().st_mode & 0o777 for p in other.iterdir()} == {"report.html": 0o600, "result.json": 0o600}
    assert json.loads((other / "result.json").read_text())["complete"] is True


def test_a_disk_that_has_room_again_takes_everything(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full_after(monkeypatch, 1, lambda path: path.parent.name == "leakaudit-out", times=2)
    run("scan", "model.py", "--no-utility", *FAST)
    assert {p.name for p in (tmp_path / "leakaudit-out").iterdir()} == {"report.html", "result.json"}
    assert json.loads((tmp_path / "leakaudit-out/result.json").read_text())["complete"] is True


def full_after(monkeypatch: pytest.MonkeyPatch, count: int, where: Callable[[Path], bool], times: int = 10**6) -> None:
    """Let the disk be full, for so many writes, after `count` files were put in their place."""
    written: list[int] = []
    replace = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if where(Path(target)):
            written.append(1)
            if count < len(written) <= count + times:
                raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)


def test_an_interrupt_while_starting_exits_3_with_a_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "leakaudit-out").mkdir()
    (tmp_path / "leakaudit-out" / "result.json").write_text("yesterday's")

    def interrupted(*args: object, **kwargs: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("leakaudit.spread.job.load_target", interrupted)
    outcome = run("scan", "model.py")
    assert outcome.code == 3
    assert "interrupted" in outcome.err
    assert list((tmp_path / "leakaudit-out").iterdir()) == []
    assert len(list((tmp_path / ".leakaudit-out.earlier").glob("*/result.json"))) == 1


def test_an_interrupt_of_others_code_says_nothing_of_theirs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt("0.125, 0.25")

    for command, place in (("scan", "spread.job.load_target"), ("doctor", "load.preflight.preflight")):
        with monkeypatch.context() as patched:
            patched.setattr(f"leakaudit.{place}", interrupted)
            outcome = run(command, "model.py")
        assert outcome.code == 3, outcome
        assert "0.125" not in outcome.err


FORWARD = (
    MODEL
    + """
import sys
class Own(nn.Sequential):
    def forward(self, x):
        {does}
model = Own(*model)
"""
)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (FORWARD.format(does="sys.exit(0)"), ("model.py", "exits", "line")),  # which is what a pass ends with
        (MODEL + "def __getattr__(name): raise ValueError(name)\n", ("code of yours fails", "line 11 of model.py")),
    ],
)
def test_what_users_code_does_is_neither_a_verdict_nor_a_bug_of_ours(
    run: Run, tmp_path: Path, code: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "model.py").write_text(code)
    sentence(run("scan", "model.py", *FAST), *words)
