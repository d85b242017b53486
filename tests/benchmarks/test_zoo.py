"""The zoo: its names, the page made from it, a handful of its entries, and that it counts what is wrong as wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import zoo
from benchmarks.zookit import Brought, Entry, small, truth

ROOT = Path(__file__).resolve().parents[2]
ALL = {entry.name: (group, entry) for group, held in zoo.GROUPS.items() for entry in held}


def test_there_are_many_of_each_and_no_name_stands_twice() -> None:
    assert len(ALL) == sum(map(len, zoo.GROUPS.values()))
    assert min(len(zoo.GROUPS["models"]), len(zoo.GROUPS["data"])) >= 30


def test_the_page_has_a_row_for_each() -> None:
    _, _, made = (ROOT / "docs" / "models.md").read_text("utf-8").partition(zoo.MARK)
    rows = [
        line.split(" | ") for line in made.splitlines() if line.startswith("| ") and not line.startswith("| name |")
    ]
    assert [(name.removeprefix("| "), about) for name, about, *_ in rows] == [(n, e.about) for n, (_, e) in ALL.items()]
    assert {outcome for _, _, outcome, *_ in rows} <= {"works", "refused", "skipped"}


@pytest.mark.parametrize(
    "name",
    ["half", "lazy", "dict-named", "dict-unnamed", "segmentation", "4-channels", "volumes", "medmnist-3d", "audio"],
)
def test_entries_are_read_as_they_must_be(name: str) -> None:
    group, entry = ALL[name]
    row = zoo.tell(group, entry, scans=False)
    assert row.outcome == ("works" if entry.expect == "works" else "refused"), row.told


def test_an_entry_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(zoo.plans.BATTERIES, "quick", zoo.SHORT)
    assert zoo.tell("data", ALL["tensor-dataset"][1]).outcome == "works"


FOUND = truth()
PLAIN = Entry(
    name="plain", about="", build=lambda _: Brought(small(), (FOUND.pictures, FOUND.labels), FOUND), shape=(3, 32, 32)
)


def bring(model: nn.Module, pictures: torch.Tensor, labels: torch.Tensor) -> Entry:
    return replace(PLAIN, build=lambda _: Brought(model, (pictures, labels), FOUND))


def _fails() -> None:
    raise ZeroDivisionError("planted")


@pytest.mark.parametrize(
    ("entry", "outcome", "told"),
    [
        (PLAIN, "works", ""),
        (bring(small(), 1 - FOUND.pictures, FOUND.labels), "wrong", "levels from any"),
        (bring(small(), FOUND.pictures, (FOUND.labels + 1) % 3), "wrong", "labels of"),
        (bring(small(out=4), FOUND.pictures, FOUND.labels), "wrong", "4 classes"),
        (bring(small(), FOUND.pictures * 255, FOUND.labels), "wrong", "refused: "),
        (replace(PLAIN, expect="refused"), "wrong", "must be refused"),
        (replace(PLAIN, kind="regression"), "wrong", "the task was taken for classes"),
        (replace(PLAIN, says=("no such word",)), "wrong", "nothing says"),
        (replace(PLAIN, untrue=("held out",)), "wrong", "which is not so"),
        (replace(PLAIN, build=lambda _: _fails()), "crash", "ZeroDivisionError"),
        (replace(PLAIN, package="no_such_package"), "skipped", "no_such_package"),
    ],
)
def test_what_is_wrong_is_counted_as_that(entry: Entry, outcome: str, told: str) -> None:
    row = zoo.tell("data", entry, scans=False)
    assert (row.outcome, told in row.told) == (outcome, True), row.told
