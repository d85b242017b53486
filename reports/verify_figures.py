"""A page whose figures another drawing library drew: everything but their shapes is compared."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

LIBRARY = re.compile(r"matplotlib \d+(?:\.\d+)+")
FIGURE = re.compile(r'<svg class="frontier-(?:wide|narrow)" .*?</svg>', re.DOTALL)
META, SIGNED = '<meta name="figures" content="{}">', ", figures by {}</dd>\n<dt>pictures</dt>"
# What matplotlib's SVG is made of. Nothing in it loads, runs, links or lays a page out.
ALLOWED = {
    "defs": set(),
    "g": {"id", "clip-path", "transform"},
    "path": {"id", "d", "style", "clip-path", "transform"},
    "use": {"id", "xlink:href", "x", "y", "style", "clip-path", "transform"},
    "text": {"id", "x", "y", "style", "transform"},
    "clippath": {"id"},
    "rect": {"id", "x", "y", "width", "height", "style", "clip-path", "transform"},
}
STYLES = re.compile(
    r"(?:fill|stroke|opacity|font|text-anchor)(?:-(?:opacity|width|linecap|linejoin|dasharray|dashoffset|miterlimit|"
    r"size|family|style|weight|rule))?"
)
VALUE = re.compile(r"(?:[\w\s.,#%'\"+-]|var\(--[a-z]+\))*")


def alike(page: str, expected: str, drawn: str, here: str) -> str:
    """Compare a page whose figures `drawn` drew with the `expected` one, drawn by `here`.

    Return `same` where they differ in the name of the library alone, `shapes` where the figures may differ as well but
    hold the same words and nothing but drawing, else an empty string.
    """
    if not LIBRARY.fullmatch(drawn):
        return ""
    named = expected.replace(META.format(here), META.format(drawn), 1)
    head, sign, tail = named.rpartition(SIGNED.format(here))
    named = head + (SIGNED.format(drawn) if sign else "") + tail
    if page == named:
        return "same"
    figures, parts = FIGURE.findall(named), FIGURE.split(named)
    head, *between, tail = parts if figures else (named, "")
    if not figures or not page.startswith(head) or not page[len(head) :].endswith(tail):
        return ""
    middle = "".join(f"({FIGURE.pattern}){re.escape(part)}" for part in [*between, ""])
    found = re.fullmatch(middle, page[len(head) : len(page) - len(tail)], re.DOTALL)
    return "shapes" if found is not None and all(map(_drawing, found.groups(), figures)) else ""


def _drawing(svg: str, ours: str) -> bool:
    """Return whether an SVG is a drawing with the words of ours, by a browser's parser and by XML's."""
    start, own = svg[: svg.index(">")], ours[: ours.index(">")]
    if start != own or "<!" in svg or "<?" in svg:
        return False
    try:
        ET.fromstring(svg)
    except ET.ParseError:
        return False
    theirs = _Drawing(svg)
    return theirs.plain and sorted(theirs.words) == sorted(_Drawing(ours).words)


class _Drawing(HTMLParser):
    """Reads an SVG as a browser does: `plain` where it holds nothing but `ALLOWED`."""

    def __init__(self, svg: str) -> None:
        super().__init__(convert_charrefs=True)
        self.plain = True
        self.words: list[str] = []
        self.depth = 0
        self.feed(svg)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += 1
        if tag == "svg" and self.depth == 1:  # its attributes are compared as they are written
            return
        known = ALLOWED.get(tag)
        self.plain &= known is not None and all(name in known and _harmless(name, value) for name, value in attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.depth -= 1

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        if words := " ".join(data.split()):
            self.words.append(words)


def _harmless(name: str, value: str | None) -> bool:
    text = value or ""
    if name == "id":
        return text.startswith("frontier-")  # none of the page's own
    if name == "xlink:href":
        return text.startswith("#frontier-")
    if name == "clip-path":
        return re.fullmatch(r"url\(#frontier-[\w-]+\)", text) is not None
    if name == "style":
        parts = [part.partition(":") for part in text.split(";") if part.strip()]
        return all(STYLES.fullmatch(key.strip()) and VALUE.fullmatch(value) for key, _, value in parts)
    return re.fullmatch(r"[\w\s.,()+-]*", text) is not None
