"""A parser that notes everything a page would load, link, run or leave open."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "hr", "input"}
BOUND = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "formaction"}

OPTION = re.compile(r'<span class="option">([^<]*)</span>')  # which keeps `--records 23` on one line


class Page(HTMLParser):
    """Parses a page, and notes everything it would load, link, run or leave open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: Counter[str] = Counter()
        self.bound: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.headings: list[int] = []
        self.tables: list[str] = []
        self.feed(OPTION.sub(r"\1", text).replace("<wbr>", ""))  # where a long name may break
        self.close()
        self.faults += [f"<{tag}> is never closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        self.bound += [value or "" for name, value in attrs if name in BOUND]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "img":
            self.images.append(dict(attrs))
        if tag[0] == "h" and tag[1:].isdigit():
            self.headings.append(int(tag[1:]))
        if self.open and self.open[-1] == "table":
            self.tables.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> closes <{self.open[-1] if self.open else 'nothing'}> at {self.getpos()}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())
