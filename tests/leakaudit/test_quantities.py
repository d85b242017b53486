"""Sizes as `--memory` takes them: read, and written so that they are read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leakaudit.errors import UserError
from leakaudit.work.quantities import parse, readable


@pytest.mark.parametrize(
    ("text", "count"),
    [("4GB", 4 * 10**9), ("512MB", 512 * 10**6), ("2g", 2 * 10**9), ("1.5GiB", 3 * 2**29), (" 7 kb", 7000)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse(text) == count


@pytest.mark.parametrize("text", ["", "GB", "4", "-1g", "0g", "1e9", "nan", "lots", "4GBs", "9" * 400 + "g"])
def test_what_is_no_size_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="--memory"):
        parse(text)


@given(st.integers(1, 2**50))
def test_a_size_rounded_up_is_enough_and_close(count: int) -> None:
    assert count <= parse(readable(count, up=True)) <= 1.011 * count + 10
    assert abs(parse(readable(count)) - count) <= 0.006 * count + 5


def test_sizes_are_short() -> None:
    assert [readable(n) for n in (4 * 10**9, 1_234_567, 999_999, 20_000)] == ["4GB", "1.23MB", "1MB", "20KB"]
