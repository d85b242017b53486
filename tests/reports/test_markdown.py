"""Markdown: rendered and read back; nothing of a result or a configuration becomes markup, and the size is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from leakaudit.errors import UserError
from leakaudit.gate.decision import compare, gate
from leakaudit.reports.markdown import COMMENT, MARK, SUMMARY, SYMBOLS, append_step_summary, render
from leakaudit.reports.markdown_text import code, item, literal
from leakaudit.result.outcome import WaiverState
from leakaudit.result.schema import AuditResult, Estimate, load
from tests.outcomes import LEAKY, OPEN, SAFE, WAIVER, check, every, outcome

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "result-1.json"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
OURS = {"h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong", "em", "code", "span"}
OURS |= {"details", "summary", "sub"}
HOSTILE = (
    "*b* _i_ ~~s~~ `c` ``` [l](http://e.example) ![i](x) <script>alert(1)</script> <img src=x onerror=a> <!-- & &lt; "
    "| cell | @everyone #1 !2 ~bug $x$ %3 &4 GH-5 http://e.example www.e.example a@e.example :smile: [^1] {+x+} "
    "/close \\ \n# heading\r\n- [ ] task\n\n| a |\n\x00\x1b[31m\u202e\ud800 ﻿ end"
)


class Shown(HTMLParser):
    """The tags, attributes and text of rendered Markdown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self.within = False  # a cell
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.within = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.within = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.within:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)


def shown(markdown: str) -> Shown:
    return Shown(MARKDOWN.render(markdown))


def hostile(result: AuditResult) -> AuditResult:
    """The golden result with markup in each name and sentence that a user, a plug-in or a data set can give."""
    attacks = tuple(replace(a, name=HOSTILE, reason=HOSTILE) for a in result.defenses[1].attacks)
    defenses = (result.defenses[0], replace(result.defenses[1], spec=HOSTILE, attacks=attacks, reasons=(HOSTILE,)))
    findings = tuple(replace(f, id=HOSTILE, message=HOSTILE, mend=HOSTILE) for f in result.findings)
    return replace(
        result,
        target={**result.target, "name": HOSTILE},
        environment={"leakaudit": HOSTILE},
        defenses=defenses,
        findings=findings,
        reasons=(HOSTILE,),
        assumptions=(HOSTILE,),
        not_tested=(HOSTILE,),
    )


@pytest.mark.parametrize("name", every(load(GOLDEN)))
def test_each_thing_a_gate_can_say_is_shown(name: str, golden: AuditResult) -> None:
    result, said = every(golden)[name]
    text = render(result, said)
    assert text.startswith(f"{MARK}\n## leakaudit: ")
    assert text.endswith("\n")
    found = shown(text)
    assert set(found.tags) <= OURS
    word = {"pass": "Gate passed", "fail": "Gate failed", "inconclusive": "Gate undecided"}[said.verdict]
    assert word in found.text
    for each in said.checks:
        if each.status != "pass" and each.waiver is None:
            assert each.message in found.text
    for state in said.waivers:
        assert state.waiver.reason in found.text
        assert state.waiver.expires in found.text
    assert said.result_digest in found.text
    for row in found.rows:
        assert len(row) in (6, 7)


def test_without_a_gate_the_verdict_and_the_findings_are_the_audits(golden: AuditResult) -> None:
    found = shown(render(golden))
    assert "leakaudit: ❌ Fail" in found.text
    assert "identification-above-limit" in found.text
    assert "Checks" not in found.text
    assert "Waivers" not in found.text


def test_a_state_is_never_a_symbol_alone() -> None:
    for text in SYMBOLS.values():
        assert re.search(r"[a-z]{3}", text)


def test_the_table_of_checks(golden: AuditResult) -> None:
    checks = (
        check("pass", SAFE),
        check("inconclusive", OPEN),
        check("fail"),
        check("fail", SAFE, "psnr", waiver=WAIVER, threshold=20.0),
        check("fail", SAFE, "accuracy", level="warn", direction="min"),
    )
    rows = shown(render(golden, outcome(golden, "fail", *checks))).rows[1:6]
    assert [row[0] for row in rows] == ["❌ fail", "❓ undecided", "⚠️ warning", "⏸️ waived", "✅ pass"]
    assert rows[0][1:] == ["identification", LEAKY, "expectation-over-noise", "75% (40 to 90)", "at most 30%"]
    assert rows[2][5] == "at least 30%"
    assert rows[3][4:] == ["0.8 dB (0.4 to 0.9)", "at most 20.0 dB"]


def test_the_table_of_defenses(golden: AuditResult) -> None:
    rows = [row for row in shown(render(golden)).rows if len(row) == 7]
    assert rows[1][:3] == ["none", "control: leaks", "100% (43.9 to 100) by inverting-gradients"]
    assert rows[2] == [
        LEAKY,
        "❌ fail",
        "75% (30.1 to 95.4) by expectation-over-noise",
        "—",
        "15.0 dB (13.8 to 16.2)",
        "70% (65 to 75)",
        "−5",
    ]
    assert rows[3][5:] == ["not measured", "—"]


def test_columns_in_which_nothing_was_measured_are_left_out(golden: AuditResult) -> None:
    plain = tuple(replace(d, accuracy=Estimate(reason="switched off"), accuracies=()) for d in golden.defenses[:2])
    rows = [row for row in shown(render(replace(golden, defenses=plain))).rows if len(row) == 4]
    assert rows[0] == ["Defense", "Audit", "Identified, worst attack (95%)", "Closest pictures"]
    assert len(rows) == 3
    assert "### Defenses" not in render(replace(golden, defenses=()))


