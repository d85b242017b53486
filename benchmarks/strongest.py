"""The strongest attack that ignores a defense beside the strongest that knows it, on every built-in defense.

    python -m benchmarks.strongest [--quick] [--json FILE] [--datasets lfw cifar10] [--defenses SPEC …]

Each defense at its default (`obscure` fitted small) is audited whole, nothing skipped, with the quick battery's effort:
on the faces of `leakaudit demo` with its trained network, and on test pictures of CIFAR-10 with an untrained LeNet. A
*naive* attack is one of the battery's that does not ask for the defense; every other one is *adaptive*, but `replay`
has a column of its own and bounds, which are handed more than an attacker gets, have none. What stands is how many
records were identified of how many that were asked about, among those of their class, by the attack with the highest
rate (of equals the higher lower bound). Attacks that link are asked about more records than those that draw pictures.

`--quick` takes few victims and three defenses: it shows how it works and judges nothing. CIFAR-10 needs
`../shared/data` beside the repository and is skipped without.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.inversion import DATA, load
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD, lenet
from benchmarks.tables import table
from leakaudit.audit.audit import audit
from leakaudit.protocol.registry import attacks, defenses
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import AttackResult, AuditResult
from leakaudit.result.specs import split
from leakaudit.scene.demo import demo_target
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import Work
from leakaudit.work.seeding import forked

FIRST, PRIVATE, TEST, AUXILIARY = 2000, 400, 200, 400  # of CIFAR-10: clear of the pictures others look at
SMALL = {"obscure": "obscure:epochs=10:steps=10:latent=64"}
QUICK = ("gaussian", "prune", "mixup")
VICTIMS = {"lfw": 16, "cifar10": 8}


@dataclass(frozen=True)
class Row:
    """One defense on one data set; an attack is empty where none of its kind was scored."""

    dataset: str
    defense: str
    naive: str
    naive_hits: int
    naive_of: int
    adaptive: str
    adaptive_hits: int
    adaptive_of: int
    replay_hits: int
    replay_of: int
    seconds: float  # that its attacks took


def target_of(dataset: str) -> Target:
    """Return the faces with the demo's network, or CIFAR-10 test pictures with an untrained LeNet."""
    if dataset == "lfw":
        return demo_target(0)
    pictures, own = load("test"), load("train_a")
    with forked(0):
        model = PixelModel(lenet(), CIFAR_MEAN, CIFAR_STD)
    private, test = (pictures[torch.arange(a, a + n)] for a, n in ((FIRST, PRIVATE), (FIRST + PRIVATE, TEST)))
    names = tuple(str(c) for c in range(10))
    return Target("cifar10", model, F.cross_entropy, private, test, own[torch.arange(AUXILIARY)], names)


def is_naive(name: str) -> bool:
    """Return whether an attack is one of the battery's and does not ask for the defense."""
    battery = {split(spec)[0] for spec in BATTERIES["standard"].attacks}
    return name in battery and "defense" not in attacks()[name].requires


def best(found: Iterable[AttackResult]) -> tuple[str, int, int]:
    """Return the most successful attack with how many it identified of how many."""
    first = most_successful(found)
    if first is None:
        return "", 0, 0
    e = first.identification
    return first.name, round((e.value or 0.0) * e.n), e.n


def rows_of(dataset: str, result: AuditResult) -> list[Row]:
    """Return a row for each defense that was attacked."""
    found = []
    for defense in result.defenses:
        ran = [a for a in defense.attacks if a.role != "bound"]
        naive, replay = [a for a in ran if is_naive(a.name)], [a for a in ran if a.name == "replay"]
        adaptive = [a for a in ran if a not in naive and a not in replay]
        took = sum(result.timings.get(str(Work(a.name, defense.spec)), 0.0) for a in defense.attacks)
        found.append(Row(dataset, defense.spec, *best(naive), *best(adaptive), *best(replay)[1:], round(took, 1)))
    return found


def measure(dataset: str, specs: Sequence[str], victims: int, keep: Callable[[AuditResult], None]) -> AuditResult:
    """Audit defenses, and the control first; `keep` sees the result so far."""
    whole: dict[str, Any] = {f.name: True for f in fields(Plan) if f.name == "all_attacks"}  # not in versions before it
    plan = Plan(
        defenses=tuple(specs),
        battery="quick",
        records=victims,
        utility=False,
        images="none",
        seeds=1,
        epochs=1,
        **whole,
    )
    return audit(target_of(dataset), plan, keep=keep)


def write(path: Path | None, dataset: str, before: Sequence[Row], result: AuditResult) -> None:
    """Write the rows of earlier data sets and those of a result, where there is a file to write."""
    if path is not None:
        rows = [asdict(row) for row in (*before, *rows_of(dataset, result))]
        path.write_text(json.dumps(rows, indent=1) + "\n")


def shown(rows: Iterable[Row]) -> str:
    """Return rows as a table."""
    head = ("data", "defense", "naive", "identified", "adaptive", "identified", "replay", "seconds")
    lines = [
        (
            row.dataset,
            row.defense,
            row.naive or "–",
            f"{row.naive_hits} of {row.naive_of}",
            row.adaptive or "–",
            f"{row.adaptive_hits} of {row.adaptive_of}",
            f"{row.replay_hits} of {row.replay_of}",
            f"{row.seconds:.0f}",
        )
        for row in rows
    ]
    return table(head, lines)


def main() -> None:
    """Run the benchmark; every row goes to the file at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few victims, three defenses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--datasets", nargs="+", choices=tuple(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--defenses", nargs="+", metavar="SPEC", help="by default every built-in one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    built_in = [name for name in defenses() if name != "none"]
    specs = options.defenses or [SMALL.get(n, n) for n in (QUICK if options.quick else built_in)]
    done: list[Row] = []
    for dataset in options.datasets:
        if dataset == "cifar10" and not DATA.is_dir():
            print(f"{dataset}: skipped: {DATA} is not there (real CIFAR-10 pictures)")
            continue

        keep = partial(write, options.json, dataset, tuple(done))
        done += rows_of(dataset, measure(dataset, specs, 6 if options.quick else VICTIMS[dataset], keep))
    print(shown(done))


if __name__ == "__main__":
    main()
