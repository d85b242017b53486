"""One scan: run an audit, write its files, and say what came of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import GATE, REPORT, RESULT
from leakaudit.options.browser import show
from leakaudit.options.settings import command_line
from leakaudit.options.silence import silence
from leakaudit.result.plaintext import visible

if TYPE_CHECKING:
    from leakaudit.files.folder import Output
    from leakaudit.options.gating import Gating
    from leakaudit.protocol.target import Target
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult, Waiver
    from leakaudit.scene.plan import Plan
    from leakaudit.spread.job import Request
    from leakaudit.spread.sharing import Sharing
    from leakaudit.units.desk import Desk
    from leakaudit.work.learned import Learned
    from leakaudit.work.progress import Monitor


@dataclass(frozen=True)
class Voice:
    """How a command speaks while an audit runs and when it ended."""

    quiet: bool = False
    as_json: bool = False
    tensorboard: Path | None = None
    earlier: str = ""  # where the files of an earlier scan were put
    opens: bool = False  # the report, in the browser
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UserError("--quiet and --verbose exclude each other: give one.")

    @contextmanager
    def listening(self, plan: Plan | None) -> Iterator[Monitor]:
        """Yield the monitor of an audit, without a `plan` of what comes before it.

        What user's code prints stays out of what a program may read.
        """
        from leakaudit.work.progress import together

        with ExitStack() as stack:
            monitors: list[Monitor] = []
            if self.quiet:
                stack.enter_context(silence())
            else:
                if self.as_json:
                    stack.enter_context(redirect_stdout(sys.stderr))
                from leakaudit.watch.console import progress_monitor

                monitors.append(stack.enter_context(progress_monitor(plan=plan)))
            if self.tensorboard is not None and plan is not None:
                from leakaudit.watch.tensorboard import tensorboard_monitor

                monitors.append(stack.enter_context(tensorboard_monitor(self.tensorboard, plan.images)))
            yield together(*monitors)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Say that libraries are loaded while they are: that takes seconds."""
        with self.listening(None) as monitor:
            monitor.stage("loading libraries")
            yield

    def tell(self, result: AuditResult, paths: dict[str, Path], code: int, gate: Outcome | None = None) -> None:
        """Print what came of an audit; `paths` are the files by name, `gate` is what a gate said of it."""
        from rich.console import Console

        from leakaudit.reports.terminal import headline, summary

        if self.as_json:
            told = {"verdict": result.verdict, "reasons": list(result.reasons), **{k: str(p) for k, p in paths.items()}}
            said = None
            if gate is not None:
                said = {"verdict": gate.verdict, "reasons": list(gate.reasons), "file": told.pop("gate")}
            typer.echo(json.dumps(told | {"exit_code": code, "gate": said}, indent=1))
            return
        if self.quiet:
            headline(result, Console(soft_wrap=True))
        else:
            summary(result, Console(), self.verbose)
            typer.echo("")
        if gate is not None:
            self._judged(gate)
        typer.echo("\n".join(visible(f"{name:<6}  {path}", 5_000) for name, path in paths.items()))

    def _judged(self, gate: Outcome) -> None:
        from rich.console import Console

        from leakaudit.reports import gate_terminal

        if self.quiet:
            gate_terminal.brief(gate, Console(soft_wrap=True))
        elif self.verbose:
            gate_terminal.show(gate, Console(), verbose=True)
        else:
            gate_terminal.in_a_line(gate, Console())


@dataclass(frozen=True)
class Ended:
    """What came of one scan: its result, what a gate said of it, and where its files stand."""

    result: AuditResult
    said: Outcome | None
    paths: dict[str, Path]  # by what they are called
    files: Output
    kept: bool = False  # whether its finished pieces are, for whoever goes on with it

    def code(self, exit_zero: bool = False) -> int:
        """Return the exit code: of the gate where there is one; of an interrupted scan always its own."""
        return _code(self.result, self.said, exit_zero)


