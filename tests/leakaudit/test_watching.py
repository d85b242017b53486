"""The live view: pictures beside their originals and only where they may be, no silence, and a name for everything."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich import console as rich_console
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor

from leakaudit.audit import canary
from leakaudit.audit.audit import audit
from leakaudit.protocol.target import Target
from leakaudit.scene.plan import Plan
from leakaudit.watch import console as watched
from leakaudit.watch.console import Display, display_on, progress_monitor
from leakaudit.watch.lines import plain_lines, still
from leakaudit.watch.pictures import Pair, Pane, fitted, nearest, scaled
from leakaudit.watch.present import Present
from leakaudit.work.progress import Monitor, Sight, Work, monitored, stage, together, while_tuning
from tests.image_hunt import pictures
from tests.leakaudit.audited import target
from tests.leakaudit.results import attack, defense, result, some

FULL, REDACTED, NONE = (Plan(images=level) for level in ("full", "redacted", "none"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def terminal(width: int = 80, height: int = 24, colours: Any = "truecolor") -> Console:
    file = io.StringIO()
    return Console(
        file=file, force_terminal=True, color_system=colours, width=width, height=height, legacy_windows=False
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def smooth(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def looking(console: Console, plan: Plan | None, drawn: Tensor, originals: Tensor) -> Display:
    """A display that was told of victims whose pictures are `drawn` (V, C, H, W) and `originals` (V, B, C, H, W)."""
    display = display_on(console, plan)
    display.now = lambda: 0.0
    display.show(Work("dlg", "prune"), 0, 0)
    display.beside(originals.__getitem__)
    display.show(Work("dlg"), 1, 4)
    display.look(Sight((0.5,) * len(drawn), len(drawn), len(drawn), tuple(range(len(drawn))), drawn))
    return display


@pytest.mark.parametrize("channels", [1, 3])
def test_the_pane_is_what_emerges_beside_the_original_scaled_down(channels: int) -> None:
    drawn, originals = smooth(0, 2, channels, 36, 36), smooth(1, 2, 1, channels, 36, 36)
    console = terminal()
    console.print(looking(console, FULL, drawn, originals))
    found = list(pictures(output(console).encode()))
    wanted = [p for pair in zip(drawn, originals[:, 0], strict=True) for p in pair]
    assert len(found) == len(wanted) == 4
    for shown, picture in zip(found, wanted, strict=True):
        means = picture.reshape(channels, 18, 2, 18, 2).mean((2, 4)).expand(3, -1, -1).permute(1, 2, 0)
        assert shown.shape == (18, 18, 3)
        assert np.abs(shown - means.numpy()).max() <= 1.5 / 255  # rounded twice
    near = -10 * np.log10(float(((drawn[0] - originals[0, 0]) ** 2).mean()))
    assert f"victim 1, {near:.1f} dB" in output(console)
    assert "original" in output(console)


def test_of_a_batch_the_record_is_shown_that_the_picture_is_nearest_to() -> None:
    originals = smooth(2, 1, 3, 1, 18, 18)
    console = terminal()
    console.print(looking(console, FULL, originals[:, 1] * 0.99, originals))
    _, shown = pictures(output(console).encode())
    assert np.abs(shown[:, :, 0] - originals[0, 1, 0].numpy()).max() <= 1 / 255
    assert nearest(originals[0, 2], originals[0])[1] == pytest.approx(160.0)


@pytest.mark.parametrize(
    ("plan", "colours", "encoding"),
    [
        (REDACTED, "truecolor", "utf-8"),
        (NONE, "truecolor", "utf-8"),
        (None, "truecolor", "utf-8"),
        (FULL, "standard", "utf-8"),
        (FULL, None, "utf-8"),
        (FULL, "truecolor", "ascii"),
    ],
)
def test_there_is_no_picture_below_full_or_where_it_could_not_be_seen(
    plan: Plan | None, colours: str | None, encoding: str
) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=file, force_terminal=True, color_system=colours, width=80, height=24)  # type: ignore[arg-type]
    console.print(looking(console, plan, smooth(0, 2, 1, 18, 18), smooth(1, 2, 1, 1, 18, 18)))
    text = raw.getvalue().decode(encoding)
    assert "▀" not in text
    assert "dB" not in text
    assert "48;2;" not in text
    assert "loss 0.5" in text


def test_with_256_colours_it_is_drawn_in_these() -> None:
    console = terminal(colours="256")
    console.print(looking(console, FULL, smooth(0, 1, 3, 8, 8), smooth(1, 1, 1, 3, 8, 8)))
    assert "▀" in output(console)
    assert ";2;" not in output(console)


@pytest.mark.parametrize("shape", [(1, 25, 25), (3, 224, 224), (3, 32, 96), (1, 96, 32), (1, 2, 2), (3, 1, 500)])
@pytest.mark.parametrize("width", [10, 20, 60, 80, 200])
@pytest.mark.parametrize("height", [2, 10, 24, 60])
def test_it_fits_every_terminal_and_keeps_the_shape(shape: tuple[int, int, int], width: int, height: int) -> None:
    console = terminal(width, height)
    console.print(looking(console, FULL, smooth(0, 8, *shape), smooth(1, 8, 1, *shape)))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output(console)).splitlines()
    assert len(lines) <= max(1, height - 2)
    assert all(cell_len(line) <= width for line in lines)
    high, wide = fitted(shape, height - 7, width, height)
    assert (high, wide) == (0, 0) or abs(2 * high / wide - shape[1] / shape[2]) <= 2 * high / wide / max(1, wide - 1)
    assert bool(high) is ("▀" in output(console))


def test_where_there_is_no_room_for_all_they_are_shown_in_turn() -> None:
    drawn = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 1, 18, 18)
    pairs = [Pair(f"victim {i + 1}", picture, picture) for i, picture in enumerate(drawn)]
    seen = []
    for page in range(6):
        console = terminal()
        console.print(Pane(pairs, 18, page))
        seen.append(re.findall("victim [0-9]", output(console)))
    assert seen[:3] == [["victim 1", "victim 2"], ["victim 3", "victim 4"], ["victim 5"]]
    assert seen[3:] == seen[:3]


def test_what_is_no_number_or_out_of_range_is_drawn_all_the_same() -> None:
    odd = torch.tensor([[[float("nan"), -1.0], [2.0, float("inf")]]])
    assert scaled(odd, 2, 2)[:, :, 0].tolist() == [[0, 0], [255, 255]]
    assert scaled(torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]), 2, 2).mean() == pytest.approx(128, abs=1)


def told(plan: Plan, made: Target) -> tuple[list[str], list[Any]]:
    """Run an audit; return what it said it does, and how to see the originals each time that it said so."""
    names: list[str] = []
    originals: list[Any] = []

    def show(work: Work, done: int, total: int) -> None:
        if done == 0:
            names.append(str(work))

    with monitored(Monitor(show=show, stage=names.append, originals=originals.append)):
        audit(made, plan)
    return names, originals


QUICK = Plan(attacks=("inverting-gradients:steps=2",), battery="quick", records=4, utility=False, images="full")


def test_an_audit_names_what_it_does_and_tells_of_originals_in_full_alone(
    short_battery: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "_planted", {})  # as in a process that begins
    made = target()
    names, originals = told(QUICK, made)
    for wanted in (
        "checking the model and the data",
        "looking for the planted leak",
        "looking for the planted leak: analytic",
        "none: fit",
        "trying what it changes",
        "attacking",
        "scoring",
    ):
        assert wanted in names
    assert [name for name in names if name.startswith("tuning: ")]
    pictures_of_victims = [original(0) for original in originals]
    private = made.private.images
    assert all(any(torch.equal(p[0], x) for x in (*private, *made.auxiliary.images)) for p in pictures_of_victims)
    assert any(torch.equal(p[0], x) for p in pictures_of_victims for x in private)
    assert told(replace(QUICK, images="redacted"), made)[1] == []


def test_a_stage_within_tuning_says_so_and_reaches_everybody() -> None:
    heard: list[str] = []
    with monitored(together(Monitor(stage=heard.append), Monitor(stage=heard.append))), while_tuning():
        stage("computing")
    assert heard == ["tuning: computing"] * 2


def test_what_is_shown_of_the_present() -> None:
    at = Present(now=lambda: 7.0)
    away = Present("none")
    away.show(Work("dlg", "/nowhere/of/ours/mine.py:Own"), 0, 0)
    assert away.what() == "…/mine.py:Own: dlg"
    assert (at.what(), at.within(), at.elapsed()) == ("starting", "", 0.0)
    at.show(Work("accuracy", "none"), 0, 0)
    at.show(Work("training, seed 2 of 3"), 4, 9)
    assert still(at) == "none, the control: training for accuracy, training, seed 2 of 3, 4 of 9, for 0:00"
    at.enter("scoring \x1b[31m")
    assert still(at) == "none, the control: training for accuracy, scoring \\x1b[31m, for 0:00"
    at.show(Work("fit"), 0, 0)  # outside an audit it is a word like any other
    assert at.what() == "fit"


def drawings(text: str) -> int:
    return text.count("\x1b[2K")


def turned(data: bytes) -> set[str]:
    """Return the different things seen that turn with every drawing."""
    return set(re.findall("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", data.decode(errors="ignore")))


def test_it_is_drawn_while_the_work_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal of the system's own: what nobody reads from it in time would block."""
    monkeypatch.setattr(watched, "EVERY", 0.02)
    master, slave = pty.openpty()
    heard: list[bytes] = []

    def listen() -> None:
        while select.select([master], [], [], 5)[0]:
            try:
                data = os.read(master, 65536)
            except OSError:
                return
            heard.append(data)
            if b"the end" in data:
                return

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    with os.fdopen(slave, "w") as file:
        console = Console(file=file, force_terminal=True, width=80, height=24)
        with progress_monitor(console, FULL) as monitor:
            monitor.show(Work("dlg", "prune"), 0, 0)
            monitor.stage("thinking")
            begun = len(heard)
            asleep, until = b"", time.monotonic() + 20  # a step that reports nothing
            while len(turned(asleep)) < 2 and time.monotonic() < until:
                time.sleep(0.1)
                asleep = b"".join(heard[begun:])
        file.write("the end")
        file.flush()
        listening.join(10)
    seen = asleep.decode(errors="ignore")  # a character may not have arrived whole
    assert drawings(seen) >= 2
    assert "prune: dlg" in seen
    assert "thinking, 0:0" in seen
    assert len(turned(asleep)) >= 2
    ended = b"".join(heard).decode()
    assert ended.rindex("\x1b[?25h") > ended.rindex("\x1b[?25l")


