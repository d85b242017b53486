"""`verify`: a report is what its result says, byte for byte, or the difference is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leakaudit import outcome as outcomes
from leakaudit.errors import UserError
from leakaudit.reports import verify as module
from leakaudit.reports.html import generator, render
from leakaudit.reports.verify import verify
from leakaudit.result import AuditResult, to_json
from tests.outcomes import every


@pytest.fixture
def stored(tmp_path: Path, golden: AuditResult, golden_path: Path) -> tuple[Path, Path]:
    report, result = tmp_path / "report.html", tmp_path / "result.json"
    report.write_bytes(render(golden).encode())
    shutil.copy(golden_path, result)
    return report, result


def altered(report: Path, old: str, new: str, count: int = 1) -> None:
    text = report.read_text(encoding="utf-8")
    assert old in text
    report.write_text(text.replace(old, new, count), encoding="utf-8")


def test_an_untouched_report_is_the_same(stored: tuple[Path, Path]) -> None:
    assert verify(*stored).status == "same"


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("private records with", "no private records with", "section “Fail”"),
        ("</svg>Fail</h2>", "</svg>Pass</h2>", "Pass</h2>"),
        ("Malicious servers.", "Nothing.", "section “What was not tested”"),
        ("75%", "5%", "has"),
        ("<title>Privacy", "<title>privacy", "the head of the page"),
        ("</html>", "</html> ", "line"),
    ],
)
def test_a_changed_word_with_an_intact_digest_is_named(
    stored: tuple[Path, Path], old: str, new: str, where: str
) -> None:
    altered(stored[0], old, new)
    found = verify(*stored)
    assert found.status == "other"
    assert where in found.sentences[0]


def test_another_result_is_told_by_its_digest(stored: tuple[Path, Path], golden: AuditResult) -> None:
    report, result = stored
    result.write_text(to_json(replace(golden, verdict="pass")), encoding="utf-8")
    found = verify(report, result)
    assert found.status == "other"
    assert "digest" in found.sentences[0]


def test_a_result_written_anew_is_told_from_another(stored: tuple[Path, Path]) -> None:
    report, result = stored
    result.write_text(json.dumps(json.loads(result.read_text(encoding="utf-8"))), encoding="utf-8")
    found = verify(report, result)
    assert found.status == "other"
    assert "written anew" in found.sentences[0]


def test_another_version_cannot_be_compared_but_shows_the_verdict(stored: tuple[Path, Path]) -> None:
    report, _ = stored
    altered(report, generator()["generator"], "leakaudit 0.0.1")
    found = verify(*stored)
    assert found.status == "unknown"
    assert "leakaudit 0.0.1" in found.sentences[1]
    altered(report, "</svg>Fail</h2>", "</svg>Pass</h2>")
    assert verify(*stored).status == "other"


def test_a_page_of_before_pages_named_their_version(stored: tuple[Path, Path]) -> None:
    report, _ = stored
    lines = [line for line in report.read_text(encoding="utf-8").split("\n") if not line.startswith("<meta name=")]
    report.write_text("\n".join(lines), encoding="utf-8")
    found = verify(*stored)
    assert found.status == "unknown"
    assert "did not note itself" in found.sentences[1]


def test_a_figure_drawn_by_another_library_is_said_not_to_be_compared(
    stored: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _ = stored
    altered(report, generator()["figures"], "matplotlib 0.0", count=9)
    altered(report, '<svg class="frontier-wide"', '<svg class="frontier-wide" ')
    found = verify(*stored)
    assert found.status == "unknown"
    assert "figure" in found.sentences[1]
    altered(report, "Malicious servers.", "Nothing.")
    assert verify(*stored).status == "other"


def test_the_gates_outcome_is_part_of_the_page(stored: tuple[Path, Path], golden: AuditResult, tmp_path: Path) -> None:
    report, result = stored
    outcome = every(golden)["fail"][1]
    path = tmp_path / "gate.json"
    path.write_text(outcomes.to_json(outcome), encoding="utf-8")
    assert verify(report, result, path).status == "other"  # the page shows none
    report.write_text(render(golden, outcome), encoding="utf-8")
    assert verify(report, result, path).status == "same"
    with pytest.raises(UserError, match="--gate"):
        verify(report, result)
    path.write_text(outcomes.to_json(replace(outcome, date="2026-11-24")), encoding="utf-8")
    assert verify(report, result, path).status == "other"
    path.write_text(outcomes.to_json(replace(outcome, result_digest="0")), encoding="utf-8")
    assert "judges another result" in verify(report, result, path).sentences[0]


def test_what_cannot_be_read_is_an_error_of_use(stored: tuple[Path, Path], tmp_path: Path) -> None:
    report, result = stored
    for pair in (
        (tmp_path / "none.html", result),
        (report, tmp_path / "none.json"),
        (report, report),
        (result, result),
    ):
        with pytest.raises(UserError):
            verify(*pair)


@pytest.mark.parametrize(
    ("change", "code"), [(("", ""), 0), (("</svg>Fail<", "</svg>Pass<"), 1), (("leakaudit 0", "x 0"), 3)]
)
def test_the_exit_code_says_it(stored: tuple[Path, Path], change: tuple[str, str], code: int) -> None:
    from leakaudit.cli import app

    altered(stored[0], *change)
    ran = CliRunner().invoke(app, ["verify", *map(str, stored)])
    assert ran.exit_code == code, ran.output
    assert str(stored[0]) in ran.output.replace("\n", "")


def test_the_difference_is_cut_to_where_it_is() -> None:
    line = "x" * 5000
    assert len(module._difference(line + "a", line + "b")) < 600
