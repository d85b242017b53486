"""What commands print of files and of users' code: text, and no command to the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.reports.html import render
from leakaudit.result.schema import load, to_json
from tests.hostile import CONTROLS
from tests.leakaudit.command_line import Outcome, Run, caller
from tests.test_escaping import GOLDEN, invisible

MODEL = f"""
import torch
from torch import nn
from torch.utils.data import TensorDataset
name = {CONTROLS!r}
Net = type(name.encode("utf-8", "replace").decode().replace("\\0", ""), (nn.Sequential,), {{}})
model = Net(nn.Flatten(), nn.Linear(16, 3))
labels = torch.arange(60) % 2
labels[7] = 2
train_data = TensorDataset(torch.rand(60, 1, 4, 4), labels)
classes = [name + str(i) for i in range(3)]
"""


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def quiet(outcome: Outcome, code: int) -> None:
    assert outcome.code == code, outcome
    assert outcome.out + outcome.err
    assert not invisible(outcome.out + outcome.err)
    assert "Traceback" not in outcome.err


def test_errors_name_files_and_what_is_in_them(call: Run, tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[95;7mb\u202e\r.json"
    quiet(call("report", str(path)), 2)  # it is not there
    for text in (json.dumps({"schema": CONTROLS}), json.dumps(json.loads(GOLDEN.read_text()) | {"verdict": CONTROLS})):
        path.write_text(text)
        quiet(call("report", str(path)), 2)
        quiet(call("gate", str(path)), 2)


def test_doctor_tells_of_hostile_classes(call: Run) -> None:
    found = call("doctor", "model.py")
    quiet(found, 0)
    assert r"\x1b[95;7m" in found.out


def test_stored_results_are_judged_compared_and_drawn(call: Run, tmp_path: Path) -> None:
    golden = load(GOLDEN)
    result = replace(golden, target=golden.target | {"name": CONTROLS}, reasons=(CONTROLS,))
    path = tmp_path / "a\x1b[95;7mb\u202e.json"
    path.write_text(to_json(result))
    quiet(call("gate", str(path), "--exit-zero"), 0)
    quiet(call("report", str(path)), 0)
    quiet(call("verify", "report.html", str(path)), 1)  # the numbers of the golden result are made up
    quiet(call("history", str(tmp_path)), 0)


def test_verify_shows_where_a_page_differs(call: Run, tmp_path: Path) -> None:
    page = render(load(GOLDEN))
    (tmp_path / "report.html").write_text(page.replace("golden", CONTROLS.encode("utf-8", "replace").decode(), 3))
    quiet(call("verify", "report.html", str(GOLDEN)), 1)