def test_what_changed_against_the_baseline(golden: AuditResult) -> None:
    result, said = every(golden)["regression"]
    found = shown(render(result, said))
    assert "Changes against main.json" in found.text
    row = next(row for row in found.rows if row[:2] == ["❌ fail", "identification"] and len(row) == 7)
    assert row[2:] == [SAFE, "5%", "40%", "+35 points (+20 to +50)", "0.0004"]
    assert "c0ffee" * 10 in found.text
    none = outcome(golden, "pass", check("pass"), baseline="main.json")
    assert "The gate asks for no comparison." in shown(render(golden, none)).text


def test_a_comparison_shows_every_change(golden: AuditResult) -> None:
    keys = ("private", "test", "auxiliary", "victims", "candidates")
    known = replace(golden, hashes=dict.fromkeys(keys, "0" * 64))
    changes = compare(known, known, "main.json")
    found = shown(render(known, comparison=changes))
    rows = [row for row in found.rows if len(row) == 6][1:]
    assert len(rows) == len(changes)
    assert [row[1] for row in rows] == [change.defense for change, _ in changes]
    assert "no attack was scored on both sides" in found.text


def test_an_interrupted_audit_says_so(golden: AuditResult) -> None:
    result, said = every(golden)["incomplete"]
    assert "The audit did not finish" in shown(render(result, said)).text


def test_third_party_text_becomes_nothing_but_text(golden: AuditResult) -> None:
    waiver = replace(WAIVER, rule=HOSTILE, defense=HOSTILE, attack=HOSTILE, reason=HOSTILE, by=HOSTILE, expires=HOSTILE)
    odd = check("fail", HOSTILE, HOSTILE, attack=HOSTILE, message=HOSTILE, mend=HOSTILE)
    changed = replace(odd, rule=f"regression-{HOSTILE}", id="other")
    waived = replace(odd, waiver=waiver, id="waived")
    result = hostile(golden)
    said = outcome(result, "fail", odd, changed, waived, waivers=(WaiverState(waiver, "expired"),), baseline=HOSTILE)
    said = replace(said, presets=(HOSTILE,), notes=(HOSTILE,), date=HOSTILE, result_digest=HOSTILE)
    for text in (render(result, said), render(result)):
        html = MARKDOWN.render(text)
        found = Shown(html)
        assert set(found.tags) <= OURS
        assert {name for name, _ in found.attributes} <= {"style"}
        assert {value for _, value in found.attributes} <= {"text-align:right"}
        assert "*b* _i_ ~~s~~ `c`" in found.text
        assert "<script>alert(1)</script>" in found.text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert all(len(row) in (6, 7) for row in found.rows)
        assert not [
            line
            for line in text.splitlines()
            if line.startswith(("/", "#", "- [")) and "leakaudit" not in line and not line.startswith("### ")
        ]
        # What GitHub looks for in the text of a node, once the markup is gone.
        for node in found.texts:
            assert not re.search(r"(?:@|#|!|~|%|\$)[\w]|GH-\d|https?://|www\.|:\w+:", node), node


@given(st.text(max_size=60))
def test_any_text_is_shown_as_it_is(words: str) -> None:
    for made in (literal(words), code(words), item(words)):
        found = shown(made + "\n" if made.startswith("- ") else f"x {made}\n")
        assert set(found.tags) <= {"p", "ul", "li", "code", "span"}
        assert found.tags.count("li") <= 1
    text = re.sub(r"\s+", " ", shown(f"x {literal(words)} y\n").text.strip())
    assert text.startswith("x ")
    if words.isprintable() and words.strip():
        assert text == re.sub(r"\s+", " ", f"x {words.strip()} y")


def test_it_fits_into_a_comment_and_says_what_is_left_out(golden: AuditResult) -> None:
    checks = tuple(check("fail", f"@{HOSTILE}{number}", id=f"i/{number}") for number in range(700))
    text = render(golden, outcome(golden, "fail", *checks))
    assert len(text.encode()) <= COMMENT
    assert re.search(r"\d+ more left out to fit the size allowed here", text)
    assert set(shown(text).tags) <= OURS
    assert text.rstrip().endswith("</sub>")
    assert len(render(golden, outcome(golden, "fail", *checks), most=10**9).encode()) > COMMENT
    tiny = render(hostile(golden), outcome(golden, "fail", *checks), most=1)
    assert len(tiny.encode()) < COMMENT


def test_the_real_gate_on_the_golden_result(golden: AuditResult) -> None:
    said = gate(golden)
    found = shown(render(golden, said))
    assert len([row for row in found.rows if row[0] in SYMBOLS.values()]) == len(said.checks)


def test_a_step_summary_is_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert append_step_summary("text\n") is False
    place = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    assert append_step_summary("one ✅\n") is True
    append_step_summary("two\n")
    assert place.read_text(encoding="utf-8") == "one ✅\n\ntwo\n"


def test_a_summary_that_github_would_drop_is_replaced_by_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    place.write_text("x" * (SUMMARY - 500))
    append_step_summary("y" * 1000)
    text = place.read_text()
    assert "y" * 1000 not in text
    assert text.endswith("larger than GitHub takes.\n")
    assert len(text) <= SUMMARY


def test_a_summary_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(UserError, match="GITHUB_STEP_SUMMARY"):
        append_step_summary("text")
