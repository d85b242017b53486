"""What the time budget cost: told once for each defense and cause, with the attacks by name and what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leakaudit.judge.conclusions import conclusions
from leakaudit.reports import html_findings, html_rows
from leakaudit.reports.html import render
from leakaudit.reports.html_missing import merged
from leakaudit.reports.html_text import letter
from leakaudit.result.schema import AttackResult, AuditResult, Estimate, Finding, Reason
from tests.reports.page import Page

NOTHING = Estimate(reason="the time budget was spent before it began")


def late(golden: AuditResult, *names: str, status: str = "budget") -> AuditResult:
    """The golden result with attacks on its second defense that end so on every victim, each for its own reason."""
    one = golden.defenses[1].attacks[0]

    def of(name: str) -> AttackResult:
        bare = replace(one, name=name, role="standard", identification=NOTHING, psnr=NOTHING, gain=NOTHING)
        return replace(bare, statuses={status: 4}, records=(), gallery=(), reason=f"{name} would take about 30 s")

    left = replace(golden.defenses[1], verdict="inconclusive", attacks=tuple(map(of, names)))
    why = tuple(
        Reason(
            "attack-unfinished",
            attack=name,
            facts={"lost": 4, "cut": 0, "victims": 4, "ended": f"4 {status}", "told": "x", "weight": "works"},
        )
        for name in names
    )
    return replace(golden, defenses=(golden.defenses[0], replace(left, why=why)), settings={"defenses": ""})


def test_attacks_that_had_no_time_share_a_row_and_a_mend(golden: AuditResult) -> None:
    result = late(golden, "dlg", "replay", "linkage")
    rows = [row for level in html_findings.levels(conclusions(result)) for b in level.blocks for row in b.rows]
    (row,) = [row for row in rows if "dlg, replay, linkage" in row.attack]
    assert [told.text for told in row.told] == ["No time for them."]
    page = Page(render(result))
    assert "Scan again with a larger --budget." in page.words
    assert "4 budget" not in page.words
    below = page.words.partition("Not scored: neither success nor failure")[2].partition("All scores")[0]
    assert below.count("no time was left; a larger --budget gives it") == 1
    for name in ("dlg", "replay", "linkage"):  # nothing is lost: what each took stands beside it, folded
        assert f"Not scored : {name} would take about 30 s" in page.words


@pytest.mark.parametrize("status", ["failed", "diverged", "out-of-memory"])
def test_attacks_that_failed_keep_a_row_and_a_reason_each(golden: AuditResult, status: str) -> None:
    result = late(golden, "dlg", "replay", status=status)
    found = conclusions(result)
    assert merged(found) == list(found)
    assert len({item.why for item in html_rows.tables(result).unscored if "would take" in item.why}) == 2
    assert not {f.todo.id for f in found if f.todo} & {"out-of-time"}


def test_each_severity_and_each_lack_keeps_its_own_row(golden: AuditResult) -> None:
    def finding(severity: str, lost: int, attack: str = "a", defense: str = "d", **facts: bool) -> Finding:
        why = Reason(
            "attack-unfinished",
            defense,
            attack,
            "standard",
            facts=facts | {"lost": lost, "victims": 4} | {"ended": "4 budget"},
        )
        return Finding("attack-not-scored", severity, "m", {"defense": defense, "attack": attack}, why=(why,))  # type: ignore[arg-type]

    alone = [
        finding("warning", 4),
        finding("info", 4),
        finding("warning", 0),
        finding("warning", 2),
        finding("warning", 4, defense="e"),
    ]
    texts = [f.message for f in merged(alone)]
    assert texts == [
        "No time for it.",
        "No time for it.",
        "Cut short by the time budget.",
        "Some victims had no time left.",
        "No time for it.",
    ]
    (both,) = merged([finding("warning", 0, "a", may_hide=True), finding("warning", 0, "b")])
    assert both.message == "Cut short by the time budget, enough to hide a leak above the limit."
    assert both.evidence["attack"] == "a, b"


def test_every_finding_of_no_attack_has_a_line_of_its_own_beside_its_mend(golden: AuditResult) -> None:
    made = [Finding("x", "warning", f"d: {t}", {"defense": "d"}, t) for t in ("first", "second")]
    ((block,),) = [level.blocks for level in html_findings.levels(made)]
    assert block.lines == 2
    few = replace(golden.defenses[1], verdict="inconclusive", why=(Reason("no-bound"), Reason("no-adaptive-attack")))
    text = render(replace(golden, defenses=(golden.defenses[0], few), settings={}))
    table = text.partition("Warnings</h3>")[2].partition("</table>")[0]
    rows = [row for row in table.split("<tr>") if "<td" in row]
    assert len(rows) > 1
    assert all(row.count("#mend-") <= 1 for row in rows)


def test_the_marks_of_one_series_are_letters() -> None:
    assert [letter(n) for n in (1, 2, 26, 27, 52, 53)] == ["a", "b", "z", "aa", "az", "ba"]
