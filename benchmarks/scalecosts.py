"""What `benchmarks.scale` plans with: the seconds of every piece of real scans, of what is no piece, of the shelf."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from leakaudit.result.rules import ACCURACY
from leakaudit.result.schema import AuditResult, from_json
from leakaudit.units.packing import header_of
from leakaudit.units.shelf import Claim, Shelf, host, opened

ROOT = Path(__file__).resolve().parents[1]
GPU = ROOT / "benchmarks" / "answers" / "piece_costs.json"  # of the same pieces on a GPU, where they were measured
TARGET = "examples/minimal.py"
MAIN = "import sys; sys.argv[0] = 'leakaudit'; from leakaudit.cli import main; main()"
IMPORTS = "import leakaudit.cli, leakaudit.audit.stages, leakaudit.load.loading, leakaudit.attacks, leakaudit.defenses"
SETTING = f"""
import time
from leakaudit.load.loading import load_target
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import set_scene
begun = time.process_time()
set_scene(load_target({TARGET!r}, device="cpu"), Plan(), None, "", ())
print(time.process_time() - begun)
"""
NAPS = """
import time
from dataclasses import dataclass
import torch
from leakaudit.protocol.attack import Attack, Reconstruction

@dataclass(frozen=True, kw_only=True)
class Nap(Attack):
    name = "nap"
    seconds: float = 1.0

    def __call__(self, model, update, generator):
        time.sleep(self.seconds)
        grey = torch.full((update.victims, update.batch_size, *update.input_shape), 0.5)
        return Reconstruction(grey, None, torch.zeros(update.victims), ("converged",) * update.victims)

def nap(number):
    return dataclass(frozen=True, kw_only=True)(type(f"Nap{number}", (Nap,), {"name": f"nap-{number}"}))

""" + "".join(f"Nap{k} = nap({k})\n" for k in range(1, 9))
SPECS = (
    "gaussian:std=0.01", "gaussian:std=1", "prune:sparsity=0.9", "prune:sparsity=0.99",
    "dp-sgd:noise_multiplier=0.1", "dp-sgd:noise_multiplier=1", "obscure", "obscure:rate=1.6",
)  # fmt: skip
SHORT = ("gaussian:std=0.01", "gaussian:std=1", "prune:sparsity=0.9")
BLOB = 20_000  # bytes of an outcome that is put on the shelf and taken from it


@dataclass(frozen=True)
class Row:
    """One piece of a scan; with `settled_by` it was skipped, and `seconds` are what the same attack took elsewhere."""

    model: str
    spec: str
    piece: str
    seconds: float
    settled_by: str = ""


@dataclass(frozen=True)
class Napped:
    """A scan whose attacks sleep: each unit's name, and when it was begun and done (seconds since 1970)."""

    workers: int
    units: tuple[tuple[str, float, float], ...]

    @property
    def makespan(self) -> float:
        """Seconds from the begin of the first unit to the end of the last."""
        return max(end for _, _, end in self.units) - min(begun for _, begun, _ in self.units)


@dataclass(frozen=True)
class Costs:
    """All that was measured. Seconds everywhere; `shelf` has operations a second too."""

    device: str
    rows: tuple[Row, ...]
    seeds: int = 3  # training runs of a piece "accuracy"
    fixed: dict[str, float] = field(default_factory=dict)  # by name, see `measured`
    shelf: dict[str, float] = field(default_factory=dict)
    naps: tuple[Napped, ...] = ()  # the first by one participant


def rows_of(result: AuditResult, model: str) -> tuple[Row, ...]:
    """Return a row for each piece of a scan, also for what was skipped."""
    took: dict[str, list[float]] = {}
    found: list[Row] = []
    for name, seconds in result.timings.items():
        spec, _, piece = name.rpartition(": ")
        if spec:
            took.setdefault(piece, []).append(seconds)
            found.append(Row(model, spec, piece, seconds))
    for defense in result.defenses:
        for attack in defense.attacks:
            if attack.settled_by:
                elsewhere = median(took.get(attack.name, [0.0]))
                found.append(Row(model, defense.spec, attack.name, elsewhere, attack.settled_by))
    return in_order(found)


