"""Four defenses before clients that send one gradient, and before clients that train first: what leaks, what it costs.

    python -m benchmarks.clients [--quick] [--json FILE] [--defenses SPEC …]

On the faces of `leakaudit demo` with its trained network, each client is audited whole by the standard battery
(`--quick`: by the quick one), nothing skipped: FedSGD of one record and of eight, and FedAvg of eight records, one
epoch in batches of two with a learning rate of 0.05. Noise and clipping of a client that trains act once a round on the
weights' difference, so that a deviation chosen for gradients is a much larger one there: `gaussian` stands with its
default and with that over how far a gradient moves the weights; `dp-sgd` acts in every local step.
What stands is the attack that identified most, how many of how many, the best median PSNR of any attack that draws,
and the accuracy of a model trained by such clients.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.tables import table
from leakaudit.audit.audit import audit
from leakaudit.result.rules import most_successful
from leakaudit.result.schema import DefenseResult
from leakaudit.scene.demo import demo_target
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import Monitor, Work, monitored

CLIENTS = (("fedsgd", 1, 16), ("fedsgd", 8, 32), ("fedavg:epochs=1:batch=2:lr=0.05", 8, 16))
DEFENSES = (
    "obscure:epochs=10:steps=10:latent=64",
    "gaussian:std=0.01",
    "gaussian:std=0.002",
    "prune:sparsity=0.99",
    "dp-sgd:noise_multiplier=1",
)
HEAD = ("client", "records", "defense", "verdict", "worst attack", "identified", "PSNR", "accuracy")


@dataclass(frozen=True)
class Row:
    """One defense before one kind of client."""

    client: str
    records: int  # behind an update
    defense: str
    verdict: str
    attack: str
    hits: int
    of: int
    psnr: float | None
    accuracy: float | None


def row_of(client: str, records: int, found: DefenseResult) -> Row:
    """Return what an audit found of a defense."""
    worst = most_successful([a for a in found.attacks if a.role != "bound"])
    drawn = [a.psnr.value for a in found.attacks if a.psnr.value is not None and a.role != "bound"]
    rate = worst.identification if worst is not None else None
    return Row(
        client,
        records,
        found.spec,
        found.verdict,
        worst.name if worst is not None else "",
        round((rate.value or 0.0) * rate.n) if rate is not None else 0,
        rate.n if rate is not None else 0,
        max(drawn, default=None),
        found.accuracy.value,
    )


def measure(client: str, records: int, attacked: int, defenses: tuple[str, ...], quick: bool) -> list[Row]:
    """Audit the defenses before one kind of client; the undefended control is the first row."""
    plan = Plan(
        defenses=defenses,
        client=client,
        batch_size=records,
        records=attacked,
        battery="quick" if quick else "standard",
        all_attacks=True,
        images="none",
    )

    def show(work: Work, done: int, total: int) -> None:
        if total == 0:
            print(f"  {client} of {records}: {work}", flush=True)

    with monitored(Monitor(show=show)):
        return [row_of(client, records, found) for found in audit(demo_target(0), plan).defenses]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="by the quick battery")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows")
    parser.add_argument("--defenses", nargs="+", default=list(DEFENSES), metavar="SPEC")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for client, records, attacked in CLIENTS:
        rows += measure(client, records, attacked, tuple(options.defenses), options.quick)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(HEAD, [_told(row) for row in rows]))


def _told(row: Row) -> list[str]:
    return [
        row.client,
        str(row.records),
        row.defense,
        row.verdict,
        row.attack,
        f"{row.hits} of {row.of}",
        "—" if row.psnr is None else f"{row.psnr:.1f}",
        "—" if row.accuracy is None else f"{100 * row.accuracy:.0f} %",
    ]


if __name__ == "__main__":
    main()
