"""The command line called in-process, for the tests of every command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from leakaudit.cli import entry as cli


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


def caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> Run:
    """Return the command line, run in an empty folder that holds a model.py; not as in CI."""
    (tmp_path / "model.py").write_text(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)

    def call(*words: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["leakaudit", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), printed.out, printed.err)

    return call


def sentence(outcome: Outcome, *words: str) -> None:
    """Assert one clear line on stderr, exit code 2, no traceback."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("leakaudit: ")]
    assert len(lines) == 1, outcome.err
    for word in words:
        assert word in lines[0]
