"""What `scan` and `demo` share: run an audit, write its files, and say what came of it."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError

if TYPE_CHECKING:
    from leakaudit.audit.plan import Plan
    from leakaudit.cli.gate import Gating
    from leakaudit.protocol.target import Target
    from leakaudit.result.outcome import Outcome
    from leakaudit.result.schema import AuditResult, Waiver
    from leakaudit.work.progress import Monitor


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the verdict and the paths only; on stderr nothing but errors.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout: verdict, reasons, paths.")]


@dataclass(frozen=True)
class Voice:
    """How a command speaks while an audit runs and when it ended."""

    quiet: bool = False
    as_json: bool = False
    tensorboard: Path | None = None

    @contextmanager
    def listening(self, plan: Plan) -> Iterator[Monitor]:
        """Yield the monitor of an audit. What user's code prints stays out of what a program may read."""
        from leakaudit.work.progress import together

        with ExitStack() as stack:
            monitors: list[Monitor] = []
            if self.quiet:
                stack.enter_context(_silence())
            else:
                if self.as_json:
                    stack.enter_context(redirect_stdout(sys.stderr))
                from leakaudit.watch.console import progress_monitor

                monitors.append(stack.enter_context(progress_monitor(plan=plan)))
            if self.tensorboard is not None:
                from leakaudit.watch.tensorboard import tensorboard_monitor

                monitors.append(stack.enter_context(tensorboard_monitor(self.tensorboard, plan.images)))
            yield together(*monitors)

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
            summary(result, Console())
        if gate is not None:
            from leakaudit.reports import gate_terminal

            typer.echo("")
            (gate_terminal.brief if self.quiet else gate_terminal.show)(gate, Console(soft_wrap=self.quiet))
        typer.echo("\n".join(f"{name:<6}  {path}" for name, path in paths.items()))


def run(
    load: Callable[[], Target],
    plan: Plan,
    output: Path,
    voice: Voice,
    *,
    lpips_weights: Path | None = None,
    exit_zero: bool = False,
    gate: Gating | None = None,
    waivers: tuple[Waiver, ...] = (),
) -> None:
    """Audit what `load` returns, write `result.json` and `report.html` into `output`, and exit with the verdict's code.

    With a `gate`, its verdict is the exit code's, and `gate.json` is written beside. The result is written after every
    finished piece, so that an interrupt keeps what was measured.
    """
    from leakaudit.audit.audit import audit
    from leakaudit.cli.learned import left_behind, saver
    from leakaudit.files.writing import write_atomically
    from leakaudit.result.schema import from_json, mode_of, to_json
    from leakaudit.work.progress import current, monitored

    paths = {"report": output / "report.html", "result": output / "result.json"}
    with voice.listening(plan) as monitor, monitored(replace(monitor, started=current().started)):

        def keep(result: AuditResult) -> None:
            write_atomically(paths["result"], to_json(result), mode_of(result))
            monitor.kept(result)

        target = load()
        if gate is not None:
            gate.early(target)
        (output / "gate.json").unlink(missing_ok=True)  # of an earlier scan: it says nothing of this one
        result = audit(
            target,
            plan,
            lpips_weights=lpips_weights,
            keep=keep,
            keep_learned=saver(output, plan.images),
            command=command_line(),
            waivers=waivers,
            findings=left_behind(output, plan.images),
        )
        result = from_json(to_json(result))  # as it is stored: what is rendered again must be the same page
        said = _reported(result, gate, paths)
    from leakaudit.result.rules import EXIT

    code = 0 if exit_zero else EXIT[said.verdict if said is not None else result.verdict]
    if not result.complete and not (said is not None and said.verdict == "fail"):
        code = EXIT["inconclusive"]
    voice.tell(result, paths, code, said)
    if not result.complete:
        typer.echo(f"Interrupted: what was measured so far is kept in {output}.", err=True)
    raise typer.Exit(code)


def _reported(result: AuditResult, gate: Gating | None, paths: dict[str, Path]) -> Outcome | None:
    """Write the report, and what the gate says where there is one, which is then among the paths and returned."""
    from leakaudit.cli.gate import summarise
    from leakaudit.files.writing import write_atomically
    from leakaudit.reports.html import render
    from leakaudit.result import outcome as outcomes
    from leakaudit.result.schema import mode_of

    try:
        said = gate(result, paths["result"]) if gate is not None else None
    except UserError as error:  # a baseline that cannot be compared is no reason to lose the report
        write_atomically(paths["report"], render(result), mode_of(result))
        raise UserError(f"{error} The scan itself is kept in {paths['report'].parent}.") from error
    write_atomically(paths["report"], render(result, said), mode_of(result))
    if said is not None:
        paths["gate"] = paths["report"].with_name("gate.json")
        write_atomically(paths["gate"], outcomes.to_json(said))
        summarise(result, said)
    return said


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell."""
    import shlex

    return shlex.join(["leakaudit", *sys.argv[1:]])


@contextmanager
def _silence() -> Iterator[None]:
    """Let nothing through but exceptions: warnings, logged notes, and what user's code prints are dropped."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, warnings.catch_warnings(), redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
