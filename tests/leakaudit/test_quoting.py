"""What may be told of exceptions and paths below full pictures: nothing that other code said, and nobody's home."""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from torch import nn

import leakaudit
from leakaudit.errors import (
    NotApplicable,
    UserError,
    first_line,
    is_installed,
    left_out,
    line_of,
    quote,
    quotes,
    quoting,
    sentence,
    system_line,
)
from leakaudit.protocol import plugins
from leakaudit.protocol.registry import parse_attack
from leakaudit.result.outward import all_in_place, command_in_place, default_images, in_place, modest, modest_values
from leakaudit.result.schema import Finding, Picture
from leakaudit.scene.demo import demo_plan
from leakaudit.scene.plan import Plan
from tests.leakaudit.command_line import Run, caller
from tests.leakaudit.results import attack, defense, result, some

ROW = ", ".join(f"0.{i:02d}" for i in range(20))
MODEL = f"""
import torch
from torch import nn
from torch.utils.data import TensorDataset

def model():
    raise RuntimeError("{ROW}")

train_data = TensorDataset(torch.rand(30, 1, 4, 4), torch.arange(30) % 2)
"""


def raised(make: Callable[[], object]) -> BaseException:
    """What a call raises, with its traceback."""
    try:
        make()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def user_code(source: str) -> BaseException:
    """What some code of a user raises."""
    return raised(lambda: exec(compile(source, __file__, "exec"), {"UserError": UserError}))


def test_nothing_is_quoted_where_nobody_says_so_nor_in_another_thread() -> None:
    error = user_code(f"raise RuntimeError({ROW!r})")
    told: list[str] = []
    assert ROW in first_line(error)
    contextvars.Context().run(lambda: told.append(first_line(error)))
    thread = Thread(target=lambda: told.append(first_line(error)))
    thread.start()
    thread.join()
    assert told == ["RuntimeError, line 1 of test_quoting.py"] * 2


@pytest.mark.parametrize(
    "source",
    [
        f"raise UserError({ROW!r})",  # of a class of ours, by a line of theirs
        f"raise type({ROW!r}, (Exception,), dict())({ROW!r})",
        f"class Own(UserError):\n  __str__ = lambda self: {ROW!r}\nraise Own()",
        f"error = ValueError({ROW!r})\nerror.add_note({ROW!r})\nraise error from KeyError({ROW!r})",
        f"raise ExceptionGroup({ROW!r}, [ValueError({ROW!r})])",
        f"import torch\ntorch.zeros(2).reshape(*[{ROW}])",  # by torch, of theirs
        f"exec(compile('1/0', {ROW!r} + '.py', 'exec'))",
        f"raise OSError(5, {ROW!r}, {ROW!r})",
    ],
)
def test_below_full_type_and_line_stand_for_what_other_code_raised(source: str) -> None:
    error = user_code(source)
    with quoting(False):
        assert left_out() == ""
        told = [first_line(error), line_of(error)]
        if isinstance(error, UserError):
            told.append(str(sentence(error)))
        if isinstance(error, OSError):
            told.append(system_line(error))
        assert "--images full" in left_out()
    assert all("0.0" not in text and " of " in text for text in told), told


def test_what_leakaudit_says_is_told_everywhere() -> None:
    error = raised(lambda: parse_attack("no-such-attack"))
    with quoting(False):
        assert "no-such-attack" in first_line(error)
        assert sentence(error) is error  # type: ignore[arg-type]
        assert left_out() == ""
    missing = raised(lambda: parse_attack("dlg:steps=0"))
    with quoting(False):
        assert "at least 1" in first_line(missing)


def test_a_class_is_named_only_if_it_can_be_found_under_its_name() -> None:
    class Local(Exception): ...

    with quoting(False):
        assert first_line(Local("x")) == "an exception"
        assert first_line(NotApplicable("x")) == "NotApplicable"
        assert first_line(KeyError("x")) == "KeyError"
        Local.__qualname__ = Local.__name__ = "KeyError"
        assert first_line(Local("x")) == "an exception"


def test_a_command_says_so_from_the_moment_it_knows() -> None:
    quote(False)
    assert not quotes()
    with quoting(True):
        assert quotes()
    assert not quotes()


def test_a_plug_in_that_fails_is_told_of_at_either_level(fresh_registry: None) -> None:
    plugins._fail("leakaudit.attacks", "package", "name", "left out: {why}.", user_code(f"raise ValueError({ROW!r})"))
    (full,) = plugins.failures()
    with quoting(False):
        (other,) = plugins.failures()
    assert ROW in full
    assert other == "left out: ValueError, line 1 of test_quoting.py."


