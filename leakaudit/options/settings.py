"""Where settings come from: the command line, then LEAKAUDIT_… variables, then [tool.leakaudit], then the defaults.

The options of `scan` are the one table of them: a key in a file is an option's long name, a variable is that name in
capitals. The parser reads both; what is here finds the file, checks it, and knows afterwards what came from where.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

import typer

from leakaudit.errors import Setting, UserError, as_option, did_you_mean
from leakaudit.files.reading import short
from leakaudit.gate.pyproject import find, holds, read
from leakaudit.options.common import FROM
from leakaudit.protocol.usercode import folder_of

PREFIX = "LEAKAUDIT"
FROM_ENVIRONMENT = {"auto_envvar_prefix": PREFIX}  # of a command whose options are read from variables as well
DEBUG, CONFIG = f"{PREFIX}_DEBUG", f"{PREFIX}_CONFIG"
SEEN = "belongs on the command line, where everybody sees it"  # of an option that no file and no variable sets
WORDS = {bool: "true or false", int: "a whole number", float: "a number"}
RANKS = {"COMMANDLINE": 0, "ENVIRONMENT": 1, "DEFAULT_MAP": 2}  # what click calls the places, the nearest first
EXCLUSIVE = (("quick", "full"), ("quiet", "verbose"))  # flags, of which the one set nearer holds
# Options that change nothing of what is measured.
MANNERS = ("output", "quiet", "json", "open", "verbose", "config", "tensorboard")
# Those that only say where it is computed and what is kept: with and without a value.
PLACES, WAYS = ("workers", "executor", "cache"), ("fresh", "resume", "keep_intermediates")

_running: ContextVar[Any] = ContextVar("running", default=None)  # the context of the command


def configured(ctx: typer.Context, config: Path | None) -> Path | None:
    """Return the file that holds [tool.leakaudit], given or found, and make its options the command's defaults."""
    if ctx.resilient_parsing:
        return config
    target = ctx.params.get("target")
    path = config or find(*([folder_of(target)] if target else []), Path.cwd())
    if path is None:
        return None
    if config is not None and not holds(config):
        raise UserError(f"--config {config} has no table [tool.leakaudit]: name a file that has it.")
    table, scan = read(path).scan, scan_of(ctx)
    known, defaults = options(scan), {}
    for key, value in table.items():
        param = known.get(key.replace("-", "_"))
        if param is None:
            names = sorted(name.replace("_", "-") for name, param in known.items() if param.allow_from_autoenv)
            guess = did_you_mean(key.replace("_", "-"), names)
            raise UserError(f"{path}: [tool.leakaudit] has no setting {short(key)}{guess}; known: {', '.join(names)}.")
        if not param.allow_from_autoenv:
            raise UserError(f"{path}: {key} {SEEN}.")
        defaults[param.name] = checked(scan.callback, param.name, f"{path}: [tool.leakaudit] {key}", value)
    ctx.default_map = {param.name: defaults[param.name] for param in ctx.command.params if param.name in defaults}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read [tool.leakaudit] of this file. Default: the nearest pyproject.toml that has it, from the model's "
        "folder (or this one) upwards.",
        is_eager=True,
        callback=configured,
        envvar=CONFIG,
        allow_from_autoenv=False,
        rich_help_panel=FROM,
    ),
]


def scan_of(ctx: typer.Context) -> Any:
    """Return the command whose options are the settings."""
    root: Any = ctx.find_root().command
    return root.commands["scan"]


def options(command: Any) -> dict[str, Any]:
    """Return the options of a command by their long names, with underscores."""
    named = ((option, param) for param in command.params for option in param.opts)
    return {option[2:].replace("-", "_"): param for option, param in named if option.startswith("--")}


def checked(command: Callable[..., Any], name: str, place: str, value: Any) -> Any:
    """Return a value of a table for the parameter `name` of a command; UserError, naming `place`, for another type.

    The parser of the command line would take 1.5 for 1, true for 1, and a list for a path.
    """
    hint = get_type_hints(command)[name]
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not NoneType]
    wanted = "a text or a list of texts" if kinds == [list[str]] else WORDS.get(kinds[0], "a text in quotes")
    wrong = UserError(f"{place} is {short(value)}: write {wanted}.")
    if kinds == [list[str]]:
        several = [value] if isinstance(value, str) else value
        if isinstance(several, list) and all(isinstance(each, str) for each in several):
            return several
        raise wrong
    found, (kind,) = type(value), kinds
    if found is (kind if kind in WORDS else str) or (kind is float and found is int):
        return value
    raise wrong


