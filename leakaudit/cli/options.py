"""What the commands share: options of the same name mean the same everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

USAGE, INTERNAL = 2, 4

EPILOG = (
    "\b\nExit codes: 0 pass, 1 fail, 2 usage or configuration,\n"
    "            3 inconclusive or interrupted, 4 internal error."
)


class Mode(str, Enum):  # noqa: UP042 - typer shows the values
    """The client's mode."""

    eval = "eval"
    train = "train"


Data = Annotated[
    Path | None, typer.Option("--data", help="Replace train_data: a folder of class folders, or an .npz file.")
]

Checkpoint = Annotated[
    Path | None, typer.Option("--checkpoint", help="Weights: .safetensors, or a torch file (weights only).")
]

Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")]

Seed = Annotated[int, typer.Option("--seed", help="One seed fixes everything.")]

TARGET_HELP = "model.py, package.module, or either with :factory (path.py:make_model)."


def name_what_was_left_out() -> None:
    """Name on stderr every installed plug-in that could not be loaded."""
    from leakaudit.protocol.plugins import failures
    from leakaudit.protocol.registry import attacks, defenses
    from leakaudit.result.plaintext import visible
    from leakaudit.score.metrics import further

    attacks(), defenses(), further()
    for sentence in failures():
        typer.echo(f"leakaudit: warning: {visible(sentence)}", err=True)


def examples(*lines: str) -> str:
    """Return an epilog of commands that the help screen does not wrap, so that they can be copied."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + "\n\n" + EPILOG
