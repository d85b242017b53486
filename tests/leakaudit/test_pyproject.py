"""A table goes into somebody else's TOML file: everything else stays byte for byte, or nothing is written."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.errors import UserError
from leakaudit.gate.pyproject import inserted, toml
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


# Other people's tables, with what is easily lost: comments, quotes, inline tables, dotted keys, headers in strings.
AROUND = (
    "# top\n[project]  # mine\nname = 'x'\n",
    "# about black\n# twice\n[tool.black] # c\nline-length = 1 # one\n",
    '[tool.a]\ny = """\n[tool.leakaudit]\n# """\n\n',
    '\n\n  [tool."odd]name"]\nx.y = { a = [1, 2,\n # in\n] }\n\n# end\n\n',
    "[[tool.list]]\n[[tool.list]]\nx = 0x1F\n",
    "[tool]\nplain = 1_000\n",
)
OURS = (
    OLD,
    "[tool.leakaudit]\n",
    "  [tool.'leakaudit'] # ours\nx = '''\n[tool.ruff]\n# '''\n",
    "[tool.leakaudit.assert]\npsnr = 1\n\n# ours\n\n",
)


@given(st.permutations(AROUND), st.integers(0, len(AROUND)), st.sampled_from(OURS), st.sampled_from(("\n", "\r\n")))
def test_force_replaces_that_table_and_nothing_else(around: list[str], where: int, old: str, newline: str) -> None:
    head, old, tail, block = (
        text.replace("\n", newline) for text in ("".join(around[:where]), old, "".join(around[where:]), BLOCK)
    )
    text = inserted(head + old + tail, BLOCK, force=True)
    start, found, end = text.partition(block)
    assert found
    assert start == head
    assert end.lstrip("\r\n") == tail.lstrip("\r\n")
    assert end.startswith(newline) or not tail
    assert inserted(text, BLOCK, force=True) == text


def test_force_on_a_file_without_the_table_adds_it() -> None:
    assert inserted(OTHER, BLOCK, force=True) == inserted(OTHER, BLOCK)


@pytest.mark.parametrize("existing", ["[tool]\nleakaudit = {records = 3}\n", "tool.leakaudit.records = 3\n"])
def test_what_is_ours_alone_may_be_written_in_any_way(existing: str) -> None:
    text = inserted(existing, BLOCK, force=True)
    assert ours(text) == ours(BLOCK)
    assert inserted(text, BLOCK, force=True) == text


@pytest.mark.parametrize(
    "existing",
    [
        "tool.leakaudit.records = 3\ntool.ruff.x = 1\n",  # what follows would be ours
        "[tool]\nleakaudit.records = 3\nx = 1\n",
        "tool = {leakaudit = {records = 3}, ruff = {}}\n",
        "tool = {ruff = {}}\n",
        "[tool.leakaudit]\nx = 1\n[project]\nname = 'x'\n[tool.leakaudit.assert]\n# about y\n[tool.y]\n",
    ],
)
def test_what_cannot_be_replaced_is_left_alone(existing: str) -> None:
    with pytest.raises(UserError, match=r"in a way that init cannot edit .* take it out by hand"):
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
