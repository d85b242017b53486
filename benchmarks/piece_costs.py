"""What each piece of a standard scan costs on this machine, written down as it goes.

    python -m benchmarks.piece_costs --model conv --device cuda --defenses gaussian,dp-sgd --json FILE

`conv` is the network of `examples/cifar10.py` and its 2,000 records, `resnet18` torchvision's of
`examples/torchvision_resnet18.py` on the same. One process, one thread of the CPU. FILE is written anew after every
piece, so that what was measured stands there if the time is up: a SIGTERM ends it, and the piece at which it stood is
written with `ended` false.

`start` is what passes between the start of the process and the set-up (Python, torch), `set-up` what comes before the
first piece (the data, the model, a GPU's own start, what the checks try). `seconds` is wall time, `cpu` CPU time of all
threads, `peak_mb` the memory held at worst (on CUDA what torch's allocator held in tensors, `reserved_mb` what it had
taken from the card).

It needs `../shared/data` beside the repository (real CIFAR-10 pictures).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.scan import ROOT, Meter, Row
from leakaudit.audit.audit import audit
from leakaudit.load.loading import load_target
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import Monitor, monitored

MODELS = {"conv": "cifar10.py", "resnet18": "torchvision_resnet18.py"}


def age() -> float:
    """Return the seconds since this process began; on systems without /proc since it began to compute."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return time.process_time()


def card(device: str) -> str:
    """Return the name of the GPU, or of the processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


class Book(Meter):
    """A meter that writes its rows after every piece."""

    def __init__(self, model: str, device: str, file: Path | None) -> None:
        super().__init__(model, torch.device(device))
        self.file, self.card, self.reserved, self.ended = file, card(device), [], True

    def end(self) -> None:
        """Note what the present piece took, and write all."""
        super().end()
        cuda = self.device.type == "cuda"
        self.reserved.append(round(torch.cuda.max_memory_reserved(self.device) / 2**20, 1) if cuda else None)
        if self.file is not None:
            self.file.write_text(json.dumps(self.told(), indent=1) + "\n")

    def told(self) -> list[dict[str, Any]]:
        """Return the rows as they are written."""
        found = []
        for i, (row, reserved) in enumerate(zip(self.rows, self.reserved, strict=True)):
            of = asdict(row)
            found.append(
                {
                    "card": self.card,
                    "device": of["device"],
                    "model": of["scan"],
                    "piece": of["piece"],
                    "seconds": of["seconds"],
                    "cpu": of["cpu"],
                    "peak_mb": of["peak_mb"],
                    "reserved_mb": reserved,
                    "ended": self.ended or i < len(self.rows) - 1,
                }
            )
        return found

    def stop(self, *_: object) -> None:
        """End where the time is up."""
        self.ended = False
        self.end()
        os._exit(0)


def main() -> None:
    """Run one scan and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="conv")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--defenses", default="gaussian", help="beside the undefended control, with blanks between them"
    )
    parser.add_argument("--attacks", default="", help="in place of the battery's, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows after every piece")
    options = parser.parse_args()
    started = round(age(), 2)
    torch.set_num_threads(1)
    book = Book(options.model, options.device, options.json)
    book.rows.append(Row(options.model, book.device.type, "start", started, round(time.process_time(), 2), 0.0))
    book.reserved.append(None)
    signal.signal(signal.SIGTERM, book.stop)
    target = load_target(str(ROOT / "examples" / MODELS[options.model]), device=options.device, seed=0)
    plan = Plan(
        defenses=tuple(options.defenses.split()),
        attacks=tuple(name for name in options.attacks.split(",") if name),
    )
    with monitored(Monitor(show=book.show)):
        result = audit(target, plan)
    book.end()
    for row in book.told():
        print(f"{row['piece']:<46}{row['seconds']:>9.1f}{row['cpu']:>9.1f}{row['peak_mb']:>9.0f}")
    for defense in result.defenses:
        print(f"{defense.spec}: {defense.verdict} ({', '.join(reason.id for reason in defense.why)})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
