"""When something was made: moments in UTC to the second, as text that sorts by time."""

from __future__ import annotations

import datetime as dt
import os

from leakaudit.errors import UserError
from leakaudit.result.schema import AuditResult

FORM = "%Y-%m-%dT%H:%M:%SZ"  # ISO 8601
EPOCH = "SOURCE_DATE_EPOCH"  # what builds set that must repeat: https://reproducible-builds.org/specs/source-date-epoch
UNKNOWN = "not recorded"


def now() -> str:
    """Return the present moment in UTC, say "2026-11-27T01:20:00Z"; where SOURCE_DATE_EPOCH is set, the one it names.

    Raises UserError where that is no whole number of seconds since 1970.
    """
    return _moment().strftime(FORM)


def today() -> dt.date:
    """Return the present day in UTC; SOURCE_DATE_EPOCH counts here too. Raises as `now`."""
    return _moment().date()


def _moment() -> dt.datetime:
    given = os.environ.get(EPOCH)
    if given is None:
        return dt.datetime.now(dt.UTC)
    try:
        if not given.isascii() or not given.isdecimal() or len(given) > 12:
            raise ValueError(given)
        return dt.datetime.fromtimestamp(int(given), dt.UTC)
    except (ValueError, OverflowError, OSError):
        raise UserError(f"{EPOCH} must be whole seconds since 1970, not {given[:40]!r}.") from None


def is_moment(text: str) -> bool:
    """Return whether a text is a moment as `now` writes it."""
    try:
        return dt.datetime.strptime(text, FORM).strftime(FORM) == text
    except ValueError:
        return False


def words(moment: str) -> str:
    """Return a moment as people read it, "2026-11-27 01:20:00 UTC"; "not recorded" for none."""
    return moment.replace("T", " ").replace("Z", " UTC") if moment else UNKNOWN


def commit_of(result: AuditResult) -> str:
    """Return the commit of the model's code, empty where the audit knew none."""
    return str(result.environment.get("commit") or "")


def origin(result: AuditResult) -> tuple[tuple[str, str], ...]:
    """Return when, with which leakaudit and on which code a result was made: pairs of what it is and its words."""
    return (
        ("Audited", words(result.made)),
        ("leakaudit", str(result.environment.get("leakaudit") or UNKNOWN)),
        ("Commit of the model’s code", commit_of(result) or UNKNOWN),
    )
