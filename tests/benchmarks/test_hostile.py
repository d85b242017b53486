"""A hundred hostile inputs, and the broken commands that the benchmark must count as what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_hundred_hostile_inputs_end_in_a_sentence() -> None:
    """In a process of its own, which forks one for each input and so must have no threads: another start of the seed
    each time the suite changes would hide what it finds, so it is fixed.
    """
    words = [sys.executable, "-m", "benchmarks.hostile", "--count", "100", "--first", "2000"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert "controls: all 8 counted" in done.stdout, done.stdout + done.stderr
    assert "wrong: nothing" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[-1].startswith("| all | 100 |")
    assert {row.split(" | ")[0][2:] for row in rows} >= {"options", "settings", "json", "toml", "npz", "generators"}
