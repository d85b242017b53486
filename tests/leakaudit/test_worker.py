"""`leakaudit worker`: participants in processes of their own, and what becomes of those that die, fail or come late."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.scene.plan import Plan
from leakaudit.spread import serving, waiting
from leakaudit.spread.glance import Note, glances, leave, notes, place
from leakaudit.spread.job import Job, Request, finish, job_of, read, write
from leakaudit.spread.waiting import Waiting
from leakaudit.units.shelf import CLAIMS, JOBS, PRIVATE, Claim, Shelf, host, opened
from leakaudit.version import __version__
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.spreading import SCAN, begin, ended, environment, result, scene, until
from tests.leakaudit.test_cli import MODEL

pytestmark = pytest.mark.usefixtures("fresh_registry")  # what scans here register is known to no other test


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder with a model and a slow attack; processes find this leakaudit."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    call = caller(monkeypatch, tmp_path, capsys, MODEL)
    scene(tmp_path)
    return call


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return opened(tmp_path / "shelf")


def job(target: str = "model.py") -> Job:
    return job_of(Request(target, Plan(battery="quick", attacks=("analytic", "labels"), records=4, utility=False)))


def files(shelf: Shelf, name: str) -> list[str]:
    return [path.name for path in (shelf.folder / name).rglob("*") if path.is_file()]


def test_three_workers_one_of_which_is_killed_with_a_claim(run: Run, tmp_path: Path) -> None:
    """Another one takes over what the dead one was at, and the bytes are those of a scan in one process."""
    assert run(*SCAN, "-o", "alone", "--cache", "other").code == 0
    (tmp_path / "hold").touch()
    main = begin(tmp_path, *SCAN, "-o", "shared", "--cache", "shelf", "--executor", "folder")
    held, shelf = tmp_path / "held", Shelf(tmp_path / "shelf")
    until(lambda: glances(shelf))
    workers = [begin(tmp_path, "worker", "shelf") for _ in range(3)]
    pid = until(lambda: held.exists() and held.read_text())
    (key,) = (key for key, claim in shelf.claims().items() if claim.pid == int(pid))
    os.kill(int(pid), signal.SIGKILL)
    code, said = ended(main)
    assert code == 0, said
    told = [ended(worker) for worker in workers]
    assert sorted(code for code, _ in told) == [0, 0, 2], told
    assert "could not take part: what took part in the scan of model.py was ended by SIGKILL" in said
    assert sum("ended by SIGKILL" in each for _, each in told) == 1
    assert "slow  " in "".join(each for _, each in told)  # computed by another one
    assert result(tmp_path / "alone") == result(tmp_path / "shared")
    assert (shelf.place(key, False)).exists()
    assert [files(shelf, name) for name in (CLAIMS, JOBS, PRIVATE)] == [[], [], []]


def test_a_model_that_does_not_load_ends_no_other_scan(run: Run, tmp_path: Path, shelf: Shelf) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    (tmp_path / "exits.py").write_text("exit(0)\n")
    jobs = [replace(job(name), began=began) for began, name in enumerate(["broken.py", "exits.py", "model.py"])]
    for each in jobs:
        write(shelf, each)
    code, said = ended(begin(tmp_path, "worker", str(shelf.folder)))
    assert code == 2, said
    assert "Traceback" not in said
    assert "broken.py" in said
    assert "none: analytic  " in said
    assert "1 scan taken part in, 2 could not be" in said
    told = [[note.told for _, note in notes(shelf, each.id, each.attempt)] for each in jobs]
    assert "nowhere_to_be_found" in told[0][0]
    assert "exits" in told[1][0]
    assert told[2] == []
    assert files(shelf, CLAIMS) == []


def test_an_interrupt_gives_claims_back_and_ends_it_all(run: Run, tmp_path: Path, shelf: Shelf) -> None:
    plan = Plan(battery="quick", attacks=("slow.py:Slow",), records=4, utility=False)
    for began, seed in enumerate((0, 1)):
        write(shelf, replace(job_of(Request("model.py", replace(plan, seed=seed))), began=float(began)))
    (tmp_path / "hold").touch()
    worker = begin(tmp_path, "worker", str(shelf.folder))
    until((tmp_path / "held").exists)
    assert shelf.claims()
    worker.send_signal(signal.SIGTERM)
    code, said = ended(worker)
    assert code == 3, said
    assert said.count("taking part") == 1
    assert files(shelf, CLAIMS) == []
    assert len(glances(shelf)) == 2  # others go on with them


def test_what_nobody_needs_any_more_is_not_gone_on_with(run: Run, tmp_path: Path, shelf: Shelf) -> None:
    """The scan is finished while a worker is at it: it ends, and leaves nothing that is private."""
    plan = Plan(battery="quick", attacks=("slow.py:Slow",), records=4, utility=False)
    mine = job_of(Request("model.py", plan))
    write(shelf, mine)
    (tmp_path / "hold").touch()
    worker = begin(tmp_path, "worker", str(shelf.folder))
    until((tmp_path / "held").exists)
    finish(shelf, mine)
    code, said = ended(worker)
    assert code == 0, said
    assert [files(shelf, name) for name in (CLAIMS, JOBS, PRIVATE)] == [[], [], []]


def test_a_scan_of_another_version_is_refused(run: Run, shelf: Shelf) -> None:
    mine = job()
    write(shelf, mine)
    path = place(shelf, mine.id)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "99.0", "request": {"target": "their.py"}}))
    assert read(path) is None
    outcome = run("worker", str(shelf.folder))
    assert outcome.code == 2
    assert f"the scan of their.py was begun by leakaudit 99.0, and this is {__version__}" in outcome.err
    assert [note.told.startswith("the scan of their.py") for _, note in notes(shelf, mine.id, mine.attempt)] == [True]


def test_other_data_on_another_machine_are_a_sentence(run: Run, tmp_path: Path, shelf: Shelf) -> None:
    for name, facts in (("data", {"data": "other"}), ("versions", {"versions": "leakaudit 0, torch 1"})):
        mine = replace(job(), facts=facts)
        write(shelf, mine)
        outcome = run("worker", str(shelf.folder), "--job", mine.id)
        assert outcome.code == 2
        ((_, note),) = notes(shelf, mine.id, mine.attempt)
        assert (
            "the data here is not" if name == "data" else "where the scan was begun there is leakaudit 0"
        ) in note.told
        finish(shelf, mine)


def test_where_there_is_nothing_to_do_it_ends(run: Run, tmp_path: Path, shelf: Shelf) -> None:
    for content in ("", "{", "[]", '{"id": 3}', "\0"):
        (shelf.folder / JOBS / "0123456789abcdef.json").write_text(content)
        outcome = run("worker", str(shelf.folder))
        told = f"0 scans taken part in: there is no unfinished scan in {shelf.folder}\n"
        assert (outcome.code, outcome.out) == (0, told)
    assert run("worker", str(shelf.folder), "--job", "0123456789abcdef", "--quiet").out == ""
    sentence(run("worker", "nowhere"), "nowhere", "--cache")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").touch()
    sentence(run("worker", "pictures"), "pictures: it holds other things", "--cache")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["1.png"]
    sentence(run("worker", str(shelf.folder), "--wait", "soon"), "soon")


def test_whoever_waits_says_what_for(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes once each, that nobody is there once, and what the executor says; never nothing."""
    said, now = list[str](), [1000.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    mine = job()
    write(shelf, mine)
    from leakaudit.spread import folder

    others = Waiting(shelf, mine, folder, said.append)
    assert others.look(0.0)
    (scan,) = glances(shelf)
    leave(shelf, scan, "there is no data here.")
    leave(shelf, replace(scan, attempt="an earlier one"), "that was before.")
    for alone in (1.0, 30.0, 61.0, 90.0):
        now[0] += 30
        assert others.look(alone) == f"waiting for leakaudit worker {shelf.folder}"
    assert len(said) == 2
    assert "could not take part: there is no data here." in said[0]
    assert "1 could not take part" in said[1]
    assert f"leakaudit worker {shelf.folder}" in said[1]
    finish(shelf, mine)
    leave(shelf, scan, "too late.")
    assert files(shelf, JOBS) == []


def test_a_note_is_nobodys_but_ours(shelf: Shelf) -> None:
    mine = job()
    write(shelf, mine)
    (scan,) = glances(shelf)
    leave(shelf, scan, "x" * 5000)
    ((name, note),) = notes(shelf, mine.id, mine.attempt)
    assert isinstance(note, Note)
    assert len(note.told) == 1000
    (shelf.folder / JOBS / name).chmod(0o666)
    assert list(notes(shelf, mine.id, mine.attempt)) == []


def test_a_worker_waits_for_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOOK", 0.01)
    assert not serving.there(tmp_path / "later", 0.02)
    assert serving.there(tmp_path, 0.0)


def test_a_stale_claim_of_another_machine_holds_nobody_up_for_long(shelf: Shelf) -> None:
    mine = job()
    assert shelf.claim("a" * 64, Claim("far", "far/away", 1, "w"))
    path = shelf.folder / CLAIMS / ("a" * 64)
    os.utime(path, (time.time() - 61, time.time() - 61))
    assert shelf.claim("a" * 64, Claim(mine.attempt, host(), os.getpid(), "w"))
