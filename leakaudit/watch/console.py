"""What the terminal shows while work runs: how far it is, what it is at, and the loss.

Elsewhere than on a terminal, a line for each finished piece of an audit with its time and outcome, without control
codes.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from leakaudit.judge.words import sentences
from leakaudit.result import numbers
from leakaudit.result.numbers import clock, percent, significant
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import ACCURACY, FIT, UPDATES, WEAKENED
from leakaudit.work.progress import Monitor, Sight, Work, harmless, paced

if TYPE_CHECKING:
    from leakaudit.audit.plan import Plan
    from leakaudit.result.schema import AuditResult
    from leakaudit.watch.forecast import Forecast

EVERY = 0.2  # seconds between looks at the work
SHARE = 200  # drawing waits so many times as long as it took: it costs half a hundredth of the time
WIDE = 60  # columns below which no bar is shown
STARTING, NO_LOOP = Work("starting"), Work("")  # before the first piece, and before its first loop
BARS = "▁▂▃▄▅▆▇█"


@contextmanager
def progress_monitor(console: Console | None = None, plan: Plan | None = None) -> Iterator[Monitor]:
    """Yield a monitor that draws on stderr: live on a terminal, a line per piece of work elsewhere.

    With a `plan` it knows what is ahead. No picture is shown here: the report and TensorBoard have them.
    """
    if console is None:  # a file that was asked to hold colours is no terminal to draw on
        console = Console(stderr=True, force_interactive=None if sys.stderr.isatty() else False)
    if not console.is_interactive or os.environ.get("CI"):
        yield _lines(console, plan)
        return
    display = Display(console, _forecast(plan), plan=plan)
    live = Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what user's code prints stays in the pipe it goes to
        get_renderable=lambda: display,
    )
    with live:
        ended = threading.Event()
        drawing = threading.Thread(target=_draw, args=(live, ended), daemon=True)
        drawing.start()
        try:
            yield Monitor(show=harmless(display.show), see=paced(harmless(display.look), EVERY))
        finally:
            ended.set()
            drawing.join()


def _draw(live: Live, ended: threading.Event) -> None:
    """Draw now and then until the work has ended, in a two-hundredth of the time at most."""
    pause = EVERY
    while not ended.wait(pause):
        begun = time.thread_time()
        try:
            live.refresh()
        except Exception:  # the terminal went away: the work goes on
            return
        pause = max(EVERY, SHARE * (time.thread_time() - begun))


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
    """What is known of the work now, drawn as a few lines."""

    console: Console
    forecast: Forecast | None = None
    piece: Work = STARTING
    loop: Work = NO_LOOP
    done: int = 0
    total: int = 0
    since: float = 0.0  # when the present bar began
    sight: Sight | None = None
    history: list[float] = field(default_factory=list)  # medians of the losses since the present bar began
    plan: Plan | None = None  # for the forecast, where what is ahead was not known at first

    def show(self, work: Work, done: int, total: int) -> None:
        """Take in where the work is; a total of 0 begins a piece."""
        if total == 0:
            self.piece, self.loop, self.total, self.sight = work, NO_LOOP, 0, None
            self.history = []
            self.forecast = self.forecast or _forecast(self.plan)
            if self.forecast is not None:
                self.forecast.begin(work)
            return
        if work != self.loop or done < self.done:
            self.since, self.loop = time.monotonic(), work
            self.history = []
        self.done, self.total = done, total

    def look(self, sight: Sight) -> None:
        """Take in what the work looks like."""
        self.sight = sight
        if finite := sorted(v for v in sight.losses if math.isfinite(v)):
            self.history.append(finite[len(finite) // 2])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, none wider than the terminal."""
        width, plain = options.max_width, options.ascii_only
        lines = [line for line in (self._overall(width, plain), *self._present(width, plain)) if line.plain]
        for line in lines[: max(1, console.height - 2)]:
            line.no_wrap, line.overflow = True, "crop" if plain else "ellipsis"
            yield line

    def _overall(self, width: int, plain: bool) -> Text:
        """Return `audit ━━━━──── 38%  1:05, about 1:40 left`."""
        if self.forecast is None:
            return Text()
        share, left = self.forecast.share(), self.forecast.left()
        number, count = self.forecast.place()
        words = Text("audit  ", "bold")
        if width >= WIDE:
            words += bar(share, 24, plain) + Text(" ")
        words += Text(f"{percent(round(share, 2)):>4}  {clock(self.forecast.elapsed())}")
        words += Text(f", about {clock(left)} left" if left is not None else "", "dim")
        return words + Text(f"  defense {number} of {count}" if number else "", "dim")

    def _present(self, width: int, plain: bool) -> list[Text]:
        """Return the piece of work, its loop, and its losses."""
        doing, sight = Text(visible(str(self.piece)), "cyan"), self.sight
        if sight is not None and sight.victims:
            dot = "-" if plain else "·"
            who = "rehearsal victim" if self.loop.tuning else "victim"
            doing += Text(f" {dot} {sight.victims} {who}{'s' if sight.victims > 1 else ''}")
            if sight.running < sight.victims:
                at = f"victim {sight.shown[0] + 1}" if len(sight.shown) == 1 == sight.running else f"{sight.running}"
                doing += Text(f", {at} at work", "dim")
        lines = [doing]
        if self.total:
            took = time.monotonic() - self.since
            line = Text("  ")
            if width >= WIDE:
                line += bar(self.done / self.total, 24, plain) + Text(" ")
            line += Text(f"{self.done} of {self.total}")
            if 0 < self.done < self.total:
                line += Text(f", {clock(took / self.done * (self.total - self.done))} left", "dim")
            what = replace(self.loop, name="") if self.loop.name == self.piece.name else self.loop
            lines.append(line + Text("  " + visible(str(what)), "dim"))
        if sight is not None and (finite := sorted(v for v in sight.losses if math.isfinite(v))):
            line = Text(f"  loss {significant(finite[0])}")
            if len(sight.losses) > 1:
                line += Text(f" best, {significant(finite[len(finite) // 2])} median")
            lines.append(line + Text("" if plain else f"  {falling(self.history[:])}", "green"))
        return lines


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


