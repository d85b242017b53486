"""`leakaudit sign`: who stands behind a result, and the keys to say so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.files.folder import stored
from leakaudit.options.command import Command
from leakaudit.options.common import READ, STORED, examples, say, written
from leakaudit.result.plaintext import visible


def add(app: typer.Typer) -> None:
    """Register the command."""
    app.command(
        cls=Command,
        rich_help_panel=READ,
        short_help="Sign a result, so that others can tell who stands behind it.",
        epilog=examples(
            "leakaudit sign --new-key officer",
            "leakaudit sign result.json --key officer.pem --name 'A. Officer'",
            "leakaudit sign result.json --key officer.pem --report report.html",
            "leakaudit sign result.json --key officer.pem --gate gate.json",
            "leakaudit verify report.html result.json --key officer.pub.pem",
            codes="",
        ),
    )(sign)


def sign(
    result: Annotated[Path | None, typer.Argument(metavar="RESULT", help=STORED)] = None,
    key: Annotated[Path | None, typer.Option("--key", metavar="FILE", help="Your private key, a PEM file.")] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option("--report", metavar="FILE", help="A report of it, HTML or PDF, to sign as well; repeat."),
    ] = None,
    gate: Annotated[
        Path | None, typer.Option("--gate", metavar="FILE", help="What the gate said of it, to sign as well.")
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Your name, as the signature says it.")] = "",
    output: Annotated[
        Path | None, written("The signature. Default: the result's name with .sig.", "--output", "-o")
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option("--new-key", metavar="NAME", help="Make a key instead: NAME.pem, private, and NAME.pub.pem."),
    ] = None,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="With --new-key: ask for a passphrase.")] = False,
) -> None:
    """Sign a result, its reports and its gate's outcome with an Ed25519 key, into a small file beside the result.

    It covers the files' bytes, your name, the date, the key and the versions. It says that you stand behind them, not
    that their numbers are right: what contradicts itself is not signed. Of a folder its result alone is signed: name
    its report and what the gate said.

    Exit codes: 0 signed, 1 the files contradict themselves or each other, 2 a file or key cannot be used.
    """
    if new_key is not None:
        if result is not None or key is not None:
            raise UserError("--new-key makes a key and signs nothing: give no result and no --key.")
        _new_key(new_key, encrypt)
        return
    if result is None or key is None:
        raise UserError("sign takes a result and --key, or --new-key NAME to make a key first.")
    if encrypt:
        raise UserError("--encrypt is for a new key: give --new-key too.")
    _sign(stored(result), key, tuple(report or ()), gate, name, output)


def _sign(
    result: Path, key: Path, reports: tuple[Path, ...], gate: Path | None, name: str, output: Path | None
) -> None:
    """Sign what was given, unless it contradicts itself."""
    from leakaudit.files.writing import apart, write_atomically
    from leakaudit.reports.signed import beside, signature_of
    from leakaudit.reports.verify import contradictions, verify
    from leakaudit.result.dates import words
    from leakaudit.result.keys import read_private
    from leakaudit.result.schema import load
    from leakaudit.result.signature import Part, to_json

    loaded, place = load(result), output or beside(result)
    if place.exists():
        raise UserError(f"{place} exists: name another file with --output, or remove it.")
    inputs = {"the result": result, "--key": key, "--gate": gate}
    apart({"--output": place}, {**inputs, **{f"the report {path}": path for path in reports}})
    private = read_private(key, lambda: _passphrase(key))
    if key.stat().st_mode & 0o077:
        typer.echo(visible(f"Others on this machine can read {key}: chmod 600 it."), err=True)
    wrong = list(contradictions(result, gate))
    for path in reports:
        found = verify(path, result, gate if _shows_gate(path) else None)
        wrong += found.sentences if found.status == "other" and not wrong else ()
    if wrong:
        for sentence in wrong:
            say(sentence)
        typer.echo("Nothing was signed.", err=True)
        raise typer.Exit(1)
    files: dict[Part, tuple[Path, ...]] = {"result": (result,), "report": reports, "gate": (gate,) if gate else ()}
    made = signature_of(loaded, files, private, name)
    write_atomically(place, to_json(made))
    covered = " and ".join(file.name for file in made.files)
    say(f"Signed {covered} on {words(made.signed)} by the key {made.key} (SHA-256).")
    typer.echo(visible(f"signature  {place}", 5_000))


def _shows_gate(report: Path) -> bool:
    from leakaudit.reports.verify import notes_of

    return bool(notes_of(report).get("gate-sha256"))


def _new_key(name: Path, encrypt: bool) -> None:
    from leakaudit.files.writing import write_atomically
    from leakaudit.result.keys import fingerprint as of
    from leakaudit.result.keys import new_key, read_public

    private, public = name.with_name(f"{name.name}.pem"), name.with_name(f"{name.name}.pub.pem")
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise UserError(f"{path} exists: name another key, since what it signed could not be checked any more.")
    passphrase = _passphrase(private, confirm=True) if encrypt else ""
    if encrypt and not passphrase:
        raise UserError("--encrypt takes a passphrase, and none was given.")
    own, shown = new_key(passphrase)
    write_atomically(private, own, private=True)
    write_atomically(public, shown)
    say(f"private key  {private}   (keep it: whoever has it signs as you)")
    say(f"public key   {public}   (give it to those who check)")
    say(f"fingerprint  {of(read_public(public))}   (SHA-256; tell it by another way than the key)")


def _passphrase(key: Path, confirm: bool = False) -> str:
    try:
        found: str = typer.prompt(f"Passphrase of {key}", hide_input=True, confirmation_prompt=confirm, err=True)
    except typer.Abort as error:
        raise UserError(f"{key} takes a passphrase, and nobody was there to give it.") from error
    return found
