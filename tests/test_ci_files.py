"""The Action, the hooks and the example workflows: valid for their hosts, and their commands are real ones."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leakaudit.reports.markdown import MARK
from leakaudit.result.outcome import load as load_outcome
from tests.ci_box import (
    ACTION,
    BASH,
    DOCS,
    GITHUB,
    GITLAB,
    HOOKS,
    HOSTILE,
    JOB,
    REAL,
    ROOT,
    STEPS,
    WORKFLOW,
    Box,
    accepted,
    box,
    needs_bash,
)

__all__ = ["box"]  # the fixture


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-actions", ROOT / "action.yml"),
        ("vendor.github-workflows", GITHUB),
        ("vendor.gitlab-ci", GITLAB),
    ],
)
def test_valid_for_its_host(schema: str, path: Path) -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schemas_refuse_what_is_wrong(tmp_path: Path) -> None:
    """So that a pass above says something."""
    broken = tmp_path / "action.yml"
    broken.write_text((ROOT / "action.yml").read_text(encoding="utf-8").replace("using: composite", "using: compost"))
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-actions", str(broken)]
    assert subprocess.run(words, capture_output=True, timeout=60).returncode == 1


def test_no_expression_stands_within_a_script() -> None:
    for step in (*ACTION["runs"]["steps"], *JOB["steps"]):
        assert "${{" not in step.get("run", ""), step["name"]
        assert ("run" in step) != ("uses" in step)


def gate_step(box: Box, baseline: str, place: Path, summary: Path) -> tuple[int, str]:
    """Run the Action's step with the real command line; `place` takes its outputs."""
    return box.run(
        STEPS["Gate"]["run"],
        BASELINE=baseline,
        OUTPUT="out",
        FOLDER="./out",
        GITHUB_OUTPUT=str(place),
        GITHUB_STEP_SUMMARY=str(summary),
        OMP_NUM_THREADS="1",
    )


@needs_bash
def test_the_scan_passes_inputs_as_they_are(box: Box) -> None:
    inputs = {
        "DEFENSE": f"obscure\n\ndp-sgd:noise_multiplier=1\n{HOSTILE}\n",
        "ARGUMENTS": f"--records=64\n--seed={HOSTILE}",
    }
    code, printed = box.run(STEPS["Scan"]["run"], TARGET=HOSTILE, OUTPUT="out dir", **inputs)
    assert code == 0, printed
    (words,) = box.calls()
    assert words == [
        "leakaudit",
        "scan",
        "--defense=obscure",
        "--defense=dp-sgd:noise_multiplier=1",
        f"--defense={HOSTILE}",
        "--records=64",
        f"--seed={HOSTILE}",
        "--output=out dir",
        "--exit-zero",
        "--",
        HOSTILE,
    ]
    assert not list(box.folder.iterdir())
    params = accepted([word for word in words if not word.startswith("--seed")])
    assert params["target"] == HOSTILE
    assert params["exit_zero"] is True


@needs_bash
def test_the_scan_needs_no_input(box: Box) -> None:
    code, printed = box.run(STEPS["Scan"]["run"], TARGET="model.py", OUTPUT="out", DEFENSE="", ARGUMENTS="")
    assert code == 0, printed
    assert box.calls() == [["leakaudit", "scan", "--output=out", "--exit-zero", "--", "model.py"]]


PIP = ["-m", "pip", "install", "--disable-pip-version-check"]


@needs_bash
@pytest.mark.parametrize(
    ("version", "arguments", "source"),
    [
        ("", f"--pre\n{HOSTILE}", "/the/action"),
        ("0.1.0", f"--pre\n{HOSTILE}", "leakaudit==0.1.0"),
        (HOSTILE, "", f"leakaudit=={HOSTILE}"),
    ],
)
def test_what_is_installed_as_the_user_says(version: str, arguments: str, source: str, box: Box) -> None:
    """With a version or arguments of one's own pip chooses the dependencies, and the log says: no hash checked."""
    code, printed = box.run(
        STEPS["Install leakaudit"]["run"], VERSION=version, ACTION="/the/action", PIP_ARGUMENTS=arguments
    )
    assert code == 0, printed
    assert "::notice" in printed
    (words,) = box.calls()
    assert words[1:] == [*PIP, *arguments.splitlines(), source]


