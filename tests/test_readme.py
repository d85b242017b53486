"""The README's commands exist, take the options it shows, and name what is built in."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from leakaudit.cli import entry as cli
from leakaudit.protocol import registry

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted({line.partition("#")[0].strip() for line in re.findall(r"^leakaudit .*$", README, re.MULTILINE)})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run each up to where it looks for the user's file, which is not there: the usage is right."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    expected = 0 if words[1] == "list" else 2
    assert caught.value.code == expected


@pytest.mark.parametrize("command", [c for c in COMMANDS if "list" not in c])
def test_what_fails_in_them_is_only_the_missing_file(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit):
        cli.main()
    missing = r"(model\.py|result\.json|main\.json|report\.html|generator\.safetensors|results)\b"
    assert re.search(missing, capsys.readouterr().err)


def test_every_attack_and_defense_is_described() -> None:
    for name in (*registry.attacks(), *registry.defenses()):
        assert name == "none" or f"`{name}`" in README, f"{name} is missing in the README"


def test_every_file_it_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`(\w+\.py)` ?[(,]", README):
        if name != "model.py":
            assert (ROOT / "examples" / name).exists(), name


def test_the_ci_script_finds_the_test_command() -> None:
    block = README.partition("<!-- test command -->")[2].partition("```bash\n")[2].partition("```")[0]
    assert block.strip().endswith("-m pytest")
