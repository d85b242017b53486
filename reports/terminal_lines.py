"""How lines are written to a terminal: text of theirs made harmless, wrapped, or visibly shortened to its width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from leakaudit.result import numbers
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import Verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES: dict[Verdict, str] = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
FALLBACKS = {
    numbers.MINUS: "-",
    numbers.DASH: "-",
    "–": "-",
    "…": "..",
    "±": "+-",
    "x̃": "x~",
    "’": "'",
    "ε": "epsilon",
    "δ": "delta",
    "ρ": "rho",
}


def printable(words: str, encoding: str) -> str:
    """Return third-party text as a terminal may show it: nothing hidden in it, nothing its encoding lacks."""
    cleaned = visible(words)
    try:
        cleaned.encode(encoding)
    except UnicodeEncodeError:
        for fancy, simple in FALLBACKS.items():
            cleaned = cleaned.replace(fancy, simple)
        cleaned = cleaned.encode(encoding, "replace").decode(encoding)
    return cleaned


def paragraph(
    console: Console, words: str, style: str = "", indent: int = 0, hanging: int = 0, most: int | None = None
) -> int:
    """Print a sentence wrapped to the terminal: `indent` columns in, and `hanging` more from its second line on.

    Of more than `most` lines the last one printed ends in `…`. Return how many lines were printed.
    """
    from rich.text import Text

    lines = _wrapped(console, Text(printable(words, console.encoding), style), indent, hanging)
    if most is not None and len(lines) > most:
        lines = lines[:most]
        lines[-1] = _ended(lines[-1], console)
    for i, part in enumerate(lines):
        part.rstrip()
        console.print(Text(" " * (indent + (hanging if i else 0))) + part, soft_wrap=True)
    return len(lines)


def height(console: Console, words: str) -> int:
    """Return how many lines a paragraph takes; none where there are no words."""
    from rich.text import Text

    return len(_wrapped(console, Text(printable(words, console.encoding)))) if words else 0


def _wrapped(console: Console, text: Text, indent: int = 0, hanging: int = 0) -> list[Text]:
    first, *rest = text.wrap(console, max(20, console.width - indent)) or [text]
    if rest and hanging:
        begun = len(text.plain) - len(text.plain[len(first) :].lstrip())
        rest = list(text[begun:].wrap(console, max(20, console.width - indent - hanging)))
    return [first, *rest]


def _ended(line: Text, console: Console) -> Text:
    """Return a line that says that more would follow."""
    mark = printable(" …", console.encoding)
    line.rstrip()
    line.truncate(max(1, console.width - len(mark)))
    return line + mark


def labels(specs: Sequence[str], width: int, encoding: str) -> list[list[str]]:
    """Return the lines that name each spec in a table with a column of `width`.

    One that is too long keeps its head and its tail around `…`. Of those that would be alike so, its head and where it
    begins to differ; of those that still are, all of it is there, on several lines.
    """
    shown = [printable(spec, encoding) for spec in specs]
    short = [shortened(spec, width, encoding) for spec in shown]
    mark = printable("…", encoding)
    told = []
    for spec, name in zip(shown, short, strict=True):
        alike = [other for other, its in zip(shown, short, strict=True) if its == name]
        told.append(name if len(alike) == 1 else _apart(spec, _same(alike), width, mark))
    return [[name] if told.count(name) == 1 else folded(shown[i], width, 2) for i, name in enumerate(told)]


def _same(words: Sequence[str]) -> int:
    """Return how many characters texts have in common, from their beginning."""
    return next((i for i, each in enumerate(zip(*words, strict=False)) if len(set(each)) > 1), min(map(len, words)))


def _apart(spec: str, differs: int, width: int, mark: str) -> str:
    """Return the head of a spec, and its part from shortly before the place where it `differs` from others."""
    from rich.cells import cell_len, set_cell_size

    room = width - 2 * len(mark)
    head = spec[: room // 3]
    part = spec[max(len(head), differs - room // 4) :]
    return f"{head}{mark}{set_cell_size(part, max(1, room - cell_len(head))).rstrip()}{mark}"


def shortened(words: str, width: int, encoding: str = "utf-8") -> str:
    """Return text of at most `width` columns: of what is longer, the head and the tail around `…`."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(words) <= width:
        return words
    mark = printable("…", encoding)
    room = max(2, width - len(mark))
    head, tail = set_cell_size(words, room // 2), words
    while cell_len(tail) > room - room // 2:
        tail = tail[1:]
    return f"{head.rstrip()}{mark}{tail}"


def folded(words: str, width: int, hanging: int) -> list[str]:
    """Return a spec in lines of at most `width` columns, broken after a comma or a colon where it can be.

    Lines but the first are indented by `hanging` columns.
    """
    lines, rest, indent = [], words, ""
    while len(rest) > (room := max(8, width - len(indent))):
        cut = max(rest.rfind(mark, 0, room) for mark in ",:-") + 1
        cut = cut if cut > len(rest) - len(rest.lstrip()) + 1 else room
        lines.append(indent + rest[:cut])
        rest, indent = rest[cut:], " " * hanging
    return [*lines, indent + rest]


def counted(n: int, what: str) -> str:
    """Return `1 check`, `2 checks`."""
    return f"{n} {what}{'' if n == 1 else 's'}"
