"""What can go wrong for a user, as one sentence that names the thing, the setting and the mend."""

from __future__ import annotations

from leakaudit.naming import Setting, Spell, as_option, said


class UserError(Exception):
    """Bad input or configuration: shown as one sentence without a traceback, exit code 2.

    The sentence is given in parts; a `Setting` among them is spelled by whoever shows it, as an option by default.
    """

    def __init__(self, *parts: str | Setting) -> None:
        super().__init__(*parts)
        self.parts = parts

    def __str__(self) -> str:
        """Return the sentence for somebody at the command line."""
        return self.spelled(as_option)

    def spelled(self, spell: Spell) -> str:
        """Return the sentence with its settings spelled by `spell`."""
        return said(self.parts, spell)


class NotApplicable(Exception):
    """An attack cannot be run on this model or update. The message is the reason; the status is `not-applicable`."""


def first_line(error: BaseException) -> str:
    """Return an exception as one line without a full stop: its type, and the first line of what it says.

    What leakaudit itself says of an input is a sentence and needs no type.
    """
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    text = text if len(text) <= 300 else f"{text[:299]}…"
    if isinstance(error, UserError | NotApplicable) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
