"""A result of version 1 loads, and is written back, byte for byte, forever."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from leakaudit.result.schema import AuditResult, from_json, to_json


def test_the_golden_result_is_written_back_byte_for_byte(golden: AuditResult, golden_path: Path) -> None:
    assert to_json(golden).encode() == golden_path.read_bytes()


def test_the_golden_result_says_what_it_said(golden: AuditResult) -> None:
    assert golden.verdict == "fail"
    assert [d.spec for d in golden.defenses] == ["none", "gaussian:std=0.01", "dp-sgd:noise_multiplier=1", "obscure"]
    attacks = [a for d in golden.defenses for a in d.attacks]
    assert {a.kind for a in attacks} == {"reconstruction", "labels", "linkage"}
    assert {a.role for a in attacks} == {"standard", "adaptive", "bound"}
    met = {status for a in attacks for status in a.statuses}
    assert met == {"converged", "diverged", "not-applicable", "out-of-memory", "budget", "failed"}


def test_notes_are_written_where_there_are_some_and_read_again(golden: AuditResult) -> None:
    """A field that came after version 1 began: a result without it loads, one with it comes back whole."""
    first = golden.defenses[0].attacks[0]
    assert first.notes == ()
    noted = replace(golden.defenses[0], attacks=(replace(first, notes=("ran in pieces of 2 of 4 trials",)),))
    changed = replace(golden, defenses=(noted, *golden.defenses[1:]))
    assert from_json(to_json(changed)) == changed
    assert to_json(changed).count('"notes"') == 1


def test_every_missing_number_of_the_golden_result_has_a_reason(golden_path: Path) -> None:
    def estimates(node: object) -> list[dict[str, object]]:
        if isinstance(node, list):
            return [e for item in node for e in estimates(item)]
        if not isinstance(node, dict):
            return []
        found = [node] if {"value", "low", "high", "n", "reason"} <= node.keys() else []
        return found + [e for item in node.values() for e in estimates(item)]

    found = estimates(json.loads(golden_path.read_text(encoding="utf-8")))
    missing = [e for e in found if e["value"] is None]
    assert len(found) > len(missing) > 20
    assert all(e["reason"] for e in missing)


def test_reports_read_the_result_and_import_no_attack_defense_or_torch(golden_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from rich.console import Console
from leakaudit.reports.html import render
from leakaudit.reports.terminal import summary
from leakaudit.result.schema import load
result = load(Path(sys.argv[1]))
assert render(result)
summary(result, Console(quiet=True))
MEASURING = ("work", "protocol", "engine", "load", "score", "audit", "attacks", "defenses")
parts = {m: (m.split(".") + [""])[:2] for m in sys.modules}
bad = [m for m, (top, wing) in parts.items() if top == "torch" or (top == "leakaudit" and wing in MEASURING)]
sys.exit(", ".join(bad) or 0)
"""
    run = subprocess.run([sys.executable, "-c", code, str(golden_path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
