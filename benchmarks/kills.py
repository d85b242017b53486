"""What a scan leaves when it is killed at a random moment: nothing stale, nothing lost, nothing half written.

    python -m benchmarks.kills [--kills 30] [--seed 0] [--json FILE]

Every round starts `leakaudit scan` in a folder that holds the result, report and gate of an earlier scan, and sends
SIGKILL, SIGTERM or SIGINT, in turn, after a time drawn evenly from that of a whole scan. Then it looks:

- `stale`: a file of the earlier scan still stands in the folder, although this scan had begun;
- `lost`: a file of the earlier scan is nowhere, a piece of work that was announced as finished is not in the result, or
  SIGTERM or SIGINT left no report of a result;
- `half`: a file that cannot be read, or a temporary one that the next scan in the folder does not take away;
- `code`: an exit code that is not documented for such an end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from leakaudit.errors import UserError
from leakaudit.files.folder import GATE, REPORT, RESULT, claimed
from leakaudit.files.writing import HALF
from leakaudit.result.rules import WEAKENED
from leakaudit.result.schema import AuditResult, from_json

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "result-1.json"
MAIN = "import sys; sys.argv[0] = 'leakaudit'; from leakaudit.cli import main; main()"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WORDS = ("scan", "model.py", "-d", "prune", "-d", "clip", "--quick", "--records", "4", "--no-utility", "-o", "out")
FINISHED = re.compile(r"^(none|prune|clip): (\S+) .*identified", re.MULTILINE)
MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

drawn = torch.Generator().manual_seed(0)
train_data = TensorDataset(torch.rand(120, 1, 8, 8, generator=drawn), torch.arange(120) % 2)


def model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
"""


@dataclass(frozen=True)
class Row:
    """One scan that was killed."""

    signal: str
    after: float  # seconds
    code: int  # as the shell has it: negative by signal
    began: bool  # it had set the earlier files aside
    pieces: int  # in its result
    wrong: tuple[str, ...]


def main() -> None:
    """Kill scans, print a line for each and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background ignores it
    drawn = random.Random(asked.seed)
    whole = timed()
    print(f"a whole scan takes {whole:.1f} s")
    rows = []
    for number in range(asked.kills):
        row = killed(SIGNALS[number % len(SIGNALS)], drawn.uniform(0, whole))
        rows.append(row)
        began = "" if row.began else ", before it began"
        print(
            f"{row.signal:<8} {row.after:5.1f} s  code {row.code:>3}  {row.pieces} pieces{began}", *row.wrong, sep="  "
        )
    counts = Counter(word.split(":")[0] for row in rows for word in row.wrong)
    print(f"\n{len(rows)} kills:", ", ".join(f"{counts[kind]} {kind}" for kind in ("stale", "lost", "half", "code")))
    print("exit codes:", ", ".join(f"{code}: {n}" for code, n in sorted(Counter(r.code for r in rows).items())))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(1 if counts else 0)


def timed() -> float:
    """Return the seconds of a whole scan."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "model.py").write_text(MODEL)
        begun = time.monotonic()
        started(Path(name)).communicate(timeout=600)
        return time.monotonic() - begun


def started(folder: Path) -> subprocess.Popen[str]:
    """Start a scan in a folder."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": ""}
    command = [sys.executable, "-c", MAIN, *WORDS]
    return subprocess.Popen(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed(number: signal.Signals, after: float) -> Row:
    """Kill a scan and look at what it left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        out = folder / "out"
        out.mkdir()
        (folder / "model.py").write_text(MODEL)
        old = {RESULT: GOLDEN.read_text(), REPORT: "<p>an earlier report", GATE: "{}"}
        for file, text in old.items():
            (out / file).write_text(text)
        process = started(folder)
        time.sleep(after)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
        code = process.returncode
        began = not all((out / file).exists() and (out / file).read_text() == text for file, text in old.items())
        result, wrong = read(out / RESULT) if began else (None, [])
        wrong += code_of(number, code, began, result)
        if began:
            wrong += stale(out, old) + lost(folder, old, told, result, code)
            wrong += half(out, number)
        pieces = sum(len(row.attacks) for row in result.defenses) if result else 0
        return Row(number.name, after, code, began, pieces, tuple(wrong))


def read(path: Path) -> tuple[AuditResult | None, list[str]]:
    """Return the result, None where there is none, and what is wrong with it."""
    if not path.exists():
        return None, []
    try:
        return from_json(path.read_text(), path.name), []
    except UserError as error:
        return None, [f"half: {error}"]


def code_of(number: signal.Signals, code: int, began: bool, result: AuditResult | None) -> list[str]:
    """Say where an exit code is none that such an end has."""
    finished = result is not None and result.complete  # the signal came when all was measured
    by_signal = code == -number and (number == signal.SIGKILL or not began)  # before Python heard of it
    if by_signal or code == 3 or (finished and code in (0, 1)):
        return []
    return [f"code: {code}"]


def stale(out: Path, old: dict[str, str]) -> list[str]:
    """Say which files of the earlier scan still stand there."""
    return [
        f"stale: {name}" for name, text in old.items() if (out / name).exists() and (out / name).read_text() == text
    ]


def lost(folder: Path, old: dict[str, str], told: str, result: AuditResult | None, code: int) -> list[str]:
    """Say what was there, or was announced, and is not kept."""
    aside = {path.name: path.read_text() for path in folder.glob(".out.earlier/*/*") if path.is_file()}
    found = [f"lost: the earlier {name}" for name, text in old.items() if aside.get(name) != text]
    rows = result.defenses if result else ()
    kept = {(row.spec, attack.name) for row in rows for attack in row.attacks}
    kept |= {(row.spec, WEAKENED) for row in rows if row.examined and row.examined.weakened.value is not None}
    found += [f"lost: {spec}: {attack}" for spec, attack in FINISHED.findall(told) if (spec, attack) not in kept]
    if code >= 0 and result is not None and not (folder / "out" / REPORT).exists():
        found.append("lost: the report")
    return found


def half(out: Path, number: signal.Signals) -> list[str]:
    """Say what is half written after an end in order, and after a kill what the next scan would not take away."""
    if number == signal.SIGKILL and out.exists():
        with claimed(out, private=True):
            pass
        shutil.rmtree(out.with_name(".out.earlier"), ignore_errors=True)
    return [f"half: {path.name}" for path in out.glob(f"*{HALF}")]


if __name__ == "__main__":
    main()
