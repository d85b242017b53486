"""A scan killed by each signal and resumed to its end; and that the benchmark sees what would be wrong."""

from __future__ import annotations

import random
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import leavings, torture
from leakaudit.files.folder import RESULT
from leakaudit.files.writing import HALF
from leakaudit.units import packing
from leakaudit.units.shelf import CLAIMS, KEPT, Shelf, opened
from leakaudit.units.unit import Unit

SHORT = ("-a", "analytic", "-d", "clip", "--no-utility", "--exposure", "honest-but-curious")


@pytest.fixture(autouse=True)
def heard() -> None:
    """A suite that runs in the background is born deaf to SIGINT, and so are the processes that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_scan_that_is_killed_ends_as_one_that_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture, "SCANS", {"short": SHORT})
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        torture.prepare(folder)
        first = torture.started(folder, torture.command(*torture.COMMON, *SHORT))
        result, _ = leavings.read(folder / "out" / RESULT)
    assert result is not None, first.told
    whole = torture.Whole(first, first, leavings.apart_from_times(result))
    rows = list(torture.tortured({"short": whole}, 3, random.Random(4)))
    assert [row.signal for row in rows if row.signal] == ["SIGKILL", "SIGTERM", "SIGINT"]
    assert [row.wrong for row in rows if row.wrong] == []
    assert rows[-1].code == first.code
    assert max(row.known for row in rows) > 0  # something was there to be taken up


def shelf_of(folder: Path) -> tuple[Shelf, str, str]:
    """Return a shelf with a kept and a private outcome, and their keys."""
    shelf = opened(folder / "cache")
    keys = []
    for private in (False, True):
        unit = Unit("fit", "some work", {"private": private}, private)
        shelf.put(unit.key, packing.packed(unit, {"a": 1}, seconds=1.0, attempt="one", late=False), private)
        keys.append(unit.key)
    return shelf, keys[0], keys[1]


def remove(shelf: Shelf, key: str, private: bool) -> None:
    shelf.place(key, private).unlink()


def again(shelf: Shelf, key: str, private: bool) -> None:
    data = shelf.place(key, private).read_bytes()
    shelf.put(key, data, private)


def cut(shelf: Shelf, key: str, private: bool) -> None:
    path = shelf.place(key, private)
    path.write_bytes(path.read_bytes()[:-1])


def opened_up(shelf: Shelf, key: str, private: bool) -> None:
    shelf.place(key, private).chmod(0o644)


def half(shelf: Shelf, key: str, private: bool) -> None:
    (shelf.folder / KEPT / key[:2] / f".{key}.1{HALF}").touch(0o600)


@pytest.mark.parametrize(
    ("wrong", "private", "kinds"),
    [
        (remove, False, {"lost"}),
        (remove, True, {"lost"}),
        (again, False, {"again"}),
        (cut, True, {"half", "again"}),
        (opened_up, False, {"open"}),
        (half, False, {"half"}),
    ],
)
def test_what_is_wrong_with_a_cache_is_seen(
    wrong: Callable[[Shelf, str, bool], None], private: bool, kinds: set[str], tmp_path: Path
) -> None:
    shelf, kept, hidden = shelf_of(tmp_path)
    before = leavings.look(tmp_path)
    assert set(before.outcomes) == {kept, hidden}
    nothing = leavings.after(tmp_path, before, signal.SIGTERM, 3, "")
    assert nothing == []
    wrong(shelf, hidden if private else kept, private)
    found = leavings.after(tmp_path, before, signal.SIGTERM, 3, "")
    assert {each.split(":")[0] for each in found} == kinds


@pytest.mark.parametrize(
    ("number", "code", "began", "finished", "right"),
    [
        (signal.SIGKILL, -9, True, False, True),
        (signal.SIGTERM, 3, True, False, True),
        (signal.SIGINT, -2, False, False, True),
        (signal.SIGINT, -2, True, False, False),
        (signal.SIGTERM, 1, True, False, False),
        (signal.SIGTERM, 1, True, True, True),
        (None, 4, True, False, False),
        (None, 0, True, True, True),
    ],
)
def test_exit_codes_are_those_that_are_documented(
    number: signal.Signals | None, code: int, began: bool, finished: bool, right: bool
) -> None:
    assert (leavings.code_of(number, code, began, finished) == []) == right


def test_what_a_finished_scan_leaves_is_seen(tmp_path: Path) -> None:
    torture.prepare(tmp_path)
    result, _ = leavings.read(tmp_path / "out" / RESULT)
    assert result is not None
    whole = leavings.apart_from_times(result)
    opened(tmp_path / "cache")
    assert leavings.at_the_end(tmp_path, whole, 1, 1) == ["bytes: report.html"]  # a word stands in its place
    (tmp_path / "cache" / CLAIMS / ("0" * 64)).touch()
    found = leavings.at_the_end(tmp_path, whole.replace("0", "1"), 3, 1)
    assert {each.split(":")[0] for each in found} == {"bytes", "code", "left"}
