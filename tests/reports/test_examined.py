"""What the audit found out by trying is on every surface, and on none of a result from before it tried."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from leakaudit.judge.conclusions import conclusions
from leakaudit.judge.exposed import exposed
from leakaudit.judge.words import sentences
from leakaudit.reports import examined
from leakaudit.reports.html import render
from leakaudit.reports.markdown import render as markdown
from leakaudit.reports.terminal import summary
from leakaudit.result.schema import AuditResult, Controls, Estimate, Examined, Reason, from_json, to_json
from leakaudit.stats.intervals import rate
from tests.leakaudit.results import attack, defense, result, some
from tests.reports.page import Page

CONTROLS = Controls("fail", "8 of 8 found", Estimate(0.53, 0.44, 0.62, 100), ("dlg",), ("linkage",))


@pytest.fixture
def known() -> AuditResult:
    """A defense under which two attacks rebuild and confirm, some of it exactly."""
    drawn, linked = attack(some(30), name="drawing"), attack(some(35), name="linking", kind="linkage")
    made = tuple(
        replace(a, records=tuple(replace(r, exact=r.victim in which) for r in a.records), exact=len(which))
        for a, which in ((drawn, range(2)), (linked, range(5)))
    )
    found = exposed(made, 0.01)
    seen = Examined(("gradients", "labels"), False, 0.25, rate(20, 40), **found._asdict())
    row = defense("clip", *made, verdict="fail", examined=seen)
    return result(row, verdict="fail", controls=CONTROLS)


def surfaces(known: AuditResult) -> dict[str, str]:
    told = StringIO()
    summary(known, Console(file=told, width=200), verbose=True)
    return {
        "html": " ".join("".join(Page(render(known)).text).split()),
        "md": markdown(known),
        "tty": " ".join(told.getvalue().split()),
    }


def test_every_surface_tells_what_was_tried(known: AuditResult) -> None:
    for text in surfaces(known).values():
        for words in ("gradients, labels", "87.5% (73.2 to 95.8)", "2 rebuilt, 3 confirmed", "8 of 8 found", "0.53"):
            assert words in text
    assert from_json(to_json(known)) == known


def test_a_result_from_before_anything_was_tried_says_nothing_of_it(golden: AuditResult) -> None:
    for text in surfaces(golden).values():
        assert "tried itself" not in text
        assert "Tried:" not in text
        assert "PSNR for others" not in text
        assert "above guesses" not in text
    assert examined.tried(golden) == examined.controls(golden) == ()


def test_what_is_rebuilt_and_what_is_confirmed_have_words_of_their_own(known: AuditResult) -> None:
    told = {f.evidence["attack"]: f.message for f in conclusions(known) if f.id == "identification-above-limit"}
    assert "rebuilt enough to tell which of 100 candidates" in told["drawing"]
    assert "confirmed which of 100 candidates" in told["linking"]
    older = replace(known, defenses=tuple(replace(d, examined=None) for d in known.defenses))
    leaks = [f.message for f in conclusions(older) if f.id == "identification-above-limit"]
    assert len(leaks) == 2
    assert all("picked the right one of 100 candidates" in message for message in leaks)

    def said(**facts: str | int) -> str:
        return sentences(
            [Reason("identification-above-limit", "", "a", measured=rate(35, 40), limit=0.2, facts=facts)]
        )[0]

    assert "confirmed which of 9 candidates" in said(candidates=9, kind="linkage")
    assert "rebuilt enough to tell which of 9 candidates" in said(candidates=9, kind="reconstruction")
    assert "picked the right one of 9 candidates" in said(candidates=9)


def test_many_classes_are_told_by_their_range() -> None:
    rates = {f"c{i:03}": rate(i % 5, 4) for i in range(100)}
    shown = examined.tried(result(defense("clip", attack(some(0)), examined=Examined(by_class=rates))))[0].classes
    assert shown.text == "c004 100% of 4, c009 100% of 4, c014 100% of 4"
    assert shown.under == "97 other classes: 0% to 100%"


def test_label_groups_are_not_called_classes(known: AuditResult) -> None:
    for made, heading in ((known, "By class"), (replace(known, chance_labels=0.3), "By label group")):
        for page in (render(made), markdown(made)):
            assert ("By class" in page, "By label group" in page) == (heading == "By class", heading != "By class")


def test_where_nothing_is_known_there_is_a_dash_and_why() -> None:
    weak = Estimate(reason="it has no strength")
    unknown = Examined(union=Estimate(reason="nobody asked"), weakened=weak)
    row = examined.tried(result(defense("clip", examined=unknown)))[0]
    assert (row.changes.text, row.exact.text, row.union.text, row.union.under) == (
        "nothing",
        "none",
        "—",
        "nobody asked",
    )
    assert (row.works.text, row.works.under) == ("—", "")  # of what changes nothing there is nothing to turn down
    changing = examined.tried(result(defense("clip", examined=replace(unknown, changes=("update",)))))[0]
    assert (changing.works.text, changing.works.under) == ("no strength tried", "it has no strength")
    made = result(defense("clip", examined=unknown), controls=Controls(canary="pass"))
    assert "not found, so that nothing" in examined.controls(made)[0][1]
