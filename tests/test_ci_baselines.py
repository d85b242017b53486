"""Where the workflows' baselines come from: every answer that a host may give, and who may write one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from typing import Any

import pytest

from tests.ci_box import (
    BASH,
    GITLAB,
    JOB,
    PIPELINE,
    Box,
    accepted,
    box,
    needs_bash,
)

__all__ = ["box"]  # the fixture

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
    own = box.folder / "baseline"
    own.mkdir()
    (own / "result.json").write_text("of the change itself")
    code, printed, taken = fetched(box, artifacts, {})
    assert (code, taken) == (0, ""), printed
    assert "There is no baseline yet" in printed
    assert not (own / "result.json").exists()


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
