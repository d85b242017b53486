"""How a command fails: whatever ends it as one sentence and an exit code."""

from __future__ import annotations

from leakaudit.errors import UserError, first_line, line_of, message_of, sentence, system_line
from leakaudit.options import settings
from leakaudit.options.common import INTERNAL, USAGE
from leakaudit.protocol.usercode import of_users


def failed(error: Exception) -> tuple[str, int]:
    """Return what to say of an error, each setting as whoever set it wrote it, and the exit code."""
    if isinstance(error, UserError):
        return _spelled(sentence(error)), USAGE
    if isinstance(error, OSError):
        return f"{system_line(error)}.", USAGE
    if of_users(error):
        told = first_line(error, placed=False)
        return f"code of yours fails{line_of(error)} ({told}): mend that.", USAGE
    return f"internal error: {first_line(error)}", INTERNAL


def _spelled(error: UserError) -> str:
    try:
        return error.spelled(settings.spelled)
    except Exception:  # a class of somebody's own
        return message_of(error)
