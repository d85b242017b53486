"""The wheel and the sdist hold everything and nothing else, and work beside a user's own attacks.py."""

from __future__ import annotations

import ast
import os
import re
import site
import subprocess
import sys
import tarfile
import tomllib
import venv
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
WORKSHOP = ("test", "docs")  # extras that leakaudit itself does not import
# Extras that the tests do without, and what leakaudit imports of each: they hold back what everybody else gets.
FRAMEWORKS = {
    "flower": "flwr",
    "nvflare": "nvflare",
    "transformers": "transformers",
    "lightning": "lightning",
    "ray": "ray",
}
FOR_USERS = [
    *RUNTIME,
    *(need for extra in EXTRAS if extra not in (*WORKSHOP, *FRAMEWORKS) for need in EXTRAS[extra]),
]
UNDECLARED = {"pytest": "the plug-in is imported by pytest alone", **dict.fromkeys(FRAMEWORKS.values(), "above")}
UNIMPORTED = {"torchvision": "lpips imports it, and the models of most users do"}
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
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


def test_the_sdist_holds_what_a_packager_builds_and_tests_with(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    links = {f"leakaudit/{name}" for name in (*PLUGINS, "workflows")}  # what they lead to is there as files
    wanted = {file for file in listed.stdout.splitlines() if (ROOT / file).exists()} - links
    assert {f for f in wanted - names if not f.startswith("benchmarks/")} == {".gitignore", ".pre-commit-config.yaml"}


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which borrows the dependencies from here; the folder of its programs."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(folder / "bin" / "python"),
        "install",
        "--no-deps",
        "--no-index",
    ]
    run = [*pip, str(next(built.glob("*.whl")))]
    done = subprocess.run(run, env=ALONE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sites = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (next(folder.glob("lib/python*/site-packages")) / "borrowed.pth").write_text("\n".join(sites))
    return folder / "bin"


def test_the_wheel_works_without_the_checkout_beside_a_users_own_attacks(installed: Path, tmp_path: Path) -> None:
    """Every command that needs no minutes, in a folder whose modules have the names of ours."""
    golden = ROOT / "tests" / "golden" / "result-1.json"
    for name in PLUGINS:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong module')\n")
    test = "def test_one(pytestconfig):\n    assert 'privacy' in str(pytestconfig.getini('markers'))\n"
    (tmp_path / "test_one.py").write_text(test)
    where = "import leakaudit, leakaudit.attacks; print(leakaudit.__path__[0], leakaudit.attacks.__path__[0])"
    commands = {
        ("python", "-c", where): str(installed.parent),
        ("leakaudit", "demo", "--help"): "demo",
        ("leakaudit", "list", "attacks"): "inverting-gradients",
        ("leakaudit", "report", str(golden), "-o", "report.html"): "report.html",
        ("leakaudit", "init", "--result", str(golden), "--github"): "pyproject.toml",
        ("python", "-m", "pytest", "-p", "no:cacheprovider", "test_one.py"): "1 passed",
    }
    for (program, *words), told in commands.items():
        run = [str(installed / program), *words]
        done = subprocess.run(run, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert told in done.stdout + done.stderr, words
        assert str(ROOT) not in done.stdout.replace(str(golden), ""), words
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / ".github" / "workflows" / "leakaudit.yml").is_file()


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    modules: set[str] = set()
    for folder in ("leakaudit", *PLUGINS):
        modules |= {name for file in (ROOT / folder).rglob("*.py") for name in imported(file)}
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - {"leakaudit", *UNDECLARED}
    owners = packages_distributions()
    used = {canonicalize_name(owners[top][0]) for top in tops} | {HIDDEN[name] for name in modules & HIDDEN.keys()}
    assert used == {canonicalize_name(need.name) for need in FOR_USERS} - UNIMPORTED.keys()


def test_what_works_within_a_framework_imports_and_declares_it() -> None:
    faces = [ROOT / "leakaudit" / f"{name}.py" for name in ("flower", "nvflare", "hooks", "spread/door")]
    tops = {name.partition(".")[0] for file in faces for name in imported(file)} - set(sys.stdlib_module_names)
    assert set(FRAMEWORKS.values()) == tops - {"leakaudit", "torch"}
    assert {extra: EXTRAS[extra][0].name for extra in FRAMEWORKS} == FRAMEWORKS


@pytest.mark.parametrize("need", [*FOR_USERS, *EXTRAS["test"], *EXTRAS["docs"]], ids=lambda need: str(need))
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


def test_the_citation_is_valid_and_of_this_version() -> None:
    file = ROOT / "CITATION.cff"
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = file.read_text(encoding="utf-8").splitlines()
    assert f"version: {PROJECT['project']['version']}" in lines
    assert f"license: {PROJECT['project']['license']}" in lines