@needs_bash
def test_what_is_installed_is_checked_by_its_hashes(box: Box) -> None:
    """The dependencies from the file of hashes, then the Action's own source, which brings nothing else in."""
    code, printed = box.run(STEPS["Install leakaudit"]["run"], VERSION="", ACTION="/the action", PIP_ARGUMENTS="\n")
    assert code == 0, printed
    assert "::notice" not in printed
    first, second = box.calls()
    assert first[1:] == [*PIP, "--require-hashes", "--requirement", "/the action/constraints.txt"]
    assert second[1:] == [*PIP, "--no-deps", "--no-build-isolation", "/the action"]
    assert (ROOT / "constraints.txt").is_file()


@needs_bash
def test_nothing_is_installed_after_a_wrong_hash(box: Box) -> None:
    code, _ = box.run(STEPS["Install leakaudit"]["run"], VERSION="", ACTION="/a", PIP_ARGUMENTS="", CODE_OF_PYTHON="1")
    assert code == 1
    assert len(box.calls()) == 1


@needs_bash
@pytest.mark.parametrize(
    ("code", "verdict"), [(0, "pass"), (1, "fail"), (3, "inconclusive"), (2, "error"), (4, "error")]
)
def test_the_gates_exit_code_is_the_verdict(code: int, verdict: str, box: Box) -> None:
    (box.folder / "main.json").write_text("{}")
    place = box.folder / "outputs"
    ended, printed = box.run(
        STEPS["Gate"]["run"],
        BASELINE="main.json",
        OUTPUT="out",
        FOLDER="./out",
        GITHUB_OUTPUT=str(place),
        CODE_OF_LEAKAUDIT=str(code),
    )
    assert ended == 0, printed  # the last step of the Action fails instead, once everything is kept
    words = box.calls()[0]
    params = accepted(words)
    assert str(params["baseline"]) == "main.json"
    assert str(params["result"]) == "out/result.json"
    written = dict(line.split("=", 1) for line in place.read_text().splitlines())
    assert written == {"verdict": verdict, "code": str(code), "folder": "./out"}
    final = STEPS["Fail where the gate does"]
    assert box.run(final["run"], CODE=str(code))[0] == code
    assert "inputs.exit-zero != 'true' || steps.gate.outputs.verdict == 'error'" in final["if"]


@needs_bash
def test_a_gate_that_could_not_judge_says_so_in_the_comment_and_the_summary(box: Box) -> None:
    """An incomparable baseline ends in exit code 2: the sentence reaches the pull request, and the job still fails."""
    box.install("leakaudit", REAL.format(python=sys.executable))
    box.install("python", f'#!{BASH}\nexec "{sys.executable}" "$@"\n')
    out, place, summary = (box.folder / name for name in ("out", "outputs", "summary"))
    out.mkdir()
    golden = (ROOT / "tests" / "golden" / "result-1.json").read_text(encoding="utf-8")
    (out / "result.json").write_text(golden)
    other = json.loads(golden)
    other["settings"]["seed"] = 7
    (box.folder / "main.json").write_text(json.dumps(other))
    ended, printed = gate_step(box, "main.json", place, summary)
    assert ended == 0, printed
    assert "cannot be compared" in printed
    written = dict(line.split("=", 1) for line in place.read_text().splitlines())
    assert (written["verdict"], written["code"]) == ("error", "2")
    comment = (out / "comment.md").read_text()
    assert comment.startswith(MARK)
    assert "cannot be compared" in comment
    assert "exit code 2" in comment
    assert summary.read_text() == comment
    assert not (out / "gate.err").exists()
    assert "verdict != 'error'" in STEPS["Upload alerts to code scanning"]["if"]


@needs_bash
@pytest.mark.parametrize("baseline", ["", "missing.json"])
def test_a_baseline_that_is_not_there_is_warned_of_and_left_out(baseline: str, box: Box) -> None:
    ended, printed = box.run(
        STEPS["Gate"]["run"], BASELINE=baseline, OUTPUT="out", FOLDER="out", GITHUB_OUTPUT=str(box.folder / "outputs")
    )
    assert ended == 0, printed
    assert accepted(box.calls()[0])["baseline"] is None
    assert ("::warning" in printed) is bool(baseline)


