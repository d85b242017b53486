"""Everything that wants a GPU, in one command that ends in time: what breaks there, what it costs, what may share it.

    python -m benchmarks.gpu --device cuda --output FOLDER [--steps rows,scans,costs,workers,killed] [--limit SECONDS]

Each step has at most `--limit` seconds; what is not done by then is missing in the summary, which is written to
FOLDER/summary.json after every step and printed at the end. FOLDER, which must be new, keeps the logs and results.

- `rows`: everything registered, on the GPU against the CPU and twice on the GPU (`tests/leakaudit/device_rows.py`).
- `scans`: one scan twice on the GPU and once on one thread of the CPU: which fields of result.json differ, and which
  attacks failed, diverged or were cut short. It runs beside the rows.
- `costs`: the pieces of standard scans of two networks, each alone on the GPU, and meanwhile on one thread of the CPU
  (`benchmarks/piece_costs.py`), with the memory that each took.
- `workers`: the scan by 1, 2 and 4 workers that share the GPU: wall time, differing fields.
- `killed`: the scan, killed after a third and after two thirds of its time and then begun again: differing fields.

It needs `../shared/data` beside the repository (real CIFAR-10 pictures), and a core for each of about ten processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.differing import differences

ROOT = Path(__file__).resolve().parents[1]
STEPS = ("rows", "scans", "costs", "workers", "killed")
LONG = 200  # characters of a difference that are kept
MODEL = "examples/cifar10.py"
PARTS = 4  # processes among which the rows are dealt
SCAN = (
    "-d",
    "gaussian:std=0.01",
    "-d",
    "clip",
    "-d",
    "class-conditional",
    "--quick",
    "--records",
    "8",
    "--all-attacks",
)
CPU_COSTS = {  # model, defenses, attacks: what one thread gets done in the time that the GPU takes for all
    "conv": ("conv", "gaussian", ""),
    "conv-dp": ("conv", "dp-sgd", "linkage"),
    "resnet18-matching": ("resnet18", "gaussian", "inverting-gradients"),
    "resnet18-linkage": ("resnet18", "gaussian", "linkage"),
}
GPU_COSTS = {"conv": ("conv", "gaussian dp-sgd obscure", ""), "resnet18": ("resnet18", "gaussian dp-sgd", "")}


@dataclass
class Bench:
    """Where it runs, for how long, and what was found."""

    device: str
    folder: Path
    limit: float
    summary: dict[str, Any] = field(default_factory=dict)

    def start(self, name: str, *command: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a Python process of the repository, on one thread, its output in a log of that name."""
        log = (self.folder / f"{name}.log").open("wb")
        paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in paths if p)} | more
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)

    def scan(self, name: str, device: str, *more: str) -> subprocess.Popen[bytes]:
        """Start the scan, its result in a folder of that name, with a cache of its own."""
        cache = self.folder / f"{name}-cache"
        command = ["-m", "leakaudit", "scan", MODEL, *SCAN, "--exit-zero", "--device", device]
        return self.start(name, *command, *more, "-o", str(self.folder / name), LEAKAUDIT_CACHE=str(cache))

    def wait(self, processes: Sequence[subprocess.Popen[bytes]], until: float) -> bool:
        """Wait for processes, end those that are not done in time, and return whether all were."""
        done = True
        for process in processes:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                done = False
                process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return done

    def compared(self, one: str, other: str) -> list[str]:
        """Return where the results of two scans differ, but for times, what made them and the device's name."""
        read = [_read(self.folder / name / "result.json") for name in (one, other)]
        late = [name for name, of in zip((one, other), read, strict=True) if of is None or not of["complete"]]
        return [f"{name} did not end in time" for name in late] or [each.told[:LONG] for each in differences(*read)]

    def found(self, **values: Any) -> None:
        """Add to the summary and write it."""
        self.summary |= values
        (self.folder / "summary.json").write_text(json.dumps(self.summary, indent=1) + "\n")


def _read(file: Path) -> Any:
    try:
        written = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    written["timings"], written["made"] = {}, ""
    written["environment"].pop("card", None)
    written["environment"]["device"] = written["hashes"]["environment"] = ""
    return written


def rows_and_scans(bench: Bench, steps: Sequence[str]) -> None:
    """Run what only asks whether it is right: all of it at once."""
    until = time.monotonic() + bench.limit
    parts, scans = [], []
    if "rows" in steps:
        for i in range(PARTS):
            file = str(bench.folder / f"rows-{i}.json")
            of = ["-m", "tests.leakaudit.device_rows", file, "--device", bench.device, "--part", f"{i + 1}/{PARTS}"]
            parts.append(bench.start(f"rows-{i}", *of))
    if "scans" in steps:
        scans = [bench.scan(name, bench.device) for name in ("first", "second")] + [bench.scan("cpu", "cpu")]
    done = bench.wait([*parts, *scans], until)
    if parts:
        told = [line for i in range(PARTS) for line in (bench.folder / f"rows-{i}.log").read_text().splitlines()]
        rows = [line for line in told if line.startswith(("ok", "WRONG"))]
        bench.found(
            rows=len(rows),
            wrong=[line for line in rows if line.startswith("WRONG")],
            not_the_same_again=[line for line in rows if "again: " in line],
        )
    if scans:
        bench.found(
            scans_in_time=done,
            differing_twice_on_the_device=bench.compared("first", "second"),
            differing_from_the_cpu=bench.compared("cpu", "first"),
            troubled={name: _troubled(bench.folder / name) for name in ("first", "cpu")},
        )


