"""The scripts of the Action and of the workflows, run under bash with commands that stand in for the real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from leakaudit.cli import entry as cli

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
from leakaudit.cli.entry import main
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
