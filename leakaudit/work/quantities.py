"""Sizes of memory and times as people write them."""

from __future__ import annotations

import math
import re

from leakaudit.errors import Setting, UserError
from leakaudit.files.reading import short

UNITS = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse(text: str) -> int:
    """Read 4GB, 512MB, 2g or 1.5GiB as bytes; 2g is 2GB, of 10⁹ bytes each. Raises UserError for anything else."""
    found = re.fullmatch(r"\s*([0-9]{0,9}\.?[0-9]{1,9})\s*([kmgt]i?)b?\s*", text.lower())
    count = round(float(found[1]) * UNITS[found[2]]) if found else 0
    if count < 1:
        raise UserError(Setting("memory"), f" takes a size with its unit, like 512MB, 4GB or 2g, not {short(text)}.")
    return count


def readable(count: int, *, up: bool = False) -> str:
    """Return bytes to three digits as `parse` reads them: 3.25GB, 20MB. `up` rounds up, so that it is surely enough."""
    for unit in ("t", "g", "m", "k"):
        if count >= 0.9995 * UNITS[unit] or unit == "k":
            value = count / UNITS[unit]
            step = 1000 if value < 1 else 100 if value < 10 else 10 if value < 100 else 1
            value = (math.ceil if up else round)(value * step) / step
            break
    return f"{value:.15g}{unit.upper()}B"


def typed_bytes(count: float) -> str:
    """Return bytes to the last one, as `parse` reads them: 2GiB, 512MB, 1.234KB."""
    for unit in ("gi", "g", "mi", "m", "ki"):
        if count % UNITS[unit] == 0:
            return f"{int(count) // UNITS[unit]}{unit.upper().replace('I', 'i')}B"
    return f"{count / 1000:.3f}KB"


def seconds(text: str) -> float:
    """Read 90, 90s, 10m or 1.5h as seconds. Raises UserError for anything else."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(Setting("budget"), f" takes a time like 90s, 10m or 2h, not {short(text)}.")
    return value


def typed_seconds(value: float) -> str:
    """Return a time as `seconds` reads it, in the largest unit of which it is a whole number: 45s, 90m, 2h."""
    for unit, size in (("h", 3600), ("m", 60)):
        if value % size == 0:
            return f"{value / size:.15g}{unit}"
    return f"{value!r}s"
