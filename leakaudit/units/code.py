"""SHA-256 of the code that an outcome depends on: a module of ours with all that it imports of ours, or a user's.

Imports are read off the text. That may take in a module too many, which only makes an outcome be computed again; a
module too few would let a stale one pass for a new. With users' code go the environment variables that it names, and
the files beside it or in the present folder: what it reads when it is called changes what comes of it, too.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from leakaudit.errors import is_installed
from leakaudit.version import __version__

HOME = Path(__file__).parents[1]  # of the package
FROM = re.compile(r"(?:^|[;:])[ \t]*from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n#;]+)", re.MULTILINE)
IMPORT = re.compile(r"(?:^|[;:])[ \t]*import[ \t]+([\w., \t]+)", re.MULTILINE)
BY_NAME = re.compile(r"(?:import_module|__import__)\(\s*[\"']([\w.]+)[\"']")
QUOTED = re.compile(r"[\"'](?=([^\"'\n\\]{1,200})[\"'])")  # what stands between two strings, too: none is left out
# Variables that differ between the participants of one scan.
PLACE = re.compile(r"CUDA_VISIBLE_DEVICES|HOSTNAME|PATH|PWD|TMPDIR|(LOCAL_)?RANK|SLURM_\w+|RAY_\w+|\w+_NUM_THREADS")
LINKED = ("attacks", "defenses", "reports")  # folders of ours beside it
LARGEST = 1 << 24  # bytes of a source that is read
HASHED = 1 << 30  # bytes of another file
DEEP = 3  # folders of folders in which a name is looked for


def of_classes(classes: Iterable[type], *beside: str, places: Iterable[Path] = ()) -> str:
    """Return the hash of the code of classes, with the classes that they derive from, and of modules `beside`.

    `places` are files that have a part in it, too.
    """
    files, packages = set(places), set[str]()
    every = {each for cls in classes for each in cls.__mro__}
    files |= {file for each in every if not is_ours(each.__module__) for file in _written(each)}
    for name in {each.__module__ for each in every} | set(beside):
        if name.startswith("leakaudit.") and name not in sys.modules:
            files.add(HOME.joinpath(*name.split(".")[1:]).with_suffix(".py"))
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not is_ours(name) and is_installed(file):
            packages.add(name.partition(".")[0])
        elif file:
            files.add(Path(file))
    return _hashed(files, packages)


def of_files(*files: Path) -> str:
    """Return the hash of users' files, with all that they import that is in no installed package."""
    return _hashed({file for file in files if file.is_file()})


def of_named(value: object) -> str:
    """Return the hash of the file that a setting names, an empty text where it names none."""
    with suppress(OSError, ValueError):
        if isinstance(value, str | Path) and stat.S_ISREG(os.stat(value).st_mode):
            return _content(Path(value))
    return ""


def is_ours(name: str) -> bool:
    """Whether a module is leakaudit's own."""
    return name == "leakaudit" or name.startswith("leakaudit.")


def _written(cls: type) -> Iterator[Path]:
    """Yield the files in which the functions of a class stand: its module may be forgotten by now."""
    for value in vars(cls).values():
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        if code is not None and code.co_filename.endswith(".py") and not is_installed(code.co_filename):
            yield Path(code.co_filename)


def _hashed(roots: Iterable[Path], packages: Iterable[str] = ()) -> str:
    """Return the hash of files and all that they import: each by its text, installed packages by their versions."""
    met, installed = set[Path](), set(packages)
    ahead = [root.resolve() for root in roots]
    while ahead:
        file = ahead.pop()
        if file not in met:
            met.add(file)
            source = _read(file)
            ahead += source.files
            installed |= source.packages
    state = hashlib.sha256(__version__.encode())
    for name, digest in sorted((file.name, _read(file).digest) for file in met):
        state.update(name.encode("utf-8", "surrogatepass") + digest)
    for told in sorted({told for file in met for told in _around(file)}):
        state.update(told.encode("utf-8", "surrogatepass"))
    for name in sorted(installed):
        state.update(f"\n{name} {_version(name)}".encode())
    return state.hexdigest()


@cache
def _around(file: Path) -> tuple[str, ...]:
    """Return what a file of a user's reads when it is called: environment variables and files that it names."""
    source = _read(file)
    found = [
        f"\n{name}={os.environ[name]}" for name in source.quoted if name in os.environ and not PLACE.fullmatch(name)
    ]
    ahead: list[tuple[str, Path, int]] = [("", file.parent, 0), ("", Path(), 0)]
    while ahead:
        told, folder, depth = ahead.pop()
        for name in source.quoted:
            with suppress(OSError, ValueError):
                mode = (folder / name).stat().st_mode
                if stat.S_ISREG(mode):
                    found.append(f"\n{told}{name}: {_content(folder / name)}")
                elif stat.S_ISDIR(mode) and depth < DEEP and not os.path.isabs(name) and name.strip("./"):
                    ahead.append((f"{told}{name}/", folder / name, depth + 1))
                elif stat.S_ISDIR(mode) and depth == 0 and os.path.isabs(name):
                    ahead.append((f"{name}/", Path(name), 1))
    return tuple(found)


