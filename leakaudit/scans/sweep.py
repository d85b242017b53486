"""A list of scans: each done as by itself, the page of all written after each, and none ended by another's failure."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import typer

from leakaudit.compare.sweep import Entry, ended, frontiers, values, verdict
from leakaudit.errors import UserError, line_of
from leakaudit.files.folder import claimed
from leakaudit.files.writing import write_atomically
from leakaudit.options.common import INTERNAL, USAGE
from leakaudit.options.failing import failed
from leakaudit.options.plans import check_specs
from leakaudit.options.sweepfile import Model, Scan
from leakaudit.protocol.target import Target
from leakaudit.reports.sweep import render
from leakaudit.result.outward import in_place
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import EXIT
from leakaudit.result.schema import Images
from leakaudit.result.sweep import to_json
from leakaudit.scans.run import Ended, Voice, scanned
from leakaudit.spread.job import Request
from leakaudit.spread.sharing import Sharing, together
from leakaudit.work import ends
from leakaudit.work.progress import Monitor, monitored

PAGE, VALUES = "sweep.html", "sweep.json"


@dataclass
class _Loaded:
    """The models of a sweep, each loaded once, one at a time: data may be large."""

    found: dict[Model, Target | UserError] = field(default_factory=dict)

    def target(self, model: Model, request: Request) -> Target:
        """Return the target of a request for a model; raises what it raised the first time."""
        if model not in self.found:
            self.found.clear()
            try:
                self.found[model], _ = request.load()
            except UserError as error:
                self.found[model] = error
        target = self.found[model]
        if isinstance(target, UserError):
            raise target
        return target


def swept(file: Path, found: Sequence[Scan], output: Path, voice: Voice, sharing: Sharing) -> tuple[list[Entry], int]:
    """Do the scans of a sweep file one after another; return what came of each, and the exit code.

    What can be shared is computed once for all of them. `output` is claimed already.
    """
    images = found[0].plan.images
    entries = [_entry(each, images) for each in found]
    loaded, code = _Loaded(), 0
    _write(file, entries, output, images == "full")
    with together(sharing) as shared:
        assert shared.among is not None
        for i, each in enumerate(found):
            if not voice.quiet:
                typer.echo(visible(f"leakaudit: scan {i + 1} of {len(found)}: {each.name}", 5_000), err=True)
            try:
                entries[i] = ended(entries[i], _one(each, loaded, output / each.name, voice, shared).result)
            except Exception as error:
                told, why = failed(error)
                if why == INTERNAL and os.environ.get("LEAKAUDIT_DEBUG"):
                    raise
                code = INTERNAL if why == INTERNAL else code
                entries[i] = replace(entries[i], trouble=in_place(told, images))
                typer.echo(visible(f"leakaudit: {each.name}: {told}", 10_000), err=True)
            _write(file, entries, output, images == "full")
            if entries[i].state == "interrupted":
                shared.among.interrupted = True
                typer.echo("Interrupted: what was measured so far is kept; the same command goes on.", err=True)
                return entries, EXIT["inconclusive"]
    judged = verdict(entries)
    return entries, code or (USAGE if judged is None else EXIT[judged])


def _entry(each: Scan, images: Images) -> Entry:
    model, one = in_place(each.model.name, images), each.strength
    spec, line = in_place(one.spec, images), in_place(one.line, images)
    return Entry(each.name, model, each.stage, spec, line, one.values)


def _one(each: Scan, loaded: _Loaded, folder: Path, voice: Voice, sharing: Sharing) -> Ended:
    """Do one scan as `leakaudit scan` does, with a clock of its own."""
    weights = each.lpips_weights
    request = Request(
        each.model.target,
        each.plan,
        each.model.data or None,
        None,
        each.model.checkpoint or None,
        each.device,
        None if weights is None else str(weights),
    )

    def load() -> Target:
        target = loaded.target(each.model, request)
        check_specs(each.plan, wait=False)
        return target

    try:
        with (
            claimed(folder, each.plan.images == "full"),
            ends.listening(),
            monitored(Monitor(started=time.monotonic())),
        ):
            shared = (sharing, request)
            return scanned(load, each.plan, folder, voice, lpips_weights=weights, shared=shared, command=each.command)
    except SystemExit as error:
        raise UserError(f"code of yours exits{line_of(error)} while it is used: let it return or raise.") from error


def _write(file: Path, entries: Sequence[Entry], output: Path, private: bool) -> None:
    fronts, source = frontiers(entries), in_place(str(file), "full" if private else "none")
    write_atomically(output / PAGE, render(source, fronts), private)
    write_atomically(output / VALUES, to_json(values(source, fronts)), private)
