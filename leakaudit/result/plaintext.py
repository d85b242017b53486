"""Third-party text made harmless wherever it is shown: what cannot be seen is written out, so that it does nothing."""

from __future__ import annotations

from unicodedata import category

LONG = 2_000  # characters: more is no name, no reason and no sentence


def visible(words: str, most: int = LONG) -> str:
    r"""Return text of one line in which every character can be seen, cut with `…` after `most` characters.

    Line breaks, tabs and other white space become spaces. What a reader cannot see but a terminal, a browser or an XML
    parser obeys or refuses is written out as Python would (`\x1b`, `\u202e`, `\ud800`): control characters, direction
    overrides and other formatting, lone surrogates, unassigned and private characters. So nothing rings, moves the
    cursor, hides, links, runs backwards or breaks an encoding, and two names that differ look different. The markup of
    the format itself is not touched: escape it afterwards. Applied twice, it changes nothing more.
    """
    shown = words[: most + 1]
    if not shown.isprintable():
        shown = "".join(map(_shown, shown))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character in "\t\n\r\v\f" or category(character) in ("Zs", "Zl", "Zp"):
        return " "
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
