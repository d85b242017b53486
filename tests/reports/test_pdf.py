"""The report as PDF: the words of the page, tagged, nothing fetched, the same bytes again."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leakaudit.errors import UserError
from leakaudit.reports import figures, pdf
from leakaudit.reports.html import generator, render
from leakaudit.reports.pdf import to_pdf
from leakaudit.reports.verify import verify
from leakaudit.result.schema import AuditResult, digest, from_json, to_json


@pytest.fixture(scope="module")
def weasyprint() -> Any:
    try:
        import weasyprint
    except (ImportError, OSError) as error:
        pytest.skip(f"needs WeasyPrint and Pango: {str(error).splitlines()[0]}")
    return weasyprint


def test_it_holds_the_verdict_and_is_tagged(printed: tuple[Path, Path], sound: AuditResult) -> None:
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf to read the PDF")
    read = pypdf.PdfReader(printed[0])
    words = " ".join(" ".join(p.extract_text() for p in read.pages).split())
    for said in ("Fail", "What was not tested", "Malicious servers.", "linkage", "Digest and sign-off"):
        assert said in words
    root = read.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en"
    assert read.metadata.title == f"Privacy audit: {sound.target['name']}: Fail"
    assert len(read.outline[1]) > 12  # bookmarks below the title, one for each section


@cache
def page_and_pdf(result: str) -> tuple[str, bytes]:
    """Return a result's page and PDF: printing takes seconds."""
    page = render(from_json(result))
    return page, to_pdf(page)


@pytest.fixture
def printed(weasyprint: Any, tmp_path: Path, sound: AuditResult) -> tuple[Path, Path]:
    report, result = tmp_path / "report.pdf", tmp_path / "result.json"
    result.write_text(to_json(sound), encoding="utf-8")
    report.write_bytes(page_and_pdf(to_json(sound))[1])
    return report, result


def test_what_is_signed_names_the_result_in_full_and_every_page_its_verdict(
    printed: tuple[Path, Path], sound: AuditResult
) -> None:
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf to read the PDF")
    words = ["".join(page.extract_text().split()) for page in pypdf.PdfReader(printed[0]).pages]
    assert len(words) > 5
    assert all(f"Fail·result{digest(sound)[:16]}" in text for text in words)
    assert f"ItreferstotheresultwhoseSHA-256is{digest(sound)}." in "".join(words)


