"""Scans that are killed at random moments, and resumed until they end: nothing lost, the same bytes, and at what cost.

    python -m benchmarks.torture [--kills 100] [--seed 0] [--json FILE]

Every round starts `leakaudit scan` with an empty cache, in a folder that holds the files of an earlier scan. It sends
SIGKILL, SIGTERM or SIGINT, in turn, after a CPU time drawn evenly from that of a whole scan, and gives the same command
again, until the scan came to its end. Rounds differ in what is scanned (`SCANS`). After every kill it looks for:

- `lost`: an outcome, an earlier file, a piece that was announced or a report that is not there any more;
- `again`: an outcome that was there and was computed and written once more;
- `half`: what cannot be read; a temporary file that is left by an end in order, or not taken away by the next scan;
- `open`: a file that others than its owner can read; `stale`: an old file in place of this scan's;
- `code`: an exit code that is not documented for such an end;

and when a scan has come to its end, for `bytes`: a result that differs (but for times) from that of a scan that was
never killed, or a report that is not its page; for `left`: private outcomes, claims, jobs and processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks.leavings import GATE, REPORT, RESULT, after, age, apart_from_times, at_the_end, look, read

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "result-1.json"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MAIN = "import sys; sys.argv[0] = 'leakaudit'; from leakaudit.cli import main; main()"
IMPORTS = "import leakaudit.audit.stages, leakaudit.load.loading, leakaudit.reports.html, leakaudit.attacks.replay"
COMMON = ("scan", "model.py", "--quick", "--records", "4", "-o", "out", "--cache", "cache")
FEW = ("-a", "analytic", "-a", "inverting-gradients:steps=60")
SHORT = ("-a", "two-stage-decoder:steps=5:decoder_steps=5", "-a", "released-decoder:decoder_steps=5")
OBSCURE = "obscure:epochs=200:steps=20:pictures=1"  # seconds, so that it is killed in its middle
# By name, what is scanned. All but the first are shorter than a usual scan, and every kind of outcome is among theirs.
SCANS: dict[str, tuple[str, ...]] = {
    "usual": ("-d", "prune", "--no-utility"),
    "fit": (*SHORT, "-d", OBSCURE, "--no-utility"),
    "two workers": (*FEW, "-d", "prune", "--no-utility", "--workers", "2"),
    "training": ("-a", "analytic", "-d", "clip", "--epochs", "40", "--seeds", "3"),
    "stages": ("-a", "analytic", "-d", "prune", "--stages", "init,trained", "--epochs", "4", "--seeds", "1"),
}
PATIENCE = 600.0  # seconds until a scan that does not end has failed
LINGER = 12.0  # seconds within which participants end whose scan was killed
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
class Ended:
    """One run of a command, to its end or to a signal."""

    code: int  # as the shell has it: negative by signal
    cpu: float  # seconds, of all its processes that it waited for
    wall: float  # seconds
    own: float  # CPU seconds of the main process, as they were seen last
    told: str
    sent: bool = False  # whether a signal reached it


@dataclass(frozen=True)
class Whole:
    """A scan that was never killed, and the same again once all was known."""

    first: Ended
    again: Ended
    result: str  # without times


@dataclass(frozen=True)
class Row:
    """A scan that was killed, or came to its end."""

    scan: str
    round: int
    signal: str  # empty: it came to its end
    after: float  # CPU seconds of the main process
    code: int
    cpu: float
    known: int  # outcomes in the cache before it
    new: int  # further ones after it
    wrong: tuple[str, ...]


def main() -> None:
    """Kill scans, print a line for each, the counts, and what a resume costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", choices=[*SCANS], action="append", help="default: all in turn")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts it in the background ignores it
    wholes = {name: whole(SCANS[name]) for name in asked.scan or SCANS}
    for name, known in wholes.items():
        print(f"{name}: a whole scan takes {seconds(known.first)}, the same again {seconds(known.again)}", flush=True)
    rows: list[Row] = []
    for row in tortured(wholes, asked.kills, random.Random(asked.seed)):
        rows.append(row)
        end = f"{row.signal} after {row.after:.1f} s" if row.signal else "to its end"
        print(f"{row.round:>3} {row.scan:<12} {end:<21} code {row.code:>3}  ", end="")
        print(f"{row.cpu:5.1f} s CPU  {row.known:>2} known, {row.new:>2} new", *row.wrong, sep="  ", flush=True)
    wrong = summary(rows, wholes)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    sys.exit(1 if wrong else 0)


def seconds(run: Ended) -> str:
    """Return what a run took, in words."""
    return f"{run.cpu:.1f} s CPU ({run.wall:.1f} s)"


def tortured(wholes: dict[str, Whole], kills: int, drawn: random.Random) -> Iterator[Row]:
    """Yield a row for every run of every round, until so many were killed."""
    number, count = 0, 0
    while count < kills:
        name = [*wholes][number % len(wholes)]
        for row in one_round(name, number, wholes[name], count, kills, drawn):
            count += bool(row.signal)
            yield row
        number += 1


