"""How a result shows itself. `leakaudit` says it once, when it is imported: what draws stands above what is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

lines: Callable[[Any], str]  # a few lines of text
screen: Callable[[Any], str]  # a piece of HTML
table: Callable[[Any], DataFrame]  # every number
keep: Callable[[Any, Path], Path]  # its files in a folder; where the report is
