"""Who was in the private set? Shadow models and the likelihood-ratio attack (LiRA) on all that a defense releases.

    python -m benchmarks.shadows [--quick] [--json FILE] [--defenses none class-conditional obscure]
                                 [--dataset cifar10|mnist] [--shadows 16] [--records train_b]

A pool of training pictures; every shadow has a random half of it as its private set, fits the defense on it and keeps
what `benchmarks.owner` computes of every record of the pool. Each shadow is then the victim once and attacked with the
others (`benchmarks.lira`). No test picture is used: the accuracy is that on the records that a shadow had not.
Every shadow goes to FILE at once, and a run with the same FILE and settings goes on where the last one ended.
The data are `../shared/data` beside the repository. `--quick` shows how it works and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import frontier, lira
from benchmarks.inversion import load
from benchmarks.membership import by_weights
from benchmarks.obscure import log, ticker
from benchmarks.owner import Effort, Population, everything, population, statistics_of
from benchmarks.tables import percent, table
from leakaudit.errors import UserError
from leakaudit.files.writing import write_atomically
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import Target
from leakaudit.result.schema import Estimate
from leakaudit.score.measures import accuracy
from leakaudit.score.membership import caught, threshold
from leakaudit.score.nearness import rank_auc
from leakaudit.stats import intervals
from leakaudit.work.progress import monitored
from leakaudit.work.seeding import derive, generator_for

DEFENSES = ("none", "class-conditional", "obscure")
FALSE_ALARMS = (0.001, 0.01, 0.1)
TOGETHER = "all together"
SIMPLE = "no shadows"  # the number itself, one threshold for all records: Yeom et al. 2018


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is: records of the pool, of which every shadow has half, and how long models are trained."""

    name: str = "full"
    pool: int = 2000
    effort: Effort = field(default_factory=Effort)
    settings: dict[str, str] | None = None  # of every defense that has them


FULL = Size()
QUICK = Size(
    name="quick",
    pool=240,
    effort=Effort(epochs=4, student=4, widths=(16, 32)),
    settings={"steps": "5", "epochs": "5", "latent": "32"},
)


@dataclass(frozen=True)
class Shadow:
    """One shadow of one defense: what its owner computes of every record of the pool, and the older attack on it."""

    spec: str
    number: int
    accuracy: float  # of the clients' model, on the records that this shadow had not
    known: dict[str, list[float]]  # by the name of the number, record by record of the pool
    older: dict[str, float]  # area under the curve of `benchmarks.membership.by_weights`
    seconds: float


@dataclass(frozen=True)
class Attacked:
    """One attack on every victim: `number` is what it looks at, `way` how."""

    number: str
    way: str
    auc: Estimate  # mean over victims
    told: dict[float, Estimate]  # of members, by the share of false alarms; exact interval over records
    spread: dict[float, Estimate]  # the same as a mean over victims


