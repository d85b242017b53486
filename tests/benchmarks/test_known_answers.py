"""The known answers' frame: reached, missed and cannot be rebuilt are told apart, and every row has its source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import known_answers
from benchmarks.answers.situation import CannotRebuild, Outcome, Situation

ROOT = Path(__file__).resolve().parents[2]


def absent(quick: bool) -> Outcome:
    raise CannotRebuild("no pictures")


def broken(quick: bool) -> Outcome:
    raise RuntimeError("torn")


CASES = {
    "better": (Situation("a", 20.0, "dB", "s", lambda quick: Outcome(21.0)), 21.0, True),
    "worse": (Situation("b", 20.0, "dB", "s", lambda quick: Outcome(19.0)), 19.0, False),
    "goal": (Situation("c", 20.0, "dB", "s", lambda quick: Outcome(19.0), goal=18.0), 19.0, True),
    "least": (Situation("d", None, "count", "s", lambda quick: Outcome(1.0), goal=0.0, least=True), 1.0, False),
    "unknown": (Situation("e", None, "dB", "s", lambda quick: Outcome(1.0)), 1.0, None),
    "absent": (Situation("f", 20.0, "dB", "s", absent), None, None),
    "broken": (Situation("g", 20.0, "dB", "s", broken), None, False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_says_whether_it_was_reached(case: str) -> None:
    situation, found, reached = CASES[case]
    row = known_answers.measured(situation, quick=True)
    assert (row.measured, row.reached) == (found, reached)
    assert bool(row.said) == (found is None)


def test_the_command_writes_every_row_and_fails_where_one_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(known_answers, "situations", lambda: tuple(situation for situation, *_ in CASES.values()))
    file = tmp_path / "rows.json"
    assert known_answers.main(["--quick", "--json", str(file)]) == 1
    rows = json.loads(file.read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == list("abcdefg")
    assert {"name", "published", "measured", "source", "reached"} <= set(rows[0])
    assert "2 reached, 3 missed, 2 without a verdict" in capsys.readouterr().out
    monkeypatch.setattr(known_answers, "situations", lambda: (CASES["better"][0], CASES["absent"][0]))
    assert known_answers.main(["--quick"]) == 0


def test_every_situation_names_its_source_and_what_must_be_reached() -> None:
    found = known_answers.situations()
    assert len(found) >= 4
    for situation in found:
        assert situation.source
        assert situation.unit
        assert len(situation.name) <= 44, "it must fit its column"


def test_the_oldest_known_answer_is_reached(shared: Path) -> None:
    dense = next(each for each in known_answers.situations() if each.name.startswith("dense layer"))
    assert known_answers.measured(dense, quick=True).reached is True


def test_every_choice_that_a_page_names_has_situations(capsys: pytest.CaptureFixture[str]) -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
    found = [
        words.split()
        for page in pages
        for words in re.findall(r"benchmarks\.known_answers --only ([\w. -]+)", page.read_text(encoding="utf-8"))
    ]
    assert found
    for words in found:
        for word in words:
            assert known_answers.main(["--list", "--only", word]) == 0, word
    assert capsys.readouterr().out
