"""What can go wrong for a user, as one sentence that names the thing, the setting and the mend.

A setting in a sentence is a value that every surface spells: `--batch-size 8` in a terminal, `batch_size=8` in Python.

What an exception of other code says can hold private records. It is quoted only within `quoting(True)`, which whoever
begins an audit installs where the result may hold records in full; elsewhere its type and line stand for it.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
    "--all-attacks": Setting("all_attacks", True),
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return which of the known names, three at most, may have been meant, to stand after one that is not known."""
    close = [repr(each) for each in difflib.get_close_matches(name, list(known), n=3)]
    return f" (did you mean {' or '.join(close)}?)" if close else ""


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


class Untouched(UserError):
    """A command was refused before it changed anything: what an earlier one left stays where it is."""


class Unfinished(UserError):
    """What was begun does not come to its end now; what is done of it is kept, and the same command goes on with it."""


class NotApplicable(Exception):
    """An attack cannot be run on this model or update. The message is the reason; the status is `not-applicable`."""


class Interrupted(KeyboardInterrupt):
    """An interrupt with something to tell: the message is a sentence of leakaudit's own, for a terminal."""


class OutOfTime(Exception):
    """The time budget ended work that is worth nothing unfinished. The message is the reason, `budget` the status."""


class TooLittleMemory(MemoryError):
    """What cannot be done in pieces takes more than the limit that was set, or than there is."""


OWN = (UserError, NotApplicable, OutOfTime, TooLittleMemory)  # what they say is a sentence, and needs no type before it


@dataclass
class _Quoting:
    full: bool
    left_out: bool = False  # whether a text was kept back


_quoting: ContextVar[_Quoting | None] = ContextVar("quoting", default=None)


@contextmanager
def quoting(full: bool) -> Iterator[None]:
    """Say whether texts of exceptions that are not leakaudit's own are told within. Outside of any they are not."""
    outer, inner = _quoting.get(), _Quoting(full)
    token = _quoting.set(inner)
    try:
        yield
    finally:
        _quoting.reset(token)
        if outer is not None:
            outer.left_out |= inner.left_out


def quote(full: bool) -> None:
    """Say so from here to the end of the enclosing `quoting`: once a command knows its options."""
    if (installed := _quoting.get()) is not None:
        installed.full = full


def quotes() -> bool:
    """Return whether texts of other code's exceptions are told here."""
    installed = _quoting.get()
    return installed is not None and installed.full


def left_out() -> str:
    """Return the sentence for a terminal on which the text of an exception was kept back, empty where none was."""
    installed = _quoting.get()
    if installed is None or not installed.left_out:
        return ""
    return (
        "what an exception says is left out where CI=true and below --images full, since it can hold data of "
        "records: --images full shows it."
    )


def first_line(error: BaseException, *, placed: bool = True) -> str:
    """Return an exception as one line without a full stop: its type, and the first line of what it says.

    What leakaudit itself says of an input is a sentence and needs no type. What any other code says is told within
    `quoting(True)` alone; elsewhere its type is, and where it is `placed` the line in the user's own code.
    """
    own = isinstance(error, OWN)
    if not quotes() and not (own and _ours(error)):
        if (installed := _quoting.get()) is not None:
            installed.left_out = True
        return _kind(type(error)) + (line_of(error) if placed else "")
    lines = message_of(error).strip().splitlines()
    text = lines[0].rstrip(".") if lines else ""
    text = text if len(text) <= 300 else f"{text[:299]}…"
    if own and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def message_of(error: BaseException) -> str:
    """Return what an exception says; nothing where its own code fails at that."""
    try:
        return str(error)
    except Exception:
        return ""


def sentence(error: UserError) -> UserError:
    """Return an error that says what may be said here: this one, or what stands for one that other code raised."""
    return error if quotes() or _ours(error) else UserError(first_line(error), ".")


def system_line(error: OSError) -> str:
    """Return what the operating system refused, without a full stop: the file and why, or what may be told of it."""
    plain = error.errno is not None and error.strerror == os.strerror(error.errno)
    if not quotes() and not (plain and _ours(error)):
        return first_line(error)
    where = f" {error.filename}" if error.filename else ""
    return f"cannot read or write{where}: {error.strerror or error}"


def line_of(error: BaseException) -> str:
    """Return ", line N of file.py" of the deepest frame in the user's own code, or nothing."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file.endswith(".py") and not is_installed(file) and not _of_leakaudit(frame.f_globals):
            name = os.path.basename(file)
            # Code that was compiled from a text may call its file anything.
            told = name if len(name) <= 60 and os.path.isfile(file) else "a file"
            found = f", line {line} of {told}"
    return found


def is_installed(file: str) -> bool:
    """Return whether a file belongs to Python or to an installed package, in whatever environment."""
    import sysconfig

    if re.search(r"[\\/](site|dist)-packages[\\/]", file):  # a user's own, or the system's beneath an environment
        return True
    places = [sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(file.startswith(place) for place in places)


def class_name(cls: type) -> str:
    """Return the name of a class, if it can be looked up under it; empty where code made it up, maybe from data."""
    try:
        name, module = (str(type.__getattribute__(cls, key)) for key in ("__qualname__", "__module__"))
    except Exception:  # a class may be made without either, or with anything in their place
        return ""
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    plain = name.replace(".", "_")
    short = name.rpartition(".")[2]
    return short if found is cls and plain.isascii() and plain.isidentifier() and len(name) <= 60 else ""


def _kind(cls: type) -> str:
    return class_name(cls) or "an exception"


def _ours(error: BaseException) -> bool:
    """Whether a line of leakaudit's raised it: what other code raises is its text, whatever class it takes."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or not _of_leakaudit(frames[-1].f_globals):
        return False
    module = sys.modules.get(type(error).__module__)  # a class of somebody's own may say anything
    return _of_leakaudit(getattr(module, "__dict__", {}))


def _of_leakaudit(names: dict[str, object]) -> bool:
    """Whether these are the global names of a module of leakaudit."""
    module = str(names.get("__name__"))
    return module.split(".")[0] == "leakaudit" and getattr(sys.modules.get(module), "__dict__", None) is names