def _troubled(folder: Path) -> list[str]:
    """Return the verdicts of a result, and the attacks of which a victim ended otherwise than it should."""
    read = _read(folder / "result.json")
    if read is None:
        return ["no result"]
    told = [f"{row['spec']}: {row['verdict']}" for row in read["defenses"]]
    for row in read["defenses"]:
        for attack in row["attacks"]:
            if set(attack["statuses"]) - {"converged", "not-applicable", "skipped"}:
                told.append(f"{row['spec']}: {attack['name']}: {attack['statuses']} {attack['reason'] or ''}"[:300])
    return told


def costs(bench: Bench) -> None:
    """Measure the pieces of standard scans: on the GPU one after another, on CPU threads meanwhile."""

    def start(device: str, name: str, model: str, defenses: str, attacks: str) -> subprocess.Popen[bytes]:
        file = str(bench.folder / f"costs-{device.partition(':')[0]}-{name}.json")
        of = ["--model", model, "--defenses", defenses, "--attacks", attacks, "--device", device, "--json", file]
        return bench.start(f"costs-{device}-{name}", "-m", "benchmarks.piece_costs", *of)

    beside = [start("cpu", name, *of) for name, of in CPU_COSTS.items()] if bench.device != "cpu" else []
    busy = {}
    for name, of in GPU_COSTS.items():
        with _watched(bench.folder / f"busy-{name}.csv") as seen:
            bench.wait([start(bench.device, name, *of)], time.monotonic() + bench.limit)
        busy[name] = seen()
    bench.wait(beside, time.monotonic())
    found = [row for file in sorted(bench.folder.glob("costs-*.json")) for row in json.loads(file.read_text())]
    bench.found(busy=busy, costs=found)


@contextmanager
def _watched(file: Path) -> Iterator[Callable[[], dict[str, float] | None]]:
    """Have the GPU looked at every second; what is yielded says afterwards how busy it was and what it held."""

    def seen() -> dict[str, float] | None:
        rows = [[float(cell) for cell in line.split(",")] for line in file.read_text().splitlines() if "," in line]
        return {"percent": mean(row[0] for row in rows), "mb": max(row[1] for row in rows)} if rows else None

    what = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-l", "1"]
    with file.open("w") as out:
        watcher = subprocess.Popen(what, stdout=out, stderr=subprocess.DEVNULL) if shutil.which(what[0]) else None
        try:
            yield seen
        finally:
            if watcher is not None:
                watcher.kill()
                watcher.wait()


def workers(bench: Bench, numbers: Sequence[int] = (1, 2, 4)) -> None:
    """Let workers share the GPU."""
    took = {}
    for number in numbers:
        begun = time.monotonic()
        done = bench.wait(
            [bench.scan(f"workers-{number}", bench.device, "--workers", str(number))], begun + bench.limit
        )
        took[number] = round(time.monotonic() - begun, 1) if done else None
        different = {n: bench.compared("workers-1", f"workers-{n}") for n in took if n != 1}
        bench.found(workers=took, differing_between_workers=different)


def killed(bench: Bench) -> None:
    """Kill the scan twice on its way and begin it again: it goes on where it ended, to the same bytes."""
    begun = time.monotonic()
    bench.wait([bench.scan("whole", bench.device)], begun + bench.limit)
    whole = time.monotonic() - begun
    for share in (1 / 3, 2 / 3):
        process = bench.scan("killed", bench.device)
        try:
            process.wait(share * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    begun = time.monotonic()
    done = bench.wait([bench.scan("killed", bench.device)], begun + bench.limit)
    rest = round(time.monotonic() - begun, 1) if done else None
    bench.found(seconds_whole=round(whole, 1), seconds_of_the_last=rest, differing=bench.compared("whole", "killed"))


def main() -> None:
    """Run the steps and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu to rehearse")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {', '.join(STEPS)}, with commas")
    parser.add_argument(
        "--limit", type=float, default=120.0, metavar="SECONDS", help="for each step, and each scan in it"
    )
    options = parser.parse_args()
    steps = options.steps.split(",")
    if unknown := sorted(set(steps) - set(STEPS)):
        parser.error(f"unknown step {unknown[0]!r}: choose of {', '.join(STEPS)}")
    if options.output.exists():
        parser.error(f"{options.output} is there: name a new folder, what an earlier run left would be taken up")
    options.output.mkdir(parents=True)
    bench = Bench(options.device, options.output.resolve(), options.limit)
    begun = time.monotonic()
    if shutil.which("nvidia-smi"):
        names = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        bench.found(card=subprocess.run(names, capture_output=True, text=True).stdout.strip())
    for name, step in {"costs": costs, "workers": workers, "killed": killed}.items():
        if name == "costs" and {"rows", "scans"} & set(steps):
            rows_and_scans(bench, steps)
        if name in steps:
            step(bench)
        print(f"{time.monotonic() - begun:6.0f} s: up to {name}", flush=True)
    shown = {key: value for key, value in bench.summary.items() if key != "costs"}
    print(json.dumps(shown, indent=1))
    for row in bench.summary.get("costs", ()):
        print(f"{row['device']:<5}{row['model']:<10}{row['piece']:<46}{row['seconds']:>8.1f}{row['peak_mb']:>8.0f}",
              "" if row["ended"] else "not ended")  # fmt: skip


if __name__ == "__main__":
    main()
