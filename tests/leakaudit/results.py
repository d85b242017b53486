"""Results made by hand: what each attack identified of which record, and what training gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leakaudit.result.schema import AttackResult, AuditResult, Baseline, DefenseResult, Estimate, RecordScore
from leakaudit.stats import intervals

NONE = Estimate(reason="the attack draws no picture")
HASHES = dict.fromkeys(("private", "test", "auxiliary", "victims", "candidates"), "a1")


def attack(
    hits: Sequence[bool],
    *,
    name: str = "linkage",
    role: str = "adaptive",
    kind: str = "reconstruction",
    psnr: Sequence[float] | None = None,
    batch: int = 1,
    candidates: int = 100,
) -> AttackResult:
    """An attack that was scored on every record."""
    records = tuple(
        RecordScore(
            victim=i // batch,
            record=i % batch,
            label="cat",
            status="converged",
            psnr=None if psnr is None else psnr[i],
            identified=hit,
            rank=1 if hit else 2,
        )
        for i, hit in enumerate(hits)
    )
    return AttackResult(
        name=name,
        kind=kind,
        role=role,
        settings={},
        tuned={},
        requires=(),
        statuses={"converged": len(hits) // batch},
        reason=None,
        identification=intervals.rate(sum(hits), len(hits)),
        candidates=candidates,
        psnr=NONE if psnr is None else intervals.median(list(psnr)),
        ssim=NONE,
        lpips=NONE,
        r2=NONE,
        psnr_released=NONE,
        label_accuracy=NONE,
        records=records,
    )


def lost(name: str, status: str, victims: int, reason: str = "it crashed", role: str = "adaptive") -> AttackResult:
    """An attack without a score."""
    nothing = Estimate(reason=reason)
    return replace(
        attack([False] * victims, name=name, role=role),
        statuses={status: victims},
        reason=reason,
        identification=nothing,
        psnr=nothing,
        records=(),
    )


def passed_over(name: str, by: str = "replay", victims: int = 40, **changes: Any) -> AttackResult:
    """An attack that was skipped, since another one had settled the verdict."""
    row = lost(name, "skipped", victims, f"the verdict was settled by {by}")
    return replace(row, settled_by=by, **changes)


def defense(spec: str, *attacks: AttackResult, accuracies: Sequence[float] = (), **changes: Any) -> DefenseResult:
    """A defense with its attacks."""
    row = DefenseResult(
        spec=spec,
        settings={},
        facts={},
        replaces_records=False,
        attacks=attacks,
        accuracy=intervals.mean(accuracies, (0.0, 1.0), None if accuracies else "training runs were switched off"),
        accuracies=tuple(accuracies),
        verdict="pass",
        reasons=("measured",),
        requested=spec != "none",
    )
    return replace(row, **changes)


def result(*defenses: DefenseResult, **changes: Any) -> AuditResult:
    """An audit whose undefended control leaks everything, unless one is among `defenses`."""
    control = defense("none", attack([True] * 40), accuracies=(0.80, 0.81, 0.82))
    rows = defenses if any(d.spec == "none" for d in defenses) else (control, *defenses)
    guess = Baseline("class-mean", "", intervals.rate(0, 40), Estimate(10.0, n=40), NONE, NONE)
    made = AuditResult(
        target={"name": "model.py", "model": "Net", "parameters": 10, "input_shape": "1×8×8", "classes": 10}
        | {"test_records": 1000},
        exposure={"preset": "adaptive", "defense": True},
        assumptions=("One update is seen.",),
        findings=(),
        baselines=(guess,),
        chance_accuracy=0.1,
        chance_identification=0.01,
        max_identification=0.25,
        defenses=rows,
        verdict="pass",
        reasons=("measured",),
        not_tested=(),
        settings={"battery": "standard", "seed": 0, "records": 40, "batch_size": 1},
        environment={"leakaudit": "0.1.0", "torch": "2"},
        hashes=dict(HASHES),
    )
    return replace(made, **changes)


def some(hits: int, of: int = 40) -> list[bool]:
    """The first `hits` of `of` records."""
    return [i < hits for i in range(of)]
