"""How often the gate's regression test cries wolf, and what it takes to make it speak.

    python -m benchmarks.gate            # the table of docs/gate.md, about three minutes of one core
    python -m benchmarks.gate --quick

Simulated on scores, through `leakaudit.gate.decision.gate` itself: two results of the same records are drawn, one for
the baseline and one for the change, and gated. Every record has a difficulty of its own that both share; the rest is
drawn anew on either side, as if every attack and every training run had been repeated with other random numbers. (The
same code and seed give the same scores; this is the noise when nothing but chance changed.)

1. False alarms: nothing is changed. How many of 200 seeds fail, how many are inconclusive.
2. Power: a known loss is planted on the one side, in steps. The smallest that fails at least 95 % of runs, for 16, 64
   and 256 records: of identification (that share of the records is newly identified), of pictures (dB), of accuracy.
"""

from __future__ import annotations

import argparse
import datetime as dt
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from leakaudit.gate.assertions import PRESETS, Assertions
from leakaudit.gate.decision import gate
from leakaudit.result.schema import AttackResult, AuditResult, Baseline, DefenseResult, Estimate, RecordScore
from leakaudit.stats import intervals

SIZES = (16, 64, 256)
RULES = Assertions((), PRESETS["recommended"].regressions, None)
DAY = dt.date(2026, 1, 1)
NONE = Estimate(reason="simulated")
CHANCE = 0.01
ATTACKS = ("inverting-gradients", "linkage", "expectation")
PICTURES = 10.0  # dB: spread of PSNR between records is 3 dB, of one record between repetitions 1 dB


@dataclass(frozen=True)
class World:
    """What is true of a defense: how much it leaks to each attack, how close the pictures are, what it costs."""

    rate: float  # of records that a given attack identifies, above chance
    psnr: float = PICTURES + 6  # mean over records, dB; a guess without an update has `PICTURES`
    accuracy: float = 0.6
    spread: float = 0.005  # of accuracy between seeds
    seeds: int = 3
    batch: int = 1


