"""What `leakaudit list` shows: every attack, defense and metric with its settings and source."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from leakaudit.protocol import registry
from leakaudit.result.plaintext import visible
from leakaudit.result.scores import SCORES
from leakaudit.score.metrics import further

Row = dict[str, Any]


def rows(kind: str) -> list[Row]:
    """Return one row per thing, built in or of a plug-in; `kind` is attacks, defenses or metrics."""
    if kind == "metrics":
        leaks = {"max": "higher leaks more", "min": "lower leaks more"}
        return [
            *(
                {"name": score.name, "summary": f"{score.summary} ({leaks[score.direction]})", "unit": score.unit}
                for score in SCORES.values()
                if score.summary
            ),
            *(
                {
                    "name": metric.name,
                    "summary": f"{metric.summary} ({leaks['max' if metric.higher_leaks else 'min']})",
                    "unit": metric.unit,
                }
                for metric in further()
            ),
        ]
    if kind == "attacks":
        return [
            _described(name, cls) | {"kind": cls.kind, "requires": sorted(cls.requires)}
            for name, cls in registry.attacks().items()
        ]
    return [
        _described(name, cls) | {"adaptive": list(cls.adaptive), "replaces_records": cls.replaces_records}
        for name, cls in registry.defenses().items()
    ]


def _described(name: str, cls: Any) -> Row:
    row = {
        "name": name,
        "summary": cls.summary,
        "settings": registry.settings_values(cls()),
        "source": cls.source,
    }
    return row | {"from": registry.origin(cls)} if registry.origin(cls) else row


def show(found: list[Row]) -> None:
    """Print rows for a person."""
    console = Console()
    for row in found:
        _print(console, Text.assemble((str(row["name"]), "bold"), visible(f"  {row['summary']}")), "    ")
        for key in ("settings", "requires", "adaptive", "source", "from"):
            value = row.get(key)
            if not value:
                continue
            if isinstance(value, dict):
                value = [f"{k}={v}" for k, v in value.items()]
            text = ", ".join(value) if isinstance(value, list) else str(value)
            _print(console, Text.assemble("    ", (key, "dim"), visible(f" {text}")), " " * 8)


def _print(console: Console, text: Text, indent: str) -> None:
    """Print a line, wrapped to the terminal with its further lines indented; into a pipe it goes whole."""
    if not console.is_terminal:
        console.print(text, soft_wrap=True)
        return
    first, *rest = text.wrap(console, console.width)
    console.print(first, soft_wrap=True)
    if rest:
        begun = len(text.plain) - len(text.plain[len(first) :].lstrip())
        for line in text[begun:].wrap(console, max(20, console.width - len(indent))):
            console.print(Text(indent) + line, soft_wrap=True)
