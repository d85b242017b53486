"""docs/schemas: what others read a result, a gate's outcome or a signature by, made from the dataclasses themselves."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest

from leakaudit.captured.form import Claims
from leakaudit.captured.writing import claims_json
from leakaudit.compare.sweep import frontiers, values
from leakaudit.files.typed import Misfit, typed
from leakaudit.gate.decision import gate
from leakaudit.result import outcome, signature, sweep
from leakaudit.result.schema import AuditResult, load, to_json
from tests.leakaudit.sweeps import entries

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "schemas"
GOLDEN = ROOT / "tests" / "golden" / "result-1.json"
FILES = {
    "result": "leakaudit.result-1.json",
    "gate": "leakaudit.gate-1.json",
    "signature": "leakaudit.signature-1.json",
    "captured": "leakaudit.captured-1.json",
    "sweep": "leakaudit.sweep-1.json",
}


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas", ROOT / ".ci" / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checker(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((FOLDER / FILES[name]).read_text(encoding="utf-8")))


def test_what_is_published_is_what_the_dataclasses_say(maker: ModuleType) -> None:
    made = maker.documents()
    assert made.keys() == {file.name for file in FOLDER.glob("*.json")} == set(FILES.values())
    for name, text in made.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, f"{name} is old: python .ci/schemas.py"
        jsonschema.Draft202012Validator.check_schema(json.loads(text))


def documents() -> Iterator[tuple[str, dict[str, Any], type]]:
    golden = load(GOLDEN)
    yield "result", json.loads(to_json(golden)), AuditResult
    yield "result", json.loads(to_json(replace(golden, images="none", complete=False))), AuditResult
    yield "gate", json.loads(outcome.to_json(gate(golden, source="result.json"))), outcome.Outcome
    part = signature.SignedFile("result", "result.json", "a" * 64)
    names = {f: "x" for f in signature.Signature.__dataclass_fields__ if f not in ("files", "schema")}
    claims = Claims(framework="flower", local_steps=4, settings=({"name": "LocalDpMod"},), records=8, captured="x")
    claims = replace(claims, local_epochs=1, batch_size=2, local_lr=0.1, momentum=0.1, optimizer="sgd", mode="eval")
    told = replace(claims, clients=2, rounds=2, defense="none", note="x")
    yield "captured", json.loads(claims_json(told)), Claims
    swept = sweep.to_json(values("sweep.toml", frontiers(entries())))
    yield "sweep", json.loads(swept), sweep.Sweep
    yield "signature", json.loads(signature.to_json(signature.Signature(**names, files=(part,)))), signature.Signature


@pytest.mark.parametrize(
    ("name", "document", "kind"),
    list(documents()),
    ids=["result", "redacted", "gate", "captured", "sweep", "signature"],
)
def test_what_is_written_follows_its_schema(name: str, document: dict[str, Any], kind: type) -> None:
    assert [error.message for error in checker(name).iter_errors(document)] == []


def _wrong(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield documents with one thing wrong each, at every key of the first levels."""
    for key, value in document.items():
        gone, other = copy.deepcopy(document), copy.deepcopy(document)
        del gone[key]
        other[key] = {"wrong": [1]} if not isinstance(value, dict) else [1]
        yield from (gone, other)
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for inner in _wrong(value[0]):
                deeper = copy.deepcopy(document)
                deeper[key] = [inner, *value[1:]]
                yield deeper


@pytest.mark.parametrize(
    ("name", "document", "kind"),
    list(documents()),
    ids=["result", "redacted", "gate", "captured", "sweep", "signature"],
)
def test_schema_and_reader_refuse_the_same(name: str, document: dict[str, Any], kind: type) -> None:
    check, refused, taken = checker(name), 0, 0
    for wrong in _wrong(document):
        if "schema" not in wrong or wrong["schema"] != document["schema"]:
            assert not check.is_valid(wrong)  # `structured` looks at it before
            continue
        try:
            typed(wrong, kind)
            read = True
        except Misfit:
            read = False
        assert check.is_valid(wrong) is read
        refused, taken = refused + (not read), taken + read
    assert refused > 5
    assert taken or name == "signature"
