"""`leakaudit capture`: a file of captured updates, checked or made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from leakaudit.errors import UserError
from leakaudit.judge.captured import numbers_of
from leakaudit.options.command import Command
from leakaudit.options.common import AUDIT, SCENE, WHAT, Checkpoint, Mode, examples, say, written
from leakaudit.result.plaintext import visible
from leakaudit.result.rules import EXIT


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=AUDIT,
        short_help="Check or make a file of updates that a real client sent.",
        epilog=examples(
            "leakaudit capture update.safetensors --model model.py",
            "leakaudit capture --before b.pt --after a.pt --steps 4 -o new.safetensors",
            "leakaudit capture new.safetensors --records 8 -o told.safetensors",
            "leakaudit capture node-0.safetensors node-1.safetensors -o round.safetensors",
            "leakaudit scan model.py --update update.safetensors --data records.npz",
            codes="",
        ),
    )(capture)


def _says(help: str, *names: str, metavar: str = "N") -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=SCENE)


def _file(help: str, *names: str) -> Any:
    return typer.Option(*names, metavar="FILE", help=help, rich_help_panel=WHAT)


def capture(  # noqa: PLR0913 - a command: its options
    file: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="Captured updates, a .safetensors file; with --output several of a round."),
    ] = None,
    model: Annotated[str | None, _file("Check it against this model.py.", "--model")] = None,
    checkpoint: Checkpoint = None,
    before: Annotated[Path | None, _file("Weights that the client began with, a checkpoint.", "--before")] = None,
    after: Annotated[list[Path] | None, _file("Weights after it trained; repeat for several.", "--after")] = None,
    difference: Annotated[list[Path] | None, _file("Or what was added to them.", "--difference")] = None,
    gradient: Annotated[list[Path] | None, _file("Or the gradient that it sent.", "--gradient")] = None,
    steps: Annotated[int | None, _says("Local steps behind one update.", "--steps")] = None,
    epochs: Annotated[int | None, _says("Or local epochs.", "--epochs")] = None,
    batch: Annotated[int | None, _says("Records of one local step.", "--batch")] = None,
    lr: Annotated[float | None, _says("Local learning rate.", "--lr")] = None,
    momentum: Annotated[float | None, _says("Momentum of SGD.", "--momentum")] = None,
    optimizer: Annotated[str | None, _says("sgd or adam.", "--optimizer", metavar="NAME")] = None,
    mode: Annotated[Mode | None, _says("The client's mode: eval or train.", "--mode", metavar="MODE")] = None,
    records: Annotated[int | None, _says("Records behind one update.", "--records")] = None,
    clients: Annotated[int | None, _says("Clients whose updates were summed.", "--clients")] = None,
    rounds: Annotated[int | None, _says("Updates one after another of the same records.", "--rounds")] = None,
    defense: Annotated[str | None, _says("The claimed defense, a spec; or none.", "--defense", metavar="SPEC")] = None,
    framework: Annotated[str | None, _says("What captured it.", "--framework", metavar="NAME")] = None,
    note: Annotated[str | None, _says("A remark.", "--note", metavar="TEXT")] = None,
    output: Annotated[Path | None, written("Write captured updates to this file.", "--output", "-o")] = None,
) -> None:
    """Check a file of captured updates, or make one from checkpoints, and say what an audit would miss.

    Without --output it reads FILE. With it, it writes what --before and --after hold, or FILE with more said of it, or
    several of a round as one.

    Exit codes: 0 all is there that an audit needs, 3 something is missing, 1 a claim is broken (seen with --model),
    2 it cannot be read or does not fit.
    """
    claims = {
        "local_steps": steps, "local_epochs": epochs, "batch_size": batch, "local_lr": lr, "momentum": momentum,
        "optimizer": optimizer, "mode": mode and mode.value, "records": records, "clients": clients,
        "rounds": rounds, "defense": defense, "framework": framework, "note": note,
    }  # fmt: skip
    sent: dict[Any, list[Path]] = {"after": after or [], "difference": difference or [], "gradient": gradient or []}
    _run(file or [], model, checkpoint, (claims, before, sent), output)


def _run(files: list[Path], model: str | None, checkpoint: Path | None, given: Any, output: Path | None) -> None:
    from leakaudit.captured.making import look, make

    claims, before, sent = given
    told = before is not None or any(sent.values()) or any(value is not None for value in claims.values())
    if output is None and (len(files) != 1 or told):
        raise UserError("capture reads a FILE, or writes one: give FILE alone, or --before, --after and --output.")
    if output is not None:
        make(output, claims, files=files, before=before, updates=sent)
    shown = output or files[0]
    found = look(shown, model, checkpoint)
    typer.echo(visible(f"{shown}", 5_000))
    for name, words in found.lines:
        typer.echo(visible(f"  {name:<10} {words}", 5_000))
    for row in found.claims:
        say(f"{row.verdict:<14} {row.what} of {row.mechanism}: {numbers_of(row)}. {row.reason}")
    for sentence in found.assumed:
        say(f"note       {sentence}")
    for sentence in found.missing:
        say(f"missing    {sentence}")
    if not found.missing:
        typer.echo("It has all that leakaudit scan --update needs.")
    broken = any(row.verdict == "broken" for row in found.claims)
    raise typer.Exit(EXIT["fail"] if broken else EXIT["inconclusive"] if found.missing else 0)
