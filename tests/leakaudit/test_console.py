"""What is drawn while work runs: on a terminal, in a narrow or poor one, and in a file."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from leakaudit.audit.audit import audit
from leakaudit.audit.pieces import Piece
from leakaudit.audit.plan import Plan
from leakaudit.result.numbers import clock
from leakaudit.watch.console import Display, bar, became, falling, progress_monitor
from leakaudit.watch.forecast import Forecast
from leakaudit.work.progress import Sight, monitored, observe
from tests.leakaudit.audited import target

PIECES = (Piece("none", "dlg", 2.0), Piece("prune:sparsity=0.9", "dlg", 2.0))
SIGHT = Sight(losses=(0.5, 0.25, 1.0), victims=16, running=3, shown=(0, 1, 2), images=torch.rand(3, 1, 8, 8))


@pytest.fixture(autouse=True)
def _own_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def terminal(width: int = 100, height: int = 40) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        width=width,
        height=height,
        legacy_windows=False,
    )


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def drawn(console: Console, display: Display) -> list[str]:
    """Return the lines of one drawing, without colours."""
    console.print(display)
    return re.sub(r"\x1b\[[0-9;]*m", "", output(console)).splitlines()


def busy(console: Console) -> Display:
    display = Display(console, Forecast(PIECES))
    display.show("prune:sparsity=0.9: dlg", 0, 0)
    display.show("dlg", 10, 40)
    for loss in (1.0, 0.1, 0.01):
        display.look(Sight((loss,), 1, 1))
    display.look(SIGHT)
    return display


def test_a_terminal_shows_the_whole_the_piece_and_the_losses() -> None:
    console = terminal()
    lines = drawn(console, busy(console))
    text = "\n".join(lines)
    assert lines[0].startswith("audit")
    assert "defense 2 of 2" in lines[0]
    assert "prune:sparsity=0.9: dlg · 16 victims, 3 at work" in text
    assert "10 of 40" in text
    assert "left" in text
    assert "loss 0.25 best, 0.5 median" in text


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


def test_words_and_bars() -> None:
    assert [clock(s) for s in (0.2, 59.6, 3599, 3600, 7325)] == ["0:00", "1:00", "59:59", "1:00:00", "2:02:05"]
    assert bar(0.5, 4, plain=True).plain == "##--"
    assert bar(2.0, 4, plain=False).plain == "━━━━"
    assert falling([1.0]) == ""
    assert falling([1000.0, 100.0, 1.0]) == "█▆▁"
    assert falling([1.0, 1.0]) == "▁▁"
    assert len(falling([float(k) for k in range(1000)])) == 24
    assert falling([-1.0, 1.0])[0] == "▁"
