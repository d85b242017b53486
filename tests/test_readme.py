"""The README is one screenful, its commands and those of docs/ exist, and what is built in is described."""

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
PAGES = {"README.md": README} | {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/**/*.md"))
}
COMMAND = re.compile(r"^ *(leakaudit (?!demo\b)[a-z].*)$")  # the demo needs no file, and minutes


def commands() -> dict[str, str]:
    """Every command that stands in a block of code, with the first page that it stands on."""
    found: dict[str, str] = {}
    for name, text in PAGES.items():
        if name == "docs/command-line.md":  # tests/leakaudit/test_help.py tries its examples
            continue
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```$|((?:^ {4}.*\n)+)", text, re.MULTILINE | re.DOTALL):
            for line in "".join(block).replace("\\\n", " ").splitlines():
                if match := COMMAND.match(line):
                    found.setdefault(re.split(r" #| >| && ", match[1])[0].strip(), name)
    return found


COMMANDS = commands()
MISSING = r"\w+\.(py|json|html|safetensors|toml)\b|\bresults\b|strengths|leakaudit-out|/shared/audits"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses_and_only_misses_its_file(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run each up to where it looks for the user's file, which is not there: the usage is right."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    expected = 0 if words[1] in ("list", "cache") or "--new-key" in words else 2
    said = capsys.readouterr().err
    assert caught.value.code == expected, said
    assert not expected or re.search(MISSING, said), said


def test_the_readme_is_a_screenful_with_the_picture_at_its_top() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert any("docs/first-screen.png" in line for line in lines[:10])


@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_every_attack_and_defense_is_described(kind: str) -> None:
    """In a row of the table, and by its class, whose docstring and paper the reference shows."""
    table, reference = PAGES[f"docs/{kind}.md"], PAGES[f"docs/reference/{kind}.md"]
    names = {word for row in re.findall(r"^\| (`.*?) \|", table, re.M) for word in re.findall(r"`([^`]+)`", row)}
    for name, cls in getattr(registry, kind)().items():
        assert name == "none" or name in names, f"{name} is missing in docs/{kind}.md"
        assert f"::: {cls.__module__}.{cls.__qualname__}\n" in reference, f"{name} is missing in the reference"


def test_every_file_it_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in {name for page in PAGES.values() for name in re.findall(r"examples/([\w/]+\.\w+)", page)}:
        assert (ROOT / "examples" / name).exists(), name


def test_the_ci_script_finds_the_test_command() -> None:
    block = README.partition("<!-- test command -->")[2].partition("```bash\n")[2].partition("```")[0]
    assert "-m pytest" in block.strip().splitlines()[-1]
