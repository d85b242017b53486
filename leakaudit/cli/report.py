"""The commands that read a stored result: `report` and `verify`. What signs one is `sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import GATE, REPORT, stored
from leakaudit.files.writing import apart
from leakaudit.options.browser import Open, show
from leakaudit.options.command import Command
from leakaudit.options.common import READ, TOLD, Stored, Verbose, examples, say, written
from leakaudit.result.plaintext import visible

CODES = {"same": 0, "other": 1, "unknown": 3}
GateFile = Annotated[
    Path | None, typer.Option("--gate", metavar="FILE", help="What the gate said: a JSON file written by it.")
]


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        cls=Command,
        rich_help_panel=READ,
        short_help="Render a stored result as HTML again, or as PDF.",
        epilog=examples(
            "leakaudit report leakaudit-out --open",
            "leakaudit report result.json -o report.html",
            "leakaudit report result.json -o report.pdf --pdf",
            "leakaudit report result.json --gate gate.json --verbose",
        ),
    )(report)
    app.command(
        cls=Command,
        rich_help_panel=READ,
        short_help="Check that a report says what its result says.",
        epilog=examples(
            "leakaudit verify leakaudit-out",
            "leakaudit verify report.html leakaudit-out/result.json",
            "leakaudit verify result.json --gate gate.json",
            "leakaudit verify report.html result.json --key officer.pub.pem",
            "leakaudit verify result.json --key officer.pub.pem",
            codes="",
        ),
    )(verify)


def report(
    result: Stored,
    output: Annotated[
        Path | None,
        written(
            "The HTML file; with --pdf a name ending in .pdf writes that alone. Default: report.html, of a folder the "
            "one in it.",
            "--output",
            "-o",
        ),
    ] = None,
    pdf: Annotated[
        bool,
        typer.Option(
            "--pdf", help="Write a PDF beside it as well (pip install 'leakaudit[pdf]').", rich_help_panel=TOLD
        ),
    ] = False,
    open: Open = False,
    gate: GateFile = None,
    verbose: Verbose = False,
) -> None:
    """Render a stored result as HTML again, or as PDF. Runs no attack and needs no model.

    Of a folder, what its gate.json says is in the report, too, as it was when the scan wrote it.
    """
    from rich.console import Console

    from leakaudit.gate.consistency import doubts, outcome_doubts
    from leakaudit.reports.html import render
    from leakaudit.reports.terminal import summary
    from leakaudit.result import outcome as outcomes
    from leakaudit.result.schema import digest, is_private, load

    given = gate is not None
    output, gate = output or (result if result.is_dir() else Path()) / REPORT, gate or _beside(result)
    result = stored(result)
    loaded = load(result)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name the HTML file to write, say {output / 'report.html'}.")
    if output.suffix.lower() == ".pdf" and not pdf:
        raise UserError(f"--output {output} names a PDF: give --pdf too, or name an HTML file.")
    apart({"--output": output}, {"the result": result, "--gate": gate})
    outcome = outcomes.load(gate) if gate else None
    if outcome and outcome.result_digest != digest(loaded) and not given:
        typer.echo(visible(f"leakaudit: {gate} judges another result, and is left out.", 5_000), err=True)
        outcome = None
    if outcome and outcome.result_digest != digest(loaded):
        raise UserError(f"--gate {gate} judges another result than {result}: give the outcome of this one.")
    places = _write(render(loaded, outcome), output, pdf, is_private(loaded))
    summary(loaded, Console(), verbose)
    typer.echo("")
    for doubt in (*doubts(loaded), *(outcome_doubts(outcome, loaded) if outcome else ())):
        typer.echo(visible(f"The numbers contradict what is claimed: {doubt}"), err=True)
    for path in places:
        typer.echo(visible(f"report  {path}", 5_000))
    if open:
        show(places[0])


def _write(page: str, output: Path, pdf: bool, private: bool) -> list[Path]:
    """Write a page, as HTML unless only a PDF was asked for; return where it is."""
    from leakaudit.files.writing import write_atomically

    places = []
    if output.suffix.lower() != ".pdf":
        write_atomically(output, page, private)
        places.append(output)
    if pdf:
        from leakaudit.reports.pdf import write

        write(output.with_suffix(".pdf"), page, private)
        places.append(output.with_suffix(".pdf"))
    return places


def _beside(result: Path, name: str = GATE) -> Path | None:
    """Return what a scan wrote beside a result, where it is the folder that is named."""
    return result / name if result.is_dir() and (result / name).is_file() else None


def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[REPORT] RESULT",
            help="A report.html or report.pdf, and the result.json it shows; or the folder that a scan wrote into.",
        ),
    ],
    gate: GateFile = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="The public key, a PEM file, of who must have signed the result."),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option("--signature", metavar="FILE", help="The signature. Default: the result's name with .sig."),
    ] = None,
) -> None:
    """Check that a report, HTML or PDF, says what its result says, and the result what its own numbers say.

    With --key, also that the key's owner signed these very files. Without it this shows that the files agree with each
    other, not who made them. Of a folder alone, its report is checked, too, with what the gate said in it.

    Exit codes: 0 they agree, and with --key the signature holds; 1 they do not, or it does not; 2 a file cannot be
    read; 3 the digest fits, but the rest cannot be compared here: another version of leakaudit or WeasyPrint wrote the
    report, or there is no WeasyPrint to print a PDF again.
    """
    from leakaudit.reports.signed import beside, check
    from leakaudit.reports.verify import notes_of
    from leakaudit.reports.verify import verify as compare
    from leakaudit.result.signature import Part

    if len(files) > 2:
        raise UserError("verify takes a report and its result, or a result alone.")
    result, named = stored(files[-1]), files[0] if len(files) == 2 else None
    shown = named or _beside(files[-1], REPORT)
    if shown is not None and notes_of(shown).get("gate-sha256"):
        gate = gate or _beside(files[-1])
    found = compare(shown, result, gate)
    given: dict[Part, Path | None] = {"result": result, "report": shown, "gate": gate}
    derived = shown is not None and found.status == "same"
    signed = check(signature or beside(result), given, key, derived=derived)
    code = CODES["other"] if signed.holds is False else CODES[found.status]
    for sentence in (*found.sentences, *signed.sentences, *(found.unknown if code == CODES["same"] else ())):
        say(sentence)
    raise typer.Exit(code)
