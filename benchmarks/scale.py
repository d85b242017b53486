"""A thousand scans on 64 GPUs, planned by simulation from measured costs: what it takes, and who waits for what.

    python -m benchmarks.scale [--quick] [--scans 1000] [--gpus 64] [--json FILE] [--markdown docs/scale.md]
    python -m benchmarks.scale --costs FILE       plans with what an earlier run with --json measured

Measured are, in processes of their own on one thread: a scan of `examples/minimal.py` under eight defenses, piece by
piece; the same scan again, all of it taken from what the first kept; starting a process; loading the target and setting
its scene; every operation of the shelf, and how many pieces a second several processes get through on one. Where
`benchmarks/answers/piece_costs.json` holds pieces that were measured on a GPU, the plan is made from these.

Planned is a sweep: models × families of defenses × 5 strengths, one scan each, which have their model's control in
common. Strengths take the measured specs of their family in turn, models those that were measured in turn, times a
factor of ½ to 2, drawn by `--seed`. A unit is what one participant claims: a fit, an attack with its tuning, one
training run. Nodes have 8 GPUs. `--quick` scans in short: it shows how it works.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import scalecosts
from benchmarks.scalecosts import Costs
from benchmarks.scalesim import (
    CAUSES,
    CLAIM,
    LOST,
    START,
    WINDOW,
    Fixed,
    Loss,
    Order,
    Run,
    Scan,
    Unit,
    bound,
    simulate,
)  # fmt: skip
from benchmarks.tables import table
from leakaudit.result.rules import ACCURACY, FIT, UPDATES
from leakaudit.units.desk import BEAT, LOOK
from leakaudit.units.shelf import STALE

MARK = "<!-- made by python -m benchmarks.scale --markdown: do not edit below -->\n"
STRENGTHS, NODE = 5, 8
UNTOLD = (LOST, CLAIM, START)  # causes that are little or nothing where no node is lost
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 1000)
REMOTE = 0.001  # seconds of one request to a folder that other machines serve: assumed, not measured
REQUESTS = 12  # of one unit: look, create, write, close, look, create, write, flush, rename, read, remove, look


@dataclass(frozen=True)
class Part:
    """A table of the page."""

    title: str
    told: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return title, sentence and table."""
        return f"### {self.title}\n\n{self.told}\n\n{table(self.head, self.lines)}\n"


def units(costs: Costs, model: str, spec: str, name: str, factor: float = 1.0) -> tuple[Unit, ...]:
    """Return the units of one defense on one model in their order; `name` begins their keys."""
    rows = [row for row in costs.rows if row.model == model and row.spec == spec]
    first = sum(factor * row.seconds for row in rows if row.piece == UPDATES)
    fit = (f"{name}/{FIT}",) if any(row.piece == FIT for row in rows) else ()
    found: list[Unit] = []
    for row in rows:
        seconds, key = factor * row.seconds, f"{name}/{row.piece}"
        if row.piece == FIT:
            found.append(Unit(key, seconds))
        elif row.piece == ACCURACY:
            found += [Unit(f"{key}/{k}", seconds / costs.seeds, fit) for k in range(costs.seeds)]
        elif row.piece != UPDATES:
            settling = row.settled_by and f"{name}/{row.settled_by}"
            found.append(Unit(key, seconds, fit, settling, spec != "none", f"{name}/u", first))
    return tuple(found)


def sweep(costs: Costs, count: int, seed: int, load: float) -> list[Scan]:
    """Return so many scans, model by model."""
    drawn = random.Random(seed)
    measured = list(dict.fromkeys(row.model for row in costs.rows))
    factors: dict[int, float] = {}
    found: list[Scan] = []
    while len(found) < count:
        number = len(factors)
        model, factors[number] = measured[number % len(measured)], 2 ** drawn.uniform(-1, 1)
        control = units(costs, model, "none", f"{number}/none", factors[number])
        specs = dict.fromkeys(row.spec for row in costs.rows if row.model == model and row.spec != "none")
        for family in dict.fromkeys(spec.partition(":")[0] for spec in specs):
            own = [spec for spec in specs if spec.partition(":")[0] == family]
            for k in range(STRENGTHS):
                more = units(costs, model, own[k % len(own)], f"{number}/{family}/{k}", factors[number])
                found.append(Scan((*control, *more), load, str(number)))
    return found[:count]


