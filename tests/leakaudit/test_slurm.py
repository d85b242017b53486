"""Array jobs, with an `sbatch` that starts their tasks here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from leakaudit.errors import UserError
from leakaudit.scene.plan import Plan
from leakaudit.spread import slurm
from leakaudit.spread.glance import place
from leakaudit.spread.job import Job, Request, finish, job_of, write
from leakaudit.units.shelf import CLAIMS, JOBS, PRIVATE, Shelf, opened
from tests.leakaudit.command_line import caller, sentence
from tests.leakaudit.spreading import SCAN, environment, result, scene
from tests.leakaudit.test_cli import MODEL

pytestmark = pytest.mark.usefixtures("fresh_registry")  # what scans here register is known to no other test

# What Slurm does, on this machine: every task is a process; `tasks` says which are there, `submitted` how often.
SBATCH = """#!/bin/sh
echo "$@" >> "$FAKE/submitted"
test "$1" = --parsable || exit 9
last=$(sed -n 's/^#SBATCH --array=1-//p' "$2")
out=$(sed -n 's/^#SBATCH --output="\\(.*\\)"/\\1/p' "$2")
for k in $(seq "$last"); do
    log=$(echo "$out" | sed "s/%A/4711/;s/%a/$k/")
    SLURM_ARRAY_TASK_ID=$k setsid sh "$2" > "$log" 2>&1 < /dev/null &
done
echo "4711;cluster"
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder of programs that stands first on the path, and is all of it that knows of Slurm."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return opened(tmp_path / "shelf")


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o700)


def job(**more: object) -> Job:
    plan = Plan(battery="quick", attacks=("analytic",), records=4, utility=False)
    return replace(job_of(Request("model.py", plan)), **more)  # type: ignore[arg-type]


def test_tasks_compute_and_the_bytes_are_the_same(
    fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment().items():
        if name != "PATH":
            monkeypatch.setenv(name, value)
    run = caller(monkeypatch, tmp_path, capsys, MODEL)
    scene(tmp_path)
    program(fake, "sbatch", SBATCH)
    assert run(*SCAN, "-o", "alone", "--cache", "other").code == 0
    outcome = run(*SCAN, "-o", "shared", "--cache", "shelf", "--executor", "slurm", "--workers", "2")
    assert outcome.code == 0, outcome
    assert "array job 4711 of Slurm computes the pieces" in outcome.err
    assert result(tmp_path / "alone") == result(tmp_path / "shared")
    assert (fake / "submitted").read_text().count("--parsable") == 1
    for name in (CLAIMS, PRIVATE):
        assert [path for path in (tmp_path / "shelf" / name).rglob("*") if path.is_file()] == []
    assert list((tmp_path / "shelf" / JOBS).glob("*.json")) == []


def test_the_script_asks_for_what_a_participant_needs(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = job(threads=3, cwd="/some where/it's")
    text = slurm.script_of(shelf, mine, 7)
    lines = text.splitlines()
    assert lines[0] == "#!/bin/sh"
    assert {"#SBATCH --array=1-7", "#SBATCH --cpus-per-task=3", "#SBATCH --ntasks=1"} <= set(lines)
    assert f'#SBATCH --output="{shelf.folder}/jobs/{mine.id}.%A_%a.log"' in lines
    assert not any("gpus" in line for line in lines)
    assert """cd '/some where/it'"'"'s' || exit 2""" in lines
    assert lines[-1] == f"exec {sys.executable} -m leakaudit worker {shelf.folder} --job {mine.id} --wait {slurm.WAIT}"
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    on_gpu = slurm.script_of(shelf, job(request=replace(mine.request, device="cuda")), 2)
    assert "#SBATCH --gpus-per-task=1" in on_gpu.splitlines()
    odd = Shelf(Path('/odd "folder/%j'))
    assert "--output" not in slurm.script_of(odd, mine, 2)  # Slurm would read it otherwise


def test_where_there_is_no_slurm_it_says_what_to_do(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    mine = job()
    with pytest.raises(UserError) as error, slurm.started(shelf, mine, 2):
        pass
    told = str(error.value)
    script = place(shelf, mine.id, slurm.SCRIPT)
    assert str(script) in told
    assert "--executor folder" in told
    assert script.read_text().startswith("#!/bin/sh")
    assert script.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo 'sbatch: error: invalid partition specified: gpu' >&2; echo more >&2; exit 1", "invalid partition"),
        ("echo 'Submitted, surely'", "Submitted, surely"),
        ("exit 1", "nothing"),
    ],
)
def test_what_sbatch_refuses_is_one_sentence(shelf: Shelf, fake: Path, text: str, told: str) -> None:
    program(fake, "sbatch", f"#!/bin/sh\n{text}\n")
    mine = job()
    with pytest.raises(UserError, match=told) as error, slurm.started(shelf, mine, 2):
        pass
    assert "\n" not in str(error.value)
    assert "more" not in str(error.value)
    assert not place(shelf, mine.id, slurm.NUMBER).exists()


def test_a_budget_is_refused(
    fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = caller(monkeypatch, tmp_path, capsys, MODEL)
    program(fake, "sbatch", SBATCH)
    sentence(run(*SCAN[:2], "--executor", "slurm", "--budget", "10m"), "--budget", "SBATCH_TIMELIMIT")
    assert not (fake / "submitted").exists()


def test_the_same_command_does_not_submit_what_still_runs(shelf: Shelf, fake: Path) -> None:
    program(fake, "sbatch", '#!/bin/sh\necho x >> "$FAKE/submitted"\nwc -l < "$FAKE/submitted"\n')
    program(fake, "squeue", '#!/bin/sh\necho "$@" > "$FAKE/asked"; cat "$FAKE/tasks"\n')
    mine = job()
    write(shelf, mine)
    (fake / "tasks").write_text("")
    for states, count in (("", 1), ("PENDING\nRUNNING\n", 1), ("", 2)):
        (fake / "tasks").write_text(states)
        with slurm.started(shelf, mine, 2) as takes_part:
            assert not takes_part
        assert len((fake / "submitted").read_text().splitlines()) == count
    assert "--jobs=1" in (fake / "asked").read_text()
    assert f"array job {count}" in slurm.begun(shelf, mine)
    assert f"scancel {count}" in slurm.left(shelf, mine)
    finish(shelf, mine)
    assert list((shelf.folder / JOBS).iterdir()) == []


def test_what_an_array_job_is_at_is_said(shelf: Shelf, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = job()
    place(shelf, mine.id, slurm.NUMBER).write_text("12")
    for text, told in (
        ("echo PENDING; echo PENDING", "array job 12 waits in the queue"),
        ("echo PENDING; echo RUNNING", "array job 12 begins"),
        ("echo 'slurm_load_jobs error: Unable to contact controller' >&2; exit 1", "waiting for array job 12"),
    ):
        program(fake, "squeue", f"#!/bin/sh\n{text}\n")
        assert slurm.waiting(shelf, mine) == told
    for text in ("true", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"):
        program(fake, "squeue", f"#!/bin/sh\n{text}\n")
        with pytest.raises(UserError, match="array job 12 has ended and pieces are missing"):
            slurm.waiting(shelf, mine)
