"""A table goes into somebody else's TOML file: everything else stays byte for byte, or nothing is written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.errors import UserError
from leakaudit.gate.tomlfile import inserted, toml
from leakaudit.result.plaintext import visible

BLOCK = '[tool.leakaudit]\nrecords = 32\n\n[tool.leakaudit.assert]\npreset = "strict"\n\n# [[tool.leakaudit.waiver]]\n'
OTHER = '# top\n[project]  # mine\nname = "x"\n\n[tool.ruff]\nlint = [\n  "a", # why\n]\n'
OLD = (
    "[tool.leakaudit]\nrecords = 8\n# old\n\n[[tool.leakaudit.waiver]]\nrule = 'a'\n\n"
    "[tool.leakaudit.assert.regression]\npsnr = false\n"
)


def ours(text: str) -> object:
    return tomllib.loads(text)["tool"]["leakaudit"]


@pytest.mark.parametrize(
    "existing", ["", "\n\n", OTHER, OTHER.rstrip(), OTHER.replace("\n", "\r\n"), "tool.ruff.x = 1\n"]
)
def test_the_table_is_added_at_the_end(existing: str) -> None:
    text = inserted(existing, BLOCK)
    assert text.startswith(existing.rstrip())
    assert ours(text) == ours(BLOCK)
    assert ("\r\n" in text) == ("\r\n" in existing)
    assert text.count("\n") == text.count("\r\n") or "\r\n" not in text


def test_a_table_is_not_overwritten() -> None:
    for existing in (OTHER + OLD, "[tool]\nleakaudit = {records = 3}\n", "tool.leakaudit.records = 3\n"):
        with pytest.raises(UserError, match="already"):
            inserted(existing, BLOCK)


@pytest.mark.parametrize("head", [OTHER, ""])
def test_force_replaces_that_table_and_nothing_else(head: str) -> None:
    tail = "# about black\n[tool.black]\nline-length = 1 # one\n"
    text = inserted(f"{head}{OLD}\n{tail}", BLOCK, force=True)
    assert text == f"{head}\n{tail}\n{BLOCK}" or text == f"{head}{tail}\n{BLOCK}"
    assert inserted(text, BLOCK, force=True) == text
    assert inserted(head + OLD, BLOCK, force=True).startswith(head)


def test_force_on_a_file_without_the_table_adds_it() -> None:
    assert inserted(OTHER, BLOCK, force=True) == inserted(OTHER, BLOCK)


@pytest.mark.parametrize(
    "existing",
    [
        "[tool]\nleakaudit = {records = 3}\n",
        "tool.leakaudit.records = 3\n",
        '[tool."leakaudit"]\nx = 1\n[tool."odd]name"]\ny = 2\n',
        "[tool.leakaudit]\nx = '''\n[tool.ruff]\n'''\n",
        '[tool.leakaudit]\nx = 1\n[tool.a]\ny = """\n[tool.leakaudit]\n"""\n',
    ],
)
def test_what_cannot_be_replaced_by_lines_is_left_alone(existing: str) -> None:
    with pytest.raises(UserError, match="in a way that init cannot replace: take it out by hand"):
        inserted(existing, BLOCK, force=True)


def test_a_broken_file_is_one_sentence() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        inserted("[project\n", BLOCK)


@given(st.one_of(st.integers(), st.booleans(), st.lists(st.integers())))
def test_numbers_come_back(value: object) -> None:
    assert tomllib.loads(f"x = {toml(value)}")["x"] == value


@given(st.text(max_size=100))
def test_text_is_toml_whatever_it_holds(text: str) -> None:
    back = tomllib.loads(f"x = {toml(text)}")["x"]
    assert back == visible(text)
    assert tomllib.loads(f"x = {toml([text, text])}")["x"] == [back, back]
