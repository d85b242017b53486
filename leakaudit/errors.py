"""What can go wrong for a user, as one sentence that names the thing, the setting and the mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or configuration: shown as one sentence without a traceback, exit code 2."""


class NotApplicable(Exception):
    """An attack cannot be run on this model or update. The message is the reason; the status is `not-applicable`."""
