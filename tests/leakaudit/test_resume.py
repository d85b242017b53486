"""Interrupted work goes on where it was, and ends in the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from leakaudit.errors import UserError
from leakaudit.work import resume

KEY = {"setting steps": "3", "seed": "0"}


def work(generator: torch.Generator, stop: int | None = None, counted: list[int] | None = None) -> Tensor:
    """Four stages of random numbers."""
    found = []
    for number in range(4):
        kept = resume.load(f"stage {number}", generator)
        if kept is None:
            if number == stop:
                raise KeyboardInterrupt
            kept = {"drawn": torch.rand(5, generator=generator)}
            resume.store(f"stage {number}", kept, generator)
            if counted is not None:
                counted.append(number)
        found.append(kept["drawn"])
    return torch.cat([*found, torch.rand(3, generator=generator)])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("stop", [1, 3])
def test_resumed_work_ends_in_the_same_bits(tmp_path: Path, stop: int) -> None:
    whole = work(seeded())
    path = tmp_path / "work.partial"
    with pytest.raises(KeyboardInterrupt), resume.resumable(path, KEY):
        work(seeded(), stop)
    assert path.exists()
    assert path.stat().st_mode & 0o077 == 0  # nobody else reads it
    assert resume.kept_key(path) == KEY
    done: list[int] = []
    with resume.resumable(path, KEY) as partial:
        again = work(seeded(), counted=done)
    assert partial.resumed == stop
    assert done == list(range(stop, 4))
    assert torch.equal(again, whole)
    assert not path.exists()  # finished: nothing of it stays


def test_with_nothing_installed_nothing_is_kept(generator: torch.Generator) -> None:
    resume.store("a", {"x": torch.ones(1)}, generator)
    state = generator.get_state()
    assert resume.load("a", generator) is None
    assert torch.equal(generator.get_state(), state)


def test_another_key_starts_anew_and_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "work.partial"
    with pytest.raises(KeyboardInterrupt), resume.resumable(path, KEY):
        work(seeded(), 2)
    with resume.resumable(path, {**KEY, "setting steps": "4"}) as partial:
        assert not partial.stages
        assert "setting steps" in (partial.discarded or "")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_starts_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "work.partial"
    path.write_bytes(content)
    assert resume.kept_key(path) is None
    with resume.resumable(path, KEY) as partial:
        assert partial.discarded
        whole = work(seeded())
    assert torch.equal(whole, work(seeded()))


def test_stages_are_written_while_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "WAIT", -1.0)
    path = tmp_path / "work.partial"
    with resume.resumable(path, KEY):
        resume.store("a", {"x": torch.ones(2)}, seeded())
        assert path.exists()  # a machine that goes down now loses nothing finished


def test_an_interrupt_before_the_first_stage_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "work.partial"
    with pytest.raises(KeyboardInterrupt), resume.resumable(path, KEY):
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), resume.resumable(tmp_path / "file" / "x", KEY):
        work(seeded(), 2)
