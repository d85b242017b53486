"""The gate on real audits: a model trained again, which is no regression, and defenses weakened on purpose.

    python -m benchmarks.gate_retrained          # about 15 minutes of one core; no download

The 200 pictures inside scikit-image (`leakaudit demo`), 40 private records, two attacks of the quick battery with those
built against each defense.

1. The classifier is trained eight times from other random weights, audited each time, and every ordered pair of audits
   is gated. The weights differ, so that one may well leak a little more: how often does the gate call it a loss?
2. From one of them, each defense is weakened in steps: the weakening from which on the gate fails.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
from collections import Counter
from dataclasses import replace

import torch

from leakaudit.audit.audit import audit
from leakaudit.gate.assertions import PRESETS, Assertions
from leakaudit.gate.decision import gate
from leakaudit.protocol.target import Target, reinitialised
from leakaudit.result.schema import AuditResult
from leakaudit.scene.demo import demo_target
from leakaudit.scene.plan import Plan
from leakaudit.score.utility import train

RULES = Assertions((), PRESETS["recommended"].regressions, None)
DAY = dt.date(2026, 1, 1)
STRONG = ("gaussian:std=1", "prune:sparsity=0.999", "dp-sgd:noise_multiplier=1")
WEAKER = {
    "gaussian:std=1": ("gaussian:std=0.7", "gaussian:std=0.5", "gaussian:std=0.3", "gaussian:std=0.1"),
    "prune:sparsity=0.999": ("prune:sparsity=0.995", "prune:sparsity=0.99", "prune:sparsity=0.95"),
    "dp-sgd:noise_multiplier=1": ("dp-sgd:noise_multiplier=0.3", "dp-sgd:noise_multiplier=0.1"),
}


def measured(target: Target, defenses: tuple[str, ...], records: int) -> AuditResult:
    """Audit without accuracy: training runs do not depend on the weights under audit."""
    plan = Plan(
        defenses=defenses,
        attacks=("inverting-gradients", "linkage"),
        battery="quick",
        records=records,
        utility=False,
        images="none",
    )
    return audit(target, plan)


def retrained(target: Target, seed: int) -> Target:
    """Return the target with the classifier trained anew from other weights, in another order."""
    model = reinitialised(target.model, seed)
    train(model, target.private, target.loss, epochs=3, seed=seed)
    return replace(target, model=model)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 trainings and 16 records")
    quick = parser.parse_args().quick
    times, records = (3, 16) if quick else (8, 40)
    torch.set_num_threads(1)
    target = demo_target(0)
    results = [measured(retrained(target, 100 + k), STRONG, records) for k in range(times)]
    print(f"Identified of {records} by the worst attack, in {times} trainings:\n")
    for spec in STRONG:
        rows = [next(d for d in r.defenses if d.spec == spec) for r in results]
        worst = [max(round((a.identification.value or 0) * a.identification.n) for a in row.attacks) for row in rows]
        print(f"- {spec}: {', '.join(map(str, worst))}")
    said: Counter[str] = Counter()
    checks: Counter[tuple[str, str]] = Counter()
    for first, second in itertools.permutations(results, 2):
        outcome = gate(second, RULES, baseline=first, today=DAY)
        said[outcome.verdict] += 1
        checks.update((c.rule, c.status) for c in outcome.checks)
    print(f"\nTrained again, {sum(said.values())} ordered pairs: {dict(said)}; by check: {dict(checks)}\n")
    print("| weakened | identified before | now | gate |\n|---|---|---|---|")
    again = retrained(target, 100)
    for spec, weaker in WEAKER.items():
        before = measured(again, (spec,), records)
        for other in weaker:
            outcome = gate(measured(again, (other,), records), RULES, baseline=before, today=DAY)
            check = next(c for c in outcome.checks if c.rule == "regression-identification")
            failed = [c.rule for c in outcome.checks if c.status == "fail"]
            cells = [f"{100 * float(check.evidence[key] or 0):.0f}%" for key in ("before", "after")]
            told = outcome.verdict + (f" ({', '.join(failed)})" if failed else "")
            print(f"| `{spec}` → `{other}` | {cells[0]} | {cells[1]} | {told} |", flush=True)


if __name__ == "__main__":
    main()
