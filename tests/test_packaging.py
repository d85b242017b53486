"""The wheel and the sdist hold everything and nothing else, and work beside a user's own attacks.py."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("attacks", "defenses", "reports")  # folders beside the package, linked into it
SOURCES = {
    (Path("leakaudit") / ("" if folder == "leakaudit" else folder) / file.relative_to(ROOT / folder)).as_posix()
    for folder in ("leakaudit", *PLUGINS)
    for file in (ROOT / folder).rglob("*")  # links are not followed
    if file.suffix in (".py", ".j2", ".css") or file.name == "py.typed"
}


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
