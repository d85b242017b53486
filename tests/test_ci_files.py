"""The Action, the hooks and the example workflows: valid for their hosts, and their commands are real ones."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from leakaudit import cli
from leakaudit.outcome import load as load_outcome
from leakaudit.reports.markdown import MARK

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
GITHUB, GITLAB = ROOT / "examples" / "workflows" / "github.yml", ROOT / "examples" / "workflows" / "gitlab.yml"
BASH = shutil.which("bash") or ""
needs_bash = pytest.mark.skipif(not BASH, reason="the scripts of the Action and of GitLab are bash")
HOSTILE = "x; touch pwned #$(touch pwned)`touch pwned`' \"*"

# Stands in for a command: writes its arguments down as a line of JSON, and exits as told.
RECORDER = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(int(os.environ.get("CODE_OF_" + os.path.basename(sys.argv[0]).upper(), "0")))
"""
REAL = """#!{python}
from leakaudit.cli import main
main()
"""


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


ACTION, WORKFLOW, PIPELINE = read(ROOT / "action.yml"), read(GITHUB), read(GITLAB)
HOOKS = read(ROOT / ".pre-commit-hooks.yaml")
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
JOB = WORKFLOW["jobs"]["privacy"]


def accepted(words: list[str]) -> dict[str, Any]:
    """Return the parameters that the real command line makes of a command; raises where it takes no such option."""
    command = typer.main.get_command(cli.app).commands[words[1]]  # type: ignore[attr-defined]
    return dict(command.make_context(words[1], list(words[2:])).params)