def _content(file: Path) -> str:
    """Return the hash of a file; of a very large one what tells that it changed."""
    if (size := file.stat().st_size) > HASHED:
        return f"{size}, {file.stat().st_mtime_ns}"
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@dataclass(frozen=True)
class _Source:
    digest: bytes
    files: tuple[Path, ...]  # that it imports, ours and others that are not installed
    packages: frozenset[str]  # that it imports and are
    quoted: tuple[str, ...] = ()  # what it names: a file, a folder of one, a variable of the environment, or none


@cache  # a process runs the code that it has read, whatever becomes of its file
def _read(file: Path) -> _Source:
    try:
        with file.open("rb") as source:
            content = source.read(LARGEST)
    except OSError:
        content = b""
    found, outside, text = list[Path](), set[str](), content.decode("utf-8", "replace").replace("\\\n", " ")
    for place, names in _imports(text):
        if files := list(_beside(file, place, names)):
            found += files
        elif not is_ours(place) and not place.startswith("."):
            outside.add(place.partition(".")[0])
            found += _elsewhere(place, names)
    kept = frozenset(n for n in outside if n not in sys.stdlib_module_names and _home(n) is None)
    ours = file.is_relative_to(HOME) or any(file.is_relative_to(HOME.parent / name) for name in LINKED)
    quoted = () if ours else tuple(dict.fromkeys(QUOTED.findall(text)))
    return _Source(hashlib.sha256(content).digest(), tuple(dict.fromkeys(found)), kept, quoted)


def _imports(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (module, names) of every import in a text."""
    for found in FROM.finditer(text):
        yield found[1], re.findall(r"\w+", found[2])
    for found in IMPORT.finditer(text):
        for name in found[1].split(","):
            if name.split():
                yield name.split()[0], []
    for found in BY_NAME.finditer(text):
        yield found[1], []


def _beside(file: Path, place: str, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files of an import that are ours, or stand beside the file that imports them."""
    if place == "leakaudit":
        yield from _modules(HOME, names)
        return
    level = len(place) - len(place.lstrip("."))
    base = HOME.parent if is_ours(place) else file.parents[min(max(0, level - 1), len(file.parents) - 1)]
    yield from _inside(base, place.lstrip("."), names, packages=not is_ours(place))


def _inside(base: Path, place: str, names: Iterable[str], *, packages: bool = True) -> Iterator[Path]:
    parts = [part for part in place.split(".") if part]
    for k, part in enumerate(parts):
        if packages or k == len(parts) - 1:
            yield from _modules(base.joinpath(*parts[:k]), [part])
    yield from _modules(base.joinpath(*parts), names)


def _elsewhere(place: str, names: Iterable[str]) -> Iterator[Path]:
    home = _home(place.partition(".")[0])
    if home is not None:
        yield from _inside(home, place, names)


@cache
def _home(name: str) -> Path | None:
    """Return the folder that holds a module which is neither installed nor Python's own; None for all others."""
    if name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = None if spec is None else spec.origin
    if not origin or not origin.endswith(".py") or is_installed(origin):
        return None
    path = Path(origin)
    return path.parent.parent if path.name == "__init__.py" else path.parent


@cache
def _version(name: str) -> str:
    try:
        found = distribution(name)
        # One that is being worked on is installed again under the same version.
        lines = (found.read_text("RECORD") or "").splitlines()
        record = "\n".join(sorted(line for line in lines if re.match(r"[^.][^,]*\.(py|so|pyd),", line)))
        return f"{found.version} {hashlib.sha256(record.encode()).hexdigest()}"
    except (PackageNotFoundError, ValueError):
        return " ".join(told for told, record in _records() if f"\n{name}/" in record or f"\n{name}.py," in record)


@cache
def _records() -> tuple[tuple[str, str], ...]:
    """Return the name and version of every installed package with the list of its files, which is only searched.

    `importlib.metadata.packages_distributions` takes each list apart, which takes a second.
    """
    found = (
        (each, each.read_text("RECORD") or each.read_text("installed-files.txt") or "") for each in distributions()
    )
    return tuple(sorted((f"{each.name} {each.version}", "\n" + record) for each, record in found))


def _modules(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files of modules and packages in a folder, those that there are."""
    for name in names:
        for file in (folder / f"{name}.py", folder / name / "__init__.py"):
            if file.is_file():
                yield file.resolve()
