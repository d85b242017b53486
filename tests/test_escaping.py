"""Text of third parties is text in every format: nothing becomes an element, an attribute, a link or a command.

Each format is made twice, with the hostile and with harmless text in the same fields: its structure must be the same,
and the hostile text must be there, as text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import pytest

from leakaudit.compare.changes import Change
from leakaudit.gate import assertions
from leakaudit.gate.decision import compare, gate
from leakaudit.judge.verdict import overall, rejudge
from leakaudit.result.outcome import Outcome
from leakaudit.result.outcome import to_json as gate_json
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, Estimate, Further, Guarantee, Reason, Waiver, from_json, load, to_json
from tests.hostile import CONTROLLED, EXAMINED, LONG, PAYLOADS, Slots, kinds_of_string, names
from tests.many_scans import history, printed, sweep, sweep_json, terminal_history, terminal_sweep

GOLDEN = Path(__file__).parent / "golden" / "result-1.json"
ROUNDS: dict[str, Callable[[str], bool]] = {"texts": lambda path: not names(path), "names": names, "all": bool}
Changes = list[tuple[Change, float | None]]


@cache
def scene() -> tuple[AuditResult, Outcome, Changes]:
    """A result of every shape, a gate that passed, failed, warned and was waived, and the changes since a baseline."""
    hashes = dict.fromkeys(("model", "private", "test", "auxiliary", "victims", "candidates"), "ab" * 32)
    waivers = (
        Waiver("identification", "accepted", "2031-01-01", by="somebody"),
        Waiver("accuracy*", "late", "2020-01-01"),
        Waiver("nothing", "unused", "2031-01-01"),
    )
    golden = load(GOLDEN)
    made = golden.environment | {"command": "leakaudit scan model.py", "commit": "abc"}
    result = replace(golden, environment=made, hashes=hashes, waivers=waivers, stand_in="a cat", controls=CONTROLLED)
    sure = (Guarantee("a theorem", "proven", "nothing", states=("a fact",)), Guarantee("the rest", "not-bounded"))
    measured = (
        Further("sharpness", Estimate(0.5, 0.4, 0.6, 3), True, "dB"),
        Further("x", Estimate(reason="it failed"), True),
    )
    known: dict[str, Any] = {"further": measured, "asked": {"steps": 3}}
    doubt: dict[str, Any] = {"overfitted": "twice"}  # where no line of the terminal grows too long for it
    stored = Reason("stored", facts={"told": "It is (said) so."})  # beside those of the verdict
    defenses = tuple(
        replace(
            d,
            guarantees=sure,
            attacks=tuple(replace(a, **known, doubts={} if a.reason else doubt) for a in d.attacks),
            why=(*rejudge(golden, d)[1], stored, Reason("of-a-later-version", attack="dlg", facts={"told": "more"})),
            stronger={"std": 1},
            lowest={"std": 0.5},
            examined=EXAMINED,
        )
        for d in result.defenses
    )
    result = replace(result, images="redacted", defenses=defenses, why=(*overall(defenses)[1], stored))
    asked = assertions.parse({})
    outcome = gate(result, asked, baseline=result, waivers=waivers, source="result.json", baseline_source="main.json")
    waived = [replace(c, waiver=waivers[0]) if c.status == "fail" else c for c in outcome.checks[:3]]
    outcome = replace(outcome, checks=(*waived, *outcome.checks[3:]), notes=("another version",))
    return result, outcome, list(compare(result, result, "main.json"))


def filled(payload: str, wanted: Callable[[str], bool]) -> tuple[AuditResult, Outcome, Changes, Slots]:
    result, outcome, changes = scene()
    slots = Slots(payload, wanted)
    told = slots.fill(result), slots.fill(outcome), [(slots.fill(change), p) for change, p in changes]
    return *told, slots


# Where a word of a drawing stands depends on how wide it is, and with it whether a line leads to it.
PLACES, NUMBERS = (
    ("x", "y", "d", "transform", "text-anchor"),
    re.compile(r"[-\d. ML]*|translate\([-\d. ]*\)|start|middle|end"),
)


def of_html(text: str) -> tuple[list[Any], str]:
    """The elements with their attributes, as far as they may not change, and the text of a page."""

    class Page(HTMLParser):
        def __init__(self) -> None:
            super().__init__(convert_charrefs=True)
            self.parts: list[Any] = []
            self.words: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            spoken = ("alt", "title", "aria-label", "content")  # read aloud, never obeyed
            free = (*spoken, *(name for name, value in attrs if name in PLACES and NUMBERS.fullmatch(value or "")))
            self.parts.append((tag, [(name, None if name in free else value) for name, value in attrs]))
            self.words += [value or "" for name, value in attrs if name in spoken]

        def handle_endtag(self, tag: str) -> None:
            self.parts.append(f"/{tag}")

        def handle_comment(self, data: str) -> None:
            self.parts.append("comment")

        def handle_decl(self, decl: str) -> None:
            self.parts.append(decl)

        def handle_pi(self, data: str) -> None:
            self.parts.append("instruction")

        def unknown_decl(self, data: str) -> None:
            self.parts.append("declaration")

        def handle_data(self, data: str) -> None:
            self.words.append(data)

    page = Page()
    page.feed(text.replace("<wbr>", ""))  # where a name may break: it holds and obeys nothing
    page.close()
    return page.parts, " ".join(page.words)


def of_xml(text: str) -> tuple[list[Any], str]:
    root = ET.fromstring(text)
    words = [value for element in root.iter() for value in (*element.attrib.values(), element.text or "")]
    return [(element.tag, sorted(element.attrib)) for element in root.iter()], " ".join(words)


def of_json(text: str) -> tuple[list[Any], str]:
    """Paths and types; keys that came from the result count as text."""
    assert text.isascii()
    parts: list[Any] = []
    words: list[str] = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                ours = not key.startswith("w0")
                words.extend([] if ours else [key])
                walk(item, f"{path}.{key if ours else '*'}")
        elif isinstance(value, list):
            for item in value:
                walk(item, f"{path}[]")
        else:
            parts.append((path, type(value).__name__))
            words.extend([value] if isinstance(value, str) else [])

    walk(json.loads(text), "")
    return sorted(parts), " ".join(words)


def of_markdown(text: str) -> tuple[list[Any], str]:
    """As rendered with everything on that GitHub and GitLab have: tables, bare links, HTML. Bare spans do nothing."""
    rendered = markdown_reader().render(text)
    return of_html(re.sub("</?span>", "", rendered))


@cache
def markdown_reader() -> Any:
    """GitHub's Markdown: addresses become links after a scheme or `www.`, not wherever there is a dot."""
    markdown_it = pytest.importorskip("markdown_it")
    pytest.importorskip("linkify_it")
    reader = markdown_it.MarkdownIt("gfm-like", {"html": True})
    reader.linkify.set({"fuzzy_link": False, "fuzzy_email": True}).add("//", None).tlds("example", True)
    reader.linkify.add("www.", {"validate": lambda _, text, at: len(re.split(r"[\s<]", text[at:], maxsplit=1)[0])})
    return reader


