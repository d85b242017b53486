"""The four claims of the obscuring generator, measured beside every other defense on CIFAR-10, MNIST and LFW faces.

    python -m benchmarks.obscure [--quick] [--json FILE] [--datasets cifar10 mnist lfw] [--defenses SPEC …] [--seeds 3]
                                 [--plot FILE.svg] [--markdown FILE] [--device cpu] [--validation] [--seed 0]

(a) distinct: MSE, SSIM and LPIPS between x̃ and x, beside those of the class mean and of another real picture of the
class, and whether x̃ is nearer to *any* private record than to records it was not made from.
(b) predictive: clean test accuracy of networks trained from fresh weights on shared updates only, by FedSGD, and for
some defenses by FedAvg with 5 clients, IID and with 2 of 10 classes each. Training crops pictures, and mirrors those
that are no digits, for every defense and for none.
(c) private: identification of a record among up to 100 of its class, R², and labels read off an update, by every
attack of the defense's own list, by `replay` and by the standard ones, with the defense, its networks and auxiliary
records in hand; at one view of a record and at 16 pooled ones. On CIFAR-10 and MNIST without the attacks that others
beat (`adversaries.dominated`). `weights` is another attacker, who owns the fitted defense, or a model trained on what
it released, and says who was in the client's set; it is not counted in `worst`.
(d) better: every defense over its strengths, accuracy against identification by the worst attack, and which of them lie
above obscure's frontier at chance leakage.

`worst` is the highest rate of any attack, known only afterwards: of many attacks that guess, the best is above chance,
and `guessing` says what they stay below 19 times in 20. `selected` is the rate of the attack that an attacker would
choose, by what each attack finds among its own records. Intervals are exact 95 % ones (Clopper and Pearson) for rates,
Student's t over seeds for accuracy.

Two settings are kept apart. private-only: a defense is fitted on the client's own records and nothing else.
public-data: it is also given public records of the domain, which the attackers own too; the control there is training
on these alone. Every piece, a defense at one strength on a data set, goes to FILE as soon as it is whole. The same
command goes on where the last one ended, and several runs on one FILE share the pieces out among them; rows of other
code are marked. `--quick` takes minutes: it shows how it works and judges nothing. `--validation` measures accuracy on
training records that nothing else sees, for choosing settings, as `--quick` does too: test pictures are for the end.
CIFAR-10 and MNIST need `../shared/data` beside the repository and are skipped without.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks import frontier
from benchmarks.distinct import perceptual
from benchmarks.frontier import FILES, FULL, PRIVATE, PUBLIC, SETTINGS, SMALL, TARGETS, Size, pieces, unknown
from benchmarks.frontierplot import draw
from benchmarks.measuring import Scene, measure
from benchmarks.rows import Piece, Row, append, claimed, code_version, read
from benchmarks.standing import check
from benchmarks.tables import accuracy, measured_by, number, rate, report
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


def chosen(options: argparse.Namespace, size: Size) -> list[Piece]:
    """Return the pieces of the data sets asked for, those of specs or names where some were; others are private."""
    found = [p for p in pieces(size, options.quick) if p.dataset in options.datasets]
    if not options.defenses:
        return found
    every = [p for p in pieces(size, False) if p.dataset in options.datasets]
    kept: list[Piece] = []
    for wanted in options.defenses:
        exact = [p for p in every if p.spec == wanted]
        named = [p for p in found if p.spec.partition(":")[0] == wanted]
        kept += (
            (named if ":" not in wanted else exact) or exact or [Piece(d, PRIVATE, wanted) for d in options.datasets]
        )
    return list(dict.fromkeys(kept))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few defenses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every piece here at once; goes on from it")
    parser.add_argument("--datasets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--defenses", nargs="+", metavar="SPEC", help="names (all strengths) or specs; default: all")
    parser.add_argument("--seeds", type=int, default=3, help="training runs per defense; under 3 have no interval")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw accuracy against the worst attack")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--device", default="cpu", help="where models are trained and attacked: cpu, cuda, …")
    parser.add_argument("--validation", action="store_true", help="accuracy on training records, no test picture")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        torch.zeros(1, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device} cannot be used: {str(error).splitlines()[0]}")
    options.size = replace(SMALL if options.quick else FULL, seeds=options.seeds)
    options.size = replace(options.size, validation=options.validation or options.size.validation)
    options.code = code_version()  # of what this process runs, whatever is edited meanwhile
    options.run = frontier.run_settings(options.size, options.seed)
    try:
        options.known = read(options.json, options.run) if options.json else []
    except UserError as error:
        parser.error(str(error))
    return options


def runnable(wanted: Sequence[Piece]) -> list[Piece]:
    """Return the pieces that can be measured here; of the others a line says why not."""
    reasons = {p.spec: unknown(p.spec) for p in wanted}
    absent = {d for d, file in FILES.items() if not file.exists()} & {p.dataset for p in wanted}
    for spec, reason in reasons.items():
        if reason is not None:
            print(f"skipped: {spec}: {reason}")
    for dataset in sorted(absent):
        print(f"skipped: {dataset}: its pictures are not at {FILES[dataset]}")
    return [p for p in wanted if reasons[p.spec] is None and p.dataset not in absent]


def run_all(wanted: Sequence[Piece], options: argparse.Namespace) -> list[Row]:
    """Measure what no run on the file has measured or is measuring; return all rows there are then."""
    scenes: dict[str, Scene] = {}
    rows: list[Row] = options.known
    lpips = perceptual()
    if isinstance(lpips, str):
        log(f"no LPIPS: {lpips}")
    for piece in wanted:
        with claimed(options.json, piece) as mine:
            rows = read(options.json, options.run) if options.json else rows
            if not mine or any(row.piece == piece for row in rows):
                log(f"{', '.join(piece)}: " + ("measured before" if mine else "another run is at it"))
                continue
            if piece.dataset not in scenes:
                target = TARGETS[piece.dataset](options.size, options.seed)
                target = replace(target, model=target.model.to(options.device))
                more = SETTINGS.get(piece.dataset, {})
                scenes[piece.dataset] = Scene(
                    piece.dataset, target, options.size, options.seed, lpips, options.run, options.code, more
                )
            log(", ".join(piece))
            found = whole(scenes[piece.dataset], piece)
            rows = [*rows, *found]
            if options.json:
                append(options.json, piece, found)
    return read(options.json, options.run) if options.json else rows


def whole(scene: Scene, piece: Piece) -> list[Row]:
    """Return all rows of a piece, each with the seconds that the whole of it took."""
    began, found = scene.clock(), []
    for row in measure(scene, piece):
        found.append(row)
        log(line(row))
    return [replace(row, piece_seconds=scene.clock() - began) for row in found]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and not yet in the file; then print the tables and draw the plot."""
    options = parsed(arguments)
    torch.set_num_threads(1)
    rows = options.known
    try:
        with monitored(ticker()):
            rows = run_all(runnable(chosen(options, options.size)), options)
    except KeyboardInterrupt:
        log("interrupted: what is below was measured; the same command with --json goes on")
        rows = read(options.json, options.run) if options.json else rows
    parts = [measured_by(rows)]
    for dataset in options.datasets:
        parts.append(check(rows, dataset))
        parts += [report(rows, dataset, setting) for setting in (PRIVATE, PUBLIC)]
    if options.quick:
        parts.append("A quick run shows how it works and judges nothing: few records, short training, weak attacks.")
    text = "\n\n".join(part for part in parts if part)
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    if options.plot:
        draw(rows, options.plot)


def line(row: Row) -> str:
    """Return a row for the log."""
    shown = f"  {row.kind:9s} {row.attack or row.split or '':22s} ×{row.views or 1:<3d} accuracy {accuracy(row):20s}"
    extra = row.reason if row.status != "measured" else ""
    seconds = row.seconds or row.training_seconds or 0.0
    return f"{shown} identified {rate(row):18s} R² {number(row.r2):7s} {seconds:6.1f} s {extra or ''}".rstrip()


if __name__ == "__main__":
    main()
