"""What can go wrong for a user, as one sentence that names the thing, the setting and the mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or configuration: shown as one sentence without a traceback, exit code 2."""


class NotApplicable(Exception):
    """An attack cannot be run on this model or update. The message is the reason; the status is `not-applicable`."""


def first_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    text = text if len(text) <= 160 else f"{text[:159]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
