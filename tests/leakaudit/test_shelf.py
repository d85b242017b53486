"""Outcomes and claims in a folder that many share: who has what, also where some die, are silent, or come late."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.errors import UserError
from leakaudit.units import shelf as shelves
from leakaudit.units.shelf import CLAIMS, DAY, KEPT, PRIVATE, STALE, Claim, Shelf, host, opened

KEY, OTHER = "a" * 64, "b" * 64
CONTEXT = multiprocessing.get_context("fork")


def mine(who: str = "me", pid: int | None = None, where: str | None = None) -> Claim:
    return Claim(who, where or host(), pid or os.getpid(), "some work")


def dead() -> int:
    """Return the number of a process that was."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def aged(shelf: Shelf, seconds: float, key: str = KEY) -> None:
    """Let all claims of a key have been silent for so long, by the folder's own clock."""
    for path in (shelf.folder / CLAIMS).glob(f"{key}*"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return opened(tmp_path / "shelf")


def test_one_claims_and_gives_back(shelf: Shelf) -> None:
    assert shelf.claim(KEY, mine())
    assert not shelf.claim(KEY, mine("other"))
    assert shelf.claim(OTHER, mine("other"))
    assert {key: claim.who for key, claim in shelf.claims().items()} == {KEY: "me", OTHER: "other"}
    shelf.release(KEY, "other")  # it is not theirs
    assert KEY in shelf.claims()
    shelf.release(KEY, "me")
    assert shelf.claim(KEY, mine("other"))


def test_of_a_dead_process_it_is_taken_over_at_once(shelf: Shelf) -> None:
    assert shelf.claim(KEY, mine("gone", dead()))
    assert not shelf.claims()
    assert shelf.claim(KEY, mine())
    assert shelf.claims()[KEY].who == "me"
    assert not shelf.claim(KEY, mine("third"))
    shelf.release(KEY, "me")
    assert not list((shelf.folder / CLAIMS).iterdir())  # what the dead one left is gone, too


def test_of_another_machine_it_is_taken_over_after_a_silence(shelf: Shelf) -> None:
    far = mine("far", 1, "far/away")
    assert shelf.claim(KEY, far)
    aged(shelf, STALE - 10)
    assert not shelf.claim(KEY, mine())
    shelf.beat(KEY)
    aged(shelf, STALE - 10)  # since then
    assert not shelf.claim(KEY, mine())
    aged(shelf, 20)
    assert shelf.claim(KEY, mine())


def test_who_is_stopped_here_is_taken_over_too(shelf: Shelf) -> None:
    """A number of a process may be another's by now, and one that is stopped computes nothing."""
    assert shelf.claim(KEY, mine("stopped", os.getppid()))
    assert not shelf.claim(KEY, mine())
    aged(shelf, STALE + 1)
    assert shelf.claim(KEY, mine())


def test_one_that_comes_back_does_not_touch_what_was_taken_over(shelf: Shelf, tmp_path: Path) -> None:
    late = Shelf(shelf.folder)
    assert late.claim(KEY, mine("late", 1, "far/away"))
    aged(shelf, STALE + 1)
    assert shelf.claim(KEY, mine())
    (taken,) = (shelf.folder / CLAIMS).glob(f"{KEY}.*")
    then = taken.stat().st_mtime - 30
    os.utime(taken, (then, then))
    late.beat(KEY)
    assert taken.stat().st_mtime == pytest.approx(then)  # its signs of life are not the other's
    late.release(KEY, "late")
    assert shelf.claims()[KEY].who == "me"
    assert not late.claim(KEY, mine("late", 1, "far/away"))


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0])
def test_only_the_clock_of_the_folder_counts(shelf: Shelf, monkeypatch: pytest.MonkeyPatch, ahead: float) -> None:
    """Machines whose clocks are hours apart agree on who is silent: ours goes wrong here, the folder's does not."""
    assert shelf.claim(KEY, mine("far", 1, "far/away"))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    assert not Shelf(shelf.folder).claim(KEY, mine())
    aged(shelf, STALE + 1)
    assert Shelf(shelf.folder).claim(KEY, mine())


def test_a_claim_that_is_half_written_is_somebodys_until_it_is_old(shelf: Shelf) -> None:
    (shelf.folder / CLAIMS / KEY).write_bytes(b'{"who": "ha')
    assert not shelf.claim(KEY, mine())
    assert not shelf.claims()
    aged(shelf, STALE + 1)
    assert shelf.claim(KEY, mine())


