"""What every command is: options in groups on its help screen, and a word on settings that came from elsewhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from leakaudit.errors import UserError
from leakaudit.options import settings
from leakaudit.options.common import FROM, JUDGED, SCENE, SPREAD, TOLD, WHAT, WORK
from leakaudit.result.plaintext import visible

HEADINGS = ("Arguments", WHAT, WORK, SPREAD, SCENE, JUDGED, TOLD, FROM, "Other options")
NUMBERS = {
    "Input should be a valid integer": "it takes a whole number",
    "Input should be a valid number": "it takes a number",
}
WIDEST = 26  # letters of an option's name and value, beside which its help begins on the same line

# Typer carries its own copy of click in newer versions, so what click calls these is written down nowhere here.
Formatter = Any
if TYPE_CHECKING:
    Context = Any


class Command(TyperCommand):
    """A command of leakaudit."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        params: list[Any] = self.params
        for param in params:
            param.show_envvar = False  # every option has one, by one rule that the help says once

    def parse_args(self, ctx: Context, args: list[str]) -> Any:
        """Read options; a bad value that came from a variable or a file is one sentence that names it."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = _plainly(error)
            place = settings.placed(ctx, str(getattr(error.param, "name", "")))
            if place:
                raise UserError(f"{place}: {error.message}.") from error
            raise
        except Exception as error:
            told: Any = error  # of an option that there is not; its class is named nowhere, as below
            if difflib.get_close_matches(str(getattr(error, "option_name", "")), ["--battery"]):
                told.possibilities = ["--quick", "--full"]  # without either it is the standard one
            raise

    def invoke(self, ctx: Context) -> Any:
        """Run it, knowing from where its settings came."""
        settings.note(ctx)
        if ctx.auto_envvar_prefix and not ctx.params.get("quiet"):
            for line in settings.unknown(ctx):
                typer.echo(f"leakaudit: warning: {visible(line)}", err=True)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the words of the line that shows how it is called."""
        named = [param for param in self.get_params(ctx) if param.param_type_name == "argument"]
        return ["[OPTIONS]", *(str(p.metavar) if p.required else f"[{p.metavar}]" for p in named)]

    def format_options(self, ctx: Context, formatter: Formatter) -> None:
        """Write the options under the headings that they were given."""
        write_groups(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group of commands."""

    def format_options(self, ctx: Context, formatter: Formatter) -> None:
        """Write the commands under the headings that they were given, and then the options."""
        self.format_commands(ctx, formatter)
        write_groups(self.get_params(ctx), ctx, formatter)

    def format_commands(self, ctx: Context, formatter: Formatter) -> None:
        """Write the commands under their headings."""
        widest = max(map(len, self.commands))
        found: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            told = command.get_short_help_str(formatter.width - widest)
            heading = getattr(command, "rich_help_panel", None) or "Commands"
            found.setdefault(heading, []).append((name.ljust(widest), told))
        for heading, rows in found.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


def _plainly(error: typer.BadParameter) -> str:
    """Return why a value is refused, in words of ours where what checked it has only its own."""
    why = str(error.message).removeprefix("Value error, ").rstrip(".")
    return next((ours for theirs, ours in NUMBERS.items() if why.startswith(theirs)), why)


def write_groups(params: Iterable[Any], ctx: Context, formatter: Formatter) -> None:
    """Write parameters under the headings that they were given, the others at the end."""
    found: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        row = param.get_help_record(ctx)
        if row is not None:
            usual = HEADINGS[-1]
            if param.param_type_name == "argument":
                usual, row = HEADINGS[0], (str(param.metavar), row[1])
            found.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(row)
    for heading in sorted(found, key=HEADINGS.index):
        with formatter.section(heading):
            formatter.write_dl(found[heading], col_max=WIDEST)