def longest_first(scans: Sequence[Scan]) -> list[Scan]:
    """Return scans by the seconds of their units, those with most first."""
    return sorted(scans, key=lambda scan: -sum(unit.seconds for unit in scan.units))


def split(scan: Scan, longest: float, ways: int = 4) -> Scan:
    """Return a scan whose attacks above so many seconds are several units each, as tuning and victims could be."""
    settling = {unit.unless for unit in scan.units} | {need for unit in scan.units for need in unit.needs}
    found: list[Unit] = []
    for unit in scan.units:
        several = ways if unit.seconds > longest and unit.key not in settling else 1
        part = replace(unit, seconds=unit.seconds / several)
        found += [part] if several == 1 else [replace(part, key=f"{unit.key}/{k}") for k in range(several)]
    return replace(scan, units=tuple(found))


def fixed_of(costs: Costs) -> Fixed:
    """Return what is no unit, as it was measured; an attack keeps its tuning and its run beside what came of it."""
    claim = sum(n * costs.shelf.get(name, 0.0) for name, n in (("look", 2), ("claim", 1), ("store", 3), ("release", 1)))
    return Fixed(costs.fixed.get("start", 0.0), claim, LOOK, STALE, costs.fixed.get("assemble", 0.0))


def served(scans: Sequence[Scan], fixed: Fixed) -> tuple[list[Scan], Fixed]:
    """Return the same where a participant begins a process for every scan that it takes part in, as a worker does."""
    return [replace(scan, load=scan.load + fixed.start) for scan in scans], replace(fixed, start=0.0)


def commands(scans: Sequence[Scan], fixed: Fixed) -> tuple[list[Scan], Fixed]:
    """Return the same where every scan is a command of its own, which gathers what came of it, too."""
    every, own = served(scans, fixed)
    return [replace(scan, load=scan.load + fixed.assemble) for scan in every], replace(own, assemble=0.0)


def share(run: Run, cause: str) -> str:
    """Return the share of participants' seconds that went for a cause, in per cent."""
    return f"{100 * run.spent[cause] / sum(run.spent.values()):.1f}"


