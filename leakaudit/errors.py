"""What can go wrong for a user, as one sentence that names the thing, the setting and the mend.

A setting in a sentence is a value that every surface spells: `--batch-size 8` in a terminal, `batch_size=8` in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Formatter


@dataclass(frozen=True)
class Setting:
    """A setting that a sentence asks for, by the name of its argument, and its value where one is known."""

    name: str
    value: str | int | float | bool | None = None


Spell = Callable[[Setting], str]
FLAGS = {  # options that are no argument of the same name
    "--quick": Setting("battery", "quick"),
    "--full": Setting("battery", "full"),
    "--no-utility": Setting("utility", False),
    "--attack": Setting("attacks"),
}
_BY_SETTING = {setting: flag for flag, setting in FLAGS.items()}


def as_option(setting: Setting) -> str:
    """Return a setting as the command line takes it: `--records 40`, `--full`."""
    flag = _BY_SETTING.get(setting)
    if flag is not None:
        return flag
    name = _BY_SETTING.get(Setting(setting.name), "--" + setting.name.replace("_", "-"))
    return name if setting.value is None else f"{name} {setting.value}"


def as_argument(setting: Setting) -> str:
    """Return a setting as Python takes it: `records=40`, `battery='full'`."""
    if setting.name in ("data", "output"):  # what is meant is plain, and the value may be a path
        return "the data" if setting.name == "data" else f"output {setting.value or ''}".strip()
    return setting.name if setting.value is None else f"{setting.name}={setting.value!r}"


def worded(template: str, needs: Iterable[Setting] = (), **facts: object) -> tuple[str | Setting, ...]:
    """Return a sentence in parts. A setting is written `{--records}`, `{--mode eval}`, with its value `{--records=}`.

    That value is the one among `needs`; whatever else stands in braces is among `facts`. Templates are ours: text of
    users comes as a value.
    """
    known = {need.name: need for need in needs}
    parts: list[str | Setting] = []
    for text, name, form, _ in Formatter().parse(template):
        parts.append(text)
        if name is not None and name.startswith("--"):
            flag, _, value = name.removesuffix("=").partition(" ")
            setting = FLAGS.get(flag) or Setting(flag[2:].replace("-", "_"), value or None)
            parts.append(known.get(setting.name, setting) if name.endswith("=") else setting)
        elif name is not None:
            parts.append(format(facts[name], form or ""))
    return tuple(parts)


def said(parts: Iterable[str | Setting], spell: Spell = as_option) -> str:
    """Return parts as one text, each setting as `spell` has it."""
    return "".join(part if isinstance(part, str) else spell(part) for part in parts)


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


class OutOfTime(Exception):
    """The time budget ended work that is worth nothing unfinished. The message is the reason, `budget` the status."""


def first_line(error: BaseException) -> str:
    """Return an exception as one line without a full stop: its type, and the first line of what it says.

    What leakaudit itself says of an input is a sentence and needs no type.
    """
    lines = str(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    text = text if len(text) <= 300 else f"{text[:299]}…"
    if isinstance(error, UserError | NotApplicable | OutOfTime) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