def test_scan_and_its_traceback_are_silent_below_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def model() -> nn.Module:
        raise RuntimeError(ROW)

    monkeypatch.setenv("CI", "true")
    error = raised(lambda: leakaudit.scan(model, [(0, 0)] * 9))
    assert isinstance(error, UserError)
    assert "RuntimeError" in str(error)
    assert ROW not in str(error)
    assert error.__suppress_context__
    assert ROW in str(raised(lambda: leakaudit.scan(model, [(0, 0)] * 9, images="full")))


def test_ci_decides_wherever_nobody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, level in {"true": "redacted", "1": "redacted", "": "full", "false": "full"}.items():
        monkeypatch.setenv("CI", value)
        assert default_images() == Plan().images == demo_plan().images == Plan().settings()["images"] == level
    assert Plan(images="full").images == "full"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    return caller(monkeypatch, tmp_path, capsys, MODEL)


def test_the_terminal_keeps_to_it_and_says_how_to_see_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("scan", "model.py", "--images", "full")
    assert ROW in shown.err
    hidden = run("scan", "model.py", "--images", "redacted")
    monkeypatch.setenv("CI", "true")
    for told in (hidden, run("scan", "model.py"), run("doctor", "model.py")):
        assert told.code == 2
        assert "line 7 of model.py (RuntimeError)" in told.err
        assert "--images full shows it" in told.err
        assert "0.0" not in told.out + told.err


def test_paths_name_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    work = tmp_path / "anna" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "anna"))
    home = str(tmp_path / "anna")
    for text, full, less in (
        (f"{work}/model.py", "model.py", "model.py"),
        (f"--data={home}/x y/z.npz", "--data=~/x y/z.npz", "--data=~/x y/z.npz"),
        (f"{work}", ".", "."),
        (f"file://{home}/a", "file://~/a", "file://~/a"),
        (f"{home}2/a.py:Mine", f"{home}2/a.py:Mine", "…/a.py:Mine"),
        (
            "(/mnt/ward/x.npz) and/or 1/2",
            "(/mnt/ward/x.npz) and/or 1/2",
            "(…/x.npz) and/or 1/2",
        ),
        ("./a/b.py", "./a/b.py", "./a/b.py"),
        ("https://example.org/a/b", "https://example.org/a/b", "https://example.org/a/b"),
    ):
        assert in_place(text) == full
        assert in_place(text, "none") == less
        assert in_place(less, "redacted") == less
    command = f"leakaudit scan '{home}/a b/m.py' --data={home}/z -o {work}/out"
    assert command_in_place(command, "full") == "leakaudit scan ~/'a b/m.py' --data ~/z -o out"


def test_every_text_of_a_result_is_in_place_and_no_picture_is_touched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture = Picture(0, 0, f"{tmp_path}/a", "ab+/c/d", None, None)
    finding = Finding("x", "info", "y", {"at": f"{tmp_path}/z"})
    found = replace(result(defense(f"{tmp_path}/mine.py:Mine", attack(some(0)))), findings=(finding,))
    moved = all_in_place(found, "none")
    assert moved.defenses[-1].spec == "~/mine.py:Mine"
    assert moved.findings[0].evidence == {"at": "~/z"}
    assert all_in_place(moved, "none") == moved
    assert all_in_place((picture,), "none")[0] == Picture(0, 0, "~/a", "ab+/c/d", None, None)


def test_what_a_plug_in_says_is_short_and_no_row() -> None:
    assert modest("an ε of 3.2 at δ = 1e-5") == "an ε of 3.2 at δ = 1e-5"
    assert "left out" in modest(ROW)
    assert "left out" in modest("a" * 201)
    assert modest_values({"epsilon": 1.23456, "n": 10**30, "ok": True, ROW: ROW}) == {
        "epsilon": 1.235,
        "n": 2**53,
        "ok": True,
        modest(ROW): modest(ROW),
    }
    assert len(modest_values({str(i): i for i in range(60)})) == 8


def test_python_is_what_names_the_modules_of_leakaudit() -> None:
    """A module of somebody's that calls itself one of ours is not taken for it."""
    names = {"__name__": "leakaudit.load.loading", "UserError": UserError}
    error = raised(lambda: exec(compile(f"raise UserError({ROW!r})", "x.py", "exec"), names))
    assert "leakaudit.load.loading" in sys.modules
    with quoting(False):
        assert ROW not in first_line(error)


@pytest.mark.parametrize("place", ["/usr/lib/python3/dist-packages", "/home/me/.local/lib/python3.11/site-packages"])
def test_packages_of_every_environment_are_installed(place: str) -> None:
    assert is_installed(f"{place}/torch/nn/modules/linear.py")
    assert not is_installed("/home/me/project/model.py")