def draw(world: World, records: int, difficulty: np.ndarray, random: np.random.Generator) -> AuditResult:
    """Return a result of the world. `difficulty` (records,) in [0, 1] is what both sides share of a record."""
    attacks = []
    for name in ATTACKS:
        # Half of the records of a batch's fate is the record's own, half is drawn anew for the victim and the record.
        luck = (
            np.repeat(random.random(records // world.batch), world.batch) if world.batch > 1 else random.random(records)
        )
        own = np.where(random.random(records) < 0.5, difficulty, luck)
        hit = (own < world.rate) | (random.random(records) < CHANCE)
        psnr = world.psnr + 3 * (1 - 2 * difficulty) + random.normal(0, 1, records)
        attacks.append(_attack(name, hit, psnr, world.batch))
    accuracies = tuple(float(a) for a in np.clip(random.normal(world.accuracy, world.spread, world.seeds), 0, 1))
    defense = DefenseResult(
        spec="simulated",
        settings={},
        facts={},
        replaces_records=False,
        attacks=tuple(attacks),
        accuracy=intervals.mean(accuracies, (0.0, 1.0)),
        accuracies=accuracies,
        verdict="inconclusive",
        reasons=(),
    )
    guess = Baseline("class-mean", "", intervals.rate(0, records), Estimate(PICTURES, n=records), NONE, NONE)
    return AuditResult(
        target={"test_records": 2000},
        exposure={"preset": "adaptive"},
        assumptions=(),
        findings=(),
        baselines=(guess,),
        chance_accuracy=0.1,
        chance_identification=CHANCE,
        max_identification=0.25,
        defenses=(defense,),
        verdict="inconclusive",
        reasons=(),
        not_tested=(),
        settings={},
        environment={},
        hashes=dict.fromkeys(("private", "test", "auxiliary", "victims", "candidates"), "simulated"),
    )


def _attack(name: str, hit: np.ndarray, psnr: np.ndarray, batch: int) -> AttackResult:
    scores = tuple(
        RecordScore(i // batch, i % batch, "0", "converged", psnr=float(p), identified=bool(h))
        for i, (h, p) in enumerate(zip(hit, psnr, strict=True))
    )
    return AttackResult(
        name=name,
        kind="reconstruction",
        role="adaptive",
        settings={},
        tuned={},
        requires=(),
        statuses={"converged": len(hit) // batch},
        reason=None,
        identification=intervals.rate(int(hit.sum()), len(hit)),
        candidates=100,
        psnr=intervals.median(psnr.tolist()),
        ssim=NONE,
        lpips=NONE,
        r2=NONE,
        psnr_released=NONE,
        label_accuracy=NONE,
        records=scores,
    )


def verdicts(before: World, after: World, records: int, runs: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """Gate `runs` simulated pairs; return how often the gate said what, and how often each check failed."""
    said: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for run in range(runs):
        random = np.random.default_rng((seed, run))
        difficulty = random.random(records)
        first, second = draw(before, records, difficulty, random), draw(after, records, difficulty, random)
        outcome = gate(second, RULES, baseline=first, today=DAY)
        said[outcome.verdict] += 1
        failed.update(check.rule for check in outcome.checks if check.status == "fail")
    return said, failed


def smallest(
    plant: Callable[[float], World], before: World, rule: str, steps: Sequence[float], records: int, runs: int
) -> tuple[float, float] | None:
    """Return the smallest planted loss whose check fails in at least 95 % of `runs`, with that share; None if none."""
    low, high, best = 0, len(steps) - 1, None
    while low <= high:  # power grows with the loss: halve
        middle = (low + high) // 2
        share = verdicts(before, plant(steps[middle]), records, runs, 7)[1][rule] / runs
        if share >= 0.95:
            best, high = (steps[middle], share), middle - 1
        else:
            low = middle + 1
    return best


def false_alarms(runs: int) -> None:
    """Print how often nothing but chance fails the gate."""
    print(f"No change, {runs} seeds each: how many fail (asked: at most 1 %), how many are inconclusive\n")
    print("| records | what leaks | in a batch | seeds of accuracy | fail | inconclusive |")
    print("|---|---|---|---|---|---|")
    total = count = 0
    for records in SIZES:
        for rate, batch, seeds, spread in (
            (0.0, 1, 3, 0.005),
            (0.3, 1, 3, 0.005),
            (0.3, 8, 3, 0.005),
            (0.9, 1, 3, 0.005),
            (0.0, 1, 3, 0.02),
            (0.3, 1, 5, 0.02),
        ):
            world = World(rate, spread=spread, seeds=seeds, batch=batch)
            said, _ = verdicts(world, world, records, runs, 1)
            leaks = "nothing" if rate == 0 else f"{rate:.0%} per attack"
            print(
                f"| {records} | {leaks} | {batch} | {seeds}, ±{100 * spread:g} points | {said['fail']} "
                f"({said['fail'] / runs:.1%}) | {said['inconclusive'] / runs:.0%} |",
                flush=True,
            )
            total, count = total + said["fail"], count + runs
    print(f"\nAll: {total} of {count} ({total / count:.2%}).\n")


def power(runs: int) -> None:
    """Print the smallest losses that are caught."""
    print(f"The smallest loss caught with 95 % power, {runs} runs a step\n")
    print("| records | identification: from nothing | from 30 % per attack | pictures |")
    print("|---|---|---|---|")
    shares = [round(0.02 * i, 2) for i in range(1, 51)]
    decibels = [round(1 + 0.1 * i, 1) for i in range(1, 60)]
    for records in SIZES:
        cells = []
        for base in (0.0, 0.3):
            before = World(base)
            found = smallest(
                lambda d, b=before: shifted(b, d), before, "regression-identification", shares, records, runs
            )
            cells.append("none" if found is None else f"+{100 * found[0]:.0f} points")
        before = World(0.3)
        found = smallest(
            lambda d: World(0.3, psnr=PICTURES + 6 + d), before, "regression-psnr", decibels, records, runs
        )
        cells.append("none" if found is None else f"+{found[0]:.1f} dB (1 dB is always allowed)")
        print(f"| {records} | {' | '.join(cells)} |", flush=True)
    print("\n| seeds | spread between seeds | accuracy |\n|---|---|---|")
    losses = [round(0.0025 * i, 4) for i in range(1, 121)]
    for seeds in (3, 5, 10):
        for spread in (0.005, 0.02):
            before = World(0.0, spread=spread, seeds=seeds)
            found = smallest(
                lambda d, s=spread, k=seeds: World(0.0, accuracy=0.6 - d, spread=s, seeds=k),
                before,
                "regression-accuracy",
                losses,
                16,
                runs,
            )
            words = "none" if found is None else f"−{100 * found[0]:.2g} points (1 point is always allowed)"
            print(f"| {seeds} | {100 * spread:g} points | {words} |", flush=True)


def shifted(before: World, share: float) -> World:
    """Return the world in which that share of the records is newly identified by the attacks' worst case.

    One attack or another may find a record: the worst case of three attacks of rate r over half-shared luck is what is
    moved, so the rate of each is raised until its expectation is.
    """
    random = np.random.default_rng(0)
    n = 4000
    difficulty, lucks, mixes = random.random(n), random.random((3, n)), random.random((3, n)) < 0.5

    def worst(rate: float) -> float:
        return float((np.where(mixes, difficulty, lucks) < rate).any(0).mean())

    wanted, low, high = worst(before.rate) + share, before.rate, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if worst(middle) < wanted else (low, middle)
    return World(high)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="40 runs instead of 200")
    runs = 40 if parser.parse_args().quick else 200
    false_alarms(runs)
    power(runs)


if __name__ == "__main__":
    main()
