"""A small scan for tests of participants: processes of their own, as users start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.leakaudit.test_cli import MODEL

ROOT = Path(__file__).resolve().parents[2]
# An attack that finds nothing. Where a file "hold" is, the first one who runs it says who it is, and stays at it.
SLOW = """
import os, time
from dataclasses import dataclass
from pathlib import Path
import torch
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.registry import register_attack

HOLD, HELD = Path(__file__).with_name("hold"), Path(__file__).with_name("held")

@register_attack
@dataclass(frozen=True)
class Slow(Attack):
    name = "slow"
    summary = "finds nothing, slowly"
    kind = "reconstruction"
    family = "matching"
    requires = frozenset()

    def __call__(self, model, update, generator):
        if HOLD.exists():
            HOLD.unlink()
            HELD.write_text(str(os.getpid()))
            time.sleep(120)
        shape = (update.victims, update.batch_size, *update.input_shape)
        drawn, found = torch.rand(shape, generator=generator), ("converged",) * update.victims
        return Reconstruction(drawn, None, torch.zeros(update.victims), found)
"""
WORDS = ("scan", "model.py", "-a", "slow.py:Slow", "-a", "analytic", "-a", "labels", "--no-utility", "--quick")
SCAN = (*WORDS, "--records", "4", "--exit-zero")


def scene(folder: Path) -> None:
    """Write the model and the attack into a folder."""
    (folder / "model.py").write_text(MODEL)
    (folder / "slow.py").write_text(SLOW)


def environment() -> dict[str, str]:
    """Return the variables of a process that finds this leakaudit."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command in a folder; its output is in one text."""
    return subprocess.Popen(
        [sys.executable, "-m", "leakaudit", *words],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it said."""
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def until(happened: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until something is true, and return it."""
    late = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < late, "it did not happen"
        time.sleep(0.05)
    return found


def result(folder: Path) -> dict[str, Any]:
    """Return a result but for what differs from one time to another."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    found.pop("timings"), found.pop("made")
    return found
