"""What the commands share: options of the same name mean the same everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer

from leakaudit.errors import UserError
from leakaudit.result.plaintext import visible

USAGE, INTERNAL = 2, 4
# Headings of the help screens, in their order.
WHAT, WORK, SCENE = "What is audited", "How much work", "The exchange and its adversary"
JUDGED, TOLD, FROM = "What is judged", "What is written and shown", "Where settings come from"
SPREAD = "Where it is computed, and what is kept"
# Headings under which the first screen lists the commands.
AUDIT, READ, GATES, GENERATOR = "Audit", "Read a result", "Gate a build", "Keep the obscuring generator"

EPILOG = (
    "\b\nExit codes: 0 pass, 1 fail, 2 usage or configuration,\n"
    "            3 inconclusive or interrupted, 4 internal error."
)
DONE = "\b\nExit codes: 0 done, 2 usage or configuration, 3 interrupted, 4 internal error."

SETTINGS = (
    "Options may be set elsewhere, too: --batch-size 8 is the variable LEAKAUDIT_BATCH_SIZE=8, and batch-size = 8 in "
    "[tool.leakaudit] of pyproject.toml. The command line goes first, then variables, then the file."
)


class Mode(str, Enum):  # noqa: UP042 - typer shows the values
    """The client's mode."""

    eval = "eval"
    train = "train"


MODEL = "model.py"  # what is audited where nobody says
TARGET_HELP = "model.py, package.module, or either with :factory (path.py:make_model)."
Target = Annotated[str, typer.Argument(metavar="MODEL", help=TARGET_HELP, is_eager=True)]

STORED = "A result.json, or the folder that a scan wrote it into."
Stored = Annotated[Path, typer.Argument(metavar="RESULT", help=STORED)]  # `stored` finds the file

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Replace train_data: a folder of class folders, or an .npz file.",
        rich_help_panel=WHAT,
    ),
]

Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FILE",
        help="Weights: .safetensors, or a torch file (weights only).",
        rich_help_panel=WHAT,
    ),
]

Records = Annotated[
    int,
    typer.Option(
        "--records",
        metavar="N",
        help="Private records to attack; replay, which further ones cost little, is asked about up to 64.",
        rich_help_panel=WORK,
    ),
]

Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Time for the whole scan: 90s, 10m, 2h. Unfinished work is shown as that.",
        rich_help_panel=WORK,
    ),
]

Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="What a step of an attack may take beside the model and the data: 512MB, 4GB. "
        "More runs in pieces, or is refused and says what it needs. Default: what is free.",
        rich_help_panel=WORK,
    ),
]

Seeds = Annotated[
    int | None,
    typer.Option("--seeds", metavar="N", help="Training runs per defense.", rich_help_panel=WORK),
]

Epochs = Annotated[
    int | None,
    typer.Option("--epochs", metavar="N", help="Epochs of each training run.", rich_help_panel=WORK),
]

Candidates = Annotated[
    int,
    typer.Option(
        "--candidates",
        metavar="N",
        help="Candidates per identification, of the same class or with the nearest labels.",
        rich_help_panel=SCENE,
    ),
]

BatchSize = Annotated[
    int, typer.Option("--batch-size", metavar="N", help="Records behind one shared update.", rich_help_panel=SCENE)
]

ClientSpec = Annotated[
    str,
    typer.Option(
        "--client",
        metavar="SPEC",
        help="What a client does before it sends: fedsgd, or fedavg:epochs=1:batch=8:lr=0.01 (also steps, momentum, "
        "optimizer, clients, rounds). Default: `client` of model.py, or fedsgd.",
        rich_help_panel=SCENE,
    ),
]

Stages = Annotated[
    str | None,
    typer.Option(
        "--stages",
        metavar="NAMES",
        help="Train the model itself and audit it at these moments: init,early,trained. Default: its weights as given.",
        rich_help_panel=SCENE,
    ),
]

ClientMode = Annotated[
    Mode,
    typer.Option("--mode", metavar="MODE", help="The client's mode: eval or train.", rich_help_panel=SCENE),
]

Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.",
        rich_help_panel=SCENE,
    ),
]

Seed = Annotated[int, typer.Option("--seed", metavar="N", help="One seed fixes everything.", rich_help_panel=SCENE)]


class Preset(str, Enum):  # noqa: UP042 - typer shows the values
    """Exposure presets."""

    honest = "honest-but-curious"
    adaptive = "adaptive"
    malicious = "malicious-server"


