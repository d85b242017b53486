"""What is drawn while work runs: on a terminal, in a narrow or poor one, and in a file."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from leakaudit.audit.audit import audit
from leakaudit.audit.plan import Plan
from leakaudit.result.schema import Images
from leakaudit.watch.console import Display, bar, became, falling, paints, progress_monitor, spell
from leakaudit.watch.forecast import Forecast, Piece
from leakaudit.watch.halfblocks import fitting, rows, sized
from leakaudit.work.progress import Sight, monitored, observe
from tests.leakaudit.audited import target

PIECES = (Piece("none", "dlg", 2.0), Piece("prune:sparsity=0.9", "dlg", 2.0))
SIGHT = Sight(losses=(0.5, 0.25, 1.0), victims=16, running=3, shown=(0, 1, 2), images=torch.rand(3, 1, 8, 8))


@pytest.fixture(autouse=True)
def _own_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def terminal(width: int = 100, height: int = 40, colours: str = "truecolor") -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=colours, width=width, height=height, legacy_windows=False
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(console: Console, display: Display) -> list[str]:
    """Return the lines of one drawing, without colours."""
    console.print(display)
    return re.sub(r"\x1b\[[0-9;]*m", "", output(console)).splitlines()


def busy(console: Console, pictures: bool = True) -> Display:
    display = Display(console, Forecast(PIECES), pictures)
    display.show("prune:sparsity=0.9: dlg", 0, 0)
    display.show("dlg", 10, 40)
    for loss in (1.0, 0.1, 0.01):
        display.look(Sight((loss,), 1, 1))
    display.look(SIGHT)
    return display


def test_a_terminal_shows_the_whole_the_piece_the_losses_and_the_pictures() -> None:
    console = terminal()
    lines = drawn(console, busy(console))
    text = "\n".join(lines)
    assert lines[0].startswith("audit")
    assert "defense 2 of 2" in lines[0]
    assert "prune:sparsity=0.9: dlg · 16 victims, 3 at work" in text
    assert "10 of 40" in text
    assert "left" in text
    assert "loss 0.25 best, 0.5 median" in text
    assert "victim 1" in text
    assert "victim 3" in text
    assert sum("▀" in line for line in lines) == 8  # 16 pixels: eight were enlarged
    assert "\x1b[38;2;" in output(console)
    console = terminal(colours="256")
    drawn(console, busy(console))
    assert "\x1b[38;5;" in output(console)
    assert "\x1b[38;2;" not in output(console)


def test_one_victim_after_another_is_named() -> None:
    display = busy(terminal())
    display.look(Sight((0.5,), 16, 1, (4,), torch.rand(1, 3, 40, 40)))
    text = "\n".join(drawn(terminal(), display)) + "\n".join(drawn(display.console, display))
    assert "16 victims, victim 5 at work" in text


def test_rehearsal_is_not_called_a_victim() -> None:
    display = busy(terminal())
    display.show("tuning: dlg", 1, 4)
    display.look(SIGHT)
    text = "\n".join(drawn(display.console, display))
    assert "rehearsal 1" in text
    assert "16 rehearsal victims" in text
    assert "1 of 4, " in text
    assert "tuning" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80])
@pytest.mark.parametrize("height", [2, 5, 24, 50])
def test_it_fits_every_terminal(width: int, height: int) -> None:
    console = terminal(width, height)
    lines = drawn(console, busy(console))
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= height
    assert lines


@pytest.mark.parametrize(
    ("console", "shows"),
    [
        (terminal(), True),
        (terminal(colours="256"), True),
        (terminal(colours="standard"), False),
        (terminal(height=23), False),
        (terminal(width=59), False),
        (Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=99, no_color=True), False),
        (Console(file=io.TextIOWrapper(io.BytesIO(), "latin-1"), force_terminal=True, color_system="256"), False),
    ],
)
def test_pictures_need_colours_characters_and_room(console: Console, shows: bool) -> None:
    assert paints(console) is shows
    display = busy(console)
    if isinstance(console.file, io.StringIO):
        assert any("▀" in line for line in drawn(console, display)) is shows


def test_pictures_are_never_shown_unless_the_plan_keeps_them() -> None:
    shown: dict[Images, str] = {}
    for images in ("full", "redacted", "none"):
        console = terminal()
        with progress_monitor(console, Plan(images=images)) as monitor, monitored(monitor):
            monitor.show("none: dlg", 0, 0)
            observe(torch.rand(3), torch.rand(3, 1, 1, 8, 8))
        shown[images] = output(console)
    assert "▀" in shown["full"]  # the last look is drawn when the work ends
    assert "▀" not in shown["redacted"] + shown["none"]
    assert "loss" in shown["redacted"]
    console = terminal()
    with progress_monitor(console) as monitor, monitored(monitor):  # no plan: nobody allowed them
        monitor.show("fitting", 0, 0)
        observe(torch.rand(3), torch.rand(3, 1, 1, 8, 8))
    assert "▀" not in output(console)


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    console = terminal()

    def interrupted() -> None:
        with progress_monitor(console, Plan()) as monitor:
            monitor.show("none: dlg", 0, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = output(console)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor was hidden, and is back
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "\x1b[2K" in text.rpartition("none: dlg")[2]  # what was drawn is wiped


@pytest.mark.parametrize(
    ("name", "value"), [("CI", "true"), ("TERM", "dumb")], ids=["continuous integration", "dumb terminal"]
)
def test_where_lines_cannot_be_redrawn_there_are_no_control_codes(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress_monitor(console, Plan()) as monitor, monitored(monitor):
        monitor.show("none: dlg", 0, 0)
        observe(torch.rand(3), torch.rand(3, 1, 1, 8, 8))
    assert output(console) == ""


def test_without_colour_it_is_still_drawn_and_uncoloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(file=io.StringIO(), force_terminal=True, width=99, height=40)
    console.print(busy(console))
    text = output(console)
    assert "16 victims" in text
    assert "▀" not in text
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", text)  # no foreground colour


def test_a_file_gets_a_line_per_piece_with_time_and_outcome(short_battery: None) -> None:
    plan = Plan(attacks=("analytic", "inverting-gradients:steps=2"), battery="quick", records=4, seeds=1, epochs=1)
    console = Console(file=io.StringIO(), width=40)
    with progress_monitor(console, plan) as monitor, monitored(monitor):
        result = audit(target(), plan, keep=monitor.kept)
    lines = output(console).splitlines()
    done = [label for label in result.timings if label != "total" and not label.endswith(": fit")]
    assert len(lines) == len(done)
    for label, line in zip(done, lines, strict=True):
        assert re.fullmatch(rf"{label}  \d+\.\d s, .+", line)
        assert line.endswith(became(result, label))
    assert all(c.isprintable() for line in lines for c in line)
    assert re.search(r"none: inverting-gradients  \d+\.\d s, \d of 4 identified", lines[1])
    assert re.search(r"none: accuracy  \d+\.\d s, \d+\.\d%", "\n".join(lines))
    assert became(result, "none: never") == "not finished"
    assert became(result, "other: dlg") == ""


def test_work_without_a_plan_tells_a_file_what_begins() -> None:
    console = Console(file=io.StringIO(), width=20)
    with progress_monitor(console) as monitor:
        monitor.show("fitting [bold]the\x1b[31m obscurer, a long label", 0, 0)
        monitor.show("inner", 1, 2)
    assert output(console) == "fitting [bold]the\\x1b[31m obscurer, a long label\n"


def test_pictures_are_scaled_to_a_terminals_size() -> None:
    assert sized(torch.rand(1, 25, 25)).shape == (25, 25, 3)
    assert sized(torch.rand(3, 224, 112)).shape == (32, 16, 3)
    assert sized(torch.rand(5, 4, 4)).shape == (16, 16, 3)
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(32, 32)[None]
    assert sized(checks).unique().tolist() == [128]  # averaged, not picked
    assert sized(torch.tensor([[[float("nan"), 2.0, -1.0]]])).unique().tolist() == [0, 255]
    assert fitting(torch.rand(5, 1, 25, 25), 80) == 3
    assert fitting(torch.rand(5, 1, 25, 25), 24) == 0
    assert fitting(torch.rand(0, 1, 25, 25), 80) == 0


def test_half_blocks_hold_the_pixels() -> None:
    image = torch.zeros(3, 13, 13)
    image[0, 0, 0], image[1, 1, 0] = 1, 1  # red above green
    lines = rows([image], "truecolor")
    assert len(lines) == 7
    assert lines[0].text.startswith("\x1b[38;2;255;0;0;48;2;0;255;0m▀\x1b[38;2;0;0;0;48;2;0;0;0m▀")
    assert "48;" not in lines[-1].text  # the last row has nothing below it
    assert all(line.text.endswith("\x1b[0m") and line.text.count("▀") == 13 for line in lines)
    assert rows([], "truecolor") == []


def test_words_and_bars() -> None:
    assert [spell(s) for s in (0.2, 59.6, 3599, 3600, 7325)] == ["0:00", "1:00", "59:59", "1:00:00", "2:02:05"]
    assert bar(0.5, 4, plain=True).plain == "##--"
    assert bar(2.0, 4, plain=False).plain == "━━━━"
    assert falling([1.0]) == ""
    assert falling([1000.0, 100.0, 1.0]) == "█▆▁"
    assert falling([1.0, 1.0]) == "▁▁"
    assert len(falling([float(k) for k in range(1000)])) == 24
    assert falling([-1.0, 1.0])[0] == "▁"
