"""Progress as plain lines, for files, pipes, CI and notebooks: one when a piece ended, and one where it takes long."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from leakaudit.audit.course import UNTRIED
from leakaudit.judge.words import sentences
from leakaudit.result import numbers
from leakaudit.result.numbers import called, clock, percent
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import ACCURACY, FIT, MOMENT, UPDATES, WEAKENED
from leakaudit.watch.present import Present
from leakaudit.work.progress import Monitor, Work, harmless

if TYPE_CHECKING:
    from leakaudit.result.schema import AuditResult
    from leakaudit.scene.plan import Plan

UNFINISHED = "not finished"
SILENCE = 30.0  # seconds after which a line says what is still being computed


@contextmanager
def plain_lines(console: Console, plan: Plan | None, silence: float = SILENCE) -> Iterator[Monitor]:
    """Yield a monitor that prints no control codes: of an audit a line when a piece ended, else when one begins.

    Where nothing was printed for `silence` seconds, a line says what is computed, and for how long.
    """
    begun: list[Work] = []  # pieces of an audit of which no line told yet
    present, told, ended = Present("full" if plan is None else plan.images), threading.Event(), threading.Event()
    said: set[tuple[Work, str]] = set()  # one participant of several goes through all pieces again and again

    def line(words: str) -> None:
        told.set()
        console.print(Text(visible(words)), soft_wrap=True)

    def show(work: Work, done: int, total: int) -> None:
        present.show(work, done, total)
        if total == 0 and plan is None:
            line(str(present.piece))
        elif total == 0:
            begun.append(present.piece)  # as the result names it

    def enter(words: str) -> None:
        present.enter(words)
        if words.startswith(MOMENT):  # the same pieces follow again, on other weights
            said.clear()
            line(words)

    def kept(result: AuditResult) -> None:
        while begun and (seconds := result.timings.get(str(begun[0]))) is not None:
            work = begun.pop(0)
            outcome = became(result, work)
            if (work, outcome) in said or outcome == UNFINISHED:
                continue
            said.add((work, outcome))
            if outcome or seconds >= 1:  # to fit a defense that learns nothing is no news
                line(f"{work}  {numbers.seconds(seconds)}" + (f", {outcome}" if outcome else ""))

    def speak() -> None:
        while not ended.wait(silence):
            if not told.is_set():
                line(still(present))
            told.clear()

    speaking = threading.Thread(target=harmless(speak), daemon=True)
    speaking.start()
    try:
        yield Monitor(show=harmless(show), kept=harmless(kept), stage=harmless(enter))
    finally:
        ended.set()
        speaking.join()


def still(present: Present) -> str:
    """Return what is computed, and for how long: `prune: expectation, tuning, 40 of 150, for 1:07`."""
    count = f"{present.done} of {present.total}" if present.total else ""
    return ", ".join(filter(None, (present.what(), present.within(), count, f"for {clock(present.elapsed())}")))


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
        if value is None:
            return row.accuracy.reason or ""
        return percent(value) if result.measure == "accuracy" else called(value, result.measure)
    if work.name == WEAKENED and row.examined is not None:
        found, share = row.examined.weakened, row.examined.strength
        if found == UNTRIED:  # in this round
            return UNFINISHED
        told = f"{percent(found.value)} identified" if found.value is not None else found.reason or ""
        return told if share is None else f"{told} at {percent(share)} of its strength"
    attack = next((a for a in row.attacks if a.name == work.name), None)
    if attack is None:
        return UNFINISHED
    found, labels = attack.identification, attack.label_accuracy.value
    if found.value is not None:
        return f"{round(found.value * found.n)} of {found.n} identified"
    if attack.kind == "labels" and labels is not None:
        return f"{percent(labels)} of the {'labels' if result.chance_labels is None else 'label groups'}"
    return attack.reason or found.reason or ""
