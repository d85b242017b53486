"""Running a user's Python file apart from our own modules, and saying what goes wrong there."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from leakaudit.errors import UserError, first_line, is_installed, line_of, quotes, sentence
from leakaudit.files.reading import CODE, bytes_of, check, text_of

_folders: set[Path] = set()  # that users' code was imported from


def named(spec: str) -> tuple[str, str | None]:
    """Return what a target's spec names, a file or a module, and the factory after its colon."""
    head, colon, tail = spec.rpartition(":")
    return (head, tail) if colon and tail.isidentifier() else (spec, None)


def is_file(place: str) -> bool:
    """Return whether what a spec names is a file or a folder, not a module that is imported by its name."""
    return place.endswith(".py") or "/" in place or "\\" in place or Path(place).exists()


def folder_of(spec: str) -> Path:
    """Return the folder that a target's file stands in; the present one for a module."""
    place, _ = named(spec)
    return Path(place).absolute().parent if is_file(place) else Path.cwd()


def registers(spec: str) -> bool:
    """Return whether a target's file, or one beside it, may register attacks or defenses of its own.

    Told by its text, without running it; of a module, which is not looked for here, it is assumed.
    """
    place, _ = named(spec)
    if not is_file(place):
        return True
    for file in (Path(place), *sorted(folder_of(spec).glob("*.py"))):
        with suppress(UserError):
            if any(f"register_{kind}" in text_of(file, CODE) for kind in ("attack", "defense")):
                return True
    return False


def of_users(error: BaseException) -> bool:
    """Return whether an exception passed through code that was imported for a user."""
    files = {frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)}
    return any(
        Path(file).resolve().is_relative_to(folder)
        for file in files
        if file.endswith(".py") and not is_installed(file)
        for folder in _folders
    )


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules beside the user's file be imported, then forget them, so that two folders may each hold a helper.

    Ours are imported as `leakaudit.attacks` and the like, so a user's `attacks.py` neither shadows nor is shadowed.
    """
    place, known = str(folder), set(sys.modules)
    _folders.add(folder.resolve())
    # Of a copy: reading `__file__` of a lazy module may import others.
    hidden = {n: m for n, m in list(sys.modules.items()) if "." not in n and _is_other(m, folder / n)}
    for name in hidden:
        sys.modules.pop(name, None)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)
        for name, module in list(sys.modules.items()):
            if name in known or name.startswith(("leakaudit", "_leakaudit")):
                continue
            file = file_of(module)
            if file and Path(file).is_relative_to(folder) and not is_installed(file):
                sys.modules.pop(name, None)
        sys.modules.update(hidden)


def file_of(module: object) -> str | None:
    """Return the file that a module was read from; None where it has none, or cannot be asked.

    What stands in `sys.modules` may be any object: a lazy module loads itself when it is asked, and may fail at that.
    """
    try:
        file = getattr(module, "__file__", None)
    except Exception:  # whatever its loading raises
        return None
    return file if isinstance(file, str) else None


def _is_other(module: ModuleType, beside: Path) -> bool:
    """Whether a loaded top-level module of an earlier folder has the name of one in the user's folder (`beside`)."""
    if beside.name in ("__main__", "leakaudit"):
        return False
    if not (beside.with_suffix(".py").is_file() or (beside / "__init__.py").is_file()):
        return False  # asked first: most modules are none of the user's, and a lazy one loads when it is looked at
    file = file_of(module)
    return bool(file and not is_installed(file) and not Path(file).is_relative_to(beside.parent))


def import_file(path: Path, wanted: str) -> ModuleType:
    """Run a Python file and return it as a module under a name of its own; `wanted` says what it is read for.

    Raises UserError naming the file and, where known, the line.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the .py file in it that {wanted}.")
    if not path.exists():
        raise UserError(f"no such file: {path}; give a .py file that {wanted}.")
    check(path, CODE)
    private = _private(path, wanted)
    spec = importlib.util.spec_from_file_location(private, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file: give a .py file that {wanted}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and typing look their module up there
    try:
        with importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except UserError as error:
        sys.modules.pop(private, None)
        raise UserError(f"{path}: {sentence(error)}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may raise anything
        sys.modules.pop(private, None)
        raise import_error(str(path), error) from error
    return module


def _private(path: Path, wanted: str) -> str:
    """Return the name of a user's file as a module: the same in every process and wherever the file lies.

    Objects of its classes are kept, and read again elsewhere. One file may be read for two things.
    """
    digest = hashlib.sha256(os.fsencode(f"{path.name}/{wanted}/") + bytes_of(path, CODE)).hexdigest()
    return f"_leakaudit_{digest[:16]}"


def import_error(name: str, error: BaseException) -> UserError:
    """Return what to say of an error that came up while the file or module `name` was imported."""
    if isinstance(error, SyntaxError) and quotes():
        other = f" in {error.filename}" if error.filename and Path(error.filename).name != Path(name).name else ""
        line = "" if error.lineno is None else f", line {error.lineno}"
        return UserError(f"{name}{line}: {error.msg}{other} ({type(error).__name__}): mend that.")
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if isinstance(error.lineno, int) else ""
        return UserError(f"{name}{line}: {first_line(error)}: mend that.")
    if isinstance(error, SystemExit):
        mend = "put what a script does under `if __name__ == '__main__':`"
        return UserError(f"{name}{line_of(error)} exits while it is imported: {mend}.")
    return UserError(
        f"{name}{line_of(error)} fails while it is imported ({first_line(error, placed=False)}): mend that."
    )
