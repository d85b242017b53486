"""What the attacks would do, tried before a scan, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from leakaudit.audit.rehearsing import TWICE, Outcome, Rehearsed
from leakaudit.result.plaintext import visible

HEADS: dict[Outcome, tuple[str, str]] = {  # a line's first word, as notes and findings have it, and its colour
    "works": ("works", "green"),
    "not-applicable": ("left out", "cyan"),
    "fails": ("fails", "red"),
    "untried": ("untried", "dim"),
}


def failures(tried: Sequence[Rehearsed]) -> int:
    """Return how many of what was tried failed."""
    return sum(each.outcome == "fails" for each in tried)


def show_rehearsed(console: Console, tried: Sequence[Rehearsed]) -> None:
    """Print which attacks work here, and which are not applicable or fail, and why: a line for each reason."""
    if not tried:
        console.print("[dim]untried[/] there are too few auxiliary records to try the attacks on.", highlight=False)
        return
    count = sum(each.name != TWICE for each in tried)
    console.print(f"Tried on auxiliary records, one step of each of the {count} attacks of a scan:", highlight=False)
    for outcome, (head, colour) in HEADS.items():
        found: dict[str, list[str]] = {}
        for each in tried:
            if each.outcome == outcome:
                found.setdefault(each.reason, []).append(each.name)
        for reason, names in found.items():
            told = f" [dim]({escape(visible(reason))})[/]" if reason else ""
            console.print(f"[{colour}]{head:<8}[/] {escape(visible(', '.join(names)))}{told}", highlight=False)
