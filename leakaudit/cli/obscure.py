"""`leakaudit obscure`: the obscuring generator as a file of one's own. Parsing and printing only.

Heavy imports wait until a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leakaudit.errors import UserError
from leakaudit.files.writing import check_writable
from leakaudit.options.command import Command, Group
from leakaudit.options.common import DONE, TARGET_HELP, Checkpoint, Data, Device, examples, written
from leakaudit.options.settings import FROM_ENVIRONMENT
from leakaudit.result.plaintext import visible

if TYPE_CHECKING:
    from leakaudit.protocol.target import Records, Target

app = typer.Typer(
    cls=Group,
    help="Keep the obscuring generator as a file: fit it on private records once, then put its pictures in their "
    "place.\n\n\b\n"
    "  leakaudit obscure fit model.py\n"
    "  leakaudit obscure apply generator.safetensors model.py",
    epilog=DONE,
    no_args_is_help=True,
    rich_markup_mode=None,
)

# Private records of a class below which the fit warns: each is then a twentieth or more of the class's mean picture.
FEW = 20
MOST_SEED = 2**63 - 1

# A --seed here is of random choices alone: which records are held out does not depend on it, so that `apply` finds the
# records that `fit` was given.
Limit = Annotated[
    int,
    typer.Option(
        "--limit",
        metavar="N",
        min=3,
        max=10**7,
        allow_from_autoenv=False,
        help="Records read at most: private, test, auxiliary each.",
    ),
]


@app.command(
    cls=Command,
    context_settings=FROM_ENVIRONMENT,
    epilog=examples(
        "leakaudit obscure fit model.py -o generator.safetensors",
        "leakaudit obscure fit model.py --settings pictures=3:steps=20",
        "leakaudit obscure fit model.py --data digits.npz --settings mirror=false",
    ),
)
def fit(  # noqa: PLR0913 - a command: its options
    target: Annotated[str, typer.Argument(metavar="MODEL", help=TARGET_HELP)],
    output: Annotated[Path, written("The .safetensors file; its card goes beside it as .md.", "--output", "-o")] = Path(
        "generator.safetensors"
    ),
    settings: Annotated[
        str,
        typer.Option(
            "--settings",
            "-s",
            metavar="SETTINGS",
            help="setting=value[:setting=value…], as in -d obscure:steps=20.",
            allow_from_autoenv=False,
        ),
    ] = "",
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", allow_from_autoenv=False, help="Fit in short, as a quick scan does; its pictures teach less."
        ),
    ] = False,
    data: Data = None,
    checkpoint: Checkpoint = None,
    limit: Limit = 4000,
    device: Device = "auto",
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            allow_from_autoenv=False,  # whoever knows it knows the random choices
            min=0,
            max=MOST_SEED,
            help="Repeat a fit exactly. Default: drawn afresh and not kept, since whoever knows it knows the fit's "
            "random choices.",
        ),
    ] = None,
) -> None:
    """Fit the generator on the private records, and write it with a model card.

    Ctrl-C keeps the finished stages: the same command goes on from there.
    """
    _named(output, ".safetensors")
    card_file = output.with_suffix(".md")
    check_writable(output)
    import secrets
    from dataclasses import replace

    from leakaudit.defenses.obscurer_card import render, summary
    from leakaudit.defenses.obscurer_fit import costs, key_of, now, parsed, spec_of
    from leakaudit.defenses.obscurer_fit import fit as fit_obscurer
    from leakaudit.files.folder import kept as put
    from leakaudit.files.writing import write_atomically
    from leakaudit.load.loading import load_target
    from leakaudit.scene.told import quick_fit
    from leakaudit.watch.console import progress_monitor
    from leakaudit.work.progress import monitored
    from leakaudit.work.resume import kept_key, resumable

    _may_replace(output, card_file)
    defense = parsed(settings, quick=quick)
    with progress_monitor() as monitor:
        monitor.stage("loading the model and the data")
        loaded = load_target(target, data=data, checkpoint=checkpoint, device=device, limit=limit)
    _few(loaded, limit)
    partial = output.with_name(output.name + ".partial")
    chosen = seed if seed is not None else int((kept_key(partial) or {}).get("seed") or secrets.randbits(62))
    try:
        with (
            progress_monitor() as monitor,
            monitored(monitor),
            resumable(partial, key_of(defense, loaded, chosen)) as kept,
        ):
            if kept.resumed:
                typer.echo(f"resumed  {kept.resumed} finished stages of {visible(str(partial))}", err=True)
            elif kept.discarded:
                typer.echo(f"note  {kept.discarded}.", err=True)
            begun = now()
            obscurer, card = fit_obscurer(loaded, defense, chosen, secret=seed is None)
            spent = costs(obscurer, loaded, begun)
            card = replace(card, seed=seed if card.epsilon is None else None)  # who knows it takes the noise off

            def save(place: Path) -> None:
                obscurer.save(place, card)
                text = render(obscurer, card, place.name, spent, resumed=kept.resumed)
                write_atomically(place.with_suffix(".md"), text)

            wanted, output = output, put(save, output)
            if output != wanted:
                typer.echo(
                    visible(f"leakaudit: {wanted.parent} takes no more: the generator is in {output.parent}.", 9_000),
                    err=True,
                )
    except KeyboardInterrupt:
        _interrupted(partial)
    if seed is not None and card.epsilon is not None:
        typer.echo(
            f"warning   whoever guesses --seed {seed} takes the noise off: leave it out before you share", err=True
        )
    for note in (*loaded.notes, *(told.message for told in quick_fit(spec_of(settings), defense, "full"))):
        typer.echo(f"note      {note}")
    typer.echo(f"{summary(obscurer, card, spent)}\n{_files(output)}")
    command = _scan(target, data, checkpoint, settings) + (" --quick" if quick else "")
    typer.echo(f"next      {visible(command, 5_000)}   attacks a generator that is fitted like this one")


@app.command(
    cls=Command,
    context_settings=FROM_ENVIRONMENT,
    epilog=examples("leakaudit obscure pool one.safetensors two.safetensors -o pool.safetensors"),
)
def pool(
    generators: Annotated[
        list[Path], typer.Argument(metavar="GENERATOR...", help="Files of `leakaudit obscure fit`, one per client.")
    ],
    output: Annotated[Path, written("The .safetensors file; its card goes beside it as .md.", "--output", "-o")] = Path(
        "pool.safetensors"
    ),
) -> None:
    """Put the generators of clients together: each client then draws from the pictures of all, and all see them."""
    _named(output, ".safetensors")
    check_writable(output)
    from leakaudit.defenses.obscurer_card import render
    from leakaudit.defenses.obscurer_pool import pool as pooled
    from leakaudit.files.writing import write_atomically

    _may_replace(output, output.with_suffix(".md"))
    obscurer, card = pooled(generators)
    obscurer.save(output, card)
    write_atomically(output.with_suffix(".md"), render(obscurer, card, output.name))
    typer.echo(
        f"pooled    {len(obscurer.pictures):,} pictures of {len(card.sources)} clients over {len(card.classes)} "
        f"classes\n{_files(output)}"
    )


def _files(output: Path) -> str:
    return f"generator {visible(str(output))}\ncard      {visible(str(output.with_suffix('.md')))}"


@app.command(
    cls=Command,
    context_settings=FROM_ENVIRONMENT,
    epilog=examples(
        "leakaudit obscure apply generator.safetensors model.py -o released.npz",
        "leakaudit obscure apply generator.safetensors pictures/ -o released.npz",
        "leakaudit scan model.py --data released.npz",
    ),
)
def apply(
    generator: Annotated[Path, typer.Argument(metavar="GENERATOR", help="A file written by `leakaudit obscure fit`.")],
    records: Annotated[
        str,
        typer.Argument(metavar="RECORDS", help="model.py (its private records), a folder of class folders, an .npz."),
    ],
    output: Annotated[
        Path, written("The .npz file: x_train, y_train, probabilities, classes.", "--output", "-o")
    ] = Path("released.npz"),
    data: Data = None,
    limit: Limit = 4000,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            allow_from_autoenv=False,  # whoever knows it knows the random choices
            min=0,
            max=MOST_SEED,
            help="Repeat a draw exactly. Default: drawn afresh, so that nobody can guess it.",
        ),
    ] = None,
) -> None:
    """Draw pictures with probabilities in the place of records. No private picture is written."""
    _named(output, ".npz")
    check_writable(output)

    from leakaudit.defenses.obscurer import read
    from leakaudit.defenses.obscurer_file import digest
    from leakaudit.defenses.obscurer_fit import made_by_apply, npz, released
    from leakaudit.files.writing import write_atomically
    from leakaudit.result.numbers import significant
    from leakaudit.result.shapes import in_words

    if output.exists() and not made_by_apply(output):
        raise UserError(f"--output {output} exists and was not written by `obscure apply`: name another file.")
    obscurer, card = read(generator)
    private = _records(generator, records, data, limit)
    pictures, probabilities = released(obscurer, private, seed)
    write_atomically(output, npz(pictures, probabilities, card.classes))
    typer.echo(
        f"released  {visible(str(output))}: {len(pictures):,} {in_words(pictures.shape[1:])} with probabilities over "
        f"{len(card.classes)} classes"
    )
    if obscurer.slope == 0:
        typer.echo("rate      0 nats: which picture stands for a record depends on chance alone")
        return
    typer.echo(f"rate      {significant(card.nats)} nats per record on average; releasing them again adds as much")
    if seed is not None:
        typer.echo(f"warning   whoever guesses --seed {seed} can undo the random choice: leave it out before you share")
    if digest(private) != card.digest:
        typer.echo("note      these are not the records it was fitted on, for which that rate was measured")


def _records(generator: Path, records: str, data: Path | None, limit: int) -> Records:
    """Return the records of a data file, or the private ones of a model, checked against the generator."""
    from leakaudit.data.pictures import Expected
    from leakaudit.defenses.obscurer import read
    from leakaudit.load.loading import data_records, load_target

    path = Path(records)
    if path.suffix.lower() == ".npz" or (path.is_dir() and not (path / "__init__.py").exists()):
        if data is not None:
            raise UserError(f"{records} is data already: give either it or --data.")
        obscurer, card = read(generator)
        found, classes = data_records(path, Expected(obscurer.depth > 1, obscurer.sizes[0]))
        wanted = card.classes
        if classes is not None and len(classes) != len(wanted):
            raise UserError(f"{records} has {len(classes)} classes and {generator} was fitted on {len(wanted)}.")
        return found
    target = load_target(records, data=data, device="cpu", limit=limit)
    read(generator, target)
    return target.private


def _few(target: Target, limit: int) -> None:
    """Warn before the fit where classes have so few private records that their statistics are those records."""
    counts = target.private.labels.bincount(minlength=len(target.classes)).tolist()
    few = [k for k, count in enumerate(counts) if count < FEW]
    if few:
        least = min(few, key=lambda k: counts[k])
        typer.echo(
            f"warning   {len(few)} of {len(counts)} classes have fewer than {FEW} private records (class "
            f"{visible(target.classes[least])!r}: {counts[least]}): pictures drawn from so few are poor and lean "
            f"towards single records; give more data{f', or a higher --limit than {limit}' if limit < 4000 else ''}.",
            err=True,
        )


def _named(path: Path, suffix: str) -> None:
    if path.suffix.lower() != suffix:
        mend = f"name the file {path.with_suffix(suffix)}" if path.name else "name the file to write"
        raise UserError(f"--output {path} does not end in {suffix}: {mend}.")


def _may_replace(output: Path, card_file: Path) -> None:
    """Refuse to replace what is not an earlier generator and its card: weights may have the same suffix."""
    from leakaudit.defenses.obscurer import read
    from leakaudit.defenses.obscurer_card import TITLE
    from leakaudit.files.reading import NOTES, bytes_of

    if output.exists():
        try:
            read(output)
        except UserError as error:
            raise UserError(f"--output {output} exists and is not a generator: name another file.") from error
    if card_file.exists():
        first = bytes_of(card_file, NOTES).partition(b"\n")[0].decode("utf-8", "replace")
        if not first.endswith(TITLE):
            raise UserError(f"{card_file} exists and is not a generator's card: name another --output.")


def _scan(target: str, data: Path | None, checkpoint: Path | None, settings: str) -> str:
    """Return the command that scans what a generator was fitted for."""
    import shlex

    from leakaudit.defenses.obscurer_fit import spec_of

    same = {"--data": data, "--checkpoint": checkpoint}
    given = [word for name, path in same.items() if path is not None for word in (name, str(path))]
    return shlex.join(["leakaudit", "scan", target, *given, "-d", spec_of(settings)])


def _interrupted(partial: Path) -> None:
    if partial.exists():
        typer.echo(
            f"Interrupted: finished stages are kept in {visible(str(partial))}; the same command goes on from there.\n"
            "It holds networks trained on the private records: keep it as you keep those, or delete it.",
            err=True,
        )
    else:
        typer.echo("Interrupted before the first stage was finished: nothing is kept.", err=True)
    from leakaudit.result.rules import EXIT

    raise typer.Exit(EXIT["inconclusive"])
