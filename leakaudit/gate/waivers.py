"""Waivers: somebody's decision to let a check of the gate go, for a reason and until a day."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from leakaudit.errors import UserError
from leakaudit.files.reading import short
from leakaudit.result.outcome import Check, WaiverState
from leakaudit.result.schema import Waiver

WHERE = "a [[tool.leakaudit.waiver]]"
KEYS = ("rule", "reason", "expires", "defense", "attack", "by")


def parse(blocks: Iterable[Any]) -> tuple[Waiver, ...]:
    """Read the blocks of the configuration. Raises UserError: rule, reason and expires are required."""
    return tuple(_waiver(block) for block in blocks)


def _waiver(block: Any) -> Waiver:
    if not isinstance(block, dict):
        raise UserError(f"{WHERE} must be a block of its own, not {short(block)}.")
    unknown = sorted(set(block) - set(KEYS))
    if unknown:
        raise UserError(f"{WHERE} has no setting {short(unknown[0])}; known: {', '.join(KEYS)}.")
    for key in ("rule", "reason", "expires"):
        if key not in block or (isinstance(block[key], str) and not block[key].strip()):
            raise UserError(f"{WHERE} has no {key}: every waiver names its rule, its reason and the day it expires.")
    day = block["expires"]
    if isinstance(day, dt.datetime):
        day = day.date()
    try:
        expires = (day if isinstance(day, dt.date) else dt.date.fromisoformat(day)).isoformat()
    except (ValueError, TypeError) as error:
        raise UserError(f"{WHERE} expires on {short(day)}, which is no day: write it as 2027-01-31.") from error
    words = {key: block[key] for key in ("rule", "reason", "defense", "attack", "by") if key in block}
    for key, value in words.items():
        if not isinstance(value, str):
            raise UserError(f"{WHERE} has {key} = {short(value)}: write it in quotes.")
    return Waiver(expires=expires, **words)


def is_over(waiver: Waiver, today: dt.date) -> bool:
    """Return whether the waiver's last day is over; one that nobody can read is."""
    try:
        return dt.date.fromisoformat(waiver.expires) < today
    except ValueError:  # of a stored result, whatever wrote it
        return True


def in_force(waivers: Sequence[Waiver], rule: str, defense: str, today: dt.date) -> tuple[Waiver, ...]:
    """Return the waivers that hold today for a rule on a defense, those for every attack first."""
    found = [w for w in waivers if not is_over(w, today) and _names(w, rule, defense)]
    return tuple(sorted(found, key=lambda w: w.attack != "*"))


def names_attack(waivers: Iterable[Waiver], attack: str) -> bool:
    """Return whether one of the waivers names the attack."""
    return any(fnmatchcase(attack, w.attack) for w in waivers)


def states(waivers: Sequence[Waiver], checks: Sequence[Check], today: dt.date) -> tuple[WaiverState, ...]:
    """Return what each waiver does: in force, expired (which fails the gate), or unused."""
    found = []
    for w in waivers:
        matched = tuple(c.id for c in checks if c.waiver is not None and _names(w, c.rule, c.defense))
        state = WaiverState(w, "expired" if is_over(w, today) else "in-force" if matched else "unused", matched)
        found.append(state)
    return tuple(found)


def _names(waiver: Waiver, rule: str, defense: str) -> bool:
    return fnmatchcase(rule, waiver.rule) and fnmatchcase(defense, waiver.defense)
