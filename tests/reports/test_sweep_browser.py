"""The page of a sweep in a real browser: whole, alone, nothing wider than the screen, axe-core clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from leakaudit.compare.sweep import frontiers
from leakaudit.reports.sweep import render
from tests.leakaudit.sweeps import entries
from tests.reports.test_browser import SEEN, browser, whole_and_accessible

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]  # the fixture


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models whose scans ended, failed and wait, one of them with a long name."""
    long = "a-model-with-a-name-that-nobody-would-choose-" * 3
    made = [*entries(), *(replace(entry, model=long, name=f"{entry.name}-2") for entry in entries())]
    path = tmp_path_factory.mktemp("page") / "sweep.html"
    path.write_text(render("sweep.toml", frontiers(made)), encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "scheme"), SEEN)
def test_it_opens_whole_alone_and_accessible(browser: Browser, page_path: Path, width: int, scheme: str) -> None:
    whole_and_accessible(browser, page_path, "sweep", width, scheme)