@dataclass(frozen=True)
class Judging:
    """By what a scan is judged beside its own verdict."""

    gate: Gating | None = None
    waivers: tuple[Waiver, ...] = ()
    exit_zero: bool = False


def run(
    load: Callable[[], Target],
    plan: Plan,
    output: Path,
    voice: Voice,
    *,
    lpips_weights: Path | None = None,
    judging: Judging = Judging(),
    shared: tuple[Sharing, Request] | None = None,
) -> None:
    """Do one scan as `scanned` does, say what came of it, and exit with the verdict's code.

    With a gate, its verdict is the exit code's, and `gate.json` is written beside.
    """
    ended = scanned(load, plan, output, voice, lpips_weights=lpips_weights, judging=judging, shared=shared)
    code, files = ended.code(judging.exit_zero), ended.files
    voice.tell(ended.result, ended.paths, code, ended.said)
    if voice.opens:
        show(ended.paths["report"])
    if files.folder != output:
        typer.echo(
            visible(f"leakaudit: {output} took no more ({files.trouble}): all is in {files.folder}.", 9_000),
            err=True,
        )
    if not ended.result.complete:
        told = f"Interrupted: what was measured so far is kept in {visible(str(files.folder / RESULT))}"
        goes_on = "; the same command goes on where this one ended" if ended.kept else ""
        typer.echo(f"{told}{goes_on}.", err=True)
    raise typer.Exit(code)


def scanned(
    load: Callable[[], Target],
    plan: Plan,
    output: Path,
    voice: Voice,
    *,
    lpips_weights: Path | None = None,
    judging: Judging = Judging(),
    shared: tuple[Sharing, Request] | None = None,
    command: str | None = None,
) -> Ended:
    """Audit what `load` returns, write `result.json` and `report.html` into `output`, which is claimed already.

    The result is written after every finished piece, so that an interrupt keeps what was measured; while the folder
    takes nothing the audit goes on. `shared`: where pieces are kept and who takes part, and what they are told; None:
    it is done here, and nothing of it is kept. `command` is what repeats the scan, the command as it was typed where
    None. Raises UserError where the target cannot be audited, or nothing can be written.
    """
    from leakaudit.files.folder import Output
    from leakaudit.result.schema import from_json, to_json
    from leakaudit.work.learned import Learned
    from leakaudit.work.progress import Work, current, monitored, stage

    files, learned = Output(output, plan.images == "full"), Learned(output, plan.images)
    with voice.listening(plan) as monitor, monitored(replace(monitor, started=current().started)):

        def begin() -> Target:
            stage("loading the model and the data")
            target = load()
            if judging.gate is not None:
                judging.gate.early(target)
            if voice.earlier and not voice.quiet:
                typer.echo(f"leakaudit: {visible(voice.earlier)}", err=True)
            return target

        with _shared(shared, voice) as there:
            result = _measured(
                begin,
                plan,
                files,
                learned,
                lpips_weights=lpips_weights,
                waivers=judging.waivers,
                command=command_line() if command is None else command,
            )
            if there is not None:
                there.finished = result.complete
        monitor.show(Work("finishing"), 0, 0)
        stage("writing the report")
        result = from_json(to_json(result))  # as it is stored: what is rendered again must be the same page
        said, refusal = _judged(result, judging.gate, output / RESULT)
        try:
            paths = _written(result, said, files, learned)
        except UserError:  # what is printed is then all that there is
            voice.tell(result, {}, _code(result, said, judging.exit_zero), said)
            raise
    if refusal is not None:
        raise UserError(f"{refusal} The scan itself is kept in {paths['report'].parent}.") from refusal
    return Ended(result, said, paths, files, there is not None)


def _code(result: AuditResult, said: Outcome | None, exit_zero: bool) -> int:
    """Return the exit code: of the gate where there is one; of an interrupted scan always its own."""
    from leakaudit.result.rules import EXIT

    if not result.complete and not (said is not None and said.verdict == "fail"):
        return EXIT["inconclusive"]
    return 0 if exit_zero else EXIT[said.verdict if said is not None else result.verdict]


