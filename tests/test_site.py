"""The documentation as a site: it builds without a warning, every link leads somewhere, nothing is fetched."""

from __future__ import annotations

import html
import mimetypes
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag

import pytest

import leakaudit
from leakaudit.protocol import registry
from leakaudit.scene.plan import Plan

if TYPE_CHECKING:
    from playwright.sync_api import Route

ROOT = Path(__file__).resolve().parents[1]
PICTURES = (".png", ".svg", ".gif", ".jpg", ".webp")
LOADS = {"src", "srcset", "data", "poster"}  # attributes by which a page fetches, whatever the element
OPENED = ("index.html", "tutorial.html", "gate.html", "notebooks.html", "reference/python.html")  # in a browser
CUT = """[...document.querySelectorAll('.highlight:not(.language-text) code')]
    .filter(code => code.scrollWidth > code.clientWidth + 1).map(code => code.innerText)"""
THEIRS = {"scrollable-region-focusable"}  # the theme's boxes around wide tables; browsers let keys scroll them by now


@dataclass
class Seen(HTMLParser):
    """What one page names: ids, links that a reader follows, and what the page itself loads."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        self.loads += [given[name] for name in LOADS & given.keys()]
        self.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if "href" in given:
            follows = tag in ("a", "area") or given.get("rel") in ("prev", "next", "canonical")
            (self.links if follows else self.loads).append(given["href"])


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder), "--config-file", str(config)],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra docs: pip install 'leakaudit[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Seen]:
    found = sorted(site.rglob("*.html"))
    return {page.relative_to(site).as_posix(): Seen(page.read_text(encoding="utf-8")) for page in found}


def missing(pages: dict[str, Seen], site: Path) -> list[str]:
    """Every local link, picture, script and style that leads nowhere, and every anchor that is not there."""
    found = []
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            path, anchor = urldefrag(link)
            if re.match(r"\w+:", link) or link.startswith("//"):
                continue
            base = site if name == "404.html" else (site / name).parent  # served for any address, so from the root
            target = (base / unquote(path).lstrip("/")).resolve() if path else site / name
            target = target / "index.html" if target.is_dir() else target
            other = target.relative_to(site.resolve()).as_posix() if target.is_relative_to(site.resolve()) else ""
            if not other or not target.is_file():
                found.append(f"{name}: {link}")
            elif anchor and other in pages and unquote(anchor) not in pages[other].ids:
                found.append(f"{name}: {link} (no such anchor)")
    return found


def test_every_link_anchor_picture_and_script_is_there(pages: dict[str, Seen], site: Path) -> None:
    assert missing(pages, site) == []
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert {"obscure.svg", "quality.svg", "first-screen.png"} <= {load for p in pages.values() for load in p.loads}
    assert (site / "files/action.yml").read_bytes() == (ROOT / "action.yml").read_bytes()


def test_the_check_finds_what_is_broken(pages: dict[str, Seen], site: Path) -> None:
    broken = '<a href="gate.html#nowhere">a</a><a href="no.html">b</a><img src="no.png"><a href="../out.html">c</a>'
    assert len(missing(pages | {"x.html": Seen(broken)}, site)) == 4


def test_nothing_is_loaded_from_elsewhere(pages: dict[str, Seen], site: Path) -> None:
    """Links lead out of it, and a reader sees where to; fonts, scripts, styles and pictures are its own."""
    for name, page in pages.items():
        assert [load for load in page.loads if re.match(r"(?!data:)\w+:|//", load)] == [], name
        assert "mermaid" not in page.text, f"{name}: the theme would fetch its drawer of diagrams from elsewhere"
        assert 'data-md-component="source"' not in page.text, f"{name}: the theme would ask the repository's host"
    for style in site.rglob("*.css"):
        found = re.findall(r"url\(['\"]?([^'\")]+)|@import +['\"]([^'\"]+)", style.read_text(encoding="utf-8"))
        assert [url for pair in found for url in pair if re.match(r"(?!data:)\w+:|//", url)] == [], style.name


def test_every_page_is_in_the_navigation_and_pictures_are_small(pages: dict[str, Seen], site: Path) -> None:
    menu = {urldefrag(link)[0] for link in pages["404.html"].links}  # which is in no folder and has no text
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f"/{name}" in menu or name == "index.html", f"{name} is not in nav"
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == len(set(named)) > 30
    for picture in (ROOT / "docs").rglob("*"):
        if picture.suffix in PICTURES:
            assert picture.stat().st_size <= 250_000, picture.name


def test_a_page_outside_of_the_navigation_or_a_dead_link_fails_the_build(tmp_path: Path, site: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[gone](gone.md)\n")
    (tmp_path / "docs" / "stray.md").write_text("# Stray\n")
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    own = re.sub(r"^(nav|plugins|hooks|theme):.*?(?=^\w|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "mkdocs.yml").write_text(own + "nav: [index.md]\n")
    done = build(tmp_path / "out", tmp_path / "mkdocs.yml")
    assert done.returncode == 1
    assert "stray.md" in done.stderr
    assert "gone.md" in done.stderr


def test_the_reference_has_all_that_is_public(pages: dict[str, Seen]) -> None:
    surface = [getattr(leakaudit, name) for name in leakaudit.__all__ if not name.startswith("__")]
    for item in surface:
        assert f"{item.__module__}.{item.__qualname__}" in pages["reference/python.html"].ids
    modules = {f"leakaudit.protocol.{file.stem}" for file in (ROOT / "leakaudit" / "protocol").glob("[a-z]*.py")}
    assert modules - pages["reference/protocol.html"].ids == set()
    settings = pages["reference/settings.html"].ids
    assert [f.name for f in fields(Plan) if f"leakaudit.scene.plan.Plan.{f.name}" not in settings] == []
    for kind, known in (("attacks", registry.attacks()), ("defenses", registry.defenses())):
        page = pages[f"reference/{kind}.html"]
        shown = html.unescape(re.sub(r"<[^>]+>", "", page.text))
        for cls in filter(registry.built_in, known.values()):
            assert f"{cls.__module__}.{cls.__qualname__}" in page.ids
            assert cls.source in shown, f"the paper of {cls.name}"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_browser_asks_nobody_else_and_axe_finds_nothing(site: Path, width: int, scheme: str) -> None:
    """Opened and searched in a browser to which everything else is shut."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'leakaudit[test]'")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    asked: list[str] = []
    complaints: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        file = site / route.request.url.removeprefix("http://site.test/").partition("?")[0]
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        route.fulfill(body=file.read_bytes(), content_type=kind) if file.is_file() else route.abort()

    with api.sync_playwright() as driver:
        if path is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip("no Chromium on this machine: install one, or run `playwright install chromium`")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context: Any = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        context.route("**/*", answer)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        for name in OPENED:
            page.goto(f"http://site.test/{name}", wait_until="load")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.evaluate(CUT) == [], f"{name}: lines of code are cut"
            found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]})
            assert [item for item in found.response["violations"] if item["id"] not in THEIRS] == [], name
        page.keyboard.press("f")  # the theme's key for its search
        page.keyboard.type("identification", delay=20)
        page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
        browser.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("http://site.test/")] == []
    assert len(asked) > 5