def in_order(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows in the order of the work: model by model, the control first."""
    from leakaudit.audit.pieces import outline
    from leakaudit.scene.plan import Plan

    rows = list(rows)
    specs = tuple(dict.fromkeys(row.spec for row in rows if row.spec != "none"))
    turns = [str(piece.work) for piece in outline(Plan(defenses=specs))]
    models = list(dict.fromkeys(row.model for row in rows))

    def turn(row: Row) -> tuple[int, int]:
        name = f"{row.spec}: {row.piece}"
        name = name if name in turns else f"{row.spec}: {ACCURACY}"  # what fitting showed to be worth trying
        return models.index(row.model), turns.index(name)

    return tuple(sorted(rows, key=turn))


def ran(*words: str, folder: Path) -> tuple[float, float, str]:
    """Run Python on one thread, outcomes kept in a folder; return its CPU seconds, those that passed, its last word."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder), "CI": ""}
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - begun, (done.stdout.split() or [""])[-1]


def scanned(place: Path, specs: Sequence[str], *more: str) -> tuple[float, float, AuditResult]:
    """Scan the example, outcomes in `place`/shelf; return CPU seconds, those that passed, and the result."""
    words = ["scan", TARGET, *(w for spec in specs for w in ("-d", spec)), "--images", "none", *more]
    words += ["--cache", str(place / "shelf"), "--exit-zero", "--quiet", "-o", str(place / "out")]
    cpu, passed, _ = ran("-c", MAIN, *words, folder=place / "shelf")
    return cpu, passed, from_json((place / "out" / "result.json").read_text("utf-8"), "result.json")


def measured(quick: bool, told: Callable[[str], None] = print) -> Costs:
    """Measure all: one scan in one process, the same again from what it kept, what is fixed, and the shelf.

    Seconds are of CPU time, which other work on the machine does not lengthen. A result has only those that passed: of
    each piece's counts the share that the process had of a core.
    """
    more = ("--quick", "--records", "4") if quick else ()
    specs, times = (SHORT, 1) if quick else (SPECS, 5)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        told(f"scanning {TARGET} under {len(specs)} defenses …")
        whole, passed, result = scanned(place, specs, *more)
        rows = [replace(row, seconds=row.seconds * whole / passed) for row in rows_of(result, "minimal")]
        told(f"  {whole:.0f} s, {passed:.0f} passed; once more, from what it kept …")
        fixed = {"whole": whole, **around(place, specs, *more, times=times)}
    told("  attacks that sleep, by one participant and by several …")
    naps = tuple(napped(workers) for workers in ((1, 2) if quick else (1, 2, 4, 8)))
    told("  and the shelf …")
    computed = sum(row.seconds for row in rows if not row.settled_by)
    fixed["canary"] = max(0.0, whole - fixed["again"] - computed)
    seeds = int(str(result.settings.get("seeds") or 3))
    return Costs("CPU, one thread", tuple(rows), seeds, fixed, shelf(400 if quick else 3000), naps)


def around(place: Path, specs: Sequence[str], *more: str, times: int) -> dict[str, float]:
    """Return the seconds of what is no piece: starting, loading, gathering what is known. The scan was run before."""
    again = median(scanned(place, specs, *more)[0] for _ in range(times))
    start = median(ran("-c", IMPORTS, folder=place / "shelf")[0] for _ in range(times))
    load = median(float(ran("-c", SETTING, folder=place / "shelf")[2]) for _ in range(times))
    return {"start": start, "load": load, "again": again, "assemble": max(0.0, again - start - load)}


def napped(workers: int) -> Napped:
    """Scan with attacks that only sleep, which no other work on the machine holds up; return when units were done."""
    with tempfile.TemporaryDirectory() as name:
        file, kept = Path(name) / "naps.py", Path(name) / "shelf"
        file.write_text(NAPS, "utf-8")
        naps = [w for k in range(1, 9) for w in ("-a", f"{file}:Nap{k}:seconds={k + 1}")]
        words = ["scan", TARGET, "-d", "clip", "-d", "gaussian", *naps, "--exposure", "honest-but-curious", "--quick"]
        words += ["--records", "4", "--no-utility", "--images", "none", "--cache", str(kept), "--workers", str(workers)]
        ran("-c", MAIN, *words, "--exit-zero", "--quiet", "-o", str(Path(name) / "out"), folder=kept)
        found = []
        for path, _ in Shelf(kept).kept():
            header, _ = header_of(path.read_bytes(), path.name)
            if header.kind in ("canary", "prepare", "attack"):
                end = path.stat().st_mtime
                found.append((header.work, end - header.seconds, end))
    return Napped(workers, tuple(sorted(found, key=lambda unit: unit[1])))


def shelf(count: int, processes: Iterable[int] = (1, 2, 4, 8)) -> dict[str, float]:
    """Return the seconds of each operation of the shelf, and pieces a second that so many processes get through.

    Every process wants every piece: one of them claims, stores and gives back; the others find it.
    """
    found: dict[str, float] = {}
    for number in processes:
        with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(number, get_context("spawn")) as pool:
            list(pool.map(time.sleep, [0.2] * number))  # they have started
            begun = time.monotonic()
            parts = list(pool.map(_shelved, [name] * number, [count] * number, range(number)))
            seconds = time.monotonic() - begun
        made = sum(part["made"] for part in parts)
        if made != count:
            raise RuntimeError(f"{made:.0f} of {count} pieces were computed: claims do not hold")
        found[f"pieces/s, {number}"] = count / seconds
        if number == 1:
            found |= {name: parts[0][name] for name in ("look", "claim", "store", "release", "beat", "take")}
    return found


def _shelved(folder: str, count: int, who: int) -> dict[str, float]:
    """Go through pieces as a participant does; return the median seconds of each operation and how many were made."""
    place, blob = opened(Path(folder)), os.urandom(BLOB)
    claim = Claim(str(who), host(), os.getpid(), "a piece")
    took: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *given: Any) -> Any:
        begun = time.perf_counter()
        answer = call(*given)
        took.setdefault(name, []).append(time.perf_counter() - begun)
        return answer

    made = 0
    for k in range(count):
        key = f"{k:064x}"[::-1]
        if timed("look", place.get, key, False) is None and timed("claim", place.claim, key, claim):
            if place.get(key, False) is None:  # as the desk does: it may have been finished in between
                timed("store", place.put, key, blob, False)
                timed("beat", place.beat, key)
                made += 1
            timed("release", place.release, key, str(who))
        timed("take", place.get, key, False)
    return {name: median(times) for name, times in took.items()} | {"made": made}


