"""Plays docs/tutorial.md in an empty folder, and writes what came of it into the page: outputs and pictures.

    .venv/bin/python .ci/tutorial.py        # some ten minutes of one core; needs Chromium

A block of Python whose title is a file is written to that file. Of a block of commands, each line beginning with
`leakaudit` is run; the block of text that follows shows what they print. All pictures are of the public faces.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
START = "from leakaudit.cli import main; main()"
BLOCK = re.compile(r'^```(\w+)(?: title="([\w./]+)")?\n(.*?)^```\n', re.MULTILINE | re.DOTALL)
SHOTS = {"tutorial-first.png": "report.html", "tutorial-pictures.png": "report.html#pictures"}


def ran(line: str, folder: Path) -> str:
    """Run one command and return what it says: what goes to stdout, and errors where it failed to start."""
    words = shlex.split(line, comments=True)[1:]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80", "CI": ""}
    done = subprocess.run(
        [sys.executable, "-c", START, *words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    print(f"{done.returncode}  {line}", file=sys.stderr)
    if done.returncode not in (0, 1, 3):
        sys.exit(done.stdout + done.stderr)
    return done.stdout + f"exit code {done.returncode}\n" * bool(done.returncode)


def played(text: str, folder: Path) -> str:
    """Return the page with the outputs of its commands."""
    told: str | None = None

    def replaced(found: re.Match[str]) -> str:
        nonlocal told
        kind, title, body = found.groups()
        if kind == "text" and told is not None:
            body, told = told, None
            return f"```text\n{body}```\n"
        told = None
        if kind == "python" and title:
            (folder / title).write_text(body, encoding="utf-8")
        elif kind == "bash":
            lines = [line for line in body.splitlines() if line.startswith("leakaudit ")]
            follows = text[found.end() :].lstrip().startswith("```text")
            told = "".join(ran(line, folder) for line in lines) if follows else None
        return found[0]

    return BLOCK.sub(replaced, text)


def draw(folder: Path) -> None:
    """Take the pictures, 1,280 pixels wide."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        for name, place in SHOTS.items():
            page.goto(f"{(folder / 'leakaudit-out').as_uri()}/{place}")
            page.screenshot(path=ROOT / "docs" / name)
        browser.close()


def main() -> None:
    """Play the page, or only take the pictures of a folder in which it was played: `tutorial.py FOLDER`."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    if len(sys.argv) == 1:
        PAGE.write_text(played(PAGE.read_text(encoding="utf-8"), folder), encoding="utf-8")
    draw(folder)
    print(folder)


if __name__ == "__main__":
    main()
