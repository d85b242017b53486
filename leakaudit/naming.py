"""Settings of a scan as sentences name them: `--batch-size 8` in a terminal, `batch_size=8` in Python."""

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
            parts.append(known[setting.name] if name.endswith("=") else setting)
        elif name is not None:
            parts.append(format(facts[name], form or ""))
    return tuple(parts)


def said(parts: Iterable[str | Setting], spell: Spell = as_option) -> str:
    """Return parts as one text, each setting as `spell` has it."""
    return "".join(part if isinstance(part, str) else spell(part) for part in parts)
