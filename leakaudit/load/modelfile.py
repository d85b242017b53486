"""Reading a user's `model.py`: importing it apart from our own modules, and reporting what goes wrong there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from leakaudit.errors import UserError, first_line
from leakaudit.work.seeding import seeded

NAMES = ("model", "train_data", "test_data", "auxiliary_data", "loss", "mean", "std", "classes", "device")


@dataclass(frozen=True)
class ModelFile:
    """What a spec named: its module-level names, and the folder its imports are looked up in."""

    name: str  # for messages and the report
    folder: Path
    values: dict[str, Any]


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules beside the user's file be imported, then forget them, so that two folders may each hold a helper.

    Ours are imported as `leakaudit.attacks` and the like, so a user's `attacks.py` neither shadows nor is shadowed.
    """
    place, known = str(folder), set(sys.modules)
    hidden = {n: m for n, m in sys.modules.items() if "." not in n and _is_other(m, folder / n)}
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)
        for name in [n for n in sys.modules if n not in known and not n.startswith("leakaudit")]:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).is_relative_to(folder) and not _is_installed(file):
                del sys.modules[name]
        sys.modules.update(hidden)


def _is_other(module: ModuleType, beside: Path) -> bool:
    """Whether a loaded top-level module of an earlier folder has the name of one in the user's folder."""
    file = getattr(module, "__file__", None)
    return bool(
        file
        and not _is_installed(file)
        and module.__name__ not in ("__main__", "leakaudit")
        and (beside.with_suffix(".py").is_file() or (beside / "__init__.py").is_file())
        and not Path(file).is_relative_to(beside.parent)
    )


def _is_installed(file: str) -> bool:
    places = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(file.startswith(place) for place in places)


def read_spec(spec: str, seed: int) -> ModelFile:
    """Import what `spec` names: `model.py`, `package.module`, or either with `:factory`, which replaces `model`.

    Runs under a fixed random state, so that the same seed builds the same weights. Raises UserError naming the file
    and, where known, the line.
    """
    place, factory = spec, None
    head, colon, tail = spec.rpartition(":")
    if colon and tail.isidentifier():
        place, factory = head, tail
    path = Path(place)
    with seeded(seed, "import"):
        if place.endswith(".py") or path.exists() or "/" in place or "\\" in place:
            module, folder = _import_file(path), path.resolve().parent
        else:
            module, folder = _import_module(place), Path.cwd()
    values = {name: getattr(module, name) for name in NAMES if hasattr(module, name)}
    if factory:
        if not hasattr(module, factory):
            raise UserError(f"{place} has no {factory!r}: define it, or name what builds the model after the colon.")
        values["model"] = getattr(module, factory)
    return ModelFile(path.name if factory is None else f"{path.name}:{factory}", folder, values)


def _import_file(path: Path) -> ModuleType:
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the .py file in it that defines model and train_data.")
    if not path.is_file():
        raise UserError(f"no such file: {path}; give a .py file that defines model and train_data.")
    private = f"_leakaudit_target_{abs(hash(path.resolve())):x}"
    spec = importlib.util.spec_from_file_location(private, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: give a .py file that defines model and train_data.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and typing look their module up there
    try:
        with importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(private, None)
        raise _import_error(str(path), error) from error
    return module


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            mend = "give a path ending in .py or an importable module"
            raise UserError(f"no file or module named {name!r}: {mend}.") from error
        raise _import_error(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_error(name, error) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _import_error(name: str, error: BaseException) -> UserError:
    if isinstance(error, SyntaxError):
        other = f" in {error.filename}" if error.filename and Path(error.filename).name != Path(name).name else ""
        line = "" if error.lineno is None else f", line {error.lineno}"
        return UserError(f"{name}{line}: {error.msg}{other} ({type(error).__name__}): mend that.")
    if isinstance(error, SystemExit):
        mend = "put what a script does under `if __name__ == '__main__':`"
        return UserError(f"{name}{line_of(error)} exits while it is imported: {mend}.")
    return UserError(f"{name}{line_of(error)} fails while it is imported ({first_line(error)}): mend that.")


def line_of(error: BaseException) -> str:
    """Return ", line N" (", line N of file" elsewhere) of the deepest frame in the user's own code, or nothing."""
    ours = str(Path(__file__).resolve().parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(".py") and not _is_installed(frame.filename) and not frame.filename.startswith(ours)
    ]
    return f", line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""


def is_factory(value: Any) -> bool:
    """Return whether `value` is a zero-argument callable, not a model, a loss or a dataset (objects themselves)."""
    if not callable(value) or isinstance(value, nn.Module):
        return False
    if not isinstance(value, type) and (hasattr(value, "__getitem__") or hasattr(value, "__iter__")):
        return False
    try:
        inspect.signature(value).bind()
    except (TypeError, ValueError):
        return False
    return True


def resolve(value: Any, name: str, seed: int) -> Any:
    """Call `value` if it is a zero-argument callable, under a random state fixed by `seed` and its name.

    Raises UserError with the line and the first line of what it raised.
    """
    if not is_factory(value):
        return value
    build: Callable[[], Any] = value
    try:
        with seeded(seed, name):
            return build()
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(f"{name}() exits{line_of(error)}: let it return what it builds.") from error
    except Exception as error:  # user code may raise anything
        raise UserError(f"{name}() fails{line_of(error)} ({first_line(error)}): mend that.") from error
