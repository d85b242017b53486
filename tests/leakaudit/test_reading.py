"""The reader that everything from outside goes through: what is opened at all, and what becomes of all it raises."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from leakaudit.captured.reading import read_capture
from leakaudit.compare import history
from leakaudit.data.datafiles import read_npz
from leakaudit.defenses.obscurer_file import read as read_generator
from leakaudit.errors import UserError
from leakaudit.files import reading as files
from leakaudit.files.pictures import picture_of
from leakaudit.gate import pyproject
from leakaudit.load.checkpoints import load_checkpoint
from leakaudit.protocol.usercode import import_file
from leakaudit.reports.verify import verify
from leakaudit.result import outcome, schema
from leakaudit.work.resume import kept_key

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"
READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a result": ("r.json", schema.load),
    "an outcome": ("g.json", outcome.load),
    "the table": ("pyproject.toml", pyproject.read),
    "arrays": ("d.npz", read_npz),
    "a checkpoint": ("w.pt", lambda path: load_checkpoint(nn.Linear(2, 2), path)),
    "safetensors": ("w.safetensors", lambda path: load_checkpoint(nn.Linear(2, 2), path)),
    "captured updates": ("u.safetensors", read_capture),
    "a generator": ("g.safetensors", read_generator),
    "a picture": ("p.png", picture_of),
    "a report": ("r.html", lambda path: verify(path, GOLDEN)),
    "code": ("model.py", lambda path: import_file(path, "is read")),
}


@pytest.fixture(params=["pipe", "folder", "socket", "device", "loop", "absent"])
def special(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return what makes a file that is none, under a name."""
    kept: list[socket.socket] = []

    def make(name: str) -> Path:
        path = tmp_path / name
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "socket":
            os.chdir(tmp_path)
            kept.append(socket.socket(socket.AF_UNIX))
            kept[0].bind(name)
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        elif request.param == "loop":
            path.symlink_to(path)
        return path

    before = Path.cwd()
    yield make
    os.chdir(before)
    for one in kept:
        one.close()


@pytest.mark.parametrize("reader", READERS)
def test_nothing_but_a_regular_file_is_opened(reader: str, special: Callable[[str], Path]) -> None:
    name, read = READERS[reader]
    path = special(name)
    if reader == "the table" and not os.path.lexists(path):
        return  # an absent table is an empty one
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("reader", [name for name in READERS if name != "code"])
@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"PK\x03\x04", b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5_000])
def test_whatever_stands_in_a_file_is_one_sentence(reader: str, content: bytes, tmp_path: Path) -> None:
    name, read = READERS[reader]
    (tmp_path / name).write_bytes(content)
    if reader == "the table" and not content:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("reader", ["a result", "the table", "a picture", "a report", "code"])
def test_a_file_that_is_too_large_is_not_read(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**36)  # takes no room on the disk
    with pytest.raises(UserError, match=r"is larger than the \d+ MiB"):
        read(tmp_path / name)


def test_a_file_that_does_not_say_its_size_is_read_to_the_limit(tmp_path: Path) -> None:
    place = Path("/proc/self/environ")  # a regular file of 0 bytes, as it says
    if not place.exists():
        pytest.skip("no /proc here")
    kind = files.Kind("a note", 3)
    with pytest.raises(UserError, match="larger"):
        files.bytes_of(place, kind)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "a" * 5000, "\ud800"):
        with pytest.raises(UserError, match="cannot read"):
            files.bytes_of(tmp_path / name, files.JSON)


class PanicException(BaseException):
    """As libraries in Rust raise it."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), MemoryError(), RecursionError("deep"), OverflowError(), NotImplementedError(), StopIteration(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), OSError(5, "input/output"), PanicException("at line 3"),
        Exception("a" * 10_000), Exception("two\nlines"), Exception("\ud800"), files.Broken("it is torn"),
    ],
)  # fmt: skip
def test_whatever_a_library_raises_is_one_sentence(error: BaseException) -> None:
    with pytest.raises(UserError) as caught, files.reading("f.x", "a thing", "make another"):
        raise error
    said = str(caught.value)
    assert said.startswith("f.x cannot be read as a thing (")
    assert said.endswith("): make another.")
    assert "\n" not in said
    assert len(said) < 400
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("mine")])
def test_an_interrupt_and_a_sentence_stay_what_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, files.reading("f.x", "a thing", "make another"):
        raise error
    assert caught.value is error


def test_foreign_values_are_repeated_shortly() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("a" * 10**6, b"a" * 10**6, list(range(10**5)), 10**5000, deep, {"a": deep}, 1.5, None):
        assert len(files.short(value)) <= files.SHORT
    assert files.short("it's") == '"it\'s"'


def test_a_history_takes_regular_files_and_not_every_number_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = Path("tests/golden/result-1.json").read_text()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text(golden)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    (tmp_path / "none.json").write_text("[" * 10**5)
    found = history.read(tmp_path)
    assert [run.path for run in found.runs] == ["a/result.json"]
    assert found.skipped == ("none.json",)
    assert all(not attack.gallery for defense in found.runs[0].result.defenses for attack in defense.attacks)
    monkeypatch.setattr(history, "MOST_RUNS", 1)
    with pytest.raises(UserError, match="more than 1 JSON files"):
        history.read(tmp_path)


def test_a_partial_file_that_was_changed_is_not_taken_up(tmp_path: Path) -> None:
    import torch

    from leakaudit.work.resume import Partial

    partial = Partial(tmp_path / "p", {"seed": "3"})
    partial.stages = {"fit": {"weights": torch.arange(4.0), "random": torch.Generator().get_state()}}
    partial.write()
    assert kept_key(tmp_path / "p") == {"seed": "3"}
    data = bytearray((tmp_path / "p").read_bytes())
    data[-1] ^= 1
    (tmp_path / "p").write_bytes(data)
    assert kept_key(tmp_path / "p") is None
