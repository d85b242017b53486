"""The report as PDF: the words of the page, tagged, nothing fetched, the same bytes again."""

from __future__ import annotations

import builtins
import io
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leakaudit.errors import UserError
from leakaudit.reports import pdf
from leakaudit.reports.html import render
from leakaudit.reports.pdf import PAPER, for_paper, to_pdf
from leakaudit.result import AuditResult


@pytest.fixture(scope="module")
def weasyprint() -> Any:
    try:
        import weasyprint
    except (ImportError, OSError) as error:
        pytest.skip(f"needs WeasyPrint and Pango: {str(error).splitlines()[0]}")
    return weasyprint


def test_it_holds_the_verdict_and_is_tagged_and_repeats(weasyprint: Any, golden: AuditResult) -> None:
    pypdf = pytest.importorskip("pypdf", reason="needs pypdf to read the PDF")
    page = render(golden)
    data = to_pdf(page)
    assert to_pdf(page) == data
    read = pypdf.PdfReader(io.BytesIO(data))
    words = " ".join(" ".join(p.extract_text() for p in read.pages).split())
    for said in ("Fail", "What was not tested", "Malicious servers.", "linkage", "Digest and sign-off"):
        assert said in words
    root = read.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en"
    assert read.metadata.title == f"Privacy audit: {golden.target['name']}: Fail"
    assert len(read.outline[1]) > 12  # bookmarks below the title, one for each section


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


def test_drawings_have_the_colours_of_paper(golden: AuditResult) -> None:
    drawings = re.findall(r"<svg .*?</svg>", for_paper(render(golden)), re.DOTALL)
    assert len(drawings) > 4
    assert all("var(" not in drawing for drawing in drawings)
    sheet = (Path(__file__).resolve().parents[2] / "reports" / "print.html.j2").read_text(encoding="utf-8")
    assert all(f"--{name}: {colour};" in sheet for name, colour in PAPER.items())


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
    from leakaudit.cli import app

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
