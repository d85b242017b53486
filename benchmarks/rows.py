"""The rows of `benchmarks.obscure`: their fields, their file, and what follows from the attacks on one defense."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from leakaudit.errors import UserError
from leakaudit.result.schema import Estimate

Setting = Literal["private-only", "public-data"]
Kind = Literal["attack", "labels", "weights", "worst", "selected", "distinct", "federated", "control", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement of one defense at one strength; what was not measured is None.

    `kind` says which: an `attack`, on x̃ or on updates; `labels`, the labels read off an update; `weights`, an attacker
    who owns the generator; `worst`, the attack with the highest rate of all, and `selected`, the one that was best on
    the attacker's own records; `distinct`, how far x̃ is from x; `federated`, accuracy after FedAvg; `control`, training
    on public records alone; `failed`, a defense that could not be applied. Accuracy is that of the whole defense in
    every row but `federated`.
    """

    dataset: str
    setting: Setting
    defense: str  # its name
    strength: str  # its settings, as the sweep names them
    spec: str  # all it was run with, among it what belongs to the data set and the size of the run
    kind: Kind
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracies: list[float] = field(default_factory=list)  # one per seed
    seeds: int = 0
    attack: str | None = None
    role: str | None = None  # standard | adaptive | bound
    views: int | None = None  # releases of the same record that the attacker pools
    identification: float | None = None
    identification_low: float | None = None
    identification_high: float | None = None
    chance: float | None = None
    records: int = 0  # victims scored
    r2: float | None = None
    psnr: float | None = None  # dB, median, against x
    label_accuracy: float | None = None
    auc: float | None = None  # members told from test records
    rehearsed: float | None = None  # lower bound of identification on the attacker's own records: what it selects by
    rehearsed_rank: float | None = None  # deviations of the mean reciprocal rank there above guessing: settles ties
    by_chance: float | None = None  # of `worst`: what guessing exceeds one time in 20 with as many attacks
    attacks: int = 0  # of `worst` and `selected`: out of how many
    split: str | None = None  # of `federated`: iid | skewed
    distinct: dict[str, float | None] = field(default_factory=dict)
    facts: dict[str, str | float] = field(default_factory=dict)
    status: str = "measured"
    reason: str | None = None
    fit_seconds: float | None = None
    seconds: float | None = None
    run: dict[str, Any] = field(default_factory=dict)  # the settings of the run: rows of others do not mix

    @property
    def key(self) -> tuple[str, str, str]:
        """What a run measures as one piece."""
        return self.dataset, self.setting, self.spec


def read(path: Path, run: dict[str, Any]) -> list[Row]:
    """Return the rows of an earlier run at `path`, none if there is no file. Raises UserError if it does not fit."""
    if not path.exists():
        return []
    known = {f.name for f in fields(Row)}
    try:
        rows = [Row(**{k: v for k, v in row.items() if k in known}) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a file of this benchmark ({error}): choose another --json.") from error
    for row in rows:
        if row.run != run:
            other = sorted(k for k in {*row.run, *run} if row.run.get(k) != run.get(k))
            raise UserError(f"{path} was measured with another {', '.join(other)}: choose another --json.")
    return rows


def write(rows: Sequence[Row], path: Path) -> None:
    """Write all rows, so that an interrupt leaves either the old file or the new one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n", encoding="utf-8")
    draft.replace(path)


def estimate(name: str, value: Estimate) -> dict[str, Any]:
    """Return the three fields of a rate or mean with its interval."""
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def summed(rows: Sequence[Row], views: int | None = None) -> tuple[Row, Row] | None:
    """Return the rows with the highest identification and with the one the attacker chose, None where none is scored.

    The attacker chooses by its own records: the highest lower bound of the rate there, then how far the
    mean reciprocal rank there is above guessing.
    """
    scored = [row for row in rows if row.kind == "attack" and row.identification is not None]
    scored = [row for row in scored if views is None or row.views == views]
    if not scored:
        return None
    worst = max(scored, key=lambda row: (row.identification or 0.0, row.records))
    chosen = max(scored, key=lambda row: (row.rehearsed or 0.0, row.rehearsed_rank or 0.0))
    return worst, chosen


def highest_by_chance(sizes: Sequence[int], chance: float, share: float = 0.95) -> float:
    """Return the rate that the best of several guessing attackers stays at or below with probability `share`.

    `sizes` are the numbers of records they are asked about; they are taken as independent, so it is an upper bound for
    attackers who look at the same records.
    """
    from scipy.stats import binom

    rates = sorted({hits / n for n in sizes for hits in range(n + 1)})
    for rate in rates:
        below = 1.0
        for n in sizes:
            below *= float(binom.cdf(int(rate * n + 1e-9), n, chance))
        if below >= share:
            return rate
    return 1.0
