"""How a scan speaks: in full, in one JSON document, or hardly at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leakaudit.options.settings import command_line
from leakaudit.scans.run import Voice
from leakaudit.scene.demo import demo_plan
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import Monitor
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.test_cli import FAST, MODEL

pytestmark = pytest.mark.usefixtures("short_battery")
# Everything a user's file may do to our output.
NOISY = MODEL + (
    'import logging, sys, warnings\nprint("hello from model.py")\nwarnings.warn("a warning")\n'
    'logging.warning("a log")\n'
    "class Loud(nn.Module):\n    def forward(self, x):\n        print('forward')\n        return x\n"
    "model = nn.Sequential(Loud(), model)\n"
)
WORDS = ("scan", "model.py", "-d", "prune", "--no-utility", *FAST)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder that holds a model.py which prints and warns."""
    return caller(monkeypatch, tmp_path, capsys, NOISY)


def test_json_is_one_document_whatever_else_is_printed(run: Run, tmp_path: Path) -> None:
    outcome = run(*WORDS, "--json")
    told = json.loads(outcome.out)
    result = json.loads((tmp_path / "leakaudit-out/result.json").read_text())
    assert told == {
        "verdict": result["verdict"],
        "reasons": result["reasons"],
        "result": "leakaudit-out/result.json",
        "report": "leakaudit-out/report.html",
        "exit_code": outcome.code,
        "gate": None,
    }
    assert outcome.code in (1, 3)
    assert "prune: inverting-gradients  " in outcome.err  # progress stays on stderr
    assert "hello from model.py" in outcome.err
    assert "\x1b" not in outcome.err + outcome.out
    assert json.loads(run(*WORDS, "--json", "--exit-zero").out)["exit_code"] == 0
    assert Path(told["report"]).is_file()


def test_doctor_names_what_it_does_as_a_scan_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    @contextmanager
    def listening(**named: Any) -> Iterator[Monitor]:
        yield Monitor(stage=names.append)

    monkeypatch.setattr("leakaudit.watch.console.progress_monitor", listening)
    assert run("doctor", "model.py").code == 0
    looked = ["loading libraries", "loading the model and the data", "checking the model and the data"]
    assert names[:5] == [*looked, "measuring what a scan would take", "trying double backward"]
    assert all(name.startswith("trying ") for name in names[4:])


def test_demo_says_in_a_line_what_it_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakaudit.cli.scan.run", lambda *given, **named: None)
    (said,) = run("demo").err.splitlines()
    assert all(spec in said for spec in demo_plan().defenses)
    outcome = run("demo", "--quiet")
    assert outcome.out + outcome.err == ""


def test_quiet_is_quiet(run: Run) -> None:
    outcome = run(*WORDS, "--quiet")
    assert outcome.err == ""
    verdict, report, result = outcome.out.splitlines()
    assert verdict.split()[0] in ("FAIL", "INCONCLUSIVE")
    assert report == "report  leakaudit-out/report.html"
    assert result == "result  leakaudit-out/result.json"
    assert run(*WORDS, "-q", "--json").err == ""
    sentence(run("scan", "missing.py", "--quiet"), "missing.py")


def test_without_either_the_summary_is_printed_and_a_file_holds_no_control_codes(run: Run) -> None:
    outcome = run(*WORDS)
    assert "By chance:" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err
    assert outcome.err.count("none: inverting-gradients") == 1


def test_verbose_tells_the_rest_ahead_of_the_same_end(run: Run, tmp_path: Path) -> None:
    short = run(*WORDS).out
    told = run("report", "leakaudit-out/result.json", "-v").out
    assert "Measured: " in told
    assert "Measured: " not in short
    table = short[short.index("Defense ") : short.index("Limit: ")]
    assert table in told
    assert short.splitlines()[-2:] == ["report  leakaudit-out/report.html", "result  leakaudit-out/result.json"]
    assert len(short[short.index("\n\nDefense ") :].splitlines()) <= 20  # what the model prints comes before
    sentence(run(*WORDS, "-v", "-q"), "--quiet", "--verbose")


def test_an_interrupt_is_told_in_json_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from leakaudit.attacks import masked

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(masked.MaskedMatching, "__call__", stop)
    outcome = run(*WORDS, "--all-attacks", "--json", "--exit-zero")
    assert outcome.code == 3
    assert json.loads(outcome.out)["exit_code"] == 3
    assert json.loads(outcome.out)["verdict"] == "inconclusive"
    assert "Interrupted" in outcome.err


def test_settings_of_the_new_options_come_from_pyproject(run: Run, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.leakaudit]\njson = true\nquiet = true\nmax-accuracy-loss = 0.25\n")
    outcome = run(*WORDS)
    assert outcome.err == ""
    assert json.loads(outcome.out)["exit_code"] == outcome.code
    settings = json.loads((tmp_path / "leakaudit-out/result.json").read_text())["settings"]
    assert settings["max_accuracy_loss"] == 0.25
    (tmp_path / "pyproject.toml").write_text("[tool.leakaudit]\nhelp = true\n")
    sentence(run(*WORDS), "'help'", "max-accuracy-loss")


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_the_loss_that_is_allowed_is_a_share(run: Run, value: str) -> None:
    sentence(run(*WORDS, "--max-accuracy-loss", value), "--max-accuracy-loss")


def test_the_default_loss_is_recorded(run: Run, tmp_path: Path) -> None:
    assert Plan().settings()["max_accuracy_loss"] == 0.1


def test_tensorboard_is_asked_for_by_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    sentence(run(*WORDS, "--tensorboard", "runs"), "--tensorboard", "pip install 'leakaudit[tensorboard]'")
    assert not (tmp_path / "runs").exists()


def test_nobody_listens_where_all_is_quiet() -> None:
    with Voice(quiet=True).listening(Plan()) as monitor:
        assert isinstance(monitor, Monitor)
        assert monitor.see is None
    with Voice(as_json=True).listening(Plan()):
        assert sys.stdout is sys.stderr
    assert sys.stdout is not sys.stderr


@pytest.mark.parametrize(
    ("typed", "kept"),
    [
        (["scan", "m.py", "-o", "a b", "-d", "none"], "leakaudit scan m.py -d none"),
        (["scan", "--output", "x", "m.py"], "leakaudit scan m.py"),
        (["scan", "m.py", "--output=x", "-ox", "--seed", "1"], "leakaudit scan m.py --seed 1"),
        (["scan", "--", "-o"], "leakaudit scan -- -o"),
        (["scan", "a b.py"], "leakaudit scan 'a b.py'"),
    ],
)
def test_where_files_go_is_no_part_of_what_repeats(
    typed: list[str], kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["leakaudit", *typed])
    assert command_line() == kept
