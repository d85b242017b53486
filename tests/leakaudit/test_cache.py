"""`leakaudit cache`: what is kept, by kind; and clearing, which removes what is ours and nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.errors import UserError
from leakaudit.options import cached
from leakaudit.scene.plan import Plan
from leakaudit.spread.inventory import Inventory, clear, inventory, shelf_in
from leakaudit.spread.job import Request, job_of, write
from leakaudit.units.packing import packed
from leakaudit.units.shelf import CLAIMS, JOBS, KEPT, PRIVATE, Claim, Shelf, host, opened
from leakaudit.units.unit import Unit
from tests.leakaudit.command_line import Run, caller, sentence
from tests.leakaudit.test_cli import MODEL
from tests.leakaudit.test_desk import Scored
from tests.leakaudit.test_shelf import dead


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, MODEL)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return opened(tmp_path / "shelf")


def keep(
    shelf: Shelf, kind: str, count: int = 1, *, private: bool = False, images: str = "full", attempt: str = "a"
) -> list[Path]:
    """Keep outcomes of a kind; return their files."""
    found = []
    for n in range(count):
        unit = Unit(kind, f"{kind} {n}", {"settings": {"images": images}, "n": n, "kind": kind}, private)
        shelf.put(unit.key, packed(unit, Scored(float(n)), seconds=1.0, attempt=attempt, late=False), private)
        found.append(shelf.place(unit.key, private))
    return found


def old(paths: list[Path], days: float) -> None:
    for path in paths:
        then = time.time() - days * 86_400
        os.utime(path, (then, then))


def test_it_shows_what_is_kept_by_kind(run: Run, shelf: Shelf) -> None:
    keep(shelf, "attack", 3)
    keep(shelf, "tune", 2, images="none")
    old(keep(shelf, "run", 1, private=True), 3)
    job = job_of(Request("deep/" * 40 + "model.py", Plan()))
    write(shelf, replace(job, attempt="b", earlier=("a",), pid=dead()))
    assert shelf.claim("c" * 64, Claim("x", host(), os.getpid(), "dp-sgd: inverting-gradients"))
    outcome = run("cache", "--cache", str(shelf.folder))
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("attack", "tune", "run"))] == [
        ["attack", "3"],
        ["run", "1"],
        ["tune", "2"],
    ]
    assert "3 days ago" in outcome.out
    assert "Private, removed when their scans end: 1 outcome" in outcome.out
    assert "With private pictures or what was learned of them (--images full): 3 outcomes" in outcome.out
    assert f"(process {os.getpid()})  dp-sgd: inverting-gradients" in outcome.out
    (told,) = (line for line in lines if "5 pieces done" in line)
    assert told.endswith("model.py")
    assert max(map(len, lines[1:])) <= 79  # the first is the folder's name
    found = json.loads(run("cache", "--cache", str(shelf.folder), "--json").out)
    assert found["kinds"]["attack"] == {
        "outcomes": 3,
        "bytes": found["kinds"]["attack"]["bytes"],
        "private": 0,
        "shows_records": 3,
    }
    assert found["outcomes"] == 6
    assert [each["pieces"] for each in found["unfinished"]] == [5]
    assert not found["unfinished"][0]["running"]
    assert found["removed"] is None


def test_it_clears_all_and_leaves_what_is_not_ours(run: Run, shelf: Shelf, tmp_path: Path) -> None:
    keep(shelf, "attack", 3)
    keep(shelf, "run", 1, private=True)
    write(shelf, replace(job_of(Request("model.py", Plan())), pid=dead()))
    assert shelf.claim("c" * 64, Claim("x", host(), dead(), "w"))
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    theirs = [
        outside / "ab" / ("d" * 64),
        shelf.folder / "notes.txt",
        shelf.folder / KEPT / "mine.txt",
        shelf.folder / JOBS / "mine.json.bak",
    ]
    for path in theirs:
        path.write_text("theirs")
    (shelf.folder / KEPT / "ee").symlink_to(outside / "ab")
    (shelf.folder / KEPT / "ff").mkdir()
    (shelf.folder / KEPT / "ff" / ("f" * 64)).symlink_to(theirs[1])
    assert run("cache", "--cache", str(shelf.folder), "--clear").out.startswith("removed 4 outcomes")
    assert all(path.read_text() == "theirs" for path in theirs)
    assert (shelf.folder / KEPT / "ee").is_symlink()
    assert (shelf.folder / KEPT / "ff" / ("f" * 64)).is_symlink()
    assert inventory(shelf).kept == inventory(shelf).unfinished == ()
    assert list((shelf.folder / CLAIMS).iterdir()) == []
    assert list((shelf.folder / PRIVATE).iterdir()) == []
    assert opened(shelf.folder).get("d" * 64, False) is None


def test_as_json_it_is_what_stays_and_what_was_removed(run: Run, shelf: Shelf) -> None:
    keep(shelf, "attack", 2)
    old(keep(shelf, "tune", 1), 9)
    found = json.loads(run("cache", "--cache", str(shelf.folder), "--clear", "--older", "3", "--json").out)
    assert (found["outcomes"], found["removed"]["outcomes"], list(found["kinds"])) == (2, 1, ["attack"])


def test_a_link_in_place_of_a_folder_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    paths = keep(shelf, "attack", 2)
    (shelf.folder / KEPT).rename(tmp_path / "elsewhere")
    (shelf.folder / KEPT).symlink_to(tmp_path / "elsewhere")
    assert inventory(shelf).kept == ()
    assert clear(inventory(shelf)) == []
    assert all((tmp_path / "elsewhere" / path.parent.name / path.name).exists() for path in paths)


def test_what_is_old_goes_and_what_was_used_stays(run: Run, shelf: Shelf) -> None:
    first, second, third = keep(shelf, "attack", 3)
    old([first, second], 40)
    assert shelf.get(second.name, False)  # a scan uses it
    write(shelf, job_of(Request("model.py", Plan())))  # of this process, which runs
    outcome = run("cache", "--cache", str(shelf.folder), "--clear", "--older", "30")
    assert outcome.code == 0
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    assert len(inventory(shelf).unfinished) == 1


@pytest.mark.parametrize("how", ["claim", "job"])
def test_what_a_running_scan_holds_is_not_cleared(run: Run, shelf: Shelf, how: str) -> None:
    paths = keep(shelf, "attack", 2)
    if how == "claim":
        assert shelf.claim(paths[0].name, Claim("x", "far/away", 1, "none: linkage"))
    else:
        write(shelf, job_of(Request("model.py", Plan())))
    sentence(run("cache", "--cache", str(shelf.folder), "--clear"), "none: linkage" if how == "claim" else "model.py")
    assert all(path.exists() for path in paths)
    if how == "claim":
        old(paths, 40)
        assert run("cache", "--cache", str(shelf.folder), "--clear", "--older", "30").code == 0
        assert [path.exists() for path in paths] == [True, False]
        assert "none: linkage" in run("cache", "--cache", str(shelf.folder)).out


def _tagged(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "CACHEDIR.TAG").write_text(text)


OTHERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: folder.write_text(""),
    "plain": lambda folder: folder.mkdir(),
    "another's": lambda folder: _tagged(folder, "Signature: 8a477f597d28d172789f06886806bc55\n# pip\n"),
    "no signature": lambda folder: _tagged(folder, "leakaudit"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_no_cache_is_refused(run: Run, tmp_path: Path, other: str) -> None:
    folder = tmp_path / "other"
    OTHERS[other](folder)
    if folder.is_dir():
        (folder / KEPT / "ab").mkdir(parents=True)
        (folder / KEPT / "ab" / ("a" * 64)).write_text("theirs")
    sentence(run("cache", "--cache", str(folder), "--clear"), str(folder))
    assert not folder.is_dir() or (folder / KEPT / "ab" / ("a" * 64)).exists()
    with pytest.raises(UserError):
        shelf_in(folder)


def test_the_folder_is_that_of_scans(run: Run, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep(shelf, "attack", 2)
    monkeypatch.setenv("LEAKAUDIT_CACHE", str(shelf.folder))
    assert "2 outcomes" in run("cache").out
    monkeypatch.delenv("LEAKAUDIT_CACHE")
    (tmp_path / "pyproject.toml").write_text('[tool.leakaudit]\ncache = "shelf"\n')
    assert "2 outcomes" in run("cache").out
    (tmp_path / "pyproject.toml").unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert run("cache").out == f"{tmp_path / 'home' / 'leakaudit'}\n0 outcomes, 0 bytes\n"
    assert run("cache", "--clear").out == "removed 0 outcomes, 0 bytes\n"
    assert not (tmp_path / "home").exists()
    sentence(run("cache", "--cache", str(shelf.folder), "--older", "3"), "--clear")
    assert run("cache", "--older", "-1").code == 2


def test_a_file_that_is_no_outcome_is_shown_as_that(shelf: Shelf) -> None:
    for path in keep(shelf, "attack", 2):
        path.write_bytes(b"\0" * 2_500_000)
    found = inventory(shelf)
    assert isinstance(found, Inventory)
    assert "unreadable           2     5.0 MB  today" in list(cached.lines(found))
    assert cached.sized(found.kept[:1]) == "2.5 MB"
    assert cached.counted(1234, "outcome") == "1,234 outcomes"
