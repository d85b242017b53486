"""Published situations, rerun: what was published of each, with its source, beside what the product's own attack gives.

    python -m benchmarks.known_answers [--quick] [--only WORD …] [--json FILE]

Every situation (`benchmarks/answers/`) is built from real pictures and seeded networks, attacked by the attacks of this
package as an audit runs them, and scored against the truth. `--quick` takes fewer records or steps, and is over within
five minutes of one core; its figures say how it works and are compared with the same ones. A situation that cannot be
rebuilt here, for want of data or weights, says so: it is neither reached nor missed. `--only` takes words that the
names contain. FILE holds rows of name, published, measured, unit, source, goal, reached, said and seconds of CPU time,
and is written after every situation.

The exit code is 0 where nothing that was measured is missed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import answers
from benchmarks.answers.situation import CannotRebuild, Outcome, Situation
from leakaudit.errors import first_line
from leakaudit.work.seeding import seeded

WIDTH = 110


@dataclass(frozen=True)
class Row:
    """One situation: `measured` is None where it could not be rebuilt or failed, and `said` then says why."""

    name: str
    published: float | None
    measured: float | None
    unit: str
    source: str
    goal: float | None
    reached: bool | None
    said: str
    seconds: float  # of CPU time
    quick: bool


def situations() -> tuple[Situation, ...]:
    """Return every situation, module by module. Raises ValueError where two have the same name."""
    names = sorted(module.name for module in pkgutil.iter_modules(answers.__path__))
    modules = [importlib.import_module(f"{answers.__name__}.{name}") for name in names if name != "situation"]
    found = tuple(each for module in modules for each in getattr(module, "SITUATIONS", ()))
    twice = sorted({each.name for each in found if sum(other.name == each.name for other in found) > 1})
    if twice:
        raise ValueError(f"two situations are called {twice[0]!r}")
    return found


def measured(situation: Situation, quick: bool) -> Row:
    """Rebuild one situation; what cannot be rebuilt, or fails, is a row that says so."""
    began, outcome, said = time.process_time(), None, ""
    try:
        with seeded(0, situation.name):
            outcome = situation.measure(quick)
    except CannotRebuild as reason:
        said = f"cannot be rebuilt here: {reason}"
    except Exception as error:  # one situation must not end the others
        said = f"failed: {type(error).__name__}: {first_line(error)}"
    return row(situation, outcome, said, time.process_time() - began, quick)


def row(situation: Situation, outcome: Outcome | None, said: str, seconds: float, quick: bool) -> Row:
    """Return the row of a situation that was measured (`outcome`), or was not (`said`)."""
    found = None if outcome is None else outcome.measured
    return Row(
        name=situation.name,
        published=situation.published,
        measured=found,
        unit=situation.unit,
        source=situation.source,
        goal=situation.asked,
        reached=False if said.startswith("failed") else None if found is None else situation.reached(found),
        said=said if outcome is None else outcome.said,
        seconds=round(seconds, 2),
        quick=quick,
    )


def lines(row: Row) -> str:
    """Return a row in words: a line of figures, and below it what a reader must know."""
    word = {True: "reached", False: "MISSED", None: "-"}[row.reached]
    published, found, goal = (_figure(value) for value in (row.published, row.measured, row.goal))
    first = f"{row.name:<44} {published:>10} {found:>10} {goal:>8}  {word:<8} {row.seconds:>7.1f}  {row.unit}"
    beside = [row.source, *([row.said] if row.said else [])]
    return "\n".join([first, *textwrap.wrap("; ".join(beside), WIDTH, initial_indent="    ", subsequent_indent="    ")])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark: a row per situation, then how many were reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and steps: within five minutes")
    parser.add_argument("--only", nargs="+", metavar="WORD", default=[], help="situations whose names contain a word")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, after every situation")
    options = parser.parse_args(arguments)
    words = [word.lower() for word in options.only]
    chosen = [each for each in situations() if not words or any(word in each.name.lower() for word in words)]
    if not chosen:
        parser.error(f"no situation's name contains {' or '.join(options.only)}: --list prints them")
    if options.list:
        print("\n".join(each.name for each in chosen))
        return 0
    torch.set_num_threads(1)
    print(f"{'situation':<44} {'published':>10} {'measured':>10} {'goal':>8}  {'':<8} {'CPU s':>7}  unit")
    rows = []
    for each in chosen:
        rows.append(measured(each, options.quick))
        print(lines(rows[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n", encoding="utf-8")
    counts = [sum(r.reached is value for r in rows) for value in (True, False, None)]
    took = sum(r.seconds for r in rows)
    print(f"\n{counts[0]} reached, {counts[1]} missed, {counts[2]} without a verdict; {took:.0f} s of CPU time")
    if options.quick:
        print("A quick run shows that each works, on few records and steps: what misses here may not in full.")
    return 1 if counts[1] else 0


if __name__ == "__main__":
    sys.exit(main())
