"""The four claims of the obscuring generator, measured beside every other defense on CIFAR-10, MNIST and LFW faces.

    python -m benchmarks.obscure [--quick] [--json FILE] [--datasets cifar10 mnist lfw] [--defenses SPEC …] [--seeds 3]
                                 [--plot FILE.svg] [--seed 0]

(a) distinct: MSE, SSIM and LPIPS between x̃ and x, beside those of the class mean and of another real picture of the
class, and whether x̃ is nearer to *any* private record than to records it was not made from.
(b) predictive: clean test accuracy of networks trained from fresh weights on shared updates only, by FedSGD, and for
some defenses by FedAvg with 5 clients, IID and with 2 of 10 classes each.
(c) private: identification of a record among up to 100 of its class, R², and labels read off an update, by every
attack of the defense's own list and by the standard ones, with the defense, its networks and auxiliary records in hand;
at one view of a record and at 16 pooled ones. `weights` is another attacker, who owns the fitted defense, or a model
trained on what it released, and says who was in the client's set; it is not counted in `worst`.
(d) better: every defense over its strengths, accuracy against identification by the worst attack.

`worst` is the highest rate of any attack, known only afterwards: of many attacks that guess, the best is above chance,
and `guessing` says what they stay below 19 times in 20. `selected` is the rate of the attack that an attacker would
choose, by what each attack finds among its own records. Intervals are exact 95 % ones (Clopper and Pearson) for rates,
Student's t over seeds for accuracy.

Two settings are kept apart. private-only: a defense is fitted on the client's own records and nothing else.
public-data: it is also given public records of the domain, which the attackers own too; the control there is training
on these alone. The full run takes about four hours of one core (two where CIFAR-10 runs beside the others, in a FILE of
its own), the defenses that matter most first; `--quick` takes four minutes: it shows how it works and judges nothing.
Every row goes to FILE at once, and a run with the same FILE and settings goes on where the last one ended.
CIFAR-10 and MNIST need `../shared/data` beside the repository and are skipped without.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks import frontier
from benchmarks.distinct import perceptual
from benchmarks.frontier import FILES, FULL, QUICK, SETTINGS, SMALL, SWEEP, TARGETS, Scene, measure, unknown
from benchmarks.frontierplot import draw
from benchmarks.rows import Kind, Row, Setting, read, write
from leakaudit.errors import UserError
from leakaudit.work.progress import Monitor, Work, monitored


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ticker(every: float = 20.0) -> Monitor:
    """Return a monitor that writes a line to stderr every so many seconds."""
    shown = time.monotonic()

    def show(work: Work, done: int, total: int) -> None:
        nonlocal shown
        if total and time.monotonic() - shown >= every:
            shown = time.monotonic()
            log(f"    … {work}: {done} of {total}")

    return Monitor(show=show)


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "–"
    interval = "" if low is None or high is None else f" ({100 * low:.1f}–{100 * high:.1f})"
    return f"{100 * value:.1f}{interval}"


def rate(row: Row) -> str:
    return percent(row.identification, row.identification_low, row.identification_high)


def accuracy(row: Row) -> str:
    return percent(row.accuracy, row.accuracy_low, row.accuracy_high)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return aligned columns under a head."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rows = [head, ["-" * w for w in widths], *lines]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def name_of(row: Row) -> str:
    return row.spec + (" (needs no public data)" if _borrowed(row) else "")


def _borrowed(row: Row) -> bool:
    return row.facts.get("borrowed") == "true"


def belonging(rows: Sequence[Row], dataset: str, setting: Setting) -> list[Row]:
    """Return a data set's rows in one setting; beside public data stand the controls that need none, marked so."""
    here = [row for row in rows if row.dataset == dataset]
    own = [row for row in here if row.setting == setting]
    if setting == "private-only" or not own:
        return own
    controls = [row for row in here if row.setting == "private-only" and row.spec in ("none", "class-conditional")]
    return [*(replace(row, facts={**row.facts, "borrowed": "true"}) for row in controls), *own]


def report(rows: Sequence[Row], dataset: str, setting: Setting) -> str:
    """Return the tables of one data set in one setting."""
    here = belonging(rows, dataset, setting)
    if not here:
        return ""
    summaries = ("worst", "selected", "failed")
    kinds: dict[str, list[Row]] = {kind: [] for kind in get_args(Kind)}
    for row in here:
        if row.kind in summaries or not _borrowed(row):
            kinds[row.kind].append(row)
    chances = [row.chance for row in here if row.chance is not None]
    chance = f"chance {percent(chances[0])} %" if chances else ""
    parts = [f"\n=== {dataset}, {setting}; in %, 95 % intervals; identification by {chance}"]
    selected = {row.spec: row for row in kinds["selected"]}
    lines = [
        [name_of(w), accuracy(w), rate(w), f"{w.attack} ×{w.views}", percent(w.by_chance),
         rate(s := selected[w.spec]), f"{s.attack} ×{s.views}"]
        for w in kinds["worst"] if w.spec in selected
    ]  # fmt: skip
    lines += [[name_of(row), accuracy(row), "–", row.reason or "", "–", "–", ""] for row in kinds["control"]]
    lines += [[name_of(row), "–", "–", f"failed: {row.reason}", "–", "–", ""] for row in kinds["failed"]]
    head: tuple[str, ...] = (
        "(d) defense",
        "accuracy",
        "worst attack finds",
        "which",
        "guessing",
        "selected attack finds",
        "which",
    )
    parts.append(table(head, lines))
    if kinds["distinct"]:
        parts.append(_distinct(kinds["distinct"]))
    if kinds["federated"]:
        lines = [[name_of(row), row.split or "", accuracy(row), row.reason or ""] for row in kinds["federated"]]
        parts.append(table(("(b) FedAvg, 5 clients", "split", "accuracy", ""), lines))
    lines = [
        [name_of(row), row.attack or "", str(row.views or "–"), str(row.records), rate(row), number(row.r2),
         number(row.psnr), percent(row.label_accuracy), number(row.auc),
         "" if row.status == "measured" else f"{row.status}: {row.reason}"]
        for row in [*kinds["attack"], *kinds["labels"], *kinds["weights"]]
    ]  # fmt: skip
    order = {name_of(row): i for i, row in reversed(list(enumerate(here)))}
    lines.sort(key=lambda line: order[line[0]])
    head = ("(c) defense", "attack", "views", "records", "identified", "R²", "PSNR", "labels", "AUC", "")
    if lines:
        parts.append(table(head, lines))
    return "\n\n".join(parts)


