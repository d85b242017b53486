"""The scans of a sweep beside each other: one control, who surpasses whom, what to choose, and what is not known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leakaudit.compare.advice import advise
from leakaudit.compare.sweep import Entry, best, ended, frontiers, lines, values, verdict
from leakaudit.errors import UserError
from leakaudit.result.schema import digest
from leakaudit.result.sweep import load, to_json
from tests.leakaudit.results import attack, defense, lost, result, some
from tests.leakaudit.sweeps import RIGHT, entries, scanned


def test_scans_of_one_model_are_read_as_one_result_with_one_control() -> None:
    first, second = frontiers(entries())
    assert first.whole is not None
    assert [row.spec for row in first.whole.defenses] == ["none", "gaussian:std=0.01", "gaussian:std=0.1", "obscure"]
    assert first.whole.verdict == "fail"
    assert not first.whole.complete  # one waits
    assert lines(first) == (("gaussian:std=0.01", "gaussian:std=0.1"),)
    assert first.advice == advise(first.whole)  # the same words as of one scan of all
    assert first.advice.brief[0] == "obscure keeps both limits."
    assert (second.whole, second.advice, second.best) == (None, None, frozenset())


def test_best_is_what_no_other_surpasses() -> None:
    rows = (
        defense("none", attack(some(40)), accuracies=RIGHT),
        defense("worse", attack(some(40)), accuracies=(0.7, 0.7, 0.7)),
        defense("a", attack(some(10)), accuracies=(0.6, 0.6, 0.6)),
        defense("as-good", attack(some(10)), accuracies=(0.6, 0.6, 0.6)),
        defense("leaks-more", attack(some(11)), accuracies=(0.6, 0.6, 0.6)),
        defense("private", attack(some(0)), accuracies=(0.1, 0.1, 0.1)),
        defense("unknown", lost("linkage", "failed", 40), accuracies=(0.9, 0.9, 0.9)),
        defense("unmeasured", attack(some(0))),
    )
    assert best(rows) == {"none", "a", "as-good", "private"}


def test_what_was_not_measured_is_not_called_best_nor_passed() -> None:
    found = values("sweep.toml", frontiers(entries()))
    rows = {row.name: row for front in found.fronts for row in front.rows}
    waiting, failed = rows["model-gaussian-std=1.0"], rows["other-obscure"]
    assert (waiting.state, waiting.verdict, waiting.best, waiting.keeps) == ("waiting", None, False, None)
    assert (failed.state, failed.trouble) == ("failed", "other.py has no model: write one.")
    assert failed.identification.value is None
    kept = rows["model-obscure"]
    assert (kept.state, kept.verdict, kept.keeps, kept.best) == ("audited", "pass", "pass", True)
    assert (kept.identification.value, round(kept.loss.value or 0, 3)) == (0.0, 0.04)
    assert kept.digest == digest(scanned("obscure", 0, (0.76, 0.77, 0.78), "pass"))
    assert found.fronts[0].control.value == 1.0
    assert found.verdict == "fail"


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["model-obscure"], "pass"),
        (["model-obscure", "other-obscure"], "inconclusive"),
        (["model-obscure", "model-gaussian-std=1.0"], "inconclusive"),
        (["model-gaussian-std=0.01", "other-obscure"], "fail"),
        (["other-obscure"], None),
    ],
)
def test_a_scan_that_was_not_done_settles_nothing(names: list[str], wanted: str | None) -> None:
    assert verdict([entry for entry in entries() if entry.name in names]) == wanted


def test_an_interrupted_scan_is_no_pass() -> None:
    passed = replace(scanned("obscure", 0, RIGHT, "pass"), complete=False)
    entry = ended(Entry("a", "model.py", "", "obscure"), passed)
    assert (entry.state, verdict([entry])) == ("interrupted", "inconclusive")


def test_a_scan_of_other_records_is_told_apart() -> None:
    first, other = scanned("obscure", 0, RIGHT, "pass"), scanned("gaussian", 3, RIGHT, "pass")
    other = replace(other, hashes=other.hashes | {"victims": "b2"})
    (found,) = frontiers([ended(Entry("a", "m", "", "obscure"), first), ended(Entry("b", "m", "", "gaussian"), other)])
    assert found.whole is not None
    assert [row.spec for row in found.whole.defenses] == ["none", "obscure"]
    assert found.apart == (("b", "which records are attacked are others"),)


def test_a_model_alone_is_a_frontier_of_its_control() -> None:
    alone = result(defense("none", attack(some(40)), accuracies=RIGHT, requested=True))
    (found,) = frontiers([ended(Entry("model-none", "m", "", ""), alone)])
    assert found.whole is not None
    assert [row.spec for row in found.whole.defenses] == ["none"]
    (row,) = values("s", [found]).fronts[0].rows
    assert (row.defense, row.best, row.keeps) == ("none", True, None)


def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("sweep") / "sweep.json"
    made = values("sweep.toml", frontiers(entries()))
    path.write_text(to_json(made))
    assert load(path) == made
    path.write_text(to_json(made).replace("sweep/1", "sweep/2"))
    with pytest.raises(UserError, match="sweep/1"):
        load(path)
