"""The order of the wings: imports run one way, lazy ones included; reading needs no torch; wings stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up: a wing may import those before it, and none behind it. "" is leakaudit/__init__.py.
READING = ("files", "result", "stats", "judge", "compare", "gate")
MEASURING = (
    "work",
    "units",
    "network",
    "protocol",
    "engine",
    "data",
    "load",
    "score",
    "scene",
    "audit",
    "captured",
    "spread",
)
SHOWING = ("watch", "options", "scans", "cli")
PLUGINS = ("defenses", "attacks", "reports")  # folders beside the package, linked into it
GROUND = ("version", "errors")
ENDS = ("loggers", "flower", "nvflare", "hooks", "testing", "pytest_plugin", "__main__", "")
ORDER = (*GROUND, *READING, *MEASURING, *PLUGINS, "watch", "api", "options", "scans", "cli", *ENDS)
FACES = ("api", "scans", "cli", *ENDS)
WINGS = (*READING, *MEASURING, *SHOWING)
MOST_LINES = 2500
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
# Functions that may be longer. The list may only shrink: an entry that is not needed any more fails.
LONG = {
    "cli.scan:scan",  # the options of a command
    "cli.obscure:fit",  # the same
    "testing:assert_private",  # the public surface, with its documentation
    "api:scan",  # the same: every argument stands there with its type and its default
}


def _sources() -> dict[str, Path]:
    """Return every module of ours by its dotted name below `leakaudit`."""
    files = {f.relative_to(ROOT / "leakaudit"): f for f in (ROOT / "leakaudit").rglob("*.py")}  # links are not followed
    files |= {Path(name) / f.name: f for name in PLUGINS for f in (ROOT / name).glob("*.py")}
    dotted = {".".join(path.with_suffix("").parts): file for path, file in files.items()}
    return {name.removesuffix("__init__").removesuffix("."): file for name, file in sorted(dotted.items())}


SOURCES = _sources()


@cache
def _imports(name: str) -> tuple[tuple[int, str], ...]:
    """Return (line, module) of every import of ours, wherever it stands, but those for type checkers only."""
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    return tuple((line, module) for line, module in _found(tree) if module != name)


def _found(tree: ast.Module) -> Iterator[tuple[int, str]]:
    unseen = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
        for statement in branch.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            told = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            told = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, _module(n)) for n in told if n.split(".")[0] == "leakaudit")


def _module(name: str) -> str:
    """Return the module that an imported name is, or comes from."""
    below = name.partition(".")[2]
    while below and below not in SOURCES:
        below = below.rpartition(".")[0]
    return below


def _wing(module: str) -> str:
    return module.split(".")[0]


def test_every_module_stands_in_a_wing_or_is_a_face() -> None:
    assert {_wing(name) for name in SOURCES} == set(ORDER)
    assert {name for name in SOURCES if "." not in name} == set(ORDER)


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_one_way(name: str) -> None:
    own = _wing(name)
    for line, module in _imports(name):
        other, where = _wing(module), f"{SOURCES[name]}:{line}: {own} imports {module}"
        if other == own:
            continue
        assert ORDER.index(other) < ORDER.index(own), f"{where}, which stands above it"
        assert other not in PLUGINS or own in (*FACES, *PLUGINS), f"{where}: only faces know {other}"
        if own in (*READING, "reports"):
            assert other in (*GROUND, *READING), f"{where}: what reads a result knows nothing that measures"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: {module for _, module in _imports(name) if module} for name in SOURCES if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


@pytest.mark.parametrize("wing", [*READING, "reports"])
def test_the_reading_half_needs_no_torch(wing: str) -> None:
    names = [f"leakaudit.{name}" for name in SOURCES if _wing(name) == wing]
    assert len(names) > 1
    code = (
        f"import sys, {', '.join(names)}; print(*[m for m in ('torch', 'torchvision', 'skimage') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr
    for name in names:  # nor when it is called
        tree = ast.parse(SOURCES[name.removeprefix("leakaudit.")].read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        told = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        told |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {each.split(".")[0] for each in told} & {"torch", "torchvision", "skimage"}, name


@pytest.mark.parametrize("wing", [*WINGS, *PLUGINS])
def test_a_wing_says_what_it_is_in_one_line_and_loads_nothing(wing: str) -> None:
    tree = ast.parse(SOURCES[wing].read_text(encoding="utf-8"))
    assert isinstance(tree.body[0], ast.Expr)
    assert "\n" not in (ast.get_docstring(tree) or "\n")
    # The console script starts in the command line's; whatever it imports waits until it is called.
    others = [node for node in tree.body[1:] if not (wing == "cli" and isinstance(node, ast.FunctionDef))]
    assert others == []


def test_the_lines_of_the_wings_are_the_page_of_the_architecture() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for wing in WINGS:
        told = ast.get_docstring(ast.parse(SOURCES[wing].read_text(encoding="utf-8")))
        assert re.search(rf"^\| `{wing}` \| {re.escape(told or '')} \|$", page, re.MULTILINE), f"{wing}: {told}"


@pytest.mark.parametrize("wing", WINGS)
def test_no_wing_grows_into_a_hall(wing: str) -> None:
    lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for n, f in SOURCES.items() if _wing(n) == wing)
    assert 0 < lines <= MOST_LINES


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    folders = ("leakaudit", *PLUGINS, "benchmarks", "examples", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]  # links are not followed
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lines) > len(SOURCES)
    assert {str(file): count for file, count in lines.items() if count > LONGEST_FILE} == {}


def test_no_function_is_longer_than_can_be_read_at_once() -> None:
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, file in SOURCES.items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == LONG


def test_the_guard_sees_a_lazy_import_and_none_for_type_checkers() -> None:
    source = (
        "if TYPE_CHECKING:\n    from leakaudit.cli import entry\ndef f():\n    from leakaudit.scene.plan import Plan\n"
    )
    assert list(_found(ast.parse(source))) == [(4, "scene.plan")]


# What writes a file, or opens one for it, by the last part of the name that is called.
WRITES = {
    "write_text", "write_bytes", "savez", "savez_compressed", "save_file", "mkstemp", "mkdir", "makedirs", "chmod",
    "NamedTemporaryFile", "umask", "copyfile", "savetxt", "tofile",
}  # fmt: skip
WRITERS = ("files.writing", "files.folder")
# In memory, or nowhere at all.
NO_FILES = {("defenses.obscurer_fit", "savez_compressed"), ("options.silence", "open")}


def _writes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if called in WRITES or (
            called in ("open", "fdopen") and any(re.fullmatch("[rbt+]*[wax][bt+]*", mode) for mode in modes)
        ):
            yield called


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in WRITERS])
def test_one_wing_writes_files(name: str) -> None:
    tree = ast.parse(SOURCES[name].read_text(encoding="utf-8"))
    assert {(name, called) for called in _writes(tree)} <= NO_FILES


def test_the_guard_sees_what_writes() -> None:
    source = "path.open('w')\nopen(p, mode='ab')\nnp.savez(p)\npath.write_text('')\nopen(p)\npath.open(encoding='x')"
    assert list(_writes(ast.parse(source))) == ["open", "open", "savez", "write_text"]
    assert list(_writes(ast.parse(SOURCES["files.writing"].read_text(encoding="utf-8"))))
