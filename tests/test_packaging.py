"""The wheel and the sdist hold everything and nothing else, and work beside a user's own attacks.py."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("attacks", "defenses", "reports")  # folders beside the package, linked into it
SOURCES = {
    (Path("leakaudit") / ("" if folder == "leakaudit" else folder) / file.relative_to(ROOT / folder)).as_posix()
    for folder in ("leakaudit", *PLUGINS)
    for file in (ROOT / folder).rglob("*")  # links are not followed
    if file.suffix in (".py", ".j2", ".css") or file.name == "py.typed"
}

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUNTIME = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
EXTRAS = {
    extra: [Requirement(line) for line in lines] for extra, lines in PROJECT["project"]["optional-dependencies"].items()
}
FOR_USERS = [*RUNTIME, *(need for extra in EXTRAS if extra != "test" for need in EXTRAS[extra])]
UNDECLARED = {"pytest": "the plug-in is imported by pytest alone"}
UNIMPORTED = {"torchvision": "lpips imports it, and the models of most users do"}
HIDDEN = {"torch.utils.tensorboard": "tensorboard"}  # modules that import another distribution


def imported(source: Path) -> set[str]:
    """The modules that a file imports anywhere in it, as they are written."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def pins() -> dict[str, tuple[str, list[str]]]:
    """constraints.txt by name: the version, and the hashes that a file may have."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found: dict[str, tuple[str, list[str]]] = {}
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)==([\w.]+)(?: ; [^-]*?)?((?: +--hash=sha256:[0-9a-f]{64})+) *", line)
        assert match, line
        found[canonicalize_name(match[1])] = match[2], match[3].split()
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build as a packager would: the sdist, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_wheel_holds_every_source_and_no_top_level_attacks(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert names >= SOURCES
    assert {name.split("/")[0].split("-")[0] for name in names} == {"leakaudit"}
    assert not any(Path(name).name.startswith(("test_", "conftest")) or "tests" in Path(name).parts for name in names)


def test_sdist_holds_every_source(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert len(SOURCES) > 100
    assert [source for source in SOURCES if not {source, source.removeprefix("leakaudit/")} & names] == []


def test_works_beside_a_users_own_attacks_module(built: Path, tmp_path: Path) -> None:
    unpacked, work = tmp_path / "site", tmp_path / "work"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(unpacked)
    work.mkdir()
    for name in ("attacks", "defenses", "reports"):
        (work / f"{name}.py").write_text("raise ImportError('the wrong module')\n")
    code = "import sys; from leakaudit.cli.entry import main; sys.argv[1:] = ['list', 'attacks']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "inverting-gradients" in done.stdout


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    modules: set[str] = set()
    for folder in ("leakaudit", *PLUGINS):
        modules |= {name for file in (ROOT / folder).rglob("*.py") for name in imported(file)}
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"leakaudit", *UNDECLARED}
    owners = packages_distributions()
    used = {canonicalize_name(owners[top][0]) for top in tops} | {HIDDEN[name] for name in modules & HIDDEN.keys()}
    assert used == {canonicalize_name(need.name) for need in FOR_USERS} - UNIMPORTED.keys()


@pytest.mark.parametrize("need", [*FOR_USERS, *EXTRAS["test"]], ids=lambda need: str(need))
def test_a_dependency_has_one_lower_bound_which_is_kept_here(need: Requirement) -> None:
    """`.ci/oldest` installs exactly these bounds, so it fails where one does not exist, and runs the core with them."""
    (bound,) = need.specifier
    assert bound.operator == ">="
    assert need.marker is None
    assert version(need.name) in need.specifier


def test_checkpoints_of_others_are_opened_by_a_torch_that_cannot_be_made_to_run_code() -> None:
    """CVE-2025-32434 is mended in 2.6, CVE-2026-24747 in 2.10."""
    (torch,) = [need for need in RUNTIME if need.name == "torch"]
    assert not list(torch.specifier.filter(["2.5.1", "2.6.0", "2.9.1"]))


def test_the_constraints_hold_every_dependency_with_hashes_and_no_place() -> None:
    pinned = pins()
    builds = [Requirement(line) for line in PROJECT["build-system"]["requires"]]
    for need in [*RUNTIME, *builds]:
        assert pinned[canonicalize_name(need.name)][0] in need.specifier, need
    assert all(hashes for _, hashes in pinned.values())
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|^-|index|find-links|trusted", text, re.MULTILINE)


def test_the_constraints_are_closed() -> None:
    """What a pinned version needs is pinned; told by the metadata here, of those that are here in that version."""
    pinned, seen = pins(), 0
    for name, (pin, _) in pinned.items():
        try:
            here = version(name) == pin
        except PackageNotFoundError:  # another platform's
            continue
        if here:
            needs = [Requirement(line) for line in requires(name) or ()]
            wanted = {canonicalize_name(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
            assert wanted <= pinned.keys(), name
            seen += 1
    if not seen:
        pytest.skip("none of the pinned versions is installed here")


def test_the_licence_of_every_dependency_is_listed() -> None:
    text = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    always, _, extras = text.partition("## Always")[2].partition("## With the extras")
    listed = {name: (pin, words) for name, pin, words in re.findall(r"^\| `(\S+)` \| (\S+) \| (.+) \|$", always, re.M)}
    assert {name: pin for name, (pin, _) in listed.items()} == {name: pin for name, (pin, _) in pins().items()}
    assert [name for name, (_, words) in listed.items() if words == "not stated"] == ["cuda-toolkit"]
    further = set(re.findall(r"^\| `(\S+)` ", extras, re.M))
    assert {canonicalize_name(need.name) for need in FOR_USERS} <= listed.keys() | further
