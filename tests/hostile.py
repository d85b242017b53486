"""Hostile text in every string of a result or a gate's outcome, found by walking their dataclasses. For test_escaping.

Whatever field is added to them later is walked too. Strings of a fixed choice (`Literal`) are left alone: a file that
holds another one is refused when it is read.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from leakaudit.result.schema import Controls, Estimate, Examined

T = TypeVar("T")
TOLD, UNKNOWN = Estimate(0.5, 0.4, 0.6, 3), Estimate(reason="nobody was asked")
EXAMINED = Examined(("gradients",), True, 0.25, TOLD, TOLD, 0.1, dict.fromkeys("ab", TOLD), UNKNOWN)
CONTROLLED = Controls("fail", "it leaked", UNKNOWN, ("dlg",), ("linkage",))

MARKUP = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(2)>'/><svg/onload=alert(3)>{{7*7}}{%if 1%}{#c#}"
    "</td></table></style><!-- --> ]]> &amp; &#60;b&#62; <!DOCTYPE x [<!ENTITY e 'x'>]>&e;<?php ?>"
)
LINKS = (
    "[x](javascript:alert(1)) ![y](http://evil.example/p.png) <http://evil.example> [r]: http://evil.example\n"
    "`code` ``` |cell|cell| *b* __i__ ~~s~~ # h\n# head\n- item\n1. one\n> quote\n---\n| a | b |\n|---|---|\n"
    "http://evil.example www.evil.example a@evil.example @user #1 $x$ :smile: <details> \\"
)
CONTROLS = (
    "\0\x07\x08\x0c\x1b[95;7mred\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\\x1b]0;title\x07\r\x7f\x85\x9b31m"
    "\u202egnp.exe\u202c\u2066\u2069\u200b\u200f\u2028\u2029\ufeff\ufffe\uffff\ud800 \udfff\U000e0041"
    "[bold red]x[/][/][link=http://evil.example]y[/link][@click=x]z[/]"
)
LONG = "A" * 5_000
PAYLOADS = {"markup": MARKUP, "links": LINKS, "controls": CONTROLS, "long": LONG}
# Names that other fields refer to, and words that decide what is drawn. Injected in a round of their own, since a
# result in which no attack is called what it was takes other ways through a report.
NAMES = frozenset({"spec", "name", "kind", "role", "status", "rule", "images", "defense", "attack", "id", "was"})
OURS = frozenset({"schema", "metric"})  # another schema is another document; a change's metric is in no file


@dataclass
class Slots:
    """Fills strings, each with a number of its own in front so that they stay different and keep their order."""

    payload: str
    wanted: Callable[[str], bool] = lambda path: True
    paths: list[str] = field(default_factory=list)

    def text(self, path: str) -> str:
        """Return the text for a slot."""
        self.paths.append(path)
        return f"w{len(self.paths):06d}w{self.payload}"

    def fill(self, value: T, path: str = "") -> T:
        """Return a dataclass with every wanted string replaced, and something added to what was empty."""
        hints = get_type_hints(type(value))
        changed = {}
        for f in fields(value):  # type: ignore[arg-type]
            if f.name in OURS:
                continue
            changed[f.name] = self._filled(getattr(value, f.name), hints[f.name], f"{path}.{f.name}".lstrip("."))
        return replace(value, **changed)  # type: ignore[type-var]

    def _filled(self, value: Any, hint: Any, path: str) -> Any:
        origin, inner = get_origin(hint), get_args(hint)
        if origin is Literal:
            return value
        if origin in (Union, types.UnionType):
            if str in inner and (value is None or isinstance(value, str)):
                return self.text(path) if self.wanted(path) else value
            chosen = next((each for each in inner if is_dataclass(each) and isinstance(value, each)), None)
            return value if chosen is None else self._filled(value, chosen, path)
        if hint is str:
            return self.text(path) if self.wanted(path) else value
        if origin is tuple:
            filled = tuple(self._filled(item, inner[0], f"{path}[]") for item in value)
            if not filled and inner[0] is str and self.wanted(f"{path}[]"):
                return (self.text(f"{path}[]"),)
            return filled
        if origin is dict:
            return self._mapping(value, inner[1], path)
        if is_dataclass(hint):
            return self.fill(value, path)
        return value

    def _mapping(self, value: dict[str, Any], hint: Any, path: str) -> dict[str, Any]:
        """Replace the texts of known keys, and add a key of our own with a value of the right type."""
        filled = {}
        for key, item in value.items():
            named = f"{path}.{key}"
            filled[key] = self.text(named) if isinstance(item, str) and self.wanted(named) else item
            if is_dataclass(hint):
                filled[key] = self.fill(item, f"{path}.{{}}")
        if self.wanted(f"{path}{{}}"):
            takes_text = hint is str or str in get_args(hint)
            other = next(iter(value.values()), hint()) if is_dataclass(hint) else 1
            filled[self.text(f"{path}{{key}}")] = self.text(f"{path}{{value}}") if takes_text else other
        return filled


def names(path: str) -> bool:
    """Whether a path is of a name or a word that decides something."""
    return path.replace("[]", "").rpartition(".")[2] in NAMES


def kinds_of_string(value: Any) -> Iterator[str]:
    """Every kind of place that a value has for text, once."""
    slots = Slots("")
    slots.fill(value)
    yield from dict.fromkeys(slots.paths)
