"""The page of a history in a real browser: whole, alone, nothing wider than the screen, axe-core clean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leakaudit.compare.history import read
from leakaudit.reports.history import render
from leakaudit.result.schema import to_json
from tests.reports.test_browser import SEEN, browser, whole_and_accessible
from tests.reports.test_history import run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]  # the fixture


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history with breaks, a long file name, other versions, and a number that was not measured."""
    folder = tmp_path_factory.mktemp("history")
    long = "a-branch-with-a-name-that-nobody-would-choose-" * 3
    tools = {"leakaudit": "0.1.0", "torch": "3", "commit": "0123456789ab+changes"}
    runs = [
        run(0),
        run(4),
        run(8, seed=1),
        run(20, (), seed=1, environment=tools),
        run(9, seed=1, max_identification=0.1),
    ]
    for i, each in enumerate(runs):
        (folder / f"run-{i + 1}-{long if i == 2 else ''}.json").write_text(to_json(each))
    (folder / "notes.json").write_text("{}")
    path = tmp_path_factory.mktemp("page") / "history.html"
    path.write_text(render(read(folder)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), SEEN)
def test_it_opens_whole_alone_and_accessible(browser: Browser, page_path: Path, width: int, scheme: str) -> None:
    whole_and_accessible(browser, page_path, "history", width, scheme)