def _lines(console: Console, plan: Plan | None) -> Monitor:
    """Return a monitor for files and pipes: of an audit a line when a piece ended, of other work when one begins."""
    begun: list[Work] = []  # pieces of an audit of which no line told yet

    def line(words: str) -> None:
        console.print(Text(visible(words)), soft_wrap=True)

    def show(work: Work, done: int, total: int) -> None:
        if total == 0 and plan is None:
            line(str(work))
        elif total == 0:
            begun.append(work)

    def kept(result: AuditResult) -> None:
        while begun and (seconds := result.timings.get(str(begun[0]))) is not None:
            work = begun.pop(0)
            outcome = became(result, work)
            if outcome or seconds >= 1:  # to fit a defense that learns nothing is no news
                line(f"{work}  {numbers.seconds(seconds)}" + (f", {outcome}" if outcome else ""))

    return Monitor(show=harmless(show), kept=harmless(kept))


def became(result: AuditResult, work: Work) -> str:
    """Return in a few words what came of a piece of an audit's work; empty where there is nothing to say."""
    row = next((d for d in result.defenses if d.spec == work.defense), None)
    if row is None:
        return ""
    if work.name == UPDATES:
        return ""
    if work.name == FIT:
        return "" if row.attacks else "; ".join(sentences(row.why[:1]))
    if work.name == ACCURACY:
        value = row.accuracy.value
        return percent(value) if value is not None else row.accuracy.reason or ""
    if work.name == WEAKENED and row.examined is not None:
        found, share = row.examined.weakened, row.examined.strength
        told = f"{percent(found.value)} identified" if found.value is not None else found.reason or ""
        return told if share is None else f"{told} at {percent(share)} of its strength"
    attack = next((a for a in row.attacks if a.name == work.name), None)
    if attack is None:
        return "not finished"
    found, labels = attack.identification, attack.label_accuracy.value
    if found.value is not None:
        return f"{round(found.value * found.n)} of {found.n} identified"
    if attack.kind == "labels" and labels is not None:
        return f"{percent(labels)} of the labels"
    return attack.reason or found.reason or ""