class Box:
    """A folder with commands that stand in for the real ones."""

    def __init__(self, folder: Path, *commands: str) -> None:
        self.folder, self.log = folder / "work", folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.folder.mkdir()
        for command in commands:
            self.install(command, RECORDER.format(python=sys.executable, log=str(self.log)))

    def install(self, command: str, text: str) -> None:
        (self.bin / command).write_text(text)
        (self.bin / command).chmod(0o755)

    def run(self, script: str, **environment: str) -> tuple[int, str]:
        """Run a script as GitHub does; return its exit code and what it printed."""
        kept = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.folder)}
        done = subprocess.run(
            [BASH, "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=self.folder,
            env=kept | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout + done.stderr

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path, "leakaudit", "pip", "curl", "python")


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


@needs_bash
@pytest.mark.parametrize(
    ("version", "source"), [("", "/the/action"), ("0.1.0", "leakaudit==0.1.0"), (HOSTILE, f"leakaudit=={HOSTILE}")]
)
def test_what_is_installed(version: str, source: str, box: Box) -> None:
    code, printed = box.run(
        STEPS["Install leakaudit"]["run"], VERSION=version, ACTION="/the/action", PIP_ARGUMENTS=f"--pre\n{HOSTILE}"
    )
    assert code == 0, printed
    (words,) = box.calls()
    assert words[1:5] == ["-m", "pip", "install", "--disable-pip-version-check"]
    assert words[5:] == ["--pre", HOSTILE, source]


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
    ended, printed = box.run(
        STEPS["Gate"]["run"],
        BASELINE="main.json",
        OUTPUT="out",
        FOLDER="./out",
        GITHUB_OUTPUT=str(place),
        GITHUB_STEP_SUMMARY=str(summary),
        OMP_NUM_THREADS="1",
    )
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
    ended, printed = box.run(
        STEPS["Gate"]["run"],
        BASELINE="",
        OUTPUT="out",
        FOLDER="./out",
        GITHUB_OUTPUT=str(place),
        GITHUB_STEP_SUMMARY=str(summary),
        OMP_NUM_THREADS="1",
    )
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


# Stands in for `gh`: answers by environment, through the real jq where there is one for the filters.
GH = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
with open({log!r}, "a") as file:
    file.write(repr(words) + "\\n")
def answer(value):
    done = subprocess.run(["jq", "-r", words[words.index("--jq") + 1]], input=json.dumps(value), text=True)
    sys.exit(done.returncode)
broken = os.environ.get("BROKEN", "")
if words[0] == "api" and "/actions/artifacts?" in words[-3]:
    sys.exit(1) if broken == "list" else answer(json.loads(os.environ["ARTIFACTS"]))
if words[0] == "api" and "/actions/runs/" in words[1]:
    sys.exit(1) if broken == "run" else answer(json.loads(os.environ["RUNS"])[words[1].rpartition("/")[2]])
if words[:2] == ["run", "download"]:
    if broken == "download":
        sys.exit(1)
    if broken != "empty":
        os.makedirs("baseline")
        open("baseline/result.json", "w").write(words[2])
if "--paginate" in words:
    print(os.environ["COMMENTS"])
    sys.exit(1) if broken == "comments" else None
"""
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="the filters of gh are run by jq")
OWN = {"event": "push", "conclusion": "success", "path": ".github/workflows/leakaudit.yml@refs/heads/main"}


def artifact(run: int, expired: bool = False, branch: str = "main", repository: int = 1) -> dict[str, Any]:
    known = {"id": run, "head_branch": branch, "repository_id": 1, "head_repository_id": repository}
    return {"name": "leakaudit-baseline", "expired": expired, "workflow_run": known}


def fetched(box: Box, artifacts: list[dict[str, Any]], runs: dict[str, Any], broken: str = "") -> tuple[int, str, str]:
    """Run the step that fetches the baseline; return its exit code, what it printed, and the run it took."""
    box.install("gh", GH.format(python=sys.executable, log=str(box.log)))
    steps = {step.get("name"): step for step in JOB["steps"]}
    code, printed = box.run(
        steps["Fetch main's last result that passed"]["run"],
        GH_REPO="o/r",
        ARTIFACTS=json.dumps({"total_count": len(artifacts), "artifacts": artifacts}),
        RUNS=json.dumps(runs),
        BROKEN=broken,
    )
    place = box.folder / "baseline" / "result.json"
    return code, printed, place.read_text() if place.exists() else ""


@needs_bash
@needs_jq
def test_the_newest_baseline_of_mains_own_runs_is_taken(box: Box) -> None:
    artifacts = [
        artifact(9),
        artifact(12),
        artifact(20, expired=True),
        artifact(19, branch="feature"),
        artifact(18, repository=2),
        *map(artifact, (17, 16, 15)),
    ]
    runs = {
        "17": OWN | {"event": "pull_request"},
        "16": OWN | {"conclusion": "failure"},
        "15": OWN | {"path": ".github/workflows/other.yml"},
        "12": OWN | {"event": "schedule"},
        "9": OWN,
    }
    code, printed, taken = fetched(box, artifacts, runs)
    assert (code, taken) == (0, "12"), printed


@needs_bash
@needs_jq
@pytest.mark.parametrize("artifacts", [[], [artifact(3, expired=True)], [artifact(3, repository=2)]])
def test_no_baseline_is_none_only_where_the_list_says_so(artifacts: list[dict[str, Any]], box: Box) -> None:
    code, printed, taken = fetched(box, artifacts, {})
    assert (code, taken) == (0, ""), printed
    assert "There is no baseline yet" in printed


@needs_bash
@needs_jq
@pytest.mark.parametrize("broken", ["list", "run", "download", "empty"])
def test_a_baseline_that_cannot_be_fetched_fails_the_job(broken: str, box: Box) -> None:
    """No right to read actions, an outage, a damaged archive: none of these is an absent baseline."""
    code, printed, taken = fetched(box, [artifact(9)], {"9": OWN}, broken)
    assert (code, taken) == (1, ""), printed
    assert "::error title=leakaudit::" in printed
    assert "regressions cannot be judged" in printed
    assert "no baseline yet" not in printed


@needs_bash
@pytest.mark.parametrize(("comments", "method"), [("7\n8", "issues/comments/7"), ("", "'pr', 'comment', '5'")])
def test_there_is_one_comment(comments: str, method: str, box: Box) -> None:
    box.install("gh", GH.format(python=sys.executable, log=str(box.log)))
    steps = {step.get("name"): step for step in JOB["steps"]}
    code, printed = box.run(
        steps["Comment on the pull request"]["run"], COMMENTS=comments, GH_REPO="o/r", NUMBER="5", TEXT="out/comment.md"
    )
    assert code == 0, printed
    last = box.log.read_text().splitlines()[-1]
    assert method in last
    assert "out/comment.md" in last
    assert box.run(
        steps["Comment on the pull request"]["run"],
        COMMENTS=comments,
        GH_REPO="o/r",
        NUMBER="5",
        TEXT="out/comment.md",
        BROKEN="comments",
    )[0]  # comments that cannot be listed are not none: another would be added each time


# Stands in for `curl`: an HTTP status and a body, or no answer at all.
CURL = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps(["curl", *sys.argv[1:]]) + "\\n")
open(sys.argv[sys.argv.index("--output") + 1], "w").write(os.environ["BODY"])
print(os.environ["STATUS"], end="")
sys.exit(int(os.environ.get("CODE_OF_CURL", "0")))
"""


def piped(box: Box, **environment: str) -> tuple[int, str]:
    """Run GitLab's script in a merge request's pipeline."""
    box.install("curl", CURL.format(python=sys.executable, log=str(box.log)))
    known = {
        "CI_PIPELINE_SOURCE": "merge_request_event",
        "CI_DEFAULT_BRANCH": "main",
        "CI_COMMIT_BRANCH": "",
        "CI_JOB_TOKEN": "token",
        "BASELINE": "https://gitlab.example/baseline.json",
    }
    return box.run("\n".join(PIPELINE["leakaudit"]["script"]), **(known | environment))


@needs_bash
@pytest.mark.parametrize(
    ("status", "body"), [("200", "{}"), ("404", '{"message":"404 Not found"}'), ("404", "404 page not found\n")]
)
def test_a_merge_request_is_compared_where_there_is_a_baseline(status: str, body: str, box: Box) -> None:
    code, printed = piped(box, STATUS=status, BODY=body)
    assert code == 0, printed
    scan, gate = (words for words in box.calls() if words[0] == "leakaudit")
    assert accepted(scan)["target"] == "model.py"
    assert str(accepted(gate)["baseline"]) == ("main.json" if status == "200" else "None")
    assert ("There is no baseline yet" in printed) is (status == "404")
    assert str(accepted(gate)["result"]) == f"{accepted(scan)['output']}/result.json"
    assert str(accepted(gate)["junit"]) == PIPELINE["leakaudit"]["artifacts"]["reports"]["junit"]


@needs_bash
@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        ("401", '{"message":"401 Unauthorized"}', "0"),
        ("403", '{"message":"403 Forbidden"}', "0"),
        (
            "404",
            '{"message":"404 Project Not Found"}',
            "0",
        ),  # the token may not read the project, or the tier forbids it
        ("500", "", "0"),
        ("302", "", "0"),
        ("000", "", "6"),
        ("200", "{", "18"),  # cut off
    ],
)
def test_a_baseline_that_gitlab_does_not_give_fails_the_job(status: str, body: str, code: str, box: Box) -> None:
    ended, printed = piped(box, STATUS=status, BODY=body, CODE_OF_CURL=code)
    assert ended == 1, printed
    assert "regressions cannot be judged" in printed
    assert [words[1] for words in box.calls() if words[0] == "leakaudit"] == ["scan"]


