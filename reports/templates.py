"""The templates of a page, with what all of them may ask for: numbers in words, and text that stays text."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from leakaudit.reports import html_text, view
from leakaudit.result import numbers
from leakaudit.result.schema import Value

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def environment() -> Environment:
    """Return the environment in which every template is rendered: autoescaped, an unknown name is an error."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.PackageLoader("leakaudit.reports", ""),
        autoescape=True,
        finalize=html_text.shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": numbers.percent,
        "points": numbers.points,
        "plain": numbers.plain,
        "pairs": numbers.pairs,
        "byname": _by_name,
        "spaced": _spaced,
        "join_specs": join_specs,
        "unbroken": html_text.unbroken,
        "dashed": html_text.dashed,
        "letter": html_text.letter,
        "parted": html_text.parted,
        "heading": view.heading,
        "seconds": lambda value: numbers.DASH if value is None else numbers.seconds(value),
    }
    return made


def writable(page: str) -> str:
    """Return a page that any file can hold: a lone surrogate of the JSON cannot be written."""
    return page.encode("utf-8", "replace").decode("utf-8")


def join_specs(specs: tuple[str, ...]) -> str:
    """Return `a`, or `a, b and c`."""
    return specs[0] if len(specs) == 1 else f"{', '.join(specs[:-1])} and {specs[-1]}"


def _by_name(values: dict[str, Value]) -> list[tuple[str, Value]]:
    return sorted(values.items())


def _spaced(items: list[tuple[str, Value]]) -> list[tuple[str, Value]]:
    return [(name.replace("_", " "), value) for name, value in items]
