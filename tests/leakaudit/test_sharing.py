"""A scan that goes on with one that was not finished, or says why not, and what is left of it when it ends."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.spread import sharing
from leakaudit.spread.job import job_of, read, write
from leakaudit.units.packing import packed
from leakaudit.units.shelf import JOBS, PRIVATE, Shelf
from leakaudit.units.unit import Unit
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.test_cli import FAST, MODEL
from tests.leakaudit.test_desk import Scored

pytestmark = pytest.mark.usefixtures("short_battery")
SCAN = ("scan", "model.py", "--no-utility", *FAST, "--exit-zero", "--cache", "shelf")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a scan that is interrupted before it is finished: all is computed, and its job stays."""
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "finish", lambda shelf, job: None)
        assert run(*SCAN).code == 0


def test_what_is_refused_leaves_yesterdays_result(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "leakaudit-out"
    begun(run, monkeypatch)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"result.json", "report.html"}
    there = sorted(path.name for path in tmp_path.iterdir())
    sentence(
        run(*SCAN, "--resume", "--seed", "3"), "no unfinished scan of these settings", "seed 0, not 3", "as it was"
    )
    text = MODEL.replace("torch.manual_seed(0)", "torch.manual_seed(7)")
    (tmp_path / "model.py").write_text(text)
    (job,) = (tmp_path / "shelf" / JOBS).glob("*.json")
    told = job.read_text()
    outcome = run(*SCAN, "--resume")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert all(word in last for word in ("had another model; leave out --resume", "leakaudit-out is as it was"))
    assert job.read_text() == told
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    (tmp_path / "model.py").write_text(MODEL)
    outcome = run(*SCAN, "--resume")
    assert outcome.code == 0
    assert "going on with the scan that was begun on" in outcome.err
    assert "pieces were known from earlier scans" in outcome.err
    sentence(run(*SCAN, "--resume"), "no unfinished scan of these settings")


def test_an_executor_that_is_not_there_loses_no_unfinished_scan(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(run, monkeypatch)
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = run(*SCAN, "--executor", "ray")
    assert outcome.code == 2
    assert "needs Ray: pip install 'leakaudit[ray]'. leakaudit-out is as it was." in outcome.err
    (tmp_path / "model.py").write_text("nothing = 1")
    assert run(*SCAN).code == 2
    (tmp_path / "model.py").write_text(MODEL)
    assert run(*SCAN, "--resume").code == 0


def test_what_others_left_private_goes_when_the_scan_ends(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this run and of those that were interrupted before it; what another scan is at stays."""
    begun(run, monkeypatch)
    shelf = Shelf(tmp_path / "shelf")
    (path,) = (shelf.folder / JOBS).glob("*.json")
    job = read(path)
    assert job is not None
    write(shelf, replace(job, earlier=("first",)))
    for n, attempt in enumerate(("first", job.attempt, "another scan's")):
        unit = Unit("run", "x", {"n": n}, private=True)
        shelf.put(unit.key, packed(unit, Scored(1.0), seconds=1.0, attempt=attempt, late=False), True)
    assert run(*SCAN).code == 0
    assert [path.name for path in (shelf.folder / PRIVATE).rglob("*") if path.is_file()] == [unit.key]
    assert list((shelf.folder / JOBS).iterdir()) == []


def test_a_job_of_another_version_is_nothing_to_go_on_with(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(run, monkeypatch)
    shelf = Shelf(tmp_path / "shelf")
    (path,) = (shelf.folder / JOBS).glob("*.json")
    job = read(path)
    assert job is not None
    write(shelf, replace(job, version="0.0.1"))
    sentence(run(*SCAN, "--resume"), "no unfinished scan")
    assert "going on" not in run(*SCAN).err
    assert job_of(job.request).id == job.id
