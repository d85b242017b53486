"""What `leakaudit cache` says of a shelf, as lines and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from leakaudit.result.plaintext import visible
from leakaudit.spread.inventory import DAY, Inventory, Kept, Unfinished
from leakaudit.units.shelf import Claim

UNITS = ("bytes", "kB", "MB", "GB", "TB")
WIDTH = 79


def lines(found: Inventory) -> Iterator[str]:
    """Yield what a shelf holds, none wider than 79 columns but where a name is."""
    kept = found.kept
    yield f"{found.shelf.folder}"
    yield f"{counted(len(kept), 'outcome')}, {sized(kept)}" + (":" if kept else "")
    if kept:
        yield ""
        yield f"{'kind':<12} {'outcomes':>9} {'size':>10}  last used"
        for kind in sorted({each.kind for each in kept}):
            alike = [each for each in kept if each.kind == kind]
            ago = max(each.used for each in alike)
            yield f"{kind or 'unreadable':<12} {len(alike):>9} {sized(alike):>10}  {_days(ago)}"
    private, shown = [e for e in kept if e.private], [e for e in kept if e.shows and not e.private]
    if private:
        yield ""
        yield f"Private, removed when their scans end: {counted(len(private), 'outcome')}, {sized(private)}."
    if shown:
        yield ""
        yield f"With private pictures or what was learned of them (--images full): {counted(len(shown), 'outcome')},"
        yield f"{sized(shown)}. They stay until they are cleared; only you can read them."
    if found.unfinished:
        yield from ("", "Unfinished scans (the same command goes on with one):")
        yield from map(_scan, found.unfinished)
    if found.claims:
        yield from ("", "At work now:")
        yield from map(_at_work, found.at_work)


def gone(removed: Sequence[Kept], found: Inventory) -> str:
    """Say what was removed."""
    left = len(found.kept) - len(removed)
    return f"removed {counted(len(removed), 'outcome')}, {sized(removed)}" + (f"; {left} stay" if left else "")


def as_json(found: Inventory, removed: Sequence[Kept] | None) -> dict[str, Any]:
    """Return the same as one JSON document; `removed` is None where nothing was to be."""
    kinds: dict[str, dict[str, int]] = {}
    for each in found.kept:
        row = kinds.setdefault(each.kind or "unreadable", {"outcomes": 0, "bytes": 0, "private": 0, "shows_records": 0})
        row["outcomes"] += 1
        row["bytes"] += each.size
        row["private"] += each.private
        row["shows_records"] += each.shows
    return {
        "folder": str(found.shelf.folder),
        "outcomes": len(found.kept),
        "bytes": sum(each.size for each in found.kept),
        "kinds": kinds,
        "unfinished": [
            {
                "job": each.scan.id,
                "target": each.scan.request.target,
                "begun": datetime.fromtimestamp(each.scan.began, UTC).isoformat(timespec="seconds"),
                "pieces": each.pieces,
                "running": each.runs,
                "version": each.scan.version,
            }
            for each in found.unfinished
        ],
        "at_work": [{"host": c.host, "process": c.pid, "work": c.work} for c in found.at_work],
        "removed": None if removed is None else {"outcomes": len(removed), "bytes": sum(e.size for e in removed)},
    }


def counted(count: int, what: str) -> str:
    """Return `1 outcome`, `3 outcomes`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def sized(kept: Sequence[Kept]) -> str:
    """Return how large outcomes are together: `340 kB`."""
    size, unit = float(sum(each.size for each in kept)), 0
    while size >= 1000 and unit + 1 < len(UNITS):
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 10 else f"{size:.1f} {UNITS[unit]}"


def _days(then: float) -> str:
    days = int((time.time() - then) / DAY)
    return "today" if days < 1 else f"{counted(days, 'day')} ago"


def _scan(each: Unfinished) -> str:
    begun = datetime.fromtimestamp(each.scan.began, UTC).astimezone()
    more = ", running" if each.runs else ""
    told = f"  begun {begun:%Y-%m-%d %H:%M}, {counted(each.pieces, 'piece')} done{more}  "
    return told + _short(each.scan.request.target, WIDTH - len(told))


def _at_work(claim: Claim) -> str:
    who = f"  {claim.host.partition('/')[0][:24]} (process {claim.pid})  "
    return who + _short(claim.work, WIDTH - len(who))


def _short(text: str, room: int) -> str:
    text = visible(text, 5_000)
    return text if len(text) <= room else f"…{text[-max(10, room - 1) :]}"
