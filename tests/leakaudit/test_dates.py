"""Dates in UTC: when an audit began, the same wherever it is said, and set from outside where builds must repeat."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from leakaudit.errors import UserError
from leakaudit.gate.decision import gate
from leakaudit.reports import junit, markdown, sarif
from leakaudit.reports.html import render
from leakaudit.result.dates import is_moment, now, origin, today, words
from leakaudit.result.schema import from_json, to_json
from tests.leakaudit.results import attack, defense, result, some

MOMENT = "2026-11-27T01:20:00Z"


def test_now_is_a_moment_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    found = now()
    assert is_moment(found)
    age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(found)
    assert dt.timedelta(0) <= age < dt.timedelta(minutes=5)


def test_a_build_that_must_repeat_names_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795742400")
    assert now() == dt.datetime.fromtimestamp(1795742400, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert gate(result()).date == today().isoformat() == now()[:10]


@pytest.mark.parametrize("given", ["", "soon", "-1", "1e9", "٣", "9" * 13, " 1"])
def test_what_is_no_moment_is_an_error_of_use(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", given)
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH"):
        now()


@pytest.mark.parametrize("text", ["", "2026-11-27", "2026-13-01T00:00:00Z", "2026-11-27T01:20:00", MOMENT + " "])
def test_a_text_that_is_no_moment(text: str) -> None:
    assert not is_moment(text)
    assert is_moment(MOMENT)


def test_every_surface_says_when_with_which_version_and_of_which_commit() -> None:
    bare = result(defense("clip", attack(some(0))))
    made = replace(bare, made=MOMENT, environment={"leakaudit": "0.9.9", "commit": "abc123def456"})
    said = gate(made)
    assert (said.audited, said.leakaudit, said.commit) == (MOMENT, "0.9.9", "abc123def456")
    for page in (render(made), markdown.render(made, said).replace("<span>:</span>", ":")):
        assert all(each in page for each in (words(MOMENT), "0.9.9", "abc123def456"))
    (run,) = json.loads(sarif.render(made, said))["runs"]
    assert run["invocations"][0]["startTimeUtc"] == MOMENT
    assert (run["properties"]["auditedWith"], run["properties"]["auditedCommit"]) == ("0.9.9", "abc123def456")
    suites = list(ET.fromstring(junit.render(made, said)))
    assert {suite.get("timestamp") for suite in suites} == {MOMENT.removesuffix("Z")}
    assert dict(origin(bare))["Audited"] == "not recorded"
    assert "startTimeUtc" not in sarif.render(bare)


def test_a_result_without_a_date_is_written_as_it_was() -> None:
    bare = result()
    assert '"made"' not in to_json(bare)
    assert from_json(to_json(replace(bare, made=MOMENT))).made == MOMENT
