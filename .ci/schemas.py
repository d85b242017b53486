"""Writes docs/schemas: the JSON Schema of each file that leakaudit writes for others to read, from its dataclasses."""

from __future__ import annotations

import inspect
import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from leakaudit.captured import form
from leakaudit.result import outcome, schema, signature, sweep

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
KINDS: tuple[tuple[str, type], ...] = (
    (schema.SCHEMA, schema.AuditResult),
    (outcome.SCHEMA, outcome.Outcome),
    (signature.SCHEMA, signature.Signature),
    (form.SCHEMA, form.Claims),
    (sweep.SCHEMA, sweep.Sweep),
)


def documents() -> dict[str, str]:
    """Return each schema by the name of its file, as text."""
    return {f"{name.replace('/', '-')}.json": _document(name, kind) for name, kind in KINDS}


def _document(name: str, kind: type) -> str:
    made = TypeAdapter(kind).json_schema()
    told = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": name}
    document: dict[str, Any] = told | {key: value for key, value in made.items() if key != "title"}
    document["description"] = _first(kind)
    document["properties"]["schema"] = {"const": name}
    document["required"] = sorted({*document.get("required", ()), "schema"})
    modules = (schema, outcome, signature, sweep, inspect.getmodule(schema.Setting))
    for title, part in document.get("$defs", {}).items():
        found = next(getattr(module, title) for module in modules if hasattr(module, title))
        assert is_dataclass(found)
        part["description"] = _first(found)
    return json.dumps(_untitled(document), indent=1, sort_keys=True) + "\n"


def _untitled(part: Any) -> Any:
    """Leave out the titles of fields, which only repeat their names."""
    if isinstance(part, list):
        return [_untitled(each) for each in part]
    if not isinstance(part, dict):
        return part
    fields = part.get("properties", {})
    kept = {name: {k: v for k, v in field.items() if k != "title"} for name, field in fields.items()}
    part = part | {"properties": kept} if fields else part
    return {name: _untitled(value) for name, value in part.items()}


def _first(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def main() -> None:
    """Write the files."""
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
