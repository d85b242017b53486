"""What each piece took: every timing has its place, whatever the specs are called, and an old result says nothing."""

from __future__ import annotations

import io

from rich.console import Console

from leakaudit.reports.costs import costs, in_brief
from leakaudit.reports.html import render
from leakaudit.reports.terminal import summary
from tests.leakaudit.results import attack, defense, result, some

SPEC = "mine.py:Own:how=a: <b>"
TIMES = {
    "none: fit": 0.5,
    "none: updates": 1.0,
    "none: dlg": 61.25,
    "none: accuracy": 4.0,
    f"{SPEC}: fit": 100.0,
    f"{SPEC}: updates": 2.0,
    f"{SPEC}: dlg": 30.0,
    f"{SPEC}: replay": 7.0,
    f"{SPEC}: weakened": 3.0,
    "total": 300.0,
}


def made(**settings: object):  # type: ignore[no-untyped-def]
    rows = (
        defense("none", attack(some(1, 4), name="dlg")),
        defense(SPEC, attack(some(1, 4), name="dlg"), attack(some(0, 4), name="replay")),
    )
    return result(*rows, **settings)


def test_every_timing_stands_in_the_table_once() -> None:
    found = costs(made(timings=TIMES))
    assert found is not None
    assert found.specs == ("none", SPEC)
    assert dict(found.rows) == {
        "fit": (0.5, 100.0),
        "updates": (1.0, 2.0),
        "dlg": (61.25, 30.0),
        "replay": (None, 7.0),
        "weakened": (None, 3.0),
        "accuracy": (4.0, None),
    }
    assert [name for name, _ in found.rows][-2:] == ["weakened", "accuracy"]
    assert found.sums == (66.75, 142.0)
    assert sum(found.sums) == sum(TIMES.values()) - TIMES["total"]
    assert found.total == 300


def test_the_dearest_pieces_are_named_in_the_terminal() -> None:
    assert (
        in_brief(made(timings=TIMES))
        == f"Took 5:00; most for fit on {SPEC} 1:40, dlg on none 1:01, dlg on {SPEC} 0:30."
    )
    console = Console(file=io.StringIO(), width=80)
    summary(made(timings=TIMES), console, verbose=True)
    assert "Took 5:00; most for" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_page_has_them_escaped_and_a_result_without_timings_has_no_table() -> None:
    page = render(made(timings=TIMES))
    part = page[page.index("Seconds by piece and defense") :]
    assert "61.3 s" in part or "61.2 s" in part
    assert "how=a: &lt;b&gt;" in part
    assert "<b>" not in part[: part.index("</table>")]
    assert costs(made(timings={})) is None
    assert in_brief(made(timings={})) == ""
    assert "Seconds by piece and defense" not in render(made(timings={}))
