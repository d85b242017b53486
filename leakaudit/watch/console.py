"""What the terminal shows while work runs: how far it is, what it is at, the loss, and the pictures as they emerge.

Elsewhere than on a terminal, plain lines.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from leakaudit.result.numbers import about, clock, decibels, percent, significant
from leakaudit.watch.lines import plain_lines
from leakaudit.watch.pictures import Pair, Pane, nearest
from leakaudit.watch.present import Present
from leakaudit.work.progress import Ahead, Monitor, Original, Sight, Work, harmless, monitored, paced

if TYPE_CHECKING:
    from leakaudit.scene.plan import Plan
    from leakaudit.watch.forecast import Forecast

EVERY, LONGEST = 0.2, 0.7  # seconds between looks at the work, and between two drawings at most
PAGE = 4.0  # seconds that the same pictures are shown, where there is no room for all
SHARE = 200  # drawing waits so many times as long as it took, up to `LONGEST`
WIDE = 60  # columns below which no bar is shown
BARS = "▁▂▃▄▅▆▇█"
TURNING, PLAIN_TURNING = Spinner("dots").frames, Spinner("line").frames
COLOURS = ("truecolor", "256")  # with fewer no picture can be made out


@contextmanager
def progress_monitor(console: Console | None = None, plan: Plan | None = None) -> Iterator[Monitor]:
    """Yield a monitor that draws on stderr: live on a terminal, plain lines elsewhere.

    With a `plan` it knows what is ahead, and whether pictures may be shown: only where its `images` are full.
    """
    if console is None:
        console = _stderr()
    if not console.is_interactive or os.environ.get("CI"):
        with plain_lines(console, plan) as monitor:
            yield monitor
        return
    display = display_on(console, plan)
    live = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what user's code prints stays in the pipe it goes to
        get_renderable=lambda: display,
    )
    with live:
        harmless(live.refresh)()  # at once: what follows may keep the processor for a second
        ended = threading.Event()
        drawing = threading.Thread(target=_draw, args=(live, ended), daemon=True)
        drawing.start()
        try:
            yield Monitor(
                show=harmless(display.show),
                see=paced(harmless(display.look), EVERY),
                stage=harmless(display.enter),
                originals=harmless(display.beside),
                ahead=harmless(display.expect),
            )
        finally:
            ended.set()
            drawing.join()


@contextmanager
def working(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is done outside an audit, beginning with `first`; yield what names the next."""
    with progress_monitor() as monitor, monitored(monitor):
        monitor.stage(first)
        yield monitor.stage


def display_on(console: Console, plan: Plan | None) -> Display:
    """Return what is drawn on a console: with pictures only where the plan's are full, and colours can show them."""
    pictures = plan is not None and plan.images == "full" and console.color_system in COLOURS
    return Display(console, _forecast(plan), plan=plan, pictures=pictures and not console.options.ascii_only)


def _stderr() -> Console:
    """Return stderr as a console: no terminal to draw on where it is a file that may hold colours, or a notebook."""
    if Console().is_jupyter:
        return Console(stderr=True, force_jupyter=False, force_terminal=False)
    return Console(stderr=True, force_interactive=None if sys.stderr.isatty() else False)


def _draw(live: Live, ended: threading.Event) -> None:
    """Draw now and then until the work has ended: in a two-hundredth of the time, but at least every `LONGEST`."""
    pause = EVERY
    while not ended.wait(pause):
        begun = time.thread_time()
        try:
            live.refresh()
        except Exception:  # the terminal went away: the work goes on
            return
        pause = min(LONGEST, max(EVERY, SHARE * (time.thread_time() - begun)))


def _forecast(plan: Plan | None) -> Forecast | None:
    if plan is None:
        return None
    from leakaudit.audit.pieces import outline
    from leakaudit.protocol.registry import UnknownName
    from leakaudit.watch.forecast import Forecast

    try:
        return Forecast(outline(plan), plan.budget)
    except UnknownName:  # the model's file, which is not read yet, may register it
        return None


