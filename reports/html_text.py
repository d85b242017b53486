"""Text of a page: what cannot be seen is written out, and an option of the command line stays on one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from leakaudit.result.numbers import MINUS
from leakaudit.result.plaintext import visible

MOST = 10**9  # characters
# With its number, which says little on the next line. Short, so that no text can push a page aside.
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]{1,24}(?![\w-])(?:[ =]\d{1,9}(?:[.,]\d{1,9})?(?:[A-Za-z]{1,4}|%)?(?!\w))?")


def shown(value: Any) -> Any:
    """Write out what a reader cannot see but a browser obeys, of any length: pictures are text here too."""
    return visible(value, MOST) if type(value) is str else value


def dashed(interval: str) -> str:
    """Return `3.5 to 12` as `3.5–12`, which takes less room; beside a minus sign a dash would mislead."""
    return interval if MINUS in interval else interval.replace(" to ", "–")


def parted(name: str) -> Any:
    """Return a name as markup, escaped, that breaks behind `:`, `=`, `,`, `;` and `_`. Copied, it is the same."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[:=,;_])", shown(name)) if part)


def letter(number: int) -> str:
    """Return the mark of a footnote from its number: a … z, aa, ab …, as an `ol` of type a counts."""
    high, low = divmod(number - 1, 26)
    return (letter(high) if high else "") + chr(ord("a") + low)


def unbroken(text: str) -> Any:
    """Return text as markup, escaped, in which no line breaks within `--records 23`. Copied, it is the same text."""
    from markupsafe import Markup, escape

    told, end, parts = shown(text), 0, Markup()
    for option in OPTION.finditer(told):
        parts += escape(told[end : option.start()]) + Markup('<span class="option">{}</span>').format(option[0])
        end = option.end()
    return parts + escape(told[end:])


def named(text: str, names: Iterable[str]) -> Any:
    """Return text as markup, escaped, in which every one of some names stands out; of two at one place the longer."""
    from markupsafe import Markup, escape

    told = shown(text)
    known = sorted({shown(name) for name in names if name}, key=lambda name: (-len(name), name))
    if not known:
        return escape(told)
    parts = re.split(rf"(?<![\w-])({'|'.join(map(re.escape, known))})(?![\w-])", told)
    return Markup("").join(Markup("<b>{}</b>").format(part) if i % 2 else escape(part) for i, part in enumerate(parts))
