"""Trackers of experiments get every number, the settings and the verdicts, and no private picture."""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import leakaudit
from leakaudit.errors import UserError
from leakaudit.loggers import _keyed, to_mlflow, to_wandb
from leakaudit.reports.rows import rows
from leakaudit.result.schema import AuditResult, digest, load

GOLDEN = Path(__file__).parents[1] / "golden" / "result-1.json"


@pytest.fixture
def golden() -> AuditResult:
    return load(GOLDEN)


def public() -> list[tuple[str, object]]:
    """Every class and function that users import, and the methods of those classes."""
    from leakaudit import testing

    found = [(name, getattr(leakaudit, name)) for name in leakaudit.__all__ if not name.startswith("__")]
    found += [("to_mlflow", to_mlflow), ("to_wandb", to_wandb), ("assert_private", testing.assert_private)]
    methods = [(f"{n}.{k}", v) for n, o in found if isinstance(o, type) for k, v in vars(o).items() if k[0] != "_"]
    return found + methods


def test_help_says_from_where_to_import_what_it_says_is_raised() -> None:
    told = {name: inspect.getdoc(item) or "" for name, item in public()}
    assert [name for name, text in told.items() if re.search(r"(?<!leakaudit\.)\bUserError\b", text)] == []
    assert {"scan", "AuditResult.save", "Obscurer.load", "to_wandb"} <= {n for n in told if "UserError" in told[n]}


@pytest.mark.parametrize("images", ["full", "redacted", "none"])
def test_mlflow(golden: AuditResult, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    result = replace(golden, images=images)
    with mlflow.start_run() as run:
        to_mlflow(result)
    found = mlflow.get_run(run.info.run_id).data
    measured = [row for row in rows(result) if row.value is not None]
    assert len(found.metrics) == len(measured) > 20
    assert sorted(found.metrics.values()) == sorted(row.value for row in measured if row.value is not None)
    assert found.tags["leakaudit/verdict"] == "fail"
    assert found.tags["leakaudit/result-sha256"] == digest(result)
    assert found.params["leakaudit/seed"] == "7"
    pages = [file.read_text(encoding="utf-8") for file in tmp_path.rglob("report.html")]
    assert len(pages) == (0 if images == "full" else 1)
    assert all("<html" in page for page in pages)


@pytest.mark.parametrize("images", ["full", "redacted"])
def test_wandb(golden: AuditResult, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
    for name in ("WANDB_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    result = replace(golden, images=images)
    with pytest.raises(UserError, match=r"wandb\.init"):
        to_wandb(result)
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        to_wandb(result)
        told = dict(run.summary)
        assert run.config["leakaudit"]["seed"] == 7
    measured = {f"leakaudit/{r.defense}/{r.attack}/{r.metric}": r.value for r in rows(result) if r.value and r.attack}
    assert measured
    assert {name: told[name] for name in measured} == measured
    assert told["leakaudit/verdict"] == "fail"
    assert told["leakaudit/obscure/verdict"] == "pass"
    assert len(list(tmp_path.rglob("*.html"))) == (0 if images == "full" else 1)


@pytest.mark.parametrize(("name", "log"), [("mlflow", to_mlflow), ("wandb", to_wandb)])
def test_without_the_library_it_says_what_to_install(
    name: str, log: object, golden: AuditResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert callable(log)
    with pytest.raises(UserError, match=f"pip install {name}"):
        log(golden)


@pytest.mark.parametrize(
    "names",
    [("a=1", "a_1"), ("防御🛡", "防御🛢"), ("x" * 300, "x" * 301), ("./mine.py:X", "../mine.py:X", "/abs/mine.py:X")],
)
def test_no_two_numbers_share_a_name_that_mlflow_takes(names: tuple[str, ...]) -> None:
    keys = list(_keyed({f"leakaudit/{name}/psnr": 1.0 for name in names}))
    assert len(set(keys)) == len(names)
    for key in keys:
        assert re.fullmatch(r"[/\w.\- :]{1,250}", key)
        assert key == posixpath.normpath(key)