@dataclass
class Display:
    """What is known of the work now, drawn as a few lines, and pictures below them where they may be shown."""

    console: Console
    forecast: Forecast | None = None
    plan: Plan | None = None  # for the forecast, where what is ahead was not known at first
    pictures: bool = False
    now: Callable[[], float] = time.monotonic
    present: Present = field(init=False)
    sight: Sight | None = None
    history: list[float] = field(default_factory=list)  # medians of the losses since the present loop began
    original: Original | None = None
    pairs: tuple[Pair, ...] = ()

    def __post_init__(self) -> None:
        self.present = Present("full" if self.plan is None else self.plan.images, self.now)

    def show(self, work: Work, done: int, total: int) -> None:
        """Take in where the work is; a total of 0 begins a piece."""
        if self.present.show(work, done, total):
            self.history = []
        if total == 0:
            self.sight, self.original, self.pairs = None, None, ()
            self.forecast = self.forecast or _forecast(self.plan)
            if self.forecast is not None:
                self.forecast.begin(work)

    def enter(self, stage: str) -> None:
        """Take in that a stage begins."""
        self.present.enter(stage)
        if self.original is None:  # the last losses are of something else
            self.sight = None

    def expect(self, pieces: Ahead, lanes: int) -> None:
        """Take in what is still to come, and how many are at it."""
        self.forecast = self.forecast or _forecast(self.plan)
        if self.forecast is not None:
            self.forecast.revise(pieces, lanes)

    def beside(self, original: Original) -> None:
        """Take in how to see what the pictures in sight are to become."""
        self.original, self.pairs = original, ()

    def look(self, sight: Sight) -> None:
        """Take in what the work looks like."""
        self.sight = sight
        if finite := sorted(v for v in sight.losses if math.isfinite(v)):
            self.history.append(finite[len(finite) // 2])
        if self.pictures and sight.images is not None and self.original is not None:
            who = "tuning record" if self.present.loop.tuning else "victim"
            pairs = []
            for victim, drawn in zip(sight.shown, sight.images, strict=True):
                original, near = nearest(drawn, self.original(victim))
                pairs.append(Pair(f"{who} {victim + 1}, {decibels(near)}", drawn.reshape(original.shape), original))
            self.pairs = tuple(pairs)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, none wider than the terminal, and the pictures that there is room for."""
        width, plain = options.max_width, options.ascii_only
        lines = [line for line in (self._overall(width, plain), *self._present(width, plain)) if line.plain]
        lines = lines[: max(1, console.height - 2)]
        for line in lines:
            line.no_wrap, line.overflow = True, "crop" if plain else "ellipsis"
            yield line
        if pairs := self.pairs:
            yield Pane(pairs, console.height - 2 - len(lines), int(self.now() / PAGE))

    def _overall(self, width: int, plain: bool) -> Text:
        """Return `audit ━━━━──── 38%  1:05, about 1:40 left`."""
        if self.forecast is None:
            return Text()
        share, left = self.forecast.share(), self.forecast.left()
        number, count = self.forecast.place()
        words = Text().append("audit  ", "bold")
        if width >= WIDE:
            words += bar(share, 24, plain) + Text(" ")
        words += Text(f"{percent(round(share, 2)):>4}  {clock(self.forecast.elapsed())}")
        words += Text(f", about {about(left)} left" if left is not None else "", "dim")
        return words + Text(f"  defense {number} of {count}" if number else "", "dim")

    def _present(self, width: int, plain: bool) -> list[Text]:
        """Return the piece of work, its loop or stage with a clock that moves, and its losses."""
        at, sight = self.present, self.sight
        doing = Text(at.what(), "cyan")
        if sight is not None and sight.victims:
            dot = "-" if plain else "·"
            who = "tuning record" if at.loop.tuning else "victim"
            doing += Text(f" {dot} {sight.victims} {who}{'s' if sight.victims > 1 else ''}")
            if sight.running < sight.victims:
                one = f"{who} {sight.shown[0] + 1}" if len(sight.shown) == 1 == sight.running else f"{sight.running}"
                doing += Text(f", {one} at work", "dim")
        lines = [doing, self._moving(width, plain)]
        if sight is not None and (finite := sorted(v for v in sight.losses if math.isfinite(v))):
            line = Text(f"  loss {significant(finite[0])}")
            if len(sight.losses) > 1:
                line += Text(f" best, {significant(finite[len(finite) // 2])} median")
            lines.append(line + Text("" if plain else f"  {falling(self.history[:])}", "green"))
        return lines

    def _moving(self, width: int, plain: bool) -> Text:
        """Return how far the loop is, or which stage it is and for how long, after what turns with every drawing."""
        at, took = self.present, self.present.elapsed()
        frames = PLAIN_TURNING if plain else TURNING
        line, within = Text().append(f"{frames[int(self.now() / EVERY) % len(frames)]} ", "cyan"), at.within()
        if not at.total:
            return line + Text(f"{within}, {clock(took)}" if within else clock(took), "dim")
        if width >= WIDE:
            line += bar(at.done / at.total, 24, plain) + Text(" ")
        line += Text(f"{at.done} of {at.total}")
        left = (
            f", {clock(took / at.done * (at.total - at.done))} left" if 0 < at.done < at.total else f", {clock(took)}"
        )
        return line + Text(left, "dim") + Text(f"  {within}", "dim")


def bar(share: float, width: int, plain: bool) -> Text:
    """Return a bar of so many columns, filled to a share in [0, 1]; of ASCII where it must be `plain`."""
    full, empty = ("#", "-") if plain else ("━", "─")
    filled = round(width * min(1.0, max(0.0, share)))
    return Text(full * filled, "magenta") + Text(empty * (width - filled), "dim")


def falling(values: list[float], width: int = 24) -> str:
    """Return losses as a line of small bars on a logarithmic scale, the oldest first; empty for fewer than two."""
    if len(values) < 2:
        return ""
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    logs = [math.log(max(v, 1e-12)) for v in values]
    low, high = min(logs), max(logs)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] for v in logs)
