"""The reference of commands in `docs/command-line.md`, from the commands themselves.

`python -m tests.command_reference` writes it anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer.main

from leakaudit.cli.entry import app
from leakaudit.options.settings import CONFIG, variable_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "command-line.md"
BEGIN = "<!-- from here on written by `python -m tests.command_reference` -->"


def reference() -> str:
    """Return the Markdown of every command: what it does, its options, where else these may be set, and examples."""
    return "\n".join(["## Every command", "", *_of(typer.main.get_command(app), "leakaudit")]).rstrip() + "\n"


def _of(group: Any, before: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _of(command, f"{before} {name}")
            continue
        yield from (f"### {before} {name}", "")
        yield from (" ".join(part.split()) + "\n" for part in command.help.split("\n\n"))
        visible = [param for param in command.params if not getattr(param, "hidden", False)]
        named = [param for param in visible if param.param_type_name == "argument"]
        words = [str(param.metavar) if param.required else f"[{param.metavar}]" for param in named]
        yield from (f"`{' '.join([f'{before} {name}', *words, '[OPTIONS]'])}`", "", "```bash")
        shown = command.epilog.replace("\b", "").split("\n\n")[0].strip().splitlines()[1:]
        yield from (*(line.strip() for line in shown), "```", "")
        yield from ("| option | variable | default | what it does |", "|---|---|---|---|")
        yield from (_row(command, param) for param in (*named, *(p for p in visible if p not in named)))
        yield ""


def _row(command: Any, param: Any) -> str:
    option = param.param_type_name == "option"
    told = ", ".join(f"`{name}`" for name in sorted(param.opts, key=len)) if option else ""
    value = f" `{param.metavar}`" if param.metavar else ""
    read = option and param.allow_from_autoenv and command.context_settings.get("auto_envvar_prefix")
    variable = f"`{CONFIG}`" if param.name == "config" else f"`{variable_of(param.name)}`" if read else ""
    default = param.default.value if isinstance(param.default, Enum) else param.default
    default = "" if default is None or default is False or default == "" else f"`{default}`"
    return f"| {told or value.strip()}{value if told else ''} | {variable} | {default} | {_cell(param.help)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|").replace("[", r"\[")


def page() -> str:
    """Return the whole page as it should stand."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[0] + BEGIN + "\n\n" + reference()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