class Level(str, Enum):  # noqa: UP042
    """How pictures appear in the result."""

    full = "full"
    redacted = "redacted"
    none = "none"


Images = Annotated[
    Level | None,
    typer.Option(
        "--images",
        metavar="LEVEL",
        help="Pictures in the result: full, redacted (public pictures degraded alike) or none. "
        "Default: full, or redacted where CI=true.",
        rich_help_panel=TOLD,
    ),
]

MaxIdentification = Annotated[
    float,
    typer.Option(
        "--max-identification",
        metavar="SHARE",
        help="Pass needs upper bounds at or below this, but for chance hits.",
        rich_help_panel=JUDGED,
    ),
]

MaxAccuracyLoss = Annotated[
    float,
    typer.Option(
        "--max-accuracy-loss",
        metavar="SHARE",
        help="Share of accuracy a defense may cost: what the advice looks for, no verdict.",
        rich_help_panel=JUDGED,
    ),
]

Tensorboard = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        metavar="FOLDER",
        help="Log losses, results and full pictures into this folder as the scan runs.",
        rich_help_panel=TOLD,
    ),
]

LpipsWeights = Annotated[
    Path | None,
    typer.Option(
        "--lpips-weights",
        metavar="FILE",
        help="AlexNet features for LPIPS; else the torch cache.",
        rich_help_panel=TOLD,
    ),
]

AllAttacks = Annotated[
    bool,
    typer.Option("--all-attacks", help="Skip none where the verdict is settled; so does --full.", rich_help_panel=WORK),
]

NoUtility = Annotated[
    bool,
    typer.Option("--no-utility", help="Do not measure accuracy (no training runs).", rich_help_panel=WORK),
]

Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FOLDER", help="Folder for result.json and report.html.", rich_help_panel=TOLD
    ),
]

ExitZero = Annotated[
    bool,
    typer.Option("--exit-zero", help="Exit 0 whatever the verdict.", allow_from_autoenv=False, rich_help_panel=JUDGED),
]


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print the verdict and the paths only; on stderr nothing but errors.",
        rich_help_panel=TOLD,
    ),
]

Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Print all that there is to say ahead of the table: every reason, what was tried, failures, notes.",
        rich_help_panel=TOLD,
    ),
]

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout: verdict, reasons, paths.", rich_help_panel=TOLD),
]


def written(help: str, *names: str) -> Any:
    """Return an option that names a file to write."""
    return typer.Option(*names, metavar="FILE", help=help, rich_help_panel=TOLD, allow_from_autoenv=False)


def say(text: str) -> None:
    """Print a sentence: wrapped at words in a terminal, as an item of a list where it is one; whole into a pipe."""
    from rich.console import Console

    console, told = Console(), visible(text, 5_000)
    if console.is_terminal:
        indent = " " * (len(told) - len(told.lstrip(" -")))
        told = "\n".join(wrap(told, console.width, subsequent_indent=indent, break_on_hyphens=False))
    typer.echo(told)


def named(target: str) -> str:
    """Return a target; raises UserError where it is the usual file, and that is not here."""
    if target == MODEL and not Path(MODEL).exists():
        raise UserError(
            f"there is no {MODEL} here: name your file (leakaudit scan path/to/your.py), or write {MODEL} with two "
            "names in it, model (a torch.nn.Module) and train_data (a Dataset of picture and label)."
        )
    return target


def tell_where(config: Path | None) -> None:
    """Say on stderr which file settings come from, if any does."""
    if config is not None:
        typer.echo(visible(f"settings of {config}", 5_000), err=True)


def name_what_was_left_out() -> None:
    """Name on stderr every installed plug-in that could not be loaded."""
    from leakaudit.protocol.plugins import failures
    from leakaudit.protocol.registry import attacks, defenses
    from leakaudit.score.metrics import further

    attacks(), defenses(), further()
    for sentence in failures():
        typer.echo(f"leakaudit: warning: {visible(sentence)}", err=True)


def examples(*lines: str, settings: bool = False, codes: str = DONE) -> str:
    """Return an epilog of commands that the help screen does not wrap, so that they can be copied.

    With `settings` it says where else the options may be set; `codes` are the exit codes, empty where the help has
    them.
    """
    shown = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    return "\n\n".join(part for part in (shown, SETTINGS if settings else "", codes) if part)