def one_round(name: str, number: int, known: Whole, count: int, kills: int, drawn: random.Random) -> Iterator[Row]:
    """Yield the rows of one scan, from an empty cache to its end: killed, resumed, killed again."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        prepare(folder)
        ended = False
        while not ended:
            before = look(folder)
            sends = SIGNALS[count % len(SIGNALS)] if count < kills else None
            moment = drawn.uniform(0, known.first.own) if sends else 0.0
            run = started(folder, command(*COMMON, *SCANS[name]), sends, moment)
            number_sent = sends if run.sent else None
            # Of an earlier moment of training a result holds the sum, and no piece by itself.
            told = run.told if "--stages" not in SCANS[name] else ""
            wrong = after(folder, before, number_sent, run.code, told)
            if before.job and run.code >= 0 and "going on with the scan" not in run.told and not run.sent:
                wrong.append("lost: that the scan had begun")
            result, _ = read(folder / "out" / RESULT)
            its_own = before.files.get(RESULT) != look(folder).files.get(RESULT)
            ended = its_own and result is not None and result.complete and run.code >= 0
            if ended:
                wrong += at_the_end(folder, known.result, run.code, known.first.code) + left_processes(folder)
            elif not run.sent:
                wrong.append("code: it did not come to its end")
                ended = True
            new = len(look(folder).outcomes.keys() - before.outcomes.keys())
            count += run.sent
            sent = sends.name if sends and run.sent else ""
            yield Row(name, number, sent, moment, run.code, run.cpu, len(before.outcomes), new, tuple(wrong))
            age(folder)


def prepare(folder: Path) -> None:
    """Put a model into a folder, and what an earlier scan left."""
    (folder / "model.py").write_text(MODEL)
    out = folder / "out"
    out.mkdir(mode=0o700)
    for name, text in {RESULT: GOLDEN.read_text(), REPORT: "<p>an earlier report", GATE: "{}"}.items():
        (out / name).write_text(text)
        (out / name).chmod(0o600)


def whole(words: Sequence[str]) -> Whole:
    """Do a scan without a kill, twice."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        prepare(folder)
        first, again = (started(folder, command(*COMMON, *words)) for _ in range(2))
        result, wrong = read(folder / "out" / RESULT)
        assert result is not None, [*wrong, first.told]
        assert result.complete, first.told
        return Whole(first, again, apart_from_times(result))


def command(*words: str) -> tuple[str, ...]:
    """Return what Python is given to run leakaudit's command line."""
    return ("-c", MAIN, *words)


def started(folder: Path, words: Sequence[str], number: signal.Signals | None = None, moment: float = 0.0) -> Ended:
    """Run Python in a folder with these words, and send it a signal after so many CPU seconds; return what came of it.

    Raises TimeoutError where it does not end.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CI": "", "TMPDIR": str(folder)}
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=env, stdout=told, stderr=told)
        sent, own = False, 0.0
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            now = time.monotonic() - begun
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                told.seek(0)
                return Ended(process.returncode, used.ru_utime + used.ru_stime, now, own, told.read(), sent)
            own = spent(process.pid)
            if number is not None and not sent and own >= moment:
                process.send_signal(number)
                sent = True
            if now > PATIENCE:
                process.kill()
                process.wait()
                raise TimeoutError(f"a scan did not end within {PATIENCE:g} s")
            time.sleep(0.02)


def spent(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def left_processes(folder: Path) -> list[str]:
    """Say which participants of a scan outlive it, and those that were killed, for long."""
    until = time.monotonic() + LINGER
    while alive := [pid for pid in Path("/proc").glob("[0-9]*") if str(folder) in _command(pid)]:
        if time.monotonic() > until:
            return [f"left: the process {pid.name}" for pid in alive]
        time.sleep(0.2)
    return []


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def summary(rows: Sequence[Row], wholes: dict[str, Whole]) -> int:
    """Print the counts and the costs; return how much was wrong."""
    kinds = ("lost", "again", "half", "bytes", "open", "stale", "code", "left")
    counts = Counter(word.split(":")[0] for row in rows for word in row.wrong)
    killed = [row for row in rows if row.signal]
    ends = [row for row in rows if not row.signal]
    print(f"\n{len(killed)} kills, {len(ends)} scans resumed to their end:", end=" ")
    print(", ".join(f"{counts[kind]} {kind}" for kind in kinds))
    for sent in SIGNALS:
        codes = Counter(row.code for row in killed if row.signal == sent.name)
        print(f"{sent.name}: {codes.total()} kills; exit codes", dict(sorted(codes.items())))
    with tempfile.TemporaryDirectory() as made:
        imports = median(started(Path(made), ("-c", IMPORTS)).cpu for _ in range(3))
    print(f"\nCPU seconds (imports alone: {imports:.1f})")
    print("| scan | never killed | all known | rounds | kills | more than never killed, per kill |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, known in wholes.items():
        own = [row for row in rows if row.scan == name]
        kills, rounds = sum(bool(row.signal) for row in own), len({row.round for row in own})
        more = (sum(row.cpu for row in own) - rounds * known.first.cpu) / kills if kills else 0.0
        told = f"{more:.1f}" if "--workers" not in SCANS[name] else "—"  # a killed one's participants are not counted
        print(f"| {name} | {known.first.cpu:.1f} | {known.again.cpu:.1f} | {rounds} | {kills} | {told} |")
    known_before = [row.known for row in rows if row.known]
    print(f"outcomes taken up by a resumed scan: {mean(known_before):.0f} on average" if known_before else "")
    return counts.total()


if __name__ == "__main__":
    main()
