"""What scans cost that share pieces with earlier ones: CPU seconds beside those of a scan that shares nothing.

    python -m benchmarks.sharing [--json FILE]

Every command is a process of its own with an empty cache, or with that of what was scanned before it; counted is the
CPU time of the process, with loading libraries and writing the report. Results are compared: those that took pieces up
must be those of scans that took up none, but for dates and timings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.leavings import RESULT, apart_from_times, read
from benchmarks.torture import Ended, command, prepare, started

STRENGTHS = ("0.003", "0.03", "0.3", "3", "30")
SCAN = ("--epochs", "10", "--seeds", "2", "-o", "out")
SWEEP = f"""
models = ["model.py"]

[scan]
quick = true
records = 4
epochs = 10
seeds = 2

[[defenses]]
spec = "gaussian"
std = [{", ".join(STRENGTHS)}]
"""


@dataclass(frozen=True)
class Row:
    """A change, what it costs, and what it costs where nothing is known."""

    change: str
    anew: float  # CPU seconds
    shared: float  # CPU seconds
    same: bool  # whether the results are


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    print("| what | nothing known | with what is known | |")
    print("|---|---:|---:|---|")
    for row in every():
        rows.append(row)
        share = f"{100 * row.shared / row.anew:.0f} %" + ("" if row.same else ", **other results**")
        print(f"| {row.change} | {row.anew:.1f} | {row.shared:.1f} | {share} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def strengths() -> Row:
    """Return what a sweep of five strengths costs beside five scans, each with a cache of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        (folder / "sweep.toml").write_text(SWEEP)
        alone, results = 0.0, []
        for strength in STRENGTHS:
            run, result = scan(folder, ("-d", f"gaussian:std={strength}"))
            alone += run.cpu
            results.append(result)
        swept = started(folder, command("sweep", "sweep.toml", "-o", "swept", "--cache", "cache"))
        found = [apart(path) for path in sorted((folder / "swept").glob(f"*/{RESULT}"))]
        return Row("a sweep of five strengths, beside five scans", alone, swept.cpu, alike(results, found))


def alike(results: Sequence[str], found: Sequence[str]) -> bool:
    """Whether these are the same results, in some order, but for the command that made them."""
    return sorted(map(told, results)) == sorted(map(told, found))


def told(text: str) -> str:
    """Return the rows of a result: a sweep's command is another."""
    return json.dumps(json.loads(text)["defenses"], sort_keys=True)


def apart(path: Path) -> str:
    """Return a result's bytes but for times."""
    result, wrong = read(path)
    assert result is not None, wrong
    return apart_from_times(result)


def scan(folder: Path, words: Sequence[str], *, known: bool = False) -> tuple[Ended, str]:
    """Do one scan, with an empty cache unless it is `known` what was scanned before; return its result, too."""
    if not known:
        shutil.rmtree(folder / "cache", ignore_errors=True)
    common = ("scan", "model.py", "--quick", "--records", "4", "--cache", "cache", *SCAN)
    run = started(folder, command(*common, *words))
    return run, apart(folder / "out" / RESULT)


# What was scanned, and what is scanned next.
CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "the same scan again": (("-d", "prune", "-d", "clip"), ("-d", "prune", "-d", "clip")),
    "a third defense added": (("-d", "prune", "-d", "clip"), ("-d", "prune", "-d", "clip", "-d", "gaussian:std=3")),
    "a third attack added": (
        ("-d", "prune", "-a", "labels", "-a", "inverting-gradients"),
        ("-d", "prune", "-a", "labels", "-a", "inverting-gradients", "-a", "dlg"),
    ),
    "a third seed of training": (("-d", "prune"), ("-d", "prune", "--seeds", "3")),
    "another limit": (("-d", "prune"), ("-d", "prune", "--max-identification", "0.4")),
    "other records attacked": (("-d", "prune"), ("-d", "prune", "--records", "6")),
}


def every() -> Iterator[Row]:
    """Yield what a sweep costs, and each of the changes after a scan, beside the same where nothing is known."""
    yield strengths()
    for change, (before, after) in CHANGES.items():
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            prepare(folder)
            anew, wanted = scan(folder, after)
            scan(folder, before)
            shared, found = scan(folder, after, known=True)
            yield Row(change, anew.cpu, shared.cpu, found == wanted)


if __name__ == "__main__":
    main()