def test_a_merge_request_cannot_write_gitlabs_baseline() -> None:
    """It is an artifact of the default branch's own pipeline: nothing is uploaded by a token that all jobs hold."""
    job = PIPELINE["leakaudit"]
    path = job["variables"]["BASELINE"]
    assert "/jobs/artifacts/$CI_DEFAULT_BRANCH/raw/leakaudit-out/baseline.json?job=leakaudit" in path
    assert "$CI_MERGE_REQUEST_PROJECT_ID" in path  # not that of a fork
    assert "leakaudit-out/" in job["artifacts"]["paths"]
    text = GITLAB.read_text(encoding="utf-8")
    assert not re.search(r"--upload-file|packages/generic|--request (PUT|POST)", text)


@needs_bash
@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_default_branch_stores_a_baseline_only_where_the_gate_passes(code: int, box: Box) -> None:
    box.install("leakaudit", f'#!{BASH}\ncase "$1" in gate) exit {code} ;; esac\n')
    out = box.folder / "leakaudit-out"
    out.mkdir()
    (out / "result.json").write_text("{}")
    ended, printed = piped(box, CI_PIPELINE_SOURCE="push", CI_COMMIT_BRANCH="main")
    assert ended == code, printed
    assert (out / "baseline.json").exists() is (code == 0)
    assert box.calls() == [words for words in box.calls() if words[0] == "pip"]  # nothing is fetched or sent


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
    from leakaudit.cli_options import EXIT, INTERNAL, USAGE

    table = {int(c): words for c, words in re.findall(r"^\| (\d) \| (\w+)", DOCS, re.MULTILINE)}
    assert {EXIT[word]: word for word in EXIT} | {USAGE: "usage", INTERNAL: "internal"} == table
