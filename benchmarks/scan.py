"""What a whole scan costs, piece by piece: each undefended, under `gaussian` and under `obscure`.

    python -m benchmarks.scan [--scans demo,faces,cifar10,resnet18] [--device cpu] [--json FILE]

`demo` is `leakaudit demo`, `faces` the standard battery on its network under `gaussian` and `prune`, `cifar10` the
standard scan of `examples/cifar10.py`, `resnet18` torchvision's ResNet-18 on 400 of its records, 40 of them attacked
by the quick battery. Every scan runs in a process of its own, on one thread.
A piece is a fit, an attack with its tuning, a defense turned down, or the training that measures accuracy; `set-up` is
what comes before the first one. `cpu` are seconds of CPU time, `seconds` those that passed, `peak MB` is the memory
that the process held at its worst during the piece (on CUDA the allocator's). The verdicts stand below, so that two
runs can be compared.

The two scans of CIFAR-10 pictures need `../shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.inversion import DATA
from leakaudit.audit.audit import audit
from leakaudit.protocol.target import Target
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import Monitor, Work, monitored

ROOT = Path(__file__).resolve().parents[1]
SCANS = ("demo", "faces", "cifar10", "resnet18")
DEFENSES = ("gaussian", "obscure")


@dataclass(frozen=True)
class Row:
    """One piece of one scan."""

    scan: str
    device: str
    piece: str
    seconds: float
    cpu: float  # seconds, all threads together
    peak_mb: float


def setting(name: str, device: str) -> tuple[Target, Plan]:
    """Return the target and the plan of a scan by its name."""
    from leakaudit.load.loading import load_target
    from leakaudit.scene.demo import demo_plan, demo_target

    if name == "demo":
        return demo_target(0, device), replace(demo_plan(), defenses=DEFENSES)
    if name == "faces":
        return demo_target(0, device), Plan(defenses=("gaussian", "prune"))
    file = {"cifar10": "cifar10.py", "resnet18": "torchvision_resnet18.py"}[name]
    target = load_target(str(ROOT / "examples" / file), device=device, seed=0)
    if name == "cifar10":
        return target, Plan(defenses=DEFENSES)
    few = replace(target, private=target.private[:400], test=target.test[:400], auxiliary=target.auxiliary[:400])
    return few, Plan(defenses=DEFENSES, battery="quick", records=40)


@dataclass
class Meter:
    """Notes where each piece begins, and what it took when the next one does."""

    scan: str
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    piece: str = "set-up"
    since: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def show(self, work: Work, done: int, total: int) -> None:
        """Hear of a piece that begins; loops within one are none."""
        if total == 0:
            self.end()
            self.piece = str(work)

    def end(self) -> None:
        """Note what the present piece took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic(), time.process_time()
        wall, cpu = (round(b - a, 2) for a, b in zip(self.since, now, strict=True))
        self.rows.append(Row(self.scan, self.device.type, self.piece, wall, cpu, round(peak_mb(self.device), 1)))
        self.since = time.monotonic(), time.process_time()


def peak_mb(device: torch.device) -> float:
    """Return the memory in MB that was held at worst since the last call, where the system can forget its peak."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        Path("/proc/self/clear_refs").write_text("5")
        return found / 2**10
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(name: str, device: str) -> dict[str, Any]:
    """Run one scan; return its rows and its verdicts."""
    torch.set_num_threads(1)
    meter = Meter(name, torch.device(device))
    target, plan = setting(name, device)
    with monitored(Monitor(show=meter.show)):
        result = audit(target, plan)
    meter.end()
    verdicts = {row.spec: [row.verdict, [reason.id for reason in row.why]] for row in result.defenses}
    return {"rows": [asdict(row) for row in meter.rows], "verdicts": verdicts}


def main() -> None:
    """Run the benchmark and print one line per piece when its scan has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", default=",".join(SCANS), help=f"of {', '.join(SCANS)}, with commas")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)  # one scan, as JSON on stdout
    options = parser.parse_args()
    names = options.scans.split(",")
    if unknown := sorted(set(names) - set(SCANS)):
        parser.error(f"unknown scan {unknown[0]!r}: choose of {', '.join(SCANS)}")
    if options.within:
        print(json.dumps(measure(names[0], options.device)))
        return
    rows: list[dict[str, Any]] = []
    for name in names:
        if name not in ("demo", "faces") and not DATA.is_dir():
            print(f"{name}: skipped: {DATA} is not there (real CIFAR-10 pictures)")
            continue
        command = [sys.executable, "-m", "benchmarks.scan", "--scans", name, "--device", options.device, "--within"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        rows += told["rows"]
        print(f"{name:<48}{'seconds':>9}{'cpu':>9}{'peak MB':>9}")
        for row in told["rows"]:
            print(f"  {row['piece']:<46}{row['seconds']:>9.1f}{row['cpu']:>9.1f}{row['peak_mb']:>9.0f}")
        total = [sum(row[key] for row in told["rows"]) for key in ("seconds", "cpu")]
        print(f"  {'all':<46}{total[0]:>9.1f}{total[1]:>9.1f}")
        for spec, (verdict, why) in told["verdicts"].items():
            print(f"  {spec}: {verdict} ({', '.join(why)})")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