def read(path: Path) -> Costs:
    """Return costs from a file of this benchmark, or of `benchmarks.piece_costs`: rows of pieces on some card."""
    told = json.loads(path.read_text("utf-8"))
    told = {"rows": told} if isinstance(told, list) else told.get("costs", told)
    rows = [row for row in told["rows"] if row.get("ended", True)]
    rows = [row for row in rows if row.get("device") == "cuda"] or rows
    took: dict[tuple[str, str, str], float] = {}
    settled: dict[tuple[str, str, str], str] = {}
    before: dict[str, list[float]] = {}
    for row in rows:
        spec, _, piece = (
            f"{row['spec']}: {row['piece']}".rpartition(": ") if "spec" in row else row["piece"].rpartition(": ")
        )
        if not spec:  # what comes before all pieces
            before.setdefault(piece, []).append(float(row["seconds"]))
            continue
        key = str(row["model"]), spec, piece
        took[key] = took.get(key, 0.0) + float(row["seconds"])
        settled[key] = str(row.get("settled_by") or "")
    kept = in_order(Row(*key, seconds, settled[key]) for key, seconds in took.items())
    fixed = {name: median(before[there]) for name, there in (("start", "start"), ("load", "set-up")) if there in before}
    device = told.get("device") or told.get("card") or rows[0].get("card", "?")
    more = {name: told[name] for name in ("seeds", "shelf") if name in told}
    more["naps"] = tuple(Napped(each["workers"], tuple(map(tuple, each["units"]))) for each in told.get("naps", ()))
    return Costs(device, kept, fixed=fixed | told.get("fixed", {}), **more)