@needs_bash
def test_the_gate_step_runs_for_real(box: Box) -> None:
    """The golden result through the real command line: everything the outputs name is there afterwards."""
    box.install("leakaudit", REAL.format(python=sys.executable))
    box.install("python", f'#!{BASH}\nexec "{sys.executable}" "$@"\n')
    out = box.folder / "out"
    out.mkdir()
    shutil.copy(ROOT / "tests" / "golden" / "result-1.json", out / "result.json")
    place, summary = box.folder / "outputs", box.folder / "summary"
    ended, printed = gate_step(box, "", place, summary)
    assert ended == 0, printed
    written = dict(line.split("=", 1) for line in place.read_text().splitlines())
    assert written["verdict"] == load_outcome(out / "gate.json").verdict == "fail"
    names = {str(o["value"]).rpartition("/")[2] for o in ACTION["outputs"].values() if "folder" in o["value"]}
    assert names <= {path.name for path in out.iterdir()}
    kept, whole = (json.loads((out / name).read_text()) for name in ("alerts.sarif", "leakaudit.sarif"))
    assert 0 < len(kept["runs"][0]["results"]) < len(whole["runs"][0]["results"])
    assert (out / "comment.md").read_text().startswith(MARK)
    assert summary.read_text() == (out / "comment.md").read_text()


def test_every_input_and_output_is_used_and_documented() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    for name in ACTION["inputs"]:
        assert f"inputs.{name} " in text or f"inputs.{name}}}" in text, name
        assert f"| `{name}` |" in DOCS, name
    for name in ACTION["outputs"]:
        assert f"`{name}`" in DOCS.partition("| Output |")[2].partition("\n\n")[0], name


def test_the_workflow_uses_the_action_as_it_is() -> None:
    (step,) = [s for s in JOB["steps"] if s.get("id") == "leakaudit"]
    assert set(step["with"]) <= set(ACTION["inputs"])
    used = set(re.findall(r"steps\.leakaudit\.outputs\.([\w-]+)", GITHUB.read_text(encoding="utf-8")))
    assert used
    assert used <= set(ACTION["outputs"])
    words = ["leakaudit", "scan", *step["with"]["args"].split(), step["with"]["target"]]
    assert accepted([*words, *(f"--defense={d}" for d in step["with"]["defense"].split())])["records"] == 64


def test_a_change_can_neither_write_the_baseline_nor_meet_a_secret() -> None:
    steps = {step.get("name"): step for step in JOB["steps"]}
    assert "pull_request_target" not in WORKFLOW["on"]
    assert WORKFLOW["permissions"] == {"contents": "read"}
    store, fetch = steps["Store the next baseline"], steps["Fetch main's last result that passed"]["run"]
    assert store["if"].startswith("github.ref == 'refs/heads/main' && ")
    assert f"--name {store['with']['name']} " in fetch
    events = set(re.findall(r'\.event == "(\w+)"', fetch))
    assert events == set(WORKFLOW["on"]) - {"pull_request"}
    assert MARK in steps["Comment on the pull request"]["run"]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: str(hook["id"]))
def test_hooks_are_commands_that_run_on_the_right_files(hook: dict[str, Any]) -> None:
    assert {"id", "name", "entry", "language"} <= hook.keys()
    assert f"`{hook['id']}`" in DOCS
    words = [*shlex.split(hook["entry"]), *hook["args"]]
    accepted(words)
    assert hook["pass_filenames"] is False
    assert re.search(hook["files"], hook["args"][0])
    assert not re.search(hook["files"], "other_model.py")
    assert not re.search(hook["files"], "result.json.bak")


def test_the_documented_commands_are_real_and_its_links_exist() -> None:
    commands = re.findall(r"^leakaudit .*$|(?<=`)leakaudit (?:scan|gate|compare) [^`]+(?=`)", DOCS, re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        accepted(shlex.split(command))
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", DOCS):
        assert (ROOT / "docs" / target).exists(), target


def test_the_documented_exit_codes_are_those_of_the_commands() -> None:
    from leakaudit.options.common import INTERNAL, USAGE
    from leakaudit.result.rules import EXIT

    table = {int(c): words for c, words in re.findall(r"^\| (\d) \| (\w+)", DOCS, re.MULTILINE)}
    assert {EXIT[word]: word for word in EXIT} | {USAGE: "usage", INTERNAL: "internal"} == table
