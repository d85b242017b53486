"""Whether a scan keeps to its time budget, as a process from start to end, its report included.

    python -m benchmarks.budgets [--models lenet,cnn6,…] [--budgets 15,60,300] [--json FILE]

Every row is `leakaudit scan model.py --defense obscure --budget …` on 500 CIFAR-10 records: `over` is by how many
seconds it took longer (at most a tenth of the budget, or 5 s), `scored` how many attacks on the control and on the
defense have a score, `cut` how many of these the budget cut short, and `grey` how many pictures of these are no more
than the grey start: none may be. It needs `../shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from benchmarks.inversion import DATA, load
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD
from leakaudit.result.schema import AttackResult, from_json

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("lenet", "cnn6", "convnet16", "vgg11", "resnet18")
BUDGETS = (15.0, 60.0, 300.0)
FILE = """
import sys

sys.path.insert(0, {root!r})
import torch

from benchmarks.networks import CIFAR_MEAN, CIFAR_STD, NETWORKS

mean, std = CIFAR_MEAN, CIFAR_STD
train_data, auxiliary_data, test_data = torch.load({records!r}, weights_only=False)
model = NETWORKS[{name!r}]
"""
MAIN = "import sys; from leakaudit.cli import entry; sys.argv[0] = 'leakaudit'; entry.main()"
GREY = 24  # of 255: a picture whose values lie this close together is the start with its noise


@dataclass(frozen=True)
class Row:
    """One scan under one budget."""

    model: str
    budget: float
    seconds: float
    over: float
    kept: bool
    scored: int
    attacks: int
    cut: int
    grey: int
    verdict: str


def kept(file: Path) -> Path:
    """Write the records where they are read at once: what a user's data takes to unpack is not the scan's."""
    shift, scale = (torch.tensor(each).view(3, 1, 1) for each in (CIFAR_MEAN, CIFAR_STD))
    parts = []
    for name in ("train_a", "train_b", "test"):
        records = load(name)
        parts.append(TensorDataset((records.images[:500] - shift) / scale, records.labels[:500]))
    torch.save(parts, file)
    return file


def scan(name: str, budget: float, records: Path, folder: Path) -> Row:
    """Run one scan in a process of its own."""
    file, out = folder / "model.py", folder / "out"
    file.write_text(FILE.format(root=str(ROOT), records=str(records), name=name))
    options = ["--defense", "obscure", "--budget", f"{budget:g}s", "--output", str(out), "--exit-zero", "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": ""}
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", MAIN, "scan", str(file), *options], check=True, env=environment)
    took = time.monotonic() - begun
    result = from_json((out / "result.json").read_text())
    attacks = [a for row in result.defenses for a in row.attacks]
    scored = [a for a in attacks if a.identification.value is not None or a.label_accuracy.value is not None]
    cut = [a for a in scored if a.statuses.get("budget")]
    grey = sum(map(_grey, cut))
    allowed = max(5.0, budget / 10)
    over = round(took - budget, 1)
    return Row(
        name, budget, round(took, 1), over, over <= allowed, len(scored), len(attacks), len(cut), grey, result.verdict
    )


def _grey(attack: AttackResult) -> int:
    from PIL import Image

    found = 0
    for picture in attack.gallery:
        if picture.reconstruction is not None:
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.reconstruction)))).astype(int)
            found += int(pixels.max() - pixels.min() <= GREY and abs(pixels.mean() - 127.5) < GREY)
    return found


def main() -> None:
    """Run the benchmark and print one line per scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {', '.join(MODELS)}, with commas")
    parser.add_argument("--budgets", default=",".join(f"{b:g}" for b in BUDGETS), help="seconds, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    options = parser.parse_args()
    names = options.models.split(",")
    if unknown := sorted(set(names) - set(MODELS)):
        parser.error(f"unknown model {unknown[0]!r}: choose of {', '.join(MODELS)}")
    if not DATA.is_dir():
        print(f"skipped: {DATA} is not there (real CIFAR-10 pictures)")
        return
    rows: list[dict[str, Any]] = []
    common = tempfile.TemporaryDirectory()
    records = kept(Path(common.name) / "records.pt")
    print(f"{'model':<12}{'budget':>7}{'seconds':>9}{'over':>7}{'scored':>9}{'cut':>5}{'grey':>6}  verdict")
    for budget in map(float, options.budgets.split(",")):
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                row = scan(name, budget, records, Path(folder))
            rows.append(asdict(row))
            mark = "" if row.kept else "  too long"
            scored = f"{row.scored}/{row.attacks}"
            counts = f"{row.over:>7.1f}{scored:>9}{row.cut:>5}{row.grey:>6}"
            print(f"{row.model:<12}{row.budget:>7g}{row.seconds:>9.1f}{counts}  {row.verdict}{mark}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
