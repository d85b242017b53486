"""Names that a shell completes: read off the text of our own files, since importing them takes seconds."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from leakaudit.files.reading import CODE, text_of

NAMED = re.compile(r'^    name: ClassVar\[str\] = "(.+)"\n    summary: ClassVar\[str\] = "(.+)"$', re.MULTILINE)


@cache
def built_in(kind: str) -> dict[str, str]:
    """Return the summary of everything built in by its name, sorted; `kind` is attacks or defenses."""
    files = (Path(__file__).parents[1] / kind).glob("*.py")
    found = [match for file in files for match in NAMED.finditer(text_of(file, CODE))]
    return dict(sorted((match[1], match[2]) for match in found))


def attacks(incomplete: str) -> list[tuple[str, str]]:
    """Return the attacks that a word may be the beginning of, with their summaries."""
    return [(name, told) for name, told in built_in("attacks").items() if name.startswith(incomplete)]


def defenses(incomplete: str) -> list[tuple[str, str]]:
    """Return the defenses likewise; behind a comma the next of a chain."""
    before, comma, last = incomplete.rpartition(",")
    return [(before + comma + name, told) for name, told in built_in("defenses").items() if name.startswith(last)]
