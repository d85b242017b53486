"""The report in a real browser: nothing loaded, nothing in the console, nothing cut off, reachable and readable.

Screenshots go to artifacts/screenshots, or where SCREENSHOTS says.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from leakaudit.reports.html import render
from leakaudit.result.schema import Waiver, load
from tests.outcomes import every
from tests.reports.big import big
from tests.reports.crowds import crowd

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "result-1.json"
SHOTS = Path(os.environ.get("SCREENSHOTS") or ROOT / "artifacts" / "screenshots")
NAMES = ("golden", "gate", "big")
VIEWS = [(width, scheme) for width in (360, 1440) for scheme in ("light", "dark")]
SEEN = [(360, "dark"), (1440, "light")]
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
FOCUSABLE = "a[href], summary, [tabindex='0']"
OPEN = "document.querySelectorAll('details').forEach(d => { d.open = true })"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install 'leakaudit[test]'")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next((found for name in names if (found := shutil.which(name))), None)
    with api.sync_playwright() as driver:
        own = Path(driver.chromium.executable_path)
        if path is None and not own.exists():
            pytest.skip("no Chromium on this machine: install one, or run `playwright install chromium`")
        started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    golden = load(GOLDEN)
    waiver = Waiver("psnr", "a reason", "2030-01-01", by="somebody")
    gated, outcome = every(replace(golden, waivers=(waiver,)))["waived"]
    texts = {"golden": render(golden), "gate": render(gated, outcome), "big": render(big(golden))}
    folder = tmp_path_factory.mktemp("pages")
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@dataclass
class Opened:
    """A page, with what it asked for and what it complained of while it was opened."""

    page: Page
    requests: list[str]
    complaints: list[str]


def opened(browser: Browser, path: Path, width: int, scheme: Any) -> Opened:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = Opened(page, [], [])
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.goto(path.as_uri())
    return found


@pytest.mark.parametrize(("width", "scheme"), VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_it_opens_whole_and_alone(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    found = opened(browser, pages[name], width, scheme)
    page = found.page
    try:
        assert found.complaints == []
        assert {url for url in found.requests if not url.startswith("data:")} == {pages[name].as_uri()}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") is (scheme == "light")
        assert page.locator("script").count() == 0
        unnamed = page.evaluate("[...document.images].filter(i => !i.alt || !i.complete || !i.naturalWidth).length")
        assert unnamed == 0
        if name != "big" or (width, scheme) in SEEN:  # which is long, and slow to draw
            SHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
    finally:
        page.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [(name, *view) for name in NAMES for view in SEEN if (name, view[0]) != ("big", 1440)]
)
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = opened(browser, pages[name], width, scheme).page
    page.evaluate(OPEN)
    try:
        answer = axe.Axe().run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]}).response
    finally:
        page.close()
    wrong = {v["id"]: [node["html"][:200] for node in v["nodes"]][:3] for v in answer["violations"]}
    assert wrong == {}
    assert len(answer["passes"]) > 20  # it did look


def test_axe_would_find_something(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    broken = tmp_path / "broken.html"
    text = pages["golden"].read_text(encoding="utf-8").replace("--muted: #565d66", "--muted: #c5c8cc")
    broken.write_text(text.replace(' lang="en"', ""), encoding="utf-8")
    page = opened(browser, broken, 1440, "light").page
    try:
        found = {v["id"] for v in axe.Axe().run(page, options={"runOnly": TAGS}).response["violations"]}
    finally:
        page.close()
    assert {"html-has-lang", "color-contrast"} <= found


@pytest.mark.parametrize("width", [360, 1440])
def test_the_keyboard_reaches_every_link_and_region_and_shows_where_it_is(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    page = opened(browser, pages["gate"], width, "light").page
    page.evaluate(OPEN)
    look = """() => { const e = document.activeElement, s = getComputedStyle(e), all = [...document.querySelectorAll(
      "a[href], summary, [tabindex='0']")];
      return [all.indexOf(e), s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2,
      e.getBoundingClientRect().width > 0] }"""
    try:
        wanted = page.locator(FOCUSABLE).count()
        assert wanted > 60
        reached = []
        for _ in range(wanted):
            page.keyboard.press("Tab")
            place, outlined, drawn = page.evaluate(look)
            assert outlined
            assert drawn
            reached.append(place)
        assert reached == list(range(wanted))
    finally:
        page.close()


def test_the_first_stop_of_the_keyboard_leads_past_the_head(browser: Browser, pages: dict[str, Path]) -> None:
    page = opened(browser, pages["golden"], 1440, "light").page
    try:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
    finally:
        page.close()


def test_a_table_that_is_wider_than_the_phone_shows_that_there_is_more(
    browser: Browser, pages: dict[str, Path]
) -> None:
    page = opened(browser, pages["golden"], 360, "light").page
    region = page.get_by_role("region", name="Defenses and attacks")
    edge = """e => { e.scrollIntoView({block: "center"}); const r = e.getBoundingClientRect();
      return {x: r.right - 8, y: r.top + r.height / 2, width: 8, height: 8} }"""
    try:
        assert region.evaluate("e => e.scrollWidth > e.clientWidth")
        region.evaluate("e => { e.scrollLeft = e.scrollWidth }")
        page.add_style_tag(content="table { visibility: hidden }")
        bare = page.screenshot(clip=region.evaluate(edge))
        region.evaluate("e => { e.scrollLeft = 0 }")
        again = page.screenshot(clip=region.evaluate(edge))
    finally:
        page.close()
    assert again != bare  # without a word in it: a shadow at the edge that more lies beyond, none at the end


LAID = """svg => {
  const all = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
  const whole = svg.getBoundingClientRect();
  const out = r => r.left < whole.left || r.right > whole.right || r.top < whole.top || r.bottom > whole.bottom;
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;  // their lines are higher than their letters
  return {words: all.length, clipped: all.filter(([, r]) => out(r)).map(([t]) => t),
    covered: all.flatMap(([t, a], i) => all.slice(0, i).filter(([, b]) => meet(a, b)).map(([u]) => [t, u]))} }"""


@pytest.mark.parametrize("width", [360, 1440])
@pytest.mark.parametrize(
    ("count", "long", "together"), [(1, False, False), (12, True, False), (30, False, False), (9, True, True)]
)
def test_no_word_of_the_frontier_is_cut_or_lies_on_another(
    browser: Browser, tmp_path: Path, count: int, long: bool, together: bool, width: int
) -> None:
    path = tmp_path / "crowd.html"
    path.write_text(render(crowd(load(GOLDEN), count, long, together)), encoding="utf-8")
    page = opened(browser, path, width, "light").page
    try:
        found = page.locator("svg[class^=frontier]").evaluate(LAID)
        shown = page.locator("svg[role=img]").evaluate_all("all => all.map(s => s.getBoundingClientRect().width > 0)")
    finally:
        page.close()
    assert found["words"] > 10 + count
    assert (found["clipped"], found["covered"]) == ([], [])
    assert shown == [True]


@pytest.mark.parametrize(
    ("media", "scheme", "point", "word"),
    [
        ("screen", "light", "rgb(31, 78, 121)", "rgb(26, 28, 31)"),
        ("screen", "dark", "rgb(138, 184, 230)", "rgb(228, 230, 232)"),
        ("print", "dark", "rgb(31, 78, 121)", "rgb(0, 0, 0)"),
    ],
)
def test_the_frontier_has_the_colours_of_the_page(
    browser: Browser, pages: dict[str, Path], media: Any, scheme: str, point: str, word: str
) -> None:
    page = opened(browser, pages["golden"], 1440, scheme).page
    try:
        page.emulate_media(media=media, color_scheme=scheme)  # type: ignore[arg-type]
        colour = "e => getComputedStyle(e).fill"
        assert page.locator("svg[class^=frontier] path[transform]").last.evaluate(colour) == point
        assert page.locator("svg[class^=frontier] text").first.evaluate(colour) == word
        named = page.get_by_role("img", name="Privacy against accuracy")
        assert named.count() == 1
    finally:
        page.close()


def test_it_stays_small(pages: dict[str, Path]) -> None:
    assert pages["big"].stat().st_size < 5_000_000
    assert "to keep this file small" not in pages["big"].read_text(encoding="utf-8")


def whole_and_accessible(browser: Browser, page_path: Path, name: str, width: int, scheme: str) -> None:
    """A page of figures that begin with a name opens alone, is no wider than the screen, and axe finds nothing."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    found = opened(browser, page_path, width, scheme)
    page = found.page
    try:
        assert found.complaints == []
        assert {url for url in found.requests if not url.startswith("data:")} == {page_path.as_uri()}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        shown = page.evaluate(
            f"[...document.querySelectorAll('svg[class^={name}]')].map(s => s.getBoundingClientRect().width > 0)"
        )
        assert sorted(shown) == [False, False, True, True]  # of the wide and the narrow one, one each
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{name}-{width}-{scheme}.png", full_page=True)
        answer = axe.Axe().run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]}).response
    finally:
        page.close()
    assert {v["id"]: [node["html"][:200] for node in v["nodes"]][:3] for v in answer["violations"]} == {}
