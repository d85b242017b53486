"""What is drawn while work runs: on a terminal, in a narrow or poor one, and in a file."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from leakaudit.audit.audit import audit
from leakaudit.audit.course import Measured
from leakaudit.audit.pieces import Piece, outline
from leakaudit.protocol.amounts import Amount
from leakaudit.result.numbers import clock
from leakaudit.result.rules import WEAKENED
from leakaudit.result.schema import Estimate, Examined
from leakaudit.scene.plan import Plan
from leakaudit.watch.console import Display, bar, falling, progress_monitor
from leakaudit.watch.forecast import Forecast
from leakaudit.watch.lines import became
from leakaudit.work.progress import Sight, Work, monitored, observe
from tests.leakaudit.audited import target
from tests.leakaudit.results import attack, defense, lost, some
from tests.leakaudit.results import result as made

HEAVY = Amount(slopes=1000)
PIECES = (Piece(Work("dlg", "none"), HEAVY), Piece(Work("dlg", "prune:sparsity=0.9"), HEAVY))
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
    display.show(PIECES[1].work, 0, 0)
    display.show(Work("dlg"), 10, 40)
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


def test_a_tuning_record_is_not_called_a_victim() -> None:
    display = busy(terminal())
    display.show(Work("dlg", tuning=True), 1, 4)
    display.look(SIGHT)
    text = "\n".join(drawn(display.console, display))
    assert "16 tuning records" in text
    assert "victim" not in text
    assert re.search(r"1 of 4, .* left  tuning$", text, re.MULTILINE)
    display.show(Work("dlg: training", tuning=True), 1, 4)
    assert "left  tuning: dlg: training" in "\n".join(drawn(display.console, display))


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
            monitor.show(Work("dlg", "none"), 0, 0)
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
        monitor.show(Work("dlg", "none"), 0, 0)
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
    done = [piece.work for piece in outline(plan) if piece.work.name not in ("fit", "updates")]
    for work, line in zip(done, lines, strict=True):
        assert re.fullmatch(rf"{work}  \d+\.\d s, .+", line)
        assert line.endswith(became(result, work))
    assert all(c.isprintable() for line in lines for c in line)
    assert re.search(r"none: inverting-gradients  \d+\.\d s, \d of 4 identified", "\n".join(lines))
    assert re.search(r"none: accuracy  \d+\.\d s, \d+\.\d%", "\n".join(lines))
    assert became(result, Work("never", "none")) == "not finished"
    assert became(result, Work("dlg", "other")) == ""
    seen = Examined(weakened=Estimate(0.5, 0.25, 0.75, 16), strength=0.1)
    weaker = made(defense("clip", examined=seen), defense("sign", examined=replace(seen, strength=None)))
    assert became(weaker, Work(WEAKENED, "clip")) == "50% identified at 10% of its strength"
    assert became(weaker, Work(WEAKENED, "sign")) == "50% identified"
    untried = made(defense("clip", examined=replace(seen, weakened=Measured().weakened, strength=None)))
    assert became(untried, Work(WEAKENED, "clip")) == "not finished"  # in this round of several participants


def test_names_may_hold_what_stands_between_them() -> None:
    spec, found = "mine.py:Own:how=a: b", attack(some(1, 4), name="tuning: odd")
    rows = defense(spec, found, lost("dlg", "failed", 1)), defense("mine.py:Own:how=a", attack(some(3, 4), name="b"))
    pieces = [Work(a.name, row.spec) for row in rows for a in row.attacks]
    result = made(*rows, timings={str(work): 2.0 for work in pieces[:2]} | {"total": 9.0})
    console = Console(file=io.StringIO(), width=99)
    with progress_monitor(console, Plan()) as monitor:
        for work in (pieces[0], pieces[1], Work("never", spec)):
            monitor.show(work, 0, 0)
            monitor.show(Work(work.name), 1, 2)
        monitor.kept(result)
        monitor.kept(replace(result, timings=result.timings | {f"{spec}: never": 0.5}))
    assert output(console).splitlines() == [
        f"{spec}: tuning: odd  2.0 s, 1 of 4 identified",
        f"{spec}: dlg  2.0 s, it crashed",
    ]
    display = Display(terminal(), Forecast(tuple(Piece(work, HEAVY) for work in pieces)))
    display.show(pieces[0], 0, 0)
    display.show(Work("tuning: odd"), 1, 2)
    display.look(SIGHT)
    lines = drawn(display.console, display)
    assert "defense 1 of 2" in lines[0]
    assert lines[1].startswith(f"{spec}: tuning: odd · 16 victims, ")  # an attack of this name is not tuned by it
    assert lines[2].rstrip().endswith("left")  # the loop is the piece's own: it is not named again
    display.show(Work("odd"), 1, 2)
    assert "left  odd" in "\n".join(drawn(display.console, display))


def test_work_without_a_plan_tells_a_file_what_begins() -> None:
    console = Console(file=io.StringIO(), width=20)
    with progress_monitor(console) as monitor:
        monitor.show(Work("fitting [bold]the\x1b[31m obscurer, a long label"), 0, 0)
        monitor.show(Work("inner"), 1, 2)
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
