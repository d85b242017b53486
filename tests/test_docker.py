"""The Dockerfile: what it copies is there and makes the whole wheel, nobody is root; built where Docker is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.test_packaging import PROJECT, SOURCES, pins

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")
STEPS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    if line.strip()
]
COPIED = [words.split()[:-1] for step, words in STEPS if step == "COPY" and "--from=" not in words]
LET_IN = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]


def last(step: str) -> str:
    return [words for name, words in STEPS if name == step][-1]


def test_every_file_that_it_copies_is_there_and_is_let_in() -> None:
    sources = [name for names in COPIED for name in names]
    assert len(sources) > 8
    for name in sources:
        assert (ROOT / name).exists(), name
    assert sorted(sources) == sorted(LET_IN)
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert [rule for rule in rules if not rule.startswith(("#", "!"))] == ["*", "**/__pycache__"]


def test_what_it_copies_makes_the_whole_wheel(tmp_path: Path) -> None:
    for name in (name for names in COPIED for name in names):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tmp_path / "src" / name, symlinks=True, ignore=ignored)
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "src" / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        str(tmp_path),
        str(tmp_path / "src"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert set(wheel.namelist()) >= SOURCES


def test_it_runs_as_a_user_and_starts_leakaudit() -> None:
    after = STEPS[[i for i, (step, _) in enumerate(STEPS) if step == "FROM"][-1] :]
    assert ("USER", "audit") in after
    assert {words for step, words in after if step == "USER"} == {"audit"}
    assert (last("ENTRYPOINT"), last("CMD")) == ('["leakaudit"]', '["--help"]')
    assert not any(step == "ADD" for step, _ in STEPS)
    names = re.findall(r"^(?:ARG|ENV) +(\w+)", TEXT, re.MULTILINE)
    assert set(names) == {"PYTHON", "DEVICE", "PATH"}  # and no key or password among them


def test_its_python_is_one_that_leakaudit_runs_on() -> None:
    found = re.search(r"^ARG PYTHON=([\d.]+)$", TEXT, re.MULTILINE)
    assert found
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(f"{found[1]}.0")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["target-version"] == "py311"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_installs_all_that_is_pinned_but_what_only_cuda_needs(device: str, tmp_path: Path) -> None:
    """The filter of the RUN step itself, run over constraints.txt by bash."""
    (run,) = [words for step, words in STEPS if step == "RUN" and "constraints.txt" in words]
    pattern = re.findall(r"left_out='([^']*)'", run)[device == "cuda"]
    filtering = re.search(r"sed -e .*?(?= >/tmp/versions\.txt)", run)
    assert filtering
    script = f"left_out='{pattern}'; {filtering[0]}"
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    kept = {line.partition("==")[0] for line in lines}
    cuda = {"torch", "torchvision", "triton"} | {n for n in pins() if n.startswith(("nvidia-", "cuda-"))}
    assert len(cuda) > 10
    assert kept == pins().keys() - (cuda if device == "cpu" else set())
    assert all("--hash=sha256:" in line for line in lines)


@pytest.mark.timeout(3000)
def test_it_builds_and_runs_where_docker_is() -> None:
    if not shutil.which("docker"):
        pytest.skip("no docker on this machine")
    asked = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"docker cannot run here: {(asked.stderr.strip() or 'docker info fails').splitlines()[-1]}")
    subprocess.run(["docker", "build", "-t", "leakaudit-test", str(ROOT)], check=True, timeout=2800)
    try:
        for words, told in ((["list", "attacks"], "replay"), (["demo", "--help"], "demo")):
            run = ["docker", "run", "--rm", "--network", "none", "leakaudit-test", *words]
            assert told in subprocess.run(run, capture_output=True, text=True, check=True).stdout
        user = ["docker", "run", "--rm", "--entrypoint", "id", "leakaudit-test", "-un"]
        assert subprocess.run(user, capture_output=True, text=True, check=True).stdout.strip() == "audit"
    finally:
        subprocess.run(["docker", "image", "rm", "-f", "leakaudit-test"], capture_output=True, check=False)