def of_terminal(text: str) -> tuple[list[Any], str]:
    return [], " ".join(text.split())


def html(result: AuditResult, outcome: Outcome, _: Changes) -> str:
    from leakaudit.reports.html import render

    return render(result, outcome)


def html_alone(result: AuditResult, _: Outcome, __: Changes) -> str:
    from leakaudit.reports.html import render

    return render(result)


def junit(result: AuditResult, outcome: Outcome, _: Changes) -> str:
    from leakaudit.reports.junit import render

    return render(result, outcome)


def sarif(result: AuditResult, outcome: Outcome, _: Changes) -> str:
    from leakaudit.reports.sarif import render

    return render(result, outcome)


def markdown(result: AuditResult, outcome: Outcome, _: Changes) -> str:
    from leakaudit.reports.markdown import render

    return render(result, outcome, most=10**9)


def markdown_changes(result: AuditResult, outcome: Outcome, changes: Changes) -> str:
    from leakaudit.reports.markdown import render

    return render(result, None, changes, most=10**9)


def result_json(result: AuditResult, _: Outcome, __: Changes) -> str:
    return to_json(result)


def outcome_json(_: AuditResult, outcome: Outcome, __: Changes) -> str:
    return gate_json(outcome)


def terminal(result: AuditResult, _: Outcome, __: Changes, **settings: Any) -> str:
    from leakaudit.reports.terminal import summary

    return "".join(printed(partial(summary, result, verbose=v), **settings) for v in (False, True))


def terminal_gate(_: AuditResult, outcome: Outcome, __: Changes, **settings: Any) -> str:
    from leakaudit.reports.gate_terminal import in_a_line, show

    return "".join(printed(partial(s, outcome), **settings) for s in (show, partial(show, verbose=True), in_a_line))


def terminal_changes(_: AuditResult, outcome: Outcome, changes: Changes, **settings: Any) -> str:
    from leakaudit.reports.gate_terminal import compared

    return printed(lambda console: compared(changes, outcome.notes, console), **settings)