def halves(pool: int, shadows: int, seed: int) -> torch.Tensor:
    """Return who is in the private set of every shadow (S, R): a half each, drawn independently of the others.

    Independently, since with every record in exactly half of the shadows the others would tell where it is.
    """
    found = torch.zeros(shadows, pool, dtype=torch.bool)
    for number in range(shadows):
        order = torch.randperm(pool, generator=generator_for(seed, "half", number))
        found[number, order[: pool // 2]] = True
    return found


def pool_of(dataset: str, part: str, size: Size, seed: int) -> Target:
    """Return a target whose private records are the pool, training pictures all; it has no test record."""
    if dataset == "mnist":
        whole = frontier.mnist(frontier.Size(name="pool", private=5000, auxiliary=5000, test=0), seed)
        records = whole.private if part == "train_a" else whole.auxiliary
    else:
        whole = frontier.cifar10(frontier.Size(name="pool", private=1, auxiliary=1, test=1), seed)
        records = load(part)
    nobody = records[:0]
    return replace(whole, private=records[: size.pool], test=nobody, auxiliary=nobody)


def shadow(
    pool: Target, known: Population, spec: str, number: int, inside: torch.Tensor, size: Size, seed: int
) -> Shadow:
    """Fit one shadow on its records and compute all numbers of the pool's."""
    began = time.process_time()
    own = replace(pool, private=pool.private[inside], test=pool.private[:0])
    others = pool.private[~inside]
    name = derive(seed, spec, number)
    mirror = pool.name != "mnist"
    full = frontier.effective(spec, frontier.SETTINGS.get(pool.name, {}), size.settings or {})
    defense = parse_defense(full).fit(own, generator_for(name, "fit"))
    found, model = statistics_of(own, defense, pool.private, known, size.effort, mirror=mirror, seed=name)
    shown = everything(defense, own.private, generator_for(name, "older"))
    told = by_weights(replace(own, test=others), defense, shown, model, 100, 100, seed)
    return Shadow(
        spec,
        number,
        accuracy(model, others),
        {each: [float(f"{v:.6g}") for v in values.tolist()] for each, values in found.items()},
        {each.by: each.auc for each in told},
        time.process_time() - began,
    )


def attacks(shadows: Sequence[Shadow], inside: torch.Tensor) -> list[Attacked]:
    """Return every attack on these shadows, each the victim once; `inside` (S, R) are those of the same shadows."""
    names = list(shadows[0].known)
    values = torch.tensor([[each.known[name] for name in names] for each in shadows], dtype=torch.float64)
    values = values.transpose(1, 2)  # (S, R, Q)
    victims = range(len(shadows))
    found = []
    by_way = {way: [lira.attacked(values, inside, v, way) for v in victims] for way in lira.WAYS}
    by_way[SIMPLE] = [values[v] for v in victims]
    for q, name in enumerate(names):
        found += [judged(name, way, [s[:, q] for s in by_way[way]], inside) for way in (SIMPLE, *lira.WAYS)]
    together = [lira.combined(values, inside, v) for v in victims]
    return [*found, judged(TOGETHER, "regression", together, inside)]


def judged(number: str, way: str, scores: Sequence[torch.Tensor], inside: torch.Tensor) -> Attacked:
    """Return how well scores (R,) of every victim tell its members, by one threshold for all victims."""
    pairs = [(s[had], s[~had]) for s, had in zip(scores, inside, strict=True)]
    areas = [rank_auc(others, members).value or 0.0 for members, others in pairs]
    members, others = (torch.cat(side) for side in zip(*pairs, strict=True))
    told, spread = {}, {}
    for share in FALSE_ALARMS:
        told[share] = caught(members, others, share)
        limit = threshold(others, share)
        rates = [] if limit is None else [float((each > limit).double().mean()) for each, _ in pairs]
        spread[share] = intervals.mean(rates, within=(0.0, 1.0), reason=told[share].reason)
    return Attacked(number, way, intervals.mean(areas, within=(0.0, 1.0)), told, spread)


def report(spec: str, shadows: Sequence[Shadow], found: Sequence[Attacked]) -> str:
    """Return the table of one defense, the attack on everything together first, then by area under the curve."""
    right = statistics.fmean(s.accuracy for s in shadows)
    lines = [
        f"\n=== {spec}: {len(shadows)} victims, each attacked with the {len(shadows) - 1} others; accuracy of the "
        f"clients' model {percent(right)} %; {statistics.fmean(s.seconds for s in shadows):.0f} s of CPU a shadow",
        "members told at so many false alarms, in %: (exact, over records) [Student's, over victims]",
    ]
    order = sorted(found, key=lambda a: (a.number != TOGETHER, -(a.auc.value or 0.0)))
    rows = [[a.number, a.way, area(a.auc), *(cell(a, share) for share in FALSE_ALARMS)] for a in order]
    older = {by: [s.older[by] for s in shadows] for by in shadows[0].older}
    dashes = ["–"] * len(FALSE_ALARMS)
    rows += [[by, "older attack", area(intervals.mean(each, within=(0.0, 1.0))), *dashes] for by, each in older.items()]
    head = ("what is looked at", "how", "AUC [over victims]", *(f"at {percent(s)} %" for s in FALSE_ALARMS))
    return "\n".join([*lines, table(head, rows)])


def area(value: Estimate) -> str:
    """Return an area under the curve with its interval over victims."""
    ends = "" if value.low is None or value.high is None else f" [{value.low:.3f}–{value.high:.3f}]"
    return "–" if value.value is None else f"{value.value:.3f}{ends}"


def cell(attack: Attacked, share: float) -> str:
    """Return a share of members told, with both intervals."""
    told, spread = attack.told[share], attack.spread[share]
    ends = "" if spread.low is None or spread.high is None else f" [{100 * spread.low:.1f}–{100 * spread.high:.1f}]"
    return percent(told.value, told.low, told.high) + ends


def settings_of(options: argparse.Namespace, size: Size) -> dict[str, Any]:
    """Return what the shadows of one file have in common, as JSON gives it back."""
    found = {"dataset": options.dataset, "records": options.records, "seed": options.seed, **asdict(size)}
    kept: dict[str, Any] = json.loads(json.dumps(found))
    return kept


def read(path: Path, run: dict[str, Any]) -> list[Shadow]:
    """Return the shadows of an earlier run, none without a file. Raises UserError on other settings."""
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text("utf-8"))
        found = [Shadow(**each) for each in kept["shadows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a file of this benchmark ({error}): choose another --json.") from error
    if kept["run"] != run:
        other = sorted(k for k in {*kept["run"], *run} if kept["run"].get(k) != run.get(k))
        raise UserError(f"{path} was measured with another {', '.join(other)}: choose another --json.")
    return found


def write(path: Path, run: dict[str, Any], shadows: Sequence[Shadow], found: Sequence[dict[str, Any]] = ()) -> None:
    """Write all shadows, and the attacks on them, so that an interrupt leaves the old file or the new one."""
    kept = {"run": run, "attacks": list(found), "shadows": [asdict(each) for each in shadows]}
    write_atomically(path, json.dumps(kept) + "\n")


def measured(
    pool: Target, specs: Sequence[str], count: int, size: Size, seed: int, done: Sequence[Shadow]
) -> Iterator[Shadow]:
    """Yield the shadows that are not done, defense by defense."""
    inside = halves(len(pool.private), count, seed)
    have = {(each.spec, each.number) for each in done}
    known = population(pool.private, len(pool.classes))
    for spec in specs:
        for number in range(count):
            if (spec, number) not in have:
                yield shadow(pool, known, spec, number, inside[number], size, seed)


def concluded(
    specs: Sequence[str], shadows: Sequence[Shadow], pool: int, seed: int
) -> Iterator[tuple[str, list[Shadow], list[Attacked]]]:
    """Yield every defense with its shadows, if there are enough, and the attacks on them."""
    for spec in specs:
        mine = sorted((s for s in shadows if s.spec == spec), key=lambda s: s.number)
        if len(mine) > lira.LEAST:
            inside = halves(pool, mine[-1].number + 1, seed)[[s.number for s in mine]]
            yield spec, mine, attacks(mine, inside)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit what shadows are asked for and not yet in the file, then attack each with the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small pool, short training, 4 shadows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every shadow here at once; goes on from it")
    parser.add_argument("--defenses", nargs="+", metavar="SPEC", default=list(DEFENSES))
    parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "mnist"])
    parser.add_argument("--records", default="train_b", choices=["train_a", "train_b"], help="settings: train_a")
    parser.add_argument("--shadows", type=int, help="16; 4 with --quick")
    parser.add_argument("--pool", type=int, help="records, of which every shadow has half: 2000; 240 with --quick")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    size = QUICK if options.quick else FULL
    size = replace(size, pool=options.pool or size.pool)
    count = options.shadows or (lira.LEAST + 1 if options.quick else 16)
    if count <= lira.LEAST:
        parser.error(f"--shadows must be at least {lira.LEAST + 1}")
    if not frontier.FILES[options.dataset].exists():
        parser.error(f"the pictures of {options.dataset} are not at {frontier.FILES[options.dataset]}")
    run = settings_of(options, size)
    try:
        for spec in options.defenses:
            parse_defense(spec)
        shadows = read(options.json, run) if options.json else []
    except UserError as error:
        parser.error(str(error))
    pool = pool_of(options.dataset, options.records, size, options.seed)
    try:
        with monitored(ticker()):
            for each in measured(pool, options.defenses, count, size, options.seed, shadows):
                shadows.append(each)
                told = f"{each.seconds:.0f} s, accuracy {percent(each.accuracy)} %"
                log(f"{each.spec}, shadow {each.number + 1} of {count}: {told}")
                if options.json:
                    write(options.json, run, shadows)
    except KeyboardInterrupt:
        log("interrupted: what is below was measured; the same command with --json goes on")
    found = []
    for spec, mine, each in concluded(options.defenses, shadows, size.pool, options.seed):
        print(report(spec, mine, each))
        found += [{"spec": spec, "victims": len(mine), **summary(attack)} for attack in each]
    if options.json and found:
        write(options.json, run, shadows, found)
    if options.quick:
        print("\nA quick run shows how it works and judges nothing: few records, short training, few shadows.")


def summary(attack: Attacked) -> dict[str, Any]:
    """Return an attack as JSON has it."""
    by_share = {
        f"{name} at {share:g}": asdict(values[share])
        for name, values in (("told", attack.told), ("spread", attack.spread))
        for share in FALSE_ALARMS
    }
    return {"number": attack.number, "way": attack.way, "auc": asdict(attack.auc), **by_share}


if __name__ == "__main__":
    main()