@contextmanager
def noting() -> Iterator[None]:
    """Know within which command runs, and from where its settings came."""
    token = _running.set(None)
    try:
        yield
    finally:
        _running.reset(token)


def note(ctx: typer.Context) -> None:
    """Say that this command runs now, and let a flag give way to its opposite that was set nearer."""
    _running.set(ctx)
    for pair in EXCLUSIVE:
        if all(ctx.params.get(name) for name in pair):
            ranks = {name: RANKS.get(_source(ctx, name), len(RANKS)) for name in pair}
            ctx.params |= {name: False for name in pair if ranks[name] > min(ranks.values())}


def placed(ctx: typer.Context, name: str) -> str:
    """Return what a reader must look at where a parameter's value came neither by the command line nor by default."""
    source, value = _source(ctx, name), (ctx.default_map or {}).get(name)
    param = next((param for param in ctx.command.params if param.name == name), None)
    if source == "ENVIRONMENT" and param is not None:
        variable = CONFIG if name == "config" else variable_of(name)
        return f"the variable {variable} is {short(os.environ.get(variable, ''))}"
    if source == "DEFAULT_MAP":
        return f"{ctx.params.get('config')}: [tool.leakaudit] {name.replace('_', '-')} is {short(value)}"
    return ""


def variable_of(name: str) -> str:
    """Return the variable that sets a parameter."""
    return f"{PREFIX}_{name.upper()}"


def _source(ctx: typer.Context, name: str) -> str:
    return str(getattr(ctx.get_parameter_source(name), "name", ""))


def spelled(setting: Setting) -> str:
    """Return a setting as whoever set it wrote it: an option, a variable, a key of a file."""
    option, ctx = as_option(setting), _running.get()
    name = option[2:].replace("-", "_")
    source = "" if ctx is None else _source(ctx, name)
    if source == "ENVIRONMENT":
        return variable_of(name)
    if source == "DEFAULT_MAP":
        return f"{option[2:]} in {ctx.params.get('config')}"
    return option


def elsewhere() -> list[str]:
    """Return as words of a command line what of a measurement was set elsewhere, by variables or a file."""
    ctx, found = _running.get(), []
    for param in () if ctx is None else ctx.command.params:
        value = ctx.params.get(param.name)
        if _source(ctx, param.name) not in ("ENVIRONMENT", "DEFAULT_MAP") or param.name in (*MANNERS, *PLACES, *WAYS):
            continue
        if value is None or value is False:
            continue
        option = next(each for each in param.opts if each.startswith("--"))
        for each in value if isinstance(value, list | tuple) else [value]:
            found += [option] if value is True else [option, str(getattr(each, "value", each))]
    return found


def unknown(ctx: typer.Context) -> list[str]:
    """Return a sentence for every variable that looks like a setting of ours and is none."""
    mine = [name for name in sorted(os.environ) if name.startswith(f"{PREFIX}_")]
    known, refused = {DEBUG, CONFIG}, set[str]()
    for command in getattr(ctx.find_root().command, "commands", {}).values() if mine else ():
        for param in command.params if command.context_settings.get("auto_envvar_prefix") else ():
            if hasattr(param, "allow_from_autoenv"):
                (known if param.allow_from_autoenv else refused).add(variable_of(param.name))
    return [
        f"the variable {name} {SEEN}, and is not read."
        if name in refused
        else f"no setting is called by the variable {short(name)}{did_you_mean(name, sorted(known))}; it is not read."
        for name in mine
        if name not in known
    ]


def command_line() -> str:
    """Return the command as it was typed, quoted for a shell, with what variables and files added to it.

    Where its files go, where it is computed and what is kept are no part of what repeats it.
    """
    words, kept = iter(sys.argv[1:]), ["leakaudit"]
    valued = ["--output", *(f"--{name}" for name in PLACES)]
    flags = ["--open", *(f"--{name.replace('_', '-')}" for name in WAYS)]
    for word in words:
        if word == "--":  # what follows are no options
            kept += [word, *words]
        elif word in ("-o", *valued):
            next(words, None)
        elif word not in flags and word.partition("=")[0] not in valued and not (word[:2] == "-o" and len(word) > 2):
            kept.append(word)
    return shlex.join([*kept[:2], *elsewhere(), *kept[2:]])