FORMATS: dict[str, tuple[Callable[..., str], Callable[[str], tuple[list[Any], str]]]] = {
    "html": (html_alone, of_html),
    "html-gate": (html, of_html),
    "junit": (junit, of_xml),
    "sarif": (sarif, of_json),
    "markdown": (markdown, of_markdown),
    "markdown-compare": (markdown_changes, of_markdown),
    "result.json": (result_json, of_json),
    "gate.json": (outcome_json, of_json),
    "history": (history, of_html),
    "sweep": (sweep, of_html),
    "sweep.json": (sweep_json, of_json),
    "terminal": (terminal, of_terminal),
    "terminal-gate": (terminal_gate, of_terminal),
    "terminal-compare": (terminal_changes, of_terminal),
    "terminal-history": (terminal_history, of_terminal),
    "terminal-sweep": (terminal_sweep, of_terminal),
}
TERMINALS = [name for name in FORMATS if name.startswith("terminal")]


def invisible(text: str) -> set[str]:
    """What no reader sees: controls, direction and other formatting, surrogates, separators; line breaks are meant."""
    return {
        repr(c) for c in set(text) - {"\n"} if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    }


@cache
def made(name: str, payload: str, round_: str) -> tuple[str, tuple[list[Any], str]]:
    result, outcome, changes, _ = filled(payload, ROUNDS[round_])
    make, parse = FORMATS[name]
    text = make(result, outcome, changes)
    return text, parse(text)


def shown(words: str) -> set[str]:
    """The numbers of the slots whose text is there."""
    return {words[i : i + 8] for i in range(len(words)) if words[i : i + 2] == "w0" and words[i + 7 : i + 8] == "w"}


@pytest.mark.parametrize("round_", ROUNDS)
@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("name", FORMATS)
def test_hostile_text_is_text(name: str, payload: str, round_: str) -> None:
    text, (parts, words) = made(name, PAYLOADS[payload], round_)
    _, (expected, harmless) = made(name, "harmless", round_)
    text.encode("utf-8")
    assert parts == expected
    if not name.endswith(".json"):  # what is written as JSON is escaped, and read back as it was
        assert not invisible(text)
        assert not invisible(words)
    # Long lines are cut, shorter ones in Markdown: there some may be missing, and none may stand in another's place.
    cut = payload == "long" or (name.startswith("markdown") and round_ == "all")
    assert shown(words) <= shown(harmless) if cut else shown(words) == shown(harmless)
    for slot in shown(harmless) if payload == "markup" else ():
        told = f"{slot}<script>"  # of a digest no more than this is shown
        assert told in words or quote(told) in words


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("name", TERMINALS)
def test_no_command_reaches_a_terminal_with_colours(name: str, payload: str) -> None:
    result, outcome, changes, _ = filled(PAYLOADS[payload], bool)
    settings = {"force_terminal": True, "color_system": "truecolor", "legacy_windows": False}
    text = FORMATS[name][0](result, outcome, changes, **settings)
    assert "\x1b[" in text  # its own colours
    for command in ("\x1b[95;7m", "\x1b]", "\x9b", "\r", "\x07", "\0"):
        assert command not in text


@pytest.mark.parametrize("payload", PAYLOADS)
def test_what_is_written_is_read_back(payload: str) -> None:
    result, _, _, _ = filled(PAYLOADS[payload], bool)
    assert from_json(to_json(result)) == result


def test_every_kind_of_string_is_walked() -> None:
    """The walk itself: old and new fields, within tuples, mappings and unions, and nothing that is a fixed choice."""
    result, outcome, changes = scene()
    found = set(kinds_of_string(result)) | set(kinds_of_string(outcome))
    for path in (
        "target.name",
        "environment.command",
        "hashes{value}",
        "stand_in",
        "waivers[].reason",
        "findings[].evidence{key}",
        "findings[].mend",
        "defenses[].attacks[].records[].label",
        "defenses[].attacks[].gallery[].label",
        "defenses[].attacks[].identification.reason",
        "defenses[].attacks[].notes[]",
        "defenses[].guarantees[].assumes",
        "checks[].waiver.by",
        "waivers[].waiver.reason",
        "checks[].evidence{value}",
        "notes[]",
    ):
        assert path in found, path
    assert not found & {"verdict", "findings[].severity", "checks[].level", "schema"}
    assert len(changes) > 2


def test_long_text_does_not_swell_what_people_read() -> None:
    for name in ("html", "junit", "markdown", "terminal"):
        text, _ = made(name, LONG, "texts")
        assert len(text) < 5_000_000
    assert len(visible(LONG)) < 3_000


def test_the_walk_would_see_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without escaping the same test fails."""
    from markupsafe import Markup

    parts, _ = of_html(str(Markup("<p>") + Markup(PAYLOADS["markup"]) + Markup("</p>")))
    assert ("script", []) in parts
    assert invisible(PAYLOADS["controls"])


def test_the_reader_of_markdown_would_see_links() -> None:
    for text in ("http://evil.example", "www.evil.example", "a@evil.example", "[x](http://evil.example)"):
        assert any(part[0] == "a" for part in of_markdown(text)[0]), text
    assert ("img", [("src", "x")]) in of_markdown("<img src=x>")[0]
    assert "/code" in of_markdown("`x`")[0]
