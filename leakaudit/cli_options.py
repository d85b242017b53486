"""What the commands share: options of the same name mean the same everywhere."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from leakaudit.errors import UserError

EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
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


def examples(*lines: str) -> str:
    """Return an epilog of commands that the help screen does not wrap, so that they can be copied."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines) + "\n\n" + EPILOG


def check_writable(path: Path, option: str = "--output") -> None:
    """Find out before the work, not after it, that a file cannot be written; raises UserError naming the option."""
    from leakaudit.result import write_atomically

    try:
        if path.is_dir():
            raise UserError(f"{option} {path} is a folder: name the file to write.")
        if path.exists() and not path.is_file():  # a device or a pipe: written to as it is
            return
    except OSError as error:
        raise UserError(f"cannot write to {option} {path}: {error.strerror}; choose another place.") from error
    missing = [folder for folder in path.parents if not folder.exists()]
    probe = path.parent / ".leakaudit-probe"
    try:
        write_atomically(probe, "")
    except UserError as error:
        raise UserError(f"cannot write to {option} {path}: {error.__cause__}; choose another place.") from error
    probe.unlink(missing_ok=True)
    for folder in missing:
        folder.rmdir()


def apart(places: dict[str, Path | None], inputs: dict[str, Path | None]) -> None:
    """Refuse outputs that cannot be written, that are an input (or ./pyproject.toml), or that would replace each other.

    Both are given by what they are called. A link, hard or symbolic, is what it leads to.
    """
    seen = {
        _identity(path): name for name, path in {**inputs, "the configuration": Path("pyproject.toml")}.items() if path
    }
    for option, path in places.items():
        if path is None:
            continue
        check_writable(path, option)
        if path.exists() and not path.is_file():
            continue  # a device or a pipe takes any number of them
        other = seen.setdefault(_identity(path), option)
        if other != option:
            raise UserError(f"{option} {path} is {other} as well: name another file.")


def _identity(path: Path) -> tuple[int, int] | Path:
    try:
        found = path.stat()
    except OSError:
        return path.resolve()
    return found.st_dev, found.st_ino