def _measured(
    begin: Callable[[], Target],
    plan: Plan,
    files: Output,
    learned: Learned,
    *,
    lpips_weights: Path | None,
    waivers: tuple[Waiver, ...],
    command: str,
) -> AuditResult:
    """Return what the audit found, or what it had found when it was interrupted; nothing interrupts what follows."""
    from leakaudit.audit.stages import audit_at_stages
    from leakaudit.result.schema import to_json
    from leakaudit.work import ends
    from leakaudit.work.progress import current

    latest: list[AuditResult] = []
    monitor = current()

    def keep(result: AuditResult) -> None:
        latest[:] = [result]
        before = files.trouble
        files.keep(RESULT, to_json(result))
        if files.trouble and not before:
            typer.echo(
                visible(
                    f"warning  {files.folder} takes no more ({files.trouble}): going on in memory; make room there."
                ),
                err=True,
            )
        monitor.kept(result)

    target = begin()
    try:
        result = audit_at_stages(
            target,
            plan,
            lpips_weights=lpips_weights,
            keep=keep,
            keep_learned=learned.save,
            command=command,
            waivers=waivers,
        )
        ends.close()
    except KeyboardInterrupt:
        ends.close()
        if not latest:
            raise
        result = latest[0]
    return result


@contextmanager
def _shared(shared: tuple[Sharing, Request] | None, voice: Voice) -> Iterator[Desk | None]:
    """Install the desk of a scan; say where it goes on with one, and at the end how much was known already."""
    if shared is None:
        yield None
        return
    from leakaudit.spread.sharing import sharing
    from leakaudit.work.precision import single_threaded

    def say(told: str) -> None:
        if not voice.quiet:
            typer.echo(visible(f"leakaudit: {told}", 5_000), err=True)

    asked, request = shared
    with single_threaded(), sharing(asked, request, say) as there:
        yield there
        if there is not None and there.found:
            known = "1 piece was" if len(there.found) == 1 else f"{len(there.found)} pieces were"
            say(f"{known} known from earlier scans and not computed again (--fresh computes all anew)")
        if there is not None and there.trouble:
            typer.echo(visible(f"warning  not all pieces are kept for a later scan: {there.trouble}", 5_000), err=True)


def _judged(result: AuditResult, gate: Gating | None, source: Path) -> tuple[Outcome | None, UserError | None]:
    """Return what the gate says where there is one, or why it says nothing: no reason to lose the report."""
    try:
        return (gate(result, source) if gate is not None else None), None
    except UserError as error:
        return None, error


def _written(result: AuditResult, said: Outcome | None, files: Output, learned: Learned) -> dict[str, Path]:
    """Write result, report and what the gate says; return where they are, by what they are called."""
    from leakaudit.reports.html import render
    from leakaudit.result import outcome as outcomes
    from leakaudit.result.schema import to_json

    texts = {REPORT: render(result, said), RESULT: to_json(result)}
    if said is not None:
        texts[GATE] = outcomes.to_json(said)
    at = files.settle(texts)
    for spec in learned.retry(files.folder):
        typer.echo(f"leakaudit: what {visible(spec)} learned could not be kept.", err=True)
    if said is not None:
        summarise(result, said)
    return {name: at[file] for name, file in (("report", REPORT), ("result", RESULT), ("gate", GATE)) if file in at}


def summarise(result: AuditResult, outcome: Outcome) -> None:
    """Append the Markdown to GitHub's step summary, where there is one."""
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        from leakaudit.reports import markdown

        try:
            markdown.append_step_summary(markdown.render(result, outcome))
        except (OSError, UserError) as error:  # a convenience: the verdict does not hang on it
            typer.echo(f"leakaudit: the step summary was not written: {error}", err=True)