def clock(seconds: float) -> str:
    """Return seconds as they are read."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ways(scans: Sequence[Scan], fixed: Fixed, gpus: int) -> Part:
    """Return what the ways to go from scan to scan come to."""
    listed = sorted(scans, key=lambda scan: int(scan.model))  # as a sweep has them
    tried: dict[str, tuple[Sequence[Scan], Fixed, Order]] = {
        "`leakaudit worker` on every GPU: all in the scan that began first": (*served(listed, fixed), "one"),
        "`leakaudit scan` on every GPU, one `--cache`: each a scan of its own": (*commands(listed, fixed), "alone"),
        "the same, longest first": (*commands(scans, fixed), "alone"),
        "next: workers, each in a scan drawn at random until it is complete": (*served(listed, fixed), "drawn"),
        "next: workers, each in one that nobody is at, longest first, then they help": (*served(scans, fixed), "taken"),
    }
    lines = []
    for name, (each, own, order) in tried.items():
        run = simulate(each, gpus, own, order)
        spent = [share(run, cause) for cause in CAUSES if cause not in UNTOLD]
        lines.append((name, clock(run.makespan), clock(run.assembled), f"{run.loads:,}", *spent))
    told = (
        f"{len(scans):,} scans on {gpus} GPUs. *Assembled* is when one main process has gathered the last result, one "
        "after the other; a scan that is a command gathers its own. Participants' seconds in %: *in vain* are attacks "
        "that the verdict made needless before they ended, *again* updates that more than one participant computed, "
        "*waiting* is for pieces of others while some are left that cannot begin or are another scan's, *tail* for "
        "the last ones."
    )
    head = ("way", "makespan", "assembled", "targets loaded", *(c for c in CAUSES if c not in UNTOLD))
    return Part("Ways", told, head, tuple(lines))


def curve(scans: Sequence[Scan], fixed: Fixed, gpus: int) -> Part:
    """Return makespans over numbers of GPUs, of scans as commands and of workers that help."""
    tried: tuple[tuple[Sequence[Scan], Fixed, Order], ...] = (
        (*commands(scans, fixed), "alone"),
        (*served(scans, fixed), "taken"),
    )
    one = [simulate(each, 1, own, order).makespan for each, own, order in tried]
    lines = []
    for number in sorted({*CURVE, gpus}):
        cells = [f"{number:,}", clock(max(bound(scans, number, fixed)))]
        for (each, own, order), alone in zip(tried, one, strict=True):
            run = simulate(each, number, own, order)
            cells += [clock(run.makespan), f"{alone / run.makespan:.1f}", f"{100 * (1 - run.idle):.0f} %"]
        lines.append(tuple(cells))
    work, chain = bound(scans, 1, fixed)
    told = (
        f"{len(scans):,} scans hold {clock(work)} of work that one process would do, too; the longest chain of one "
        f"scan takes {clock(chain)}. The bound is the greater of work over GPUs and that chain. Longest first; *each "
        "its own* are commands that share one folder, *help* are workers as they could be. *×* is to one GPU, *work* "
        "the share of seconds in which something is computed that one process would compute, too."
    )
    head = ("GPUs", "bound", "each its own", "×", "work", "help", "×", "work")
    return Part("How it scales", told, head, tuple(lines))


def nexts(scans: Sequence[Scan], fixed: Fixed, gpus: int) -> Part:
    """Return what would be gained by what is not done yet."""
    every, own = served(scans, fixed)
    smaller = [split(scan, 0.25 * bound([scan], 1)[1]) for scan in every]
    numbers = sorted({gpus, 2 * gpus, 1000})
    lines = []
    for name, each in (
        ("workers that help", every),
        ("and what takes over a quarter of its scan's longest chain in four units", smaller),
        ("and going to another scan takes no time", [replace(scan, load=0.0) for scan in smaller]),
    ):
        runs = [simulate(each, number, own, "taken") for number in numbers]
        lines.append((name, *(f"{clock(run.makespan)} ({100 * (1 - run.idle):.0f} %)" for run in runs)))
    head = ("", *(f"{number:,} GPUs" for number in numbers))
    return Part("What is next", "Makespan, and the share of seconds that are work.", head, tuple(lines))


def losses(scans: Sequence[Scan], fixed: Fixed, gpus: int) -> Part:
    """Return what losing a node costs, early, in the middle and late."""
    each, own = commands(scans, fixed)
    whole = simulate(each, gpus, own, "alone")
    lines = []
    for part in (0.1, 0.5, 0.9):
        gone = Loss(part * whole.makespan, frozenset(range(gpus // 2, gpus // 2 + NODE)))
        run = simulate(each, gpus, own, "alone", gone)
        least = whole.makespan * (part + (1 - part) * gpus / (gpus - NODE))
        seconds = run.makespan, run.makespan - whole.makespan, run.makespan - least, run.spent[LOST]
        lines.append((f"{100 * part:.0f} %", *map(clock, seconds)))
    told = (
        f"{NODE} of {gpus} GPUs are gone for good, each its own scan; what they held is taken over {fixed.stale:.0f} s "
        "later, and their scans go on from what is kept, if whoever started them starts them again elsewhere."
    )
    head = ("lost after", "makespan", "later", "of that, not the missing GPUs", "GPU time lost")
    return Part("A lost node", told, head, tuple(lines))


def limits(scans: Sequence[Scan], costs: Costs, gpus: int) -> Part:
    """Return what the shared folder has to bear, and where that ends."""
    fixed = fixed_of(costs)
    able = max((rate for name, rate in costs.shelf.items() if name.startswith("pieces/s")), default=0.0)
    lines = []
    for number in (gpus, 1000):
        tried: dict[str, tuple[Sequence[Scan], Fixed, Order]] = {
            "each its own": (*commands(scans, fixed), "alone"),
            "help": (*served(scans, fixed), "taken"),
        }
        for name, (each, own, order) in tried.items():
            run = simulate(each, number, own, order)
            far = simulate(each, number, replace(own, claim=own.claim + REQUESTS * REMOTE), order)
            lines.append(
                (f"{number:,}, {name}", f"{run.claims / run.makespan:.1f}", f"{able:.0f}", f"{run.busiest:,.0f}",
                 f"{number / BEAT:.0f}", f"{100 * (far.makespan / run.makespan - 1):+.1f} %")
            )  # fmt: skip
    told = (
        "Units claimed a second on average beside what one local disk bears here; files looked at, claimed and stored "
        f"in the busiest {WINDOW:.0f} s, by the second; heartbeats; and what {1000 * REMOTE:.0f} ms for every request "
        f"would add ({REQUESTS} a unit: assumed, no network file system was at hand)."
    )
    head = ("GPUs", "units/s", "a disk bears", "operations/s", "heartbeats/s", f"{1000 * REMOTE:.0f} ms a request")
    return Part("The folder", told, head, tuple(lines))


def one_scan(costs: Costs, fixed: Fixed, load: float) -> Part:
    """Return what several participants make of a single scan under all measured defenses."""
    lines = []
    for model in dict.fromkeys(row.model for row in costs.rows):
        specs = dict.fromkeys(row.spec for row in costs.rows if row.model == model)
        scan = Scan(tuple(u for spec in specs for u in units(costs, model, spec, spec)), load)
        one = simulate([scan], 1, fixed, "one").assembled
        longest = max(scan.units, key=lambda unit: unit.seconds)
        runs = [f"{clock(one)}", *(f"{one / simulate([scan], n, fixed, 'one').assembled:.2f}" for n in (2, 4, 8, 16))]
        lines.append((model, str(len(scan.units)), *runs, f"{longest.key}, {clock(longest.seconds)}"))
    told = "All measured defenses in one scan, assembled at the end; times one participant."
    head = ("model", "units", "1", "× with 2", "4", "8", "16", "longest unit")
    return Part("One scan", told, head, tuple(lines))


def check(costs: Costs, fixed: Fixed) -> Part:
    """Return what the simulation says of scans whose attacks sleep, and what such scans took."""
    units = [(work, end - begun) for work, begun, end in costs.naps[0].units]
    fits = {work for work, _ in units if work.endswith(f": {FIT}")}
    needs = {work: tuple(fits & {f"{work.rpartition(': ')[0]}: {FIT}"} - {work}) for work, _ in units}
    scan = Scan(tuple(Unit(work, seconds, needs[work]) for work, seconds in units))
    lines = []
    for each in costs.naps:
        told = simulate([scan], each.workers, replace(fixed, start=0.0), "one").makespan
        cells = clock(told), clock(each.makespan), f"{100 * (told / each.makespan - 1):+.0f} %"
        lines.append((str(each.workers), *cells))
    text = (
        "Scans whose attacks sleep, which other work on the machine does not hold up, by so many processes: simulated "
        "from the seconds that the units took in one, and run, from the begin of the first unit to the end of the last."
    )
    return Part("Predicted and measured", text, ("processes", "simulated", "run", "off by"), tuple(lines))


def parts(costs: Costs, count: int, gpus: int, seed: int) -> list[Part]:
    """Return all tables."""
    fixed, load = fixed_of(costs), costs.fixed.get("load", 0.0)
    scans = longest_first(sweep(costs, count, seed, load))
    named = {
        "start": "a process starts and imports",
        "load": "a target is loaded and its scene set",
        "canary": "the planted leak is looked for, once for all scans of a folder",
        "again": "a scan of which all is known, whole process",
        "assemble": "of that, what is not start and load",
    }
    lines = [(text, clock(costs.fixed[name])) for name, text in named.items() if name in costs.fixed]
    lines += [(f"shelf: {name}", f"{1000 * s:.2f} ms") for name, s in costs.shelf.items() if "/" not in name]
    lines += [
        (f"shelf: pieces a second, processes: {name.split()[-1]}", f"{rate:.0f}")
        for name, rate in costs.shelf.items()
        if "/" in name
    ]
    found = [Part("Measured", f"Pieces on {costs.device}.", ("what", "seconds"), tuple(lines))]
    found += [check(costs, fixed)] if costs.naps else []
    every = ways, curve, losses, nexts
    return [*found, one_scan(costs, fixed, load), limits(scans, costs, gpus), *(f(scans, fixed, gpus) for f in every)]


def main() -> None:
    """Measure or read, plan, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short scan under three defenses")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="measured before")
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page whose tables are made anew")
    asked = parser.parse_args()
    costs = scalecosts.read(asked.costs) if asked.costs else scalecosts.measured(asked.quick)
    if scalecosts.GPU.exists() and not asked.quick:
        card = scalecosts.read(scalecosts.GPU)
        costs = replace(costs, device=card.device, rows=card.rows, fixed=costs.fixed | card.fixed)
    found = parts(costs, asked.scans, asked.gpus, asked.seed)
    text = "\n".join(part.markdown() for part in found)
    print(text)
    if asked.json:
        told: dict[str, Any] = {"costs": asdict(costs), "parts": [asdict(part) for part in found]}
        asked.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if asked.markdown:
        written = asked.markdown.read_text("utf-8").partition(MARK)[0] if asked.markdown.exists() else ""
        asked.markdown.write_text(written + MARK + "\n" + text, "utf-8")


if __name__ == "__main__":
    main()
