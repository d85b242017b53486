"""What a page may cost its reader, on a real audit of four defenses by every attack: height, words, printed pages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leakaudit.reports.html import render
from leakaudit.reports.pdf import to_pdf
from leakaudit.result.schema import AuditResult
from tests.reports.test_browser import OPEN, TAGS, browser, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]  # the fixture

HEIGHT, WORDS, PAGES = 6000, 2000, 10
COUNT = """() => { const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walk.nextNode()) { const text = walk.currentNode, parent = text.parentElement;
    if (["STYLE", "title", "desc"].includes(parent.tagName)) continue;
    const shut = parent.closest("details:not([open])"), summary = parent.closest("summary");
    if (shut && !(summary && summary.parentElement === shut)) continue;
    if (parent.checkVisibility()) found.push(text.textContent); }
  return found.join(" ").split(/\\s+/).filter(Boolean).length }"""
FOLDED = (  # a sentence of each part that folds away
    "The same command, seed and versions give the same result",
    "What a client sends to the server instead of its records",
    "whether it applies at all is for the reader to settle",
    "Every number in this report holds under these, and under no others.",
    "Medians over records after assignment",
    "The whole audit took",
    "Most exposed tenth: half of the attacks choose the records",
    "I have read the verdict together with the assumptions",
)


@pytest.fixture(scope="module")
def page(browser: Browser, four: AuditResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    path: Path = tmp_path_factory.mktemp("goals") / "four.html"
    path.write_text(render(four), encoding="utf-8")
    found = opened(browser, path, 1280, "light").page
    yield found
    found.close()


def words_of(data: bytes) -> tuple[int, str]:
    """Return the pages of a PDF, and its words."""
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf to read the PDF")
    pages = pypdf.PdfReader(io.BytesIO(data)).pages
    return len(pages), " ".join(" ".join(p.extract_text() for p in pages).split())


def test_a_page_of_four_defenses_is_short_and_its_first_screen_is_the_answer(page: Page, four: AuditResult) -> None:
    assert len(four.defenses) == 5
    height, words = page.evaluate("document.documentElement.scrollHeight"), page.evaluate(COUNT)
    print(f"{height} pixels, {words} words")  # pytest -s shows them: docs/report.md
    assert height <= HEIGHT
    assert words <= WORDS
    seen = """e => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= 900 && r.width > 0 }"""
    for what in (".la-title", ".la-verdict", ".la-strip", ".la-frontier", ".la-tasks"):
        assert page.locator(what).evaluate(seen), what
    assert page.locator(".la-strip img").evaluate_all(f"all => all.every({seen})")


def test_what_folds_away_is_counted_once_it_is_opened(page: Page) -> None:
    """The control of the goals: the same page, opened, is far beyond them."""
    shut = page.evaluate(COUNT)
    page.evaluate(OPEN)
    try:
        assert page.evaluate(COUNT) > 2 * shut
        assert page.evaluate("document.documentElement.scrollHeight") > 1.5 * HEIGHT
    finally:
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false })")


def test_a_link_to_what_is_folded_opens_it(page: Page) -> None:
    page.evaluate("location.hash = '#glossary'")
    page.wait_for_function("document.getElementById('glossary').closest('details').open")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = false })")


def test_axe_finds_nothing_in_the_page_of_a_real_audit(page: Page) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    violations = axe.Axe().run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]}).response["violations"]
    assert {v["id"]: [node["html"][:200] for node in v["nodes"]][:3] for v in violations} == {}


def test_a_browser_prints_what_is_folded(page: Page) -> None:
    _, words = words_of(page.pdf(prefer_css_page_size=True))
    assert [told for told in FOLDED if told not in words] == []


def test_the_pdf_is_short_and_holds_what_is_folded(four: AuditResult) -> None:
    try:
        import weasyprint  # noqa: F401
    except (ImportError, OSError):
        pytest.skip("needs WeasyPrint and Pango")
    pages, words = words_of(to_pdf(render(four)))
    print(f"{pages} pages")
    assert pages <= PAGES
    assert [told for told in FOLDED if told not in words] == []