def test_two_who_looked_before_either_wrote_see_each_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sees what a dead one left, is held up, and goes on when another took over and ended, and a third began."""
    assert shelf.claim(KEY, mine("gone", dead()))
    slow, real = Shelf(shelf.folder), Shelf._turns
    seen: list[dict[int, Path]] = []

    def held_up(self: Shelf, key: str) -> dict[int, Path]:
        found = real(self, key)
        if self is slow and not seen:
            seen.append(found)
            assert shelf.claim(KEY, mine("quick"))
            shelf.release(KEY, "quick")
            assert shelf.claim(KEY, mine("third"))
        return found

    monkeypatch.setattr(Shelf, "_turns", held_up)
    assert not slow.claim(KEY, mine("slow"))
    assert seen
    assert shelf.claims()[KEY].who == "third"


def test_a_folder_that_takes_nothing_holds_nobody_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, private: bool) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shelves, "created", full)
    assert shelf.claim(KEY, mine())
    shelf.beat(KEY)
    shelf.release(KEY, "me")


def test_a_shelf_that_is_cleared_meanwhile_is_made_again(shelf: Shelf) -> None:
    for path in sorted(shelf.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    shelf.folder.rmdir()
    assert shelf.get(KEY, False) is None
    assert shelf.claims() == {}
    shelf.beat(KEY)
    shelf.release(KEY, "me")
    shelf.drop(KEY)
    assert shelf.claim(KEY, mine())
    shelf.put(KEY, b"outcome", False)
    assert shelf.get(KEY, False) == b"outcome"


def _taker(folder: Path, keys: list[str], begin: object, seen: object) -> None:
    """Claim what can be claimed, hold it for a moment, and note who holds it: two at a time is what must not be."""
    shelf, who = Shelf(folder), f"process {os.getpid()}"
    for key in keys:
        begin.wait()  # type: ignore[attr-defined]
        if shelf.claim(key, mine(who)):
            inside = folder / f"inside-{key}-{os.getpid()}"
            inside.touch()
            others = len(list(folder.glob(f"inside-{key}-*")))
            time.sleep(0.001)
            seen.put((key, others))  # type: ignore[attr-defined]
            inside.unlink()
            shelf.release(key, who)


def _together(folder: Path, keys: list[str], count: int = 4) -> list[tuple[str, int]]:
    begin, seen = CONTEXT.Barrier(count), CONTEXT.Queue()
    them = [CONTEXT.Process(target=_taker, args=(folder, keys, begin, seen)) for _ in range(count)]
    for one in them:
        one.start()
    found = []
    while any(one.is_alive() for one in them) or not seen.empty():
        if not seen.empty():
            found.append(seen.get())
        else:
            time.sleep(0.005)
    for one in them:
        one.join()
        assert one.exitcode == 0
    return found


@pytest.mark.parametrize("left", [False, True], ids=["free", "left by a dead one"])
def test_of_many_who_claim_at_once_one_has_it(shelf: Shelf, left: bool) -> None:
    """The same keys by four processes at the same time, over and over: each is had, and never by two at a time."""
    keys = [f"{k:064x}" for k in range(60)]
    gone = dead()
    for key in keys if left else ():
        assert shelf.claim(key, mine("gone", gone))
    found = _together(shelf.folder, keys)
    assert {key for key, _ in found} == set(keys)
    assert {inside for _, inside in found} == {1}
    assert not shelf.claims()


@given(st.lists(st.sampled_from(["claim", "release", "die", "silence", "beat"]), min_size=1, max_size=30), st.data())
def test_whatever_happens_one_holds_it(
    tmp_path_factory: pytest.TempPathFactory, events: list[str], data: st.DataObject
) -> None:
    """Claims, releases, deaths, silences and signs of life in any order, against a model of who holds the key."""
    folder, gone = tmp_path_factory.mktemp("shelf"), _GONE
    shelf = opened(folder)
    holder: str | None = None  # who holds it and is alive
    for number, event in enumerate(events):
        if event == "claim":
            who = f"p{number}"
            had = shelf.claim(KEY, mine(who, 1, "far/away"))
            assert had == (holder is None)
            holder = who if had else holder
        elif event == "release":
            who = data.draw(st.sampled_from([holder or "nobody", "nobody"]))
            shelf.release(KEY, who)
            holder = None if who == holder else holder
        elif event == "die" and holder:
            path = shelf._held[KEY][1]
            path.write_bytes(
                path.read_bytes()
                .replace(b'"far/away"', b'"' + host().encode() + b'"')
                .replace(b'"pid": 1,', b'"pid": %d,' % gone)
            )
            holder = None
        elif event == "silence" and holder:
            aged(shelf, STALE + 1)
            holder = None
        elif event == "beat" and holder:
            shelf.beat(KEY)
        assert shelf.claims().get(KEY, replace(mine(), who="")).who == (holder or "")


_GONE = dead()


def test_outcomes_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        shelf = opened(tmp_path / "new" / "shelf")
        shelf.put(KEY, b"plain", False)
        shelf.put(KEY, b"private", True)
        assert shelf.claim(KEY, mine())
    finally:
        os.umask(before)
    found = [shelf.folder, *shelf.folder.rglob("*")]
    assert len(found) > 10
    for path in found:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert shelf.get(KEY, False) == b"plain"
    assert shelf.get(KEY, True) == b"private"
    shelf.drop(KEY)
    assert shelf.get(KEY, True) is None
    assert shelf.get(KEY, False) == b"plain"


def test_a_folder_of_other_things_is_not_hidden_from_git(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    opened(tmp_path)
    opened(tmp_path)
    assert "/private/" in (text := (tmp_path / ".gitignore").read_text().splitlines())
    assert all(line.startswith("/") and (tmp_path / line[1:]).exists() for line in (each.rstrip("/") for each in text))
    other = tmp_path / "other"
    other.mkdir()
    (other / ".gitignore").write_text("*.pyc\n")
    with pytest.raises(UserError, match=r"it has a \.gitignore of others"):
        opened(other)
    assert [(path.name, path.read_text()) for path in other.iterdir()] == [(".gitignore", "*.pyc\n")]


def test_what_others_can_write_is_not_read(shelf: Shelf) -> None:
    shelf.put(KEY, b"outcome", False)
    shelf.place(KEY, False).chmod(0o620)
    assert shelf.get(KEY, False) is None


def test_what_is_of_use_looks_new(shelf: Shelf) -> None:
    shelf.put(KEY, b"outcome", False)
    path = shelf.place(KEY, False)
    then = time.time() - 3 * DAY
    os.utime(path, (then, then))
    assert shelf.get(KEY, False) == b"outcome"
    assert time.time() - path.stat().st_mtime < DAY


def test_what_nobody_gave_back_goes_after_a_day(shelf: Shelf) -> None:
    assert shelf.claim(KEY, mine("far", 1, "far/away"))
    assert shelf.claim(OTHER, mine("far", 1, "far/away"))
    aged(shelf, DAY + 1)
    assert sorted(path.name for path in (opened(shelf.folder).folder / CLAIMS).iterdir()) == [OTHER]
    assert sorted(path.name for path, private in shelf.kept()) == []
    assert {(shelf.folder / name).is_dir() for name in (KEPT, PRIVATE)} == {True}


def test_a_claim_ends_with_a_process_that_is_killed(shelf: Shelf) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from leakaudit.units.shelf import *\n"
        f"print(Shelf(Path(sys.argv[1])).claim({KEY!r}, Claim('child', host(), os.getpid(), 'w')), flush=True)\n"
        "time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(shelf.folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "True\n"
    assert not shelf.claim(KEY, mine())
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert shelf.claim(KEY, mine())


def test_a_claim_that_is_no_file_holds_nobody_up_for_ever(tmp_path: Path) -> None:
    shelf, key = opened(tmp_path), "a" * 64
    place = tmp_path / "claims" / key
    place.mkdir()
    assert not shelf.claim(key, Claim("me", host(), os.getpid(), "work"))
    os.utime(place, (1, 1))
    assert shelf.claim(key, Claim("me", host(), os.getpid(), "work"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_place_of_an_outcome_is_not_waited_for(tmp_path: Path) -> None:
    shelf, key = opened(tmp_path), "a" * 64
    shelf.place(key, False).parent.mkdir(parents=True)
    os.mkfifo(shelf.place(key, False), 0o600)
    assert shelf.get(key, False) is None
    shelf.put(key, b"anew", False)
    assert shelf.get(key, False) == b"anew"


def test_a_link_in_place_of_an_outcome_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path: Path) -> None:
    shelf, other = opened(tmp_path / "shelf"), tmp_path / "other"
    other.write_bytes(b"theirs")
    shelf.place(KEY, False).parent.mkdir(parents=True)
    shelf.place(KEY, False).symlink_to(other)
    shelf.put(KEY, b"anew", False)
    assert other.read_bytes() == b"theirs"
    assert shelf.get(KEY, False) == b"anew"
