"""What the site takes from outside of docs/: pages at the root and files that pages link to.

The sources keep the links that work in the repository: `../action.yml` in docs/, `docs/ci.md` at the root. Here the
first becomes a copy of that file within the site, the second the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
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


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the repository into those of the site."""
    name = page.file.src_uri
    source = {to: root for root, to in PAGES.items()}.get(name, f"docs/{name}")
    here = Path(name).parent.as_posix()
    return LINK.sub(lambda found: relpath(target(source, found[1]), here), markdown)
