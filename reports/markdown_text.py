"""Third-party text in Markdown: literal, whatever GitHub or GitLab would make of it. And the parts of a table."""

from __future__ import annotations

import re

from leakaudit.result.numbers import DASH
from leakaudit.result.plaintext import visible

MARKUP = re.compile(r"[\\`*_\[\]<>&|~#!$^{}]")
# What GitHub or GitLab still looks for in the text once its markup is escaped: mentions, references, formulas, emoji,
# addresses. Their first character is wrapped in a <span>, which parts it from what follows.
REFERENCES = re.compile(r"[@#!~%^&\[](?=[\w\"'])|\$|(?<=G[HL])-(?=\d)|:(?=//)|:(?=[\w+-]+:)|(?<=www)\.", re.I)
BLOCK = re.compile(r"[-+=]|\d+[.)]")  # what starts a list or a heading within a list item


def literal(words: object, most: int = 600) -> str:
    """Return third-party text that Markdown, GitHub and GitLab show as it is, in one line, cut after `most` characters.

    What is markup becomes a character reference, which cannot be markup; what would still become a mention, a reference
    or a link is parted by a `<span>`.
    """
    shown = visible(str(words), most).strip()
    parts, done = [], 0
    for match in REFERENCES.finditer(shown):
        parts += [_escaped(shown[done : match.start()]), f"<span>{_escaped(match[0])}</span>"]
        done = match.end()
    return "".join([*parts, _escaped(shown[done:])])


def code(words: object, most: int = 200) -> str:
    """Return third-party text in a monospaced face, literally; nothing for no text."""
    return f"<code>{literal(words, most)}</code>" if str(words) else ""


def item(words: object) -> str:
    """Return third-party text as an item of a list, which does not begin another list."""
    shown = literal(words)
    start = BLOCK.match(shown)
    return f"- <span>{start[0]}</span>{shown[start.end() :]}" if start else f"- {shown}"


def table(*titles: str, right: int = 0) -> tuple[str, str]:
    """Return the head of a table whose last `right` columns are numbers."""
    marks = ["---"] * (len(titles) - right) + ["---:"] * right
    return f"| {' | '.join(titles)} |", f"| {' | '.join(marks)} |"


def row(*cells: str) -> str:
    """Return a row of cells that are Markdown already; an empty one is a dash."""
    return f"| {' | '.join(cell or DASH for cell in cells)} |"


def _escaped(words: str) -> str:
    return MARKUP.sub(lambda match: f"&#{ord(match[0])};", words)
