"""A result in a notebook and as a table: every number once, nothing private, nothing that a terminal obeys."""

from __future__ import annotations

import base64
import builtins
import inspect
import math
import stat
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
import torch

import leakaudit
from leakaudit.errors import UserError
from leakaudit.protocol.exposure import PRESETS
from leakaudit.protocol.target import Records
from leakaudit.reports.first_screen import fragment
from leakaudit.reports.html import render
from leakaudit.reports.rows import UNION, rows
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.schema import AuditResult, Estimate, Examined, Further, load
from leakaudit.result.scores import of_attacks
from leakaudit.scene.plan import Plan

COLUMNS = ["defense", "attack", "metric", "value", "low", "high", "records"]


def test_every_number_of_the_result_is_one_row(golden: AuditResult) -> None:
    table = golden.to_pandas()
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["defense", "attack", "metric"]).any()
    assert len(table) > 50
    for defense in golden.defenses:
        for attack in defense.attacks:
            found = table[(table.defense == defense.spec) & (table.attack == attack.name)].set_index("metric")
            for score in of_attacks():
                e: Estimate = getattr(attack, score.field)
                if e.value is not None:
                    row = found.loc[score.name]
                    assert (row.value, row.records) == (e.value, e.n)
                    assert [None if math.isnan(v) else v for v in (row.low, row.high)] == [e.low, e.high]
        row = table[(table.defense == defense.spec) & (table.metric == "accuracy")].iloc[0]
        assert row.attack == ""
        assert row.value == defense.accuracy.value or (math.isnan(row.value) and defense.accuracy.value is None)


def test_what_was_not_measured_is_a_row_without_a_value_and_what_cannot_be_is_none(golden: AuditResult) -> None:
    found = rows(golden)
    kinds = {(d.spec, a.name): a.kind for d in golden.defenses for a in d.attacks}
    assert any(row.value is None and row.metric == "identification" for row in found)
    assert not any(kinds.get((row.defense, row.attack)) == "linkage" and row.metric == "psnr" for row in found)
    replaced = {d.spec for d in golden.defenses if d.replaces_records}
    assert {row.defense for row in found if row.metric == "psnr-released"} <= replaced


def test_a_plug_ins_metric_and_the_union_are_rows_too(golden: AuditResult) -> None:
    first = golden.defenses[0]
    noted = replace(first.attacks[0], further=(Further("sharpness", Estimate(2.5, 2.0, 3.0, 4), True),))
    examined = Examined(union=Estimate(0.5, 0.1, 0.9, 4))
    changed = replace(golden, defenses=(replace(first, attacks=(noted, *first.attacks[1:]), examined=examined),))
    found = {(row.attack, row.metric): row for row in rows(changed)}
    assert found[noted.name, "sharpness"].value == 2.5
    assert (found[UNION, "identification"].value, found[UNION, "identification"].records) == (0.5, 4)


def test_without_pandas_it_says_what_to_install(golden: AuditResult, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pandas"):
        golden.to_pandas()


def test_an_empty_result_is_an_empty_table_with_the_same_types(golden: AuditResult) -> None:
    empty = replace(golden, defenses=()).to_pandas()
    assert list(empty.columns) == COLUMNS
    assert len(empty) == 0
    assert empty.dtypes["value"] == golden.to_pandas().dtypes["value"] == "float64"
    assert isinstance(empty, pd.DataFrame)


def test_a_result_prints_as_three_lines_without_pictures(golden: AuditResult) -> None:
    first, second, third = repr(golden).splitlines()
    assert golden.verdict.upper() in first
    assert str(golden.target["name"]) in first
    for defense in golden.defenses:
        assert f"{defense.spec} {defense.verdict}" in second
    assert "to_pandas" in third
    assert len(repr(golden)) < 1000


@pytest.mark.parametrize("many", [0, 1, 4, 40])
def test_it_stays_three_lines_however_long_and_hostile(golden: AuditResult, many: int) -> None:
    rude = replace(golden.defenses[1], spec="a\x1b[31m\nb" * 400)
    named = golden.target | {"name": "x\r\n\x07" * 500}
    text = repr(replace(golden, defenses=(rude,) * many, target=named, complete=False))
    assert len(text.splitlines()) == 3
    assert len(text) < 1200
    assert text.replace("\n", "").isprintable()
    assert "interrupted" in text


def test_no_part_of_a_result_prints_a_picture(golden: AuditResult) -> None:
    pictures = [p for d in golden.defenses for a in d.attacks for p in a.gallery]
    secrets = [s for p in pictures for s in (p.original, p.shared, p.reconstruction) if s]
    assert len(secrets) > 3
    assert all(base64.b64decode(secret).startswith(b"\x89PNG") for secret in secrets)
    for part in (golden, golden.defenses, golden.defenses[0].attacks, *pictures):
        assert not any(secret[:40] in repr(part) for secret in secrets)
    assert repr(golden.defenses[0].attacks[0].records[:0]) == "()"


def test_records_print_their_size_alone() -> None:
    assert repr(Records(torch.rand(3, 1, 4, 4), torch.tensor([7, 8, 9]))) == "Records((3, 1, 4, 4))"


def test_scan_takes_every_setting_of_a_plan_by_name_with_its_default_and_a_type() -> None:
    taken = inspect.signature(leakaudit.scan).parameters
    assert [p.annotation for p in taken.values() if p.kind is inspect.Parameter.VAR_KEYWORD] == ["Never"]
    assert all(p.annotation not in (inspect.Parameter.empty, "Any") for p in taken.values())
    hints = get_type_hints(leakaudit.scan)
    assert set(get_args(hints["battery"])) == set(BATTERIES)
    assert set(get_args(hints["exposure"])) == set(PRESETS)
    plan = Plan()
    for f in fields(Plan):
        if f.name != "defenses":
            assert taken[f.name].default == (None if f.name == "images" else getattr(plan, f.name)), f.name


def test_a_notebook_shows_the_first_screen(golden: AuditResult) -> None:
    page = golden._repr_html_()
    assert page == fragment(golden)
    assert str(golden.target["name"]) in page
    assert "<script" not in page
    pictures = [p for d in golden.defenses for a in d.attacks for p in a.gallery]
    shown = [s for p in pictures for s in (p.original, p.shared, p.reconstruction) if s and s in page]
    assert shown
    assert not any(s in replace(golden, images="none")._repr_html_() for s in shown)


def test_a_result_is_saved_as_a_scan_does_it(golden: AuditResult, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert golden.save(str(folder)) == folder / "report.html"
    assert load(folder / "result.json") == golden
    assert (folder / "report.html").read_text(encoding="utf-8") == render(golden)
    assert stat.S_IMODE((folder / "result.json").stat().st_mode) == 0o600
    second = replace(golden, images="none")
    second.save(folder)  # the first one's files are set aside
    assert load(folder / "result.json") == second
    assert [load(file) for file in tmp_path.glob(".out.earlier/*/result.json")] == [golden]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        golden.save(tmp_path / "file")
