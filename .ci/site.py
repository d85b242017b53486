"""What the site takes from outside of docs/: pages at the root, files that pages link to, the help of commands.

The sources keep the links that work in the repository: `../action.yml` in docs/, `docs/ci.md` at the root. Here the
first becomes a copy of that file within the site, the second the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
HELP = "<!-- the help of every command -->"
ASK = """
import typer.main
from typer.testing import CliRunner
from leakaudit.cli.entry import app

def shown(command, words):
    if hasattr(command, "commands"):
        return [each for name, sub in command.commands.items() for each in shown(sub, [*words, name])]
    return [words]

commands = typer.main.get_command(app).commands
for words in [each for name, command in commands.items() for each in shown(command, [name])]:
    told = CliRunner().invoke(app, [*words, "-h"], prog_name="leakaudit").stdout
    print(f"## {' '.join(words)}\\n\\n```text\\n{told.strip()}\\n```\\n")
"""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def target(source: str, link: str) -> str:
    """Return where a link leads within the site, from the root of docs/: `source` and what it links to are files of the
    repository, like `docs/ci.md` and `../action.yml`."""
    path = normpath(f"{Path(source).parent.as_posix()}/{link}")
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path, f"files/{path}")


def sources() -> dict[str, str]:
    """Return every page's text by its path in the repository."""
    found = [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES)]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in found}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from the root, and copies of the files outside of docs/ that some page links to."""
    wanted = set()
    for source, text in sources().items():
        if source in PAGES:
            files.append(File.generated(config, PAGES[source], content=text))
        wanted |= {target(source, link) for link in LINK.findall(text)}
    for path in sorted(wanted):
        if path.startswith("files/") and (ROOT / path.removeprefix("files/")).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path.removeprefix("files/"))))
    return files


def helped() -> str:
    """Return a section for each command with what its `-h` prints, 80 columns wide."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"the help of the commands: {done.stderr}")
    return done.stdout


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the repository into those of the site."""
    if HELP in markdown:
        return markdown.replace(HELP, helped())
    name = page.file.src_uri
    source = {to: root for root, to in PAGES.items()}.get(name, f"docs/{name}")
    here = Path(name).parent.as_posix()
    return LINK.sub(lambda found: relpath(target(source, found[1]), here), markdown)