def test_a_pdf_is_verified_by_printing_it_again(
    weasyprint: Any, printed: tuple[Path, Path], sound: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, result = printed
    data = report.read_bytes()
    assert verify(report, result).status == "same"  # printed again, here
    page = page_and_pdf(to_json(sound))[0]
    monkeypatch.setattr("leakaudit.reports.verify.to_pdf", lambda given: data if given == page else b"%PDF other")
    assert verify(report, result).status == "same"
    report.write_bytes(data + b" ")
    assert verify(report, result).status == "other"
    report.write_bytes(data)
    monkeypatch.setattr("leakaudit.reports.verify.to_pdf", lambda given: b"%PDF other")
    assert verify(report, result).status == "other"
    monkeypatch.setattr(weasyprint, "__version__", "1.0")
    found = verify(report, result)
    assert found.status == "unknown"
    assert f"this is {generator()} with WeasyPrint 1.0" in found.sentences[0]
    assert f"{generator()} with WeasyPrint" in found.sentences[0].partition(" wrote it")[0]
    with monkeypatch.context() as patched:
        patched.setattr("leakaudit.reports.verify.generator", lambda: "leakaudit 9")
        found = verify(report, result)
    assert found.status == "unknown"
    assert "this is leakaudit 9" in found.sentences[0]
    assert "-o again.pdf --pdf" in found.sentences[0]
    result.write_text(to_json(replace(sound, reasons=("Other.",))), encoding="utf-8")
    assert verify(report, result).status == "other"


def test_without_the_library_a_pdf_cannot_be_verified_and_that_is_said(
    printed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(page: str) -> bytes:
        raise UserError("a PDF needs WeasyPrint (no Pango): install it.")

    monkeypatch.setattr("leakaudit.reports.verify.to_pdf", missing)
    found = verify(*printed)
    assert found.status == "unknown"
    assert "do not rely on it" in found.sentences[0]
    assert "WeasyPrint" in found.sentences[0]


def test_a_pdf_of_something_else_is_an_error_of_use(tmp_path: Path, sound: AuditResult) -> None:
    report, result = tmp_path / "report.pdf", tmp_path / "result.json"
    result.write_text(to_json(sound), encoding="utf-8")
    report.write_bytes(b"%PDF-1.4 stream\nxx endstream")
    with pytest.raises(UserError, match="holds no digest"):
        verify(report, result)


def test_nothing_is_fetched(weasyprint: Any, golden: AuditResult, tmp_path: Path, monkeypatch: Any) -> None:
    import urllib.request

    secret = tmp_path / "secret.css"
    secret.write_text("h1 { color: red }", encoding="utf-8")
    asked = []
    real = urllib.request.OpenerDirector.open
    monkeypatch.setattr(
        urllib.request.OpenerDirector,
        "open",
        lambda self, r, *a, **k: asked.append(r.full_url) or real(self, r, *a, **k),
    )
    links = f'<link rel="stylesheet" href="{secret.as_uri()}"><img src="http://localhost:9/x.png" alt="x">'
    to_pdf(render(golden).replace("</h1>", f"</h1>{links}", 1))
    assert asked
    assert [url for url in asked if not url.startswith("data:")] == []


def test_the_frontier_is_printed_in_the_colours_of_paper_and_has_a_text_in_its_place(
    printed: tuple[Path, Path], sound: AuditResult
) -> None:
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf to read the PDF")
    read = pypdf.PdfReader(printed[0])
    (page,) = [page for page in read.pages if figures.ACROSS in page.extract_text()]
    strokes = set(re.findall(rb"([\d.]+ [\d.]+ [\d.]+) RG", page.get_contents().get_data()))
    drawn = page_and_pdf(to_json(sound))[0].partition('<svg class="frontier"')[2].partition("</svg>")[0]
    used = re.findall(r'stroke="#(\w\w)(\w\w)(\w\w)"', drawn)
    wanted = {" ".join(f"{int(part, 16) / 255:.6g}" for part in colour).encode() for colour in used}
    assert len(wanted) == 5
    assert strokes >= wanted
    assert figures.TITLE in texts(read.trailer["/Root"]["/StructTreeRoot"])


def texts(element: Any) -> list[str]:
    """Return the texts that stand for figures in a tree of a PDF's structure."""
    element = element.get_object()
    if isinstance(element, list):
        return [text for child in element for text in texts(child)]
    own = [element["/Alt"]] if isinstance(element, dict) and "/Alt" in element else []
    return own + (texts(element["/K"]) if isinstance(element, dict) and "/K" in element else [])


def test_without_the_library_the_mend_is_named(golden: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "weasyprint":
            raise OSError("cannot load library 'libpango-1.0-0'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'leakaudit\[pdf\]'.*libpango"):
        to_pdf(render(golden))


def test_the_command_writes_both_or_the_pdf_alone(
    golden_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leakaudit.cli.entry import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pdf, "to_pdf", lambda page: b"%PDF of " + page.encode())
    ran = CliRunner().invoke(app, ["report", str(golden_path), "--pdf"])
    assert ran.exit_code == 0, ran.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.pdf"]
    alone = CliRunner().invoke(app, ["report", str(golden_path), "-o", "alone.pdf", "--pdf"])
    assert alone.exit_code == 0
    assert (tmp_path / "alone.pdf").read_bytes() == (tmp_path / "report.pdf").read_bytes()
    assert not (tmp_path / "alone.html").exists()
    refused = CliRunner().invoke(app, ["report", str(golden_path), "-o", "other.pdf"])
    assert isinstance(refused.exception, UserError)