def test_however_long_a_drawing_takes_the_next_one_comes_soon() -> None:
    class Slow:
        count = 0

        def refresh(self) -> None:
            self.count += 1
            begun = time.thread_time()
            while time.thread_time() - begun < 0.05:  # a two-hundredth of ten seconds
                pass

    waited: list[float] = []

    class Ended:
        def wait(self, pause: float) -> bool:
            waited.append(pause)
            return len(waited) > 2

    watched._draw(Slow(), Ended())  # type: ignore[arg-type]
    assert waited == [watched.EVERY, watched.LONGEST, watched.LONGEST]


def test_a_file_hears_now_and_then_what_takes_long() -> None:
    console = Console(file=io.StringIO(), width=60)
    with plain_lines(console, FULL, silence=0.05) as monitor:
        monitor.show(Work("dlg", "prune"), 0, 0)
        monitor.show(Work("dlg"), 3, 9)
        while "dlg" not in output(console):
            time.sleep(0.01)
    assert "prune: dlg, 3 of 9, for 0:00" in output(console).splitlines()
    assert "\x1b" not in output(console)


def test_a_notebook_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rich_console, "_is_jupyter", lambda: True)
    assert Console().is_jupyter
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_monitor() as monitor:
        monitor.show(Work("dlg", "prune"), 0, 0)
    assert capsys.readouterr().err == "prune: dlg\n"


def test_a_defense_named_by_a_path_has_its_line_and_those_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=60)
    with plain_lines(console, FULL) as monitor:
        for spec in (f"{tmp_path}/mine.py:Own", "clip"):
            monitor.show(Work("dlg", spec), 0, 0)
        rows = (defense(spec, attack(some(1, 4), name="dlg")) for spec in ("mine.py:Own", "clip"))
        monitor.kept(result(*rows, timings={"mine.py:Own: dlg": 1.0, "clip: dlg": 1.0}))
    assert [line.partition("  ")[0] for line in output(console).splitlines()] == ["mine.py:Own: dlg", "clip: dlg"]
