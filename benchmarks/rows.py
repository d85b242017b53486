"""The rows of `benchmarks.obscure`: their fields, their file, and what follows from the attacks on one defense.

The file holds a line of JSON for every piece that was measured whole: what it is of, and all of its rows. A line is
written at once under a lock, so that any number of runs may write to one file, and what a kill cuts short is no line.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from leakaudit.errors import UserError
from leakaudit.result.schema import Estimate

try:
    import fcntl
except ImportError:  # Windows has no such locks: one run at a time there
    fcntl = None  # type: ignore[assignment]

Setting = Literal["private-only", "public-data"]
Part = Literal["defense", "fedavg"]
Kind = Literal["attack", "labels", "weights", "worst", "selected", "distinct", "federated", "control", "failed"]


class Piece(NamedTuple):
    """What is measured as one: a defense at one strength on a data set, or FedAvg with it there."""

    dataset: str
    setting: Setting
    spec: str
    part: Part = "defense"


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
    tested: int = 0  # test records
    attack: str | None = None
    role: str | None = None  # standard | adaptive | bound
    views: int | None = None  # releases of the same record that the attacker pools
    identification: float | None = None
    identification_low: float | None = None
    identification_high: float | None = None
    chance: float | None = None
    bound: float | None = None  # proven of these line-ups and so many releases, above a rate of 0
    records: int = 0  # victims scored
    r2: float | None = None
    psnr: float | None = None  # dB, median, against x
    label_accuracy: float | None = None
    auc: float | None = None  # members told from test records
    rehearsed: float | None = None  # lower bound of identification on the attacker's own records: what it selects by
    rehearsed_rank: float | None = None  # deviations of the mean reciprocal rank there above guessing: settles ties
    by_chance: float | None = None  # of `worst`: what guessing exceeds one time in 20 with as many attacks
    attacks: int = 0  # of `worst` and `selected`: out of how many
    split: str | None = None  # of `federated`: iid | skewed, and where clients pool what they fitted: iid, pooled | …
    distinct: dict[str, float | None] = field(default_factory=dict)
    facts: dict[str, str | float] = field(default_factory=dict)
    status: str = "measured"
    reason: str | None = None
    fit_seconds: float | None = None
    training_seconds: float | None = None  # of all training runs that measured accuracy
    seconds: float | None = None  # of this row's attack, both views together
    piece_seconds: float | None = None  # of everything that was measured with it
    run: dict[str, Any] = field(default_factory=dict)  # the settings of the run: rows of others do not mix
    code: str = ""  # digest of the code that measured it
    device: str = "cpu"

    @property
    def piece(self) -> Piece:
        """What it was measured as a part of."""
        return Piece(self.dataset, self.setting, self.spec, "fedavg" if self.kind == "federated" else "defense")


def code_version() -> str:
    """Return a digest of the project's own Python code: rows of different ones need not agree."""
    root, seen = Path(__file__).resolve().parents[1], hashlib.sha256()
    for folder in ("leakaudit", "attacks", "defenses", "benchmarks"):
        for file in sorted((root / folder).rglob("*.py")):
            seen.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return seen.hexdigest()[:12]


def read(path: Path, run: dict[str, Any]) -> list[Row]:
    """Return the rows of earlier runs at `path`, of a piece the last that was written; none if there is no file.

    A last line that is not whole is no row. Raises UserError on a file of something else or of other settings.
    """
    if not path.exists():
        return []
    known = {f.name for f in fields(Row)}
    pieces: dict[Piece, list[Row]] = {}
    try:
        *lines, _ = path.read_text("utf-8").split("\n")  # what no newline ends was cut short
        for line in lines:
            found = json.loads(line)
            kept = [{k: v for k, v in row.items() if k in known} for row in found["rows"]]
            rows = [Row(**row, run=found["run"], code=found["code"], device=found["device"]) for row in kept]
            pieces.pop(piece := Piece(*found["piece"]), None)
            pieces[piece] = rows
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is not a file of this benchmark ({error}): choose another --json.") from error
    every = [row for rows in pieces.values() for row in rows]
    for row in every:
        if row.run != run:
            other = sorted(k for k in {*row.run, *run} if row.run.get(k) != run.get(k))
            raise UserError(f"{path} was measured with another {', '.join(other)}: choose another --json.")
    return every


def append(path: Path, piece: Piece, rows: Sequence[Row]) -> None:
    """Write a piece that was measured whole; the rows are of one run, code and device."""
    shared = ("run", "code", "device")
    each = [{k: v for k, v in asdict(row).items() if k not in shared} for row in rows]
    line = {"piece": piece, **{name: getattr(rows[0], name) for name in shared}, "rows": each}
    data = (json.dumps(line, allow_nan=False) + "\n").encode()
    with path.open("a+b") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read()
        if not whole.endswith(b"\n"):  # another run was killed as it wrote
            file.truncate(whole.rfind(b"\n") + 1)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def claimed(path: Path | None, piece: Piece) -> Iterator[bool]:
    """Say whether this process has a piece to itself for as long as the block lasts: no other on `path` measures it.

    A claim ends with its process, however that ends.
    """
    if path is None or fcntl is None:
        yield True
        return
    place = 1 + int(hashlib.sha256(repr(tuple(piece)).encode()).hexdigest()[:7], 16)
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError:
            yield False
        else:
            yield True


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
