"""Strict types in what is read: an edited file is refused in one sentence, or holds exactly what was written there."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from cattrs.preconf.json import make_converter

from leakaudit.errors import UserError
from leakaudit.files.jsonfile import VALUES, parsed
from leakaudit.files.typed import Misfit, typed
from leakaudit.result.schema import AuditResult, from_json, to_json
from tests.leakaudit.command_line import Run, caller

GOLDEN = Path(__file__).parents[1] / "golden" / "result-1.json"
WRONG = (
    None, True, False, 0, 1, -1, 1.5, 2**70, 10**400, 1e308, -1e308, 5e-324, "nan", "false", "", "x", "\ud800",
    "1" * 3000, [], ["x"], [1], [[]], {}, {"a": 1}, {"a": []},
)  # fmt: skip
Steps = tuple[str | int, ...]


def places(value: Any, seen: set[str], shape: str = "", steps: Steps = ()) -> Iterator[Steps]:
    """Yield the steps to one place of every shape in a document: the first item of each list stands for all."""
    if shape not in seen:
        seen.add(shape)
        yield steps
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, seen, f"{shape}.{key}", (*steps, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, seen, f"{shape}[]", (*steps, index))


def edited(document: Any, steps: Steps, value: Any) -> Any:
    """Return a copy with another value in a place."""
    if not steps:
        return value
    changed = copy.copy(document)
    changed[steps[0]] = edited(document[steps[0]], steps[1:], value)
    return changed


def at(document: Any, steps: Steps) -> Any:
    for step in steps:
        document = document[step]
    return document


def short(value: Any) -> Any:
    """Return a document with at most two items of every list."""
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items()}
    return [short(item) for item in value[:2]] if isinstance(value, list) else value


def document() -> Any:
    return short(json.loads(GOLDEN.read_text(encoding="utf-8")))


def edits() -> list[tuple[Steps, Any]]:
    return [(steps, value) for steps in places(document(), set()) for value in WRONG]


def test_an_edit_is_refused_or_stands_as_it_was_written() -> None:
    golden, refused, taken = document(), list[str](), 0
    for steps, value in edits():
        if value == at(golden, steps) and type(value) is type(at(golden, steps)):
            continue
        text = json.dumps(edited(golden, steps, value))
        try:
            result = from_json(text)
        except UserError as error:
            refused.append(str(error))
            continue
        taken += 1
        again = at(json.loads(to_json(result)), steps)
        assert type(again) is type(value), steps
        assert again == value or isinstance(value, dict), steps  # an object is written with all its fields
    assert len(refused) > 1000
    assert 100 < taken < len(refused) / 2  # texts and settings take any text
    assert all("\n" not in said and len(said) < 600 for said in refused)


def test_what_is_read_is_what_a_lenient_reader_makes_of_a_good_file() -> None:
    assert from_json(GOLDEN.read_text()) == make_converter().structure(json.loads(GOLDEN.read_text()), AuditResult)


def test_edits_that_pass_end_in_no_internal_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = caller(monkeypatch, tmp_path, capsys, "")
    golden, passing = document(), []
    for steps, value in edits():
        text = json.dumps(edited(golden, steps, value))
        try:
            from_json(text)
        except UserError:
            continue
        passing.append(text)
    for text in random.Random(0).sample(passing, 4):
        Path("f.json").write_text(text)
        for words in (
            ("report", "f.json"),
            ("gate", "f.json", "--sarif", "s", "--junit", "j", "--markdown", "m", "-o", "g"),
        ):
            assert run(*words).code in (0, 1, 2, 3), (words, text)


@dataclass(frozen=True)
class Part:
    count: int
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    name: str
    sure: bool | None = None
    parts: tuple[Part, ...] = ()
    best: Part | None = None
    choice: Literal["a", "b"] = "a"
    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)


def test_types_are_taken_as_they_are() -> None:
    given = {"name": "n", "sure": False, "parts": [{"count": 3, "share": 1}], "best": None, "choice": "b", "other": 1}
    given["facts"] = {"a": 1, "b": 1.5, "c": "t", "d": None, "e": True}
    assert typed(given, Whole) == Whole("n", False, (Part(3, 1),), None, "b", given["facts"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 1}, "name is 1, not text"),
        ({"name": None}, "name is None, not text"),
        ({"sure": 0}, "sure is 0, not true or false or null"),
        ({"sure": "false"}, "sure is 'false', not"),
        ({"parts": "ab"}, "parts is 'ab', not a list"),
        ({"parts": {"count": 1}}, "parts is .*, not a list"),
        ({"parts": [{"count": 1}, {"count": True}]}, r"parts\[1\]\.count is True, not a whole number"),
        ({"parts": [{"count": 1.0}]}, r"parts\[0\]\.count is 1\.0, not a whole number"),
        ({"parts": [{"share": 1.0}]}, r"parts\[0\] has no 'count'"),
        ({"best": {"count": 1, "share": "nan"}}, r"best\.share is 'nan', not a number"),
        ({"best": {"count": 1, "share": float("nan")}}, r"best\.share is nan, not a number"),
        ({"best": {"count": 2**64}}, r"best\.count is a number of 65 bits"),
        ({"best": {"count": 1, "share": 10**4000}}, r"best\.share is a number of 13288 bits"),
        ({"best": []}, r"best is \[\], not an object"),
        ({"choice": ["a"]}, r"choice is \['a'\], not one of a, b"),
        ({"facts": []}, r"facts is \[\], not an object"),
        ({"facts": {"k": []}}, r"facts\.k is \[\], not text or true or false or a whole number or a number or null"),
    ],
)
def test_misfits_are_named_by_their_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Misfit) as caught:
        typed({"name": "n"} | change, Whole)
    assert re.match(says, str(caught.value))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("NaN", "holds NaN"),
        ("[1e999]", "holds 1e999"),
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "not JSON"),
        ("[" + "," * VALUES + "]", "more than 5,000,000 values"),
    ],
)
def test_a_document_is_one_that_every_reader_takes_alike(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parsed(text, "f.json", "give another")
    assert str(caught.value).endswith("give another.")
