"""What may leave at which level of pictures: the level by default, how paths are written, how much a plug-in may tell.

A plug-in is code that sees records, and what it says goes into every output. Below `full` its texts are kept short and
without rows of numbers, which stops what slips out; no rule here stops code that wants to leak.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from leakaudit.result.schema import Images, Value


MOST_TEXTS, MOST_LETTERS, MOST_NUMBERS = 8, 200, 3  # of what a plug-in says of one thing, and in each text
WITHHELD = "left out: --images full shows it"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OUTSIDE = re.compile(
    r"(?<![\w./~:…\\-])/(?:[^/\s'\":=,;()]+/)+(?=[^/\s'\":=,;()])"
)  # of a path the folders, from the root
T = TypeVar("T")


def in_ci() -> bool:
    """Return whether this runs for nobody in particular: where CI=true."""
    return os.environ.get("CI", "").lower() in ("1", "true")


def default_images() -> Images:
    """Return how pictures appear where nobody says: in full, redacted where CI=true."""
    return "redacted" if in_ci() else "full"


def in_place(text: str, images: str = "full") -> str:
    """Return a text with its paths as others may read them: no folder of whoever ran the audit.

    What lies in the present folder is named from there, what lies in the home folder from `~`; below `full` any other
    path from the root is its last part after `…/`.
    """
    if "/" not in text:
        return text
    for folder, alone in ((_folder(Path.cwd), "."), (_folder(Path.home), "~")):
        if len(folder) > 1:
            below = "" if alone == "." else f"{alone}/"
            text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}/(?=[\w.])", below, text)
            text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}(?![\w.-])", alone, text)
    return text if images == "full" else _OUTSIDE.sub("…/", text)


def command_in_place(command: str, images: str) -> str:
    """Return a shell's command line likewise; a shell expands `~` at the start of a word, outside of quotes."""
    return re.sub(r"(--[\w-]+)=(?='?~/)", r"\1 ", in_place(command, images)).replace("'~/", "~/'")


def _folder(find: Callable[[], Path]) -> str:
    try:
        return str(find())
    except (OSError, RuntimeError):  # removed meanwhile, or nobody's
        return ""


def all_in_place(value: T, images: str) -> T:
    """Return values, dataclasses and mappings with every text in them as `in_place` has it; pictures stay."""
    from leakaudit.result.schema import Picture  # late: every command asks for a level, and few read a result

    found: Any = value
    if isinstance(value, str):
        found = in_place(value, images)
    elif isinstance(value, Picture):
        found = replace(value, label=in_place(value.label, images))
    elif is_dataclass(value) and not isinstance(value, type):
        found = replace(value, **{f.name: all_in_place(getattr(value, f.name), images) for f in fields(value)})
    elif isinstance(value, tuple):
        found = tuple(all_in_place(each, images) for each in value)
    elif isinstance(value, Mapping):
        found = {in_place(str(key), images): all_in_place(each, images) for key, each in value.items()}
    answer: T = found
    return answer


def modest(text: str) -> str:
    """Return what a plug-in says if it is short and holds no row of numbers; else that it was left out."""
    short = len(text) <= MOST_LETTERS and len(_NUMBER.findall(text)) <= MOST_NUMBERS
    return text if short else WITHHELD


def modest_values(values: Mapping[str, Any], most: int = MOST_TEXTS) -> dict[str, Value]:
    """Return named values of a plug-in: so many, numbers to four digits, and texts and names that are `modest`."""
    found: dict[str, Value] = {}
    for name, value in list(values.items())[:most]:
        told: Value = modest(str(value))
        if value is None or isinstance(value, bool):
            told = value
        elif isinstance(value, int | float):
            told = float(f"{value:.4g}") if isinstance(value, float) else max(-(2**53), min(value, 2**53))
        found[modest(str(name))] = told
    return found
