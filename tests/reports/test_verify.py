"""`verify`: a report is what its result says, byte for byte, or the difference is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from leakaudit.cli.entry import app
from leakaudit.errors import UserError
from leakaudit.reports import html_source
from leakaudit.reports import verify as module
from leakaudit.reports.html import generator, render
from leakaudit.reports.html_source import MAKERS, fingerprint, modules, of
from leakaudit.reports.verify import verify
from leakaudit.result import outcome as outcomes
from leakaudit.result.schema import AuditResult, to_json
from tests.outcomes import every


@pytest.fixture
def stored(tmp_path: Path, sound: AuditResult) -> tuple[Path, Path]:
    report, result = tmp_path / "report.html", tmp_path / "result.json"
    report.write_bytes(render(sound).encode())
    result.write_bytes(to_json(sound).encode())
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
        ("an attacker can tell", "nobody can tell", "section “Fail”"),
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


def test_another_result_is_told_by_its_digest(stored: tuple[Path, Path], sound: AuditResult) -> None:
    report, result = stored
    result.write_text(to_json(replace(sound, reasons=("Other.",))), encoding="utf-8")
    found = verify(report, result)
    assert found.status == "other"
    assert "digest" in found.sentences[0]


def test_a_result_written_anew_is_told_from_another(stored: tuple[Path, Path]) -> None:
    report, result = stored
    result.write_text(json.dumps(json.loads(result.read_text(encoding="utf-8"))), encoding="utf-8")
    found = verify(report, result)
    assert found.status == "other"
    assert "written anew" in found.sentences[0]


@pytest.mark.parametrize("forged", [("", ""), ("</svg>Fail</h2>", "</svg>Pass</h2>")])
def test_another_versions_page_is_said_to_be_one(stored: tuple[Path, Path], forged: tuple[str, str]) -> None:
    report, result = stored
    altered(report, generator(), "leakaudit 0.0.1")
    altered(report, *forged)
    found = verify(*stored)
    assert found.status == "unknown"
    (sentence,) = found.sentences
    assert sentence.startswith(f"{report} cannot be compared here, so do not rely on it: leakaudit 0.0.1 wrote it")
    assert sentence.endswith(f"Render the result again with leakaudit report {result} and read that.")


def test_two_states_of_one_version_are_two_versions(stored: tuple[Path, Path]) -> None:
    report, _ = stored
    altered(report, f"(pages {fingerprint()})", "(pages 3fa900000000)")
    assert verify(*stored).status == "unknown"


def test_the_fingerprint_depends_on_names_and_text_and_on_nothing_else() -> None:
    first = of({"report.html.j2": b"one\r\ntwo", "html.py": b"three"})
    assert of({"html.py": b"three", "report.html.j2": b"one\ntwo"}) == first  # line ends are the checkout's
    assert of({"html.py": b"four", "report.html.j2": b"one\ntwo"}) != first
    assert of({"html.py": b"one\ntwo", "report.html.j2": b"three"}) != first
    assert f"(pages {fingerprint()})" in generator()
    assert re.fullmatch(r"[0-9a-f]{12}", fingerprint())


def test_the_fingerprint_follows_every_import_of_a_page_and_no_further() -> None:
    """Rendering a page loads no module of ours that the fingerprint does not cover; it covers nothing that measures."""
    code = (
        "import sys, leakaudit.reports.html as html, leakaudit.reports.pdf\n"
        "from pathlib import Path\n"
        "from leakaudit.reports.html_source import MAKERS, modules\n"
        "from leakaudit.result.schema import load\n"
        "html.render(load(Path(sys.argv[1])))\n"
        "loaded = {n for n, m in sys.modules.items() if n.startswith('leakaudit.') and not hasattr(m, '__path__')}\n"
        "print(*sorted(loaded - set(modules(MAKERS))))\n"
    )
    golden = str(Path(__file__).resolve().parents[1] / "golden" / "result-1.json")
    run = subprocess.run([sys.executable, "-c", code, golden], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
    assert {"leakaudit.gate.thresholds", "leakaudit.stats.paired", "leakaudit.result.rules"} <= set(modules(MAKERS))
    assert not {"leakaudit.audit.audit", "leakaudit.protocol.client", "leakaudit"} & set(modules(MAKERS))


def test_editing_a_module_or_a_template_that_reaches_the_page_changes_its_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read, before = html_source._read, fingerprint()
    for name in ("leakaudit.gate.thresholds", "macros.html.j2"):
        monkeypatch.setattr(html_source, "_read", lambda n, name=name: read(n) + (b"\n# edited" if n == name else b""))
        assert fingerprint.__wrapped__() != before
    monkeypatch.setattr(html_source, "_read", read)
    assert fingerprint.__wrapped__() == before


def test_a_source_that_is_not_there_is_no_empty_one() -> None:
    with pytest.raises(FileNotFoundError):
        modules(["leakaudit.nowhere"])
    with pytest.raises(FileNotFoundError):
        html_source.templates("nowhere.html.j2")


def test_a_page_without_its_version_is_as_one_of_another(stored: tuple[Path, Path]) -> None:
    report, _ = stored
    lines = [
        line for line in report.read_text(encoding="utf-8").split("\n") if not line.startswith('<meta name="generator"')
    ]
    report.write_text("\n".join(lines), encoding="utf-8")
    found = verify(*stored)
    assert found.status == "unknown"
    assert "an unknown version wrote it" in found.sentences[0]


def test_a_result_that_contradicts_itself_is_no_pass_however_well_the_page_fits(
    stored: tuple[Path, Path], sound: AuditResult
) -> None:
    report, result = stored
    passed = replace(sound, verdict="pass", defenses=tuple(replace(d, verdict="pass") for d in sound.defenses))
    page = render(passed)
    assert "contradict what it claims" in page
    assert page.index("contradict what it claims") < page.index('id="verdict"')
    assert "contradict what it claims" not in render(sound)
    report.write_text(page, encoding="utf-8")
    result.write_text(to_json(passed), encoding="utf-8")
    found = verify(*stored)
    assert found.status == "other"
    assert "byte for byte" in found.sentences[0]
    assert any("its own numbers give fail" in told for told in found.sentences)
    ran = CliRunner().invoke(app, ["report", str(result), "-o", str(report)])
    assert ran.exit_code == 0
    assert "its own numbers give fail" in ran.stderr


def test_an_outcome_that_contradicts_itself_is_no_pass(
    stored: tuple[Path, Path], sound: AuditResult, tmp_path: Path
) -> None:
    report, result = stored
    outcome = replace(every(sound)["fail"][1], verdict="pass", checks=())
    path = tmp_path / "gate.json"
    path.write_text(outcomes.to_json(outcome), encoding="utf-8")
    report.write_text(render(sound, outcome), encoding="utf-8")
    found = verify(report, result, path)
    assert found.status == "other"
    assert found.sentences[1] == f"{path} contradicts itself:"
    assert "its own checks and waivers give inconclusive" in found.sentences[2]


def test_the_gates_outcome_is_part_of_the_page(stored: tuple[Path, Path], sound: AuditResult, tmp_path: Path) -> None:
    report, result = stored
    outcome = every(sound)["fail"][1]
    path = tmp_path / "gate.json"
    path.write_text(outcomes.to_json(outcome), encoding="utf-8")
    assert verify(report, result, path).status == "other"  # the page shows none
    report.write_text(render(sound, outcome), encoding="utf-8")
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
    altered(stored[0], *change)
    ran = CliRunner().invoke(app, ["verify", *map(str, stored)])
    assert ran.exit_code == code, ran.output
    assert str(stored[0]) in ran.output.replace("\n", "")


def test_the_difference_is_cut_to_where_it_is() -> None:
    line = "x" * 5000
    assert len(module._difference(line + "a", line + "b")) < 600


def test_a_difference_within_a_line_is_shown_not_what_comes_before_it() -> None:
    before, after = "word " * 40, " more" * 400
    said = module._difference(f"{before}11 of 16{after}", f"{before}12 of 16{after}")
    assert "11 of 16" in said
    assert "12 of 16" in said
