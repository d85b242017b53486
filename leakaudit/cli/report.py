"""The commands that read a stored result: `report` and `verify`. What signs one is `sign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.cli.options import examples
from leakaudit.cli.run import Verbose
from leakaudit.errors import UserError
from leakaudit.files.writing import apart
from leakaudit.result.plaintext import visible

CODES = {"same": 0, "other": 1, "unknown": 3}
GateFile = Annotated[Path | None, typer.Option("--gate", help="What the gate said: a JSON file written by it.")]


def add(app: typer.Typer) -> None:
    """Register the commands of this file."""
    app.command(
        epilog=examples(
            "leakaudit report leakaudit-out/result.json -o report.html",
            "leakaudit report leakaudit-out/result.json -o report.pdf --pdf",
            "leakaudit report leakaudit-out/result.json --gate gate.json --verbose",
        )
    )(report)
    app.command(
        epilog=examples(
            "leakaudit verify report.html leakaudit-out/result.json",
            "leakaudit verify report.pdf leakaudit-out/result.json --gate gate.json",
            "leakaudit verify report.html result.json --key officer.pub.pem",
            "leakaudit verify result.json --key officer.pub.pem",
        )
    )(verify)


def report(
    result: Annotated[Path, typer.Argument(help="A result.json written by a scan.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The HTML file; with --pdf a name ending in .pdf writes that alone.")
    ] = Path("report.html"),
    pdf: Annotated[
        bool, typer.Option("--pdf", help="Write a PDF beside it as well (pip install 'leakaudit[pdf]').")
    ] = False,
    gate: GateFile = None,
    verbose: Verbose = False,
) -> None:
    """Render a stored result as HTML again, or as PDF. Runs no attack and needs no model."""
    from rich.console import Console

    from leakaudit.files.writing import write_atomically
    from leakaudit.gate.consistency import doubts, outcome_doubts
    from leakaudit.reports.html import render
    from leakaudit.reports.terminal import summary
    from leakaudit.result import outcome as outcomes
    from leakaudit.result.schema import digest, is_private, load

    loaded = load(result)
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: name the HTML file to write, say {output / 'report.html'}.")
    if output.suffix.lower() == ".pdf" and not pdf:
        raise UserError(f"--output {output} names a PDF: give --pdf too, or name an HTML file.")
    apart({"--output": output}, {"the result": result, "--gate": gate})
    outcome = outcomes.load(gate) if gate else None
    if outcome and outcome.result_digest != digest(loaded):
        raise UserError(f"--gate {gate} judges another result than {result}: give the outcome of this one.")
    page = render(loaded, outcome)
    written = []
    if output.suffix.lower() != ".pdf":
        write_atomically(output, page, is_private(loaded))
        written.append(output)
    if pdf:
        from leakaudit.reports.pdf import write

        write(output.with_suffix(".pdf"), page, is_private(loaded))
        written.append(output.with_suffix(".pdf"))
    summary(loaded, Console(), verbose)
    typer.echo("")
    for doubt in (*doubts(loaded), *(outcome_doubts(outcome, loaded) if outcome else ())):
        typer.echo(visible(f"The numbers contradict what is claimed: {doubt}"), err=True)
    for path in written:
        typer.echo(visible(f"report  {path}", 5_000))


def verify(
    page: Annotated[
        Path,
        typer.Argument(metavar="[REPORT]", help="A report.html or report.pdf of it; may be left out."),
    ],
    result: Annotated[Path | None, typer.Argument(metavar="RESULT", help="The result.json it shows.")] = None,
    gate: GateFile = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The public key, a PEM file, of who must have signed the result.")
    ] = None,
    signature: Annotated[
        Path | None, typer.Option("--signature", help="The signature. Default: the result's name with .sig.")
    ] = None,
) -> None:
    """Check that a report, HTML or PDF, says what its result says, and the result what its own numbers say.

    With --key, also that the key's owner signed these very files. Without it this shows that the files agree with each
    other, not who made them.

    Exit codes: 0 they agree, and with --key the signature holds; 1 they do not, or it does not; 2 a file cannot be
    read; 3 the digest fits, but the rest cannot be compared here: another version of leakaudit or WeasyPrint wrote the
    report, or there is no WeasyPrint to print a PDF again.
    """
    from leakaudit.reports.signed import beside, check
    from leakaudit.reports.verify import verify as compare
    from leakaudit.result.signature import Part

    shown, stored = (None, page) if result is None else (page, result)
    found = compare(shown, stored, gate)
    given: dict[Part, Path | None] = {"result": stored, "report": shown, "gate": gate}
    derived = shown is not None and found.status == "same"
    signed = check(signature or beside(stored), given, key, derived=derived)
    code = CODES["other"] if signed.holds is False else CODES[found.status]
    for sentence in (*found.sentences, *signed.sentences, *(found.unknown if code == CODES["same"] else ())):
        typer.echo(visible(sentence))
    raise typer.Exit(code)