def _distinct(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        d = row.distinct
        cells = [
            " / ".join(number(d.get(f"{metric}_{of}")) for of in ("released", "class_mean", "another"))
            for metric in ("mse", "ssim", "lpips")
        ]
        near = " / ".join(number(d.get(f"nearest_private_{of}")) for of in ("released", "test"))
        share = percent(d.get("nearer_private"), d.get("nearer_private_low"), d.get("nearer_private_high"))
        lines.append([name_of(row), *cells, near, share])
    shown = "x̃ / class mean / another"
    head = ("(a) defense", f"MSE to x: {shown}", f"SSIM: {shown}", f"LPIPS: {shown}",
            "MSE to nearest private: x̃ / test", "nearer to private than to others (50: neither)")  # fmt: skip
    return table(head, lines)


def chosen(options: argparse.Namespace) -> list[tuple[Setting, str]]:
    """Return the sweep, or what of it was asked for by name or spec; other specs are private-only."""
    sweep = [entry for entry in SWEEP if not options.quick or entry[1] in QUICK]
    if not options.defenses:
        return sweep
    found: list[tuple[Setting, str]] = []
    for wanted in options.defenses:
        exact = [entry for entry in SWEEP if entry[1] == wanted]
        named = [entry for entry in sweep if entry[1].partition(":")[0] == wanted]
        found += (named if ":" not in wanted else exact) or exact or [("private-only", wanted)]
    return list(dict.fromkeys(found))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and not yet in the file; then print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few defenses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row here at once; goes on from it")
    parser.add_argument("--datasets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--defenses", nargs="+", metavar="SPEC", help="names (all strengths) or specs; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="training runs per defense; under 3 have no interval")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw accuracy against the worst attack")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    torch.set_num_threads(1)
    size = replace(SMALL if options.quick else FULL, seeds=options.seeds)
    run = frontier.run_settings(size, options.seed)
    try:
        rows = read(options.json, run) if options.json else []
    except UserError as error:
        parser.error(str(error))
    sweep = []
    for setting, spec in chosen(options):
        if (why := unknown(spec)) is None:
            sweep.append((setting, spec))
        else:
            print(f"skipped: {spec}: {why}")
    datasets = []
    for dataset in options.datasets:
        if dataset in FILES and not FILES[dataset].exists():
            print(f"skipped: {dataset}: its pictures are not at {FILES[dataset]}")
        else:
            datasets.append(dataset)
    lpips = perceptual()
    if isinstance(lpips, str):
        log(f"no LPIPS: {lpips}")
    try:
        with monitored(ticker()):
            for dataset in datasets:
                target = None
                for setting, spec in sweep:
                    if finished(rows, dataset, setting, spec):
                        log(f"{dataset}, {setting}, {spec}: measured before")
                        continue
                    fitting = frontier.sized(dataset, size)
                    target = target or TARGETS[dataset](fitting, options.seed)
                    scene = Scene(dataset, target, fitting, options.seed, lpips, run, SETTINGS.get(dataset, {}))
                    rows = [row for row in rows if row.key != (dataset, setting, spec)]
                    log(f"{dataset}, {setting}, {spec}")
                    for row in measure(scene, setting, spec):
                        rows.append(row)
                        if options.json:
                            write(rows, options.json)
                        log(line(row))
    except KeyboardInterrupt:
        log("interrupted: what is below was measured; the same command with --json goes on")
    for dataset in options.datasets:
        for setting in ("private-only", "public-data"):
            if text := report(rows, dataset, setting):
                print(text)
    if options.plot:
        draw(rows, options.plot)
    if options.quick:
        print("\nA quick run shows how it works and judges nothing: few records, short training, weak attacks.")


def finished(rows: Sequence[Row], dataset: str, setting: Setting, spec: str) -> bool:
    """Return whether everything of this piece is in the rows: its last row ends it, or a failure or control does."""
    ends = ("selected", "control", "failed")
    return any(row.key == (dataset, setting, spec) and row.kind in ends for row in rows)


def line(row: Row) -> str:
    """Return a row for the log."""
    shown = f"  {row.kind:9s} {row.attack or row.split or '':22s} ×{row.views or 1:<3d} accuracy {accuracy(row):20s}"
    extra = row.reason if row.status != "measured" else ""
    return f"{shown} identified {rate(row):18s} R² {number(row.r2):7s} {row.seconds or 0:6.1f} s {extra or ''}".rstrip()


if __name__ == "__main__":
    main()
