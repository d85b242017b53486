"""What cannot be seen is written out, and what can is left alone."""

from __future__ import annotations

import sys

import pytest

from leakaudit.result.plaintext import visible


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a plain name", "a plain name"),
        ("naïve 猫 🐈 x̃ |*_`<&>", "naïve 猫 🐈 x̃ |*_`<&>"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\x1b]8;;http://x\x07y\x1b]8;;\x07", r"\x1b]8;;http://x\x07y\x1b]8;;\x07"),
        ("a\0b\x7f\x9b", r"a\x00b\x7f\x9b"),
        ("\u202egnp.\u202c", r"\u202egnp.\u202c"),
        ("\u2066a\u2069\u200b\u200f\ufeff\u00ad", r"\u2066a\u2069\u200b\u200f\ufeff\xad"),
        ("\ud800\udfff", r"\ud800\udfff"),
        ("\U000e0041", r"\U000e0041"),
        ("one\ntwo\r\nthree\tfour\u2028five\u2029six\u00a0seven", "one two  three four five six seven"),
    ],
)
def test_what_cannot_be_seen_is_written_out(words: str, expected: str) -> None:
    assert visible(words) == expected
    assert visible(expected) == expected


def test_every_character_there_is_comes_out_printable_and_encodable() -> None:
    for start in range(0, sys.maxunicode + 1, 1000):
        words = "".join(map(chr, range(start, min(start + 1000, sys.maxunicode + 1))))
        shown = visible(words)
        assert shown.isprintable()
        shown.encode()


def test_a_long_text_is_cut() -> None:
    assert visible("a" * 10, 10) == "a" * 10
    assert visible("a" * 11, 10) == "a" * 9 + "…"
    assert len(visible("a" * 10**6)) == 2000
    hostile = "\u202e" * 3000
    assert visible(visible(hostile)) == visible(hostile)
    assert len(visible(hostile)) == 2000
