"""The rows of the obscuring benchmark: their file, that many runs may share it, and what follows from attacks."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.rows import Piece, Row, append, claimed, highest_by_chance, read, summed
from benchmarks.views import above_guessing
from leakaudit.errors import UserError


def row_of(spec: str, kind: Any = "worst", **values: Any) -> Row:
    values = {"dataset": "d", "setting": "private-only", "strength": "", "run": {"a": 1}, "code": "c", **values}
    return Row(defense=spec.partition(":")[0], spec=spec, kind=kind, **values)


def test_rows_of_other_settings_or_files_are_refused(tmp_path: Path) -> None:
    row, file = row_of("none"), tmp_path / "rows.json"
    append(file, row.piece, [row])
    assert read(file, {"a": 1}) == [row]
    assert read(tmp_path / "nothing.json", {}) == []
    with pytest.raises(UserError, match="another a"):
        read(file, {"a": 2})
    with pytest.raises(ValueError):
        append(file, row.piece, [replace(row, r2=float("nan"))])
    assert read(file, {"a": 1}) == [row]
    (tmp_path / "other.json").write_text('[{"model": 1}]\n')
    with pytest.raises(UserError, match="not a file of this benchmark"):
        read(tmp_path / "other.json", {})


def test_runs_on_one_file_lose_no_piece_and_repair_what_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    rows = [row_of(f"prune:sparsity=0.{i}") for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda row: append(file, row.piece, [row]), rows))
    assert {row.spec for row in read(file, {"a": 1})} == {row.spec for row in rows}
    with file.open("a") as cut:
        cut.write('{"piece": ["d", "priv')
    assert len(read(file, {"a": 1})) == 20
    append(file, row_of("sign").piece, [row_of("sign")])
    assert len(read(file, {"a": 1})) == 21
    append(file, rows[0].piece, [replace(rows[0], accuracy=0.5)])  # measured again: the last holds
    again = read(file, {"a": 1})
    assert len(again) == 21
    assert again[-1].accuracy == 0.5


def test_a_piece_is_measured_by_one_run_at_a_time(tmp_path: Path) -> None:
    file, piece = tmp_path / "rows.json", row_of("none").piece
    asks = (
        "import sys; from pathlib import Path; from benchmarks.rows import Piece, claimed\n"
        "with claimed(Path(sys.argv[1]), Piece(*sys.argv[2:])) as mine: print(mine)"
    )

    def another(wanted: Piece) -> str:
        done = subprocess.run([sys.executable, "-c", asks, str(file), *wanted], capture_output=True, text=True)
        return done.stdout.strip()

    with claimed(file, piece) as mine:
        assert mine
        assert another(piece) == "False"
        assert another(piece._replace(spec="sign")) == "True"


def attack_row(name: str, found: float, records: int, rehearsed: float | None) -> Row:
    return row_of("x", "attack", attack=name, identification=found, records=records, rehearsed=rehearsed, chance=0.01)


def test_the_worst_attack_is_known_afterwards_and_the_selected_one_before() -> None:
    rows = [attack_row("lucky", 0.1, 10, 0.0), attack_row("good", 0.05, 300, 0.04), attack_row("bad", 0.01, 300, None)]
    best = summed(rows)
    assert best is not None
    assert [row.attack for row in best] == ["lucky", "good"]
    assert summed([replace(rows[0], kind="labels")]) is None


def test_one_lucky_record_is_no_reason_to_trust_an_attack() -> None:
    def ranked(*ranks: int) -> Any:
        return SimpleNamespace(records=[SimpleNamespace(rank=rank, candidates=None) for rank in ranks], candidates=4)

    # Guessing: mean (1 + 1/2 + 1/3 + 1/4) / 4, and with every rank once the mean is just that.
    assert above_guessing(ranked(1, 2, 3, 4)) == pytest.approx(0)
    assert above_guessing(ranked(1)) < above_guessing(ranked(*[1] * 10, *[2] * 10))  # type: ignore[operator]
    assert above_guessing(ranked()) is None


def test_what_guessing_reaches(generator: torch.Generator) -> None:
    sizes, chance = (10, 300, 64), 0.05
    hits = [(torch.rand((20000, n), generator=generator) < chance).double().mean(1) for n in sizes]
    best = torch.stack(hits).amax(0)
    limit = highest_by_chance(sizes, chance)
    assert float((best <= limit + 1e-9).double().mean()) >= 0.945
    assert float((best < limit - 1e-9).double().mean()) < 0.95
