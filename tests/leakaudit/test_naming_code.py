"""Code is in the names of the outcomes that it computes, with all that it reads: ours, and users'."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leakaudit.load.loading import load_target
from leakaudit.scene.naming import Kind
from leakaudit.units import code
from tests.leakaudit import audited
from tests.leakaudit.named import EVERY, changed, keys


def test_a_users_module_has_one_name_in_all_processes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("")
    told = (
        "from pathlib import Path; from leakaudit.protocol.usercode import import_file; "
        f"print(import_file(Path({str(file)!r}), 'defines it').__name__)"
    )
    names = set()
    for seed in ("1", "2"):  # of Python's own hashes, by which what is pickled in one is found in the other
        env = os.environ | {"PYTHONHASHSEED": seed}
        names.add(subprocess.run([sys.executable, "-c", told], env=env, capture_output=True, text=True).stdout)
    assert len(names) == 1
    assert names != {""}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("defenses/prune.py", EVERY - {"moment", "scene"}),
        ("defenses/clip.py", frozenset()),
        ("attacks/replay.py", {"tune", "run", "attack", "weakened"}),
        ("attacks/analytic.py", frozenset()),
        ("leakaudit/score/utility.py", EVERY),  # plans count with it
        ("leakaudit/score/scoring.py", {"moment", "tune", "run", "attack", "weakened"}),
        ("leakaudit/cli/scan.py", frozenset()),
        ("reports/html.py", frozenset()),
    ],
)
def test_code_of_ours_is_in_the_name_of_what_it_computes(
    file: str, expected: frozenset[Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = keys(audited.target()), code._read
    edited = Path(code.__file__).resolve().parents[2] / file
    assert edited.is_file()

    def otherwise(path: Path) -> Any:
        found = read(path)
        return replace(found, digest=b"edited") if path == edited else found

    monkeypatch.setattr(code, "_read", otherwise)
    assert changed(before, keys(audited.target())) == expected


def reread() -> None:
    """Read code as another process would."""
    for cached in (code._read, code._around, code._home):
        cached.cache_clear()


MODEL = """import torch
from torch import nn
from torch.utils.data import TensorDataset
from layers import Line

train_data = TensorDataset(torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2)
model = Line()
"""
LAYERS = """import torch
from torch import nn


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(64, 2)

    def forward(self, x):
        return self.line(x.flatten(1))
"""


@pytest.mark.parametrize("part", ["model.py", "layers.py"])
def test_code_of_a_users_model_is_in_every_name_whatever_it_computes(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "layers.py").write_text(LAYERS)
    spec = str(tmp_path / "model.py")
    before = keys(load_target(spec))
    reread()
    assert changed(before, keys(load_target(spec))) == frozenset()
    (tmp_path / part).write_text((tmp_path / part).read_text() + "\n# another forward, which does the same\n")
    reread()
    assert changed(before, keys(load_target(spec))) == EVERY
