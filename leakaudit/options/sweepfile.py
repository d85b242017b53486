"""A sweep file: models, moments of training, defenses and their strengths, read and written out as a list of scans.

    models = ["model.py", { target = "other.py:make", checkpoint = "late.safetensors", name = "late" }]
    stages = ["early", "trained"]

    [scan]
    records = 32

    [[defenses]]
    spec = "gaussian"
    std = [0.01, 0.1, 1.0]

Paths are relative to the file's folder. The keys of `[scan]` are options of `leakaudit scan`, checked as those of
`[tool.leakaudit]` are.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from inspect import signature
from itertools import product
from math import prod
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from leakaudit.errors import UserError, as_option, did_you_mean
from leakaudit.files.reading import short
from leakaudit.files.tomlfile import table_of
from leakaudit.files.typed import Misfit, typed
from leakaudit.options.settings import checked
from leakaudit.protocol.usercode import is_file, named, registers
from leakaudit.result.outward import default_images
from leakaudit.result.rules import STAGES
from leakaudit.result.specs import split

if TYPE_CHECKING:
    from leakaudit.scene.plan import Plan

MOST = 1000  # scans of one sweep
LONGEST = 100  # characters of a folder's name
# The options that all scans of a sweep share; where the others of `scan` are said instead.
SHARED = (
    *("attack", "quick", "full", "all_attacks", "records", "budget", "memory", "no_utility", "seeds", "epochs"),
    *("candidates", "batch_size", "client", "mode", "exposure", "device", "seed"),
    *("max_identification", "max_accuracy_loss", "images", "lpips_weights"),
)
INSTEAD = {
    "defense": "defenses stand in a list of their own",
    "stages": "stages stand at the top of the file",
    "data": "data is a model's: models = [{ target = …, data = … }]",
    "checkpoint": "a checkpoint is a model's: models = [{ target = …, checkpoint = … }]",
    "output": "the folder is --output of leakaudit sweep",
}
Value = str | int | float | bool


@dataclass(frozen=True)
class Model:
    """A model of a sweep. The file's paths are relative to it; these are from the present folder."""

    target: str
    name: str = ""  # what it is called in the report; empty: its target
    data: str = ""
    checkpoint: str = ""


@dataclass(frozen=True)
class File:
    """A sweep file as it stands, but for `[scan]`."""

    models: tuple[str | Model, ...]
    stages: tuple[str, ...] = ()
    defenses: tuple[str | dict[str, Value | tuple[Value, ...]], ...] = ()


@dataclass(frozen=True)
class Strength:
    """One defense with one value of every setting that is varied; without a `spec` the undefended model alone."""

    spec: str = ""
    line: str = ""  # the same for all that differ in the last setting alone
    values: dict[str, Value] = field(default_factory=dict)  # of the settings that are varied


@dataclass(frozen=True)
class Asked:
    """What a sweep file asks for, checked as far as that needs no library."""

    path: Path
    models: tuple[Model, ...]
    stages: tuple[str, ...]  # one empty one: the weights as they are given
    strengths: tuple[Strength, ...]
    options: dict[str, Any]  # of `scan`, by its parameters, defaults included
    written: dict[str, Any]  # of these the ones that stand in the file

    @property
    def count(self) -> int:
        """How many scans it is."""
        return len(self.models) * len(self.stages) * len(self.strengths)


@dataclass(frozen=True)
class Scan:
    """One scan of a sweep: a model at a moment of training, under one defense of one strength."""

    name: str  # of its folder: letters, digits, and `-_.=`
    model: Model
    stage: str
    strength: Strength
    plan: Plan
    command: str  # that does it by itself
    device: str = "auto"
    lpips_weights: Path | None = None


def read(path: Path, scan: Callable[..., None]) -> Asked:
    """Return what a sweep file asks for; `scan` is the command whose options stand in it.

    Raises UserError naming the file and the key for whatever is wrong in it.
    """
    table = table_of(path)
    options = table.pop("scan", {})
    _known(path, "", table, [*(f.name for f in fields(File)), "scan"])
    for key, value in table.items():
        if value == []:
            raise UserError(
                f"{path}: {key} is empty: name at least one{'' if key == 'models' else ', or leave it out'}."
            )
    for i, each in enumerate(table["models"] if isinstance(table.get("models"), list) else ()):
        if isinstance(each, dict):
            _known(path, f"models[{i}]", each, [f.name for f in fields(Model)])
    try:
        found = typed(table, File)
    except Misfit as error:
        raise UserError(f"{path} is no sweep: {error}; docs/sweep.md shows what one holds.") from None
    written = _options(path, options, scan)
    for stage in found.stages:
        if stage not in STAGES or found.stages.count(stage) > 1:
            guess = did_you_mean(stage, STAGES) if stage not in STAGES else ""
            raise UserError(f"{path}: stages takes some of {', '.join(STAGES)}, each once, not {short(stage)}{guess}.")
    asked = Asked(
        path,
        _models(path, found.models),
        found.stages or ("",),
        _strengths(path, found) or (Strength(),),
        {name: parameter.default for name, parameter in signature(scan).parameters.items()} | written,
        written,
    )
    _bounded(path, asked.count)
    return asked


def _known(path: Path, within: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            place = f"{within} has no" if within else "there is no"
            raise UserError(f"{path}: {place} key {short(key)}{did_you_mean(key, known)}; known: {', '.join(known)}.")


def _bounded(path: Path, count: int) -> None:
    if count > MOST:
        raise UserError(f"{path} asks for {count:,} scans: {MOST:,} are the most; give less of a list.")


def _options(path: Path, table: Any, scan: Callable[..., None]) -> dict[str, Any]:
    """Return the options of `[scan]` by the parameters of the command."""
    if not isinstance(table, dict):
        raise UserError(f"{path}: scan is {short(table)}: write a table, [scan], with options of leakaudit scan.")
    hints = {name: _plain(hint) for name, hint in get_type_hints(scan).items()}
    found: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in INSTEAD:
            raise UserError(f"{path}: [scan] takes no {key}: {INSTEAD[name]}.")
        if name not in SHARED:
            names = sorted(each.replace("_", "-") for each in SHARED)
            guess = did_you_mean(key.replace("_", "-"), names)
            raise UserError(f"{path}: [scan] has no setting {short(key)}{guess}; known: {', '.join(names)}.")
        value = checked(scan, name, f"{path}: [scan] {key}", value)
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, Enum):
            choices = [member.value for member in kind]
            if value not in choices:
                guess = did_you_mean(str(value), choices)
                raise UserError(f"{path}: [scan] {key} takes {' or '.join(choices)}, not {short(value)}{guess}.")
        found[name] = value
    if found.get("quick") and found.get("full"):
        raise UserError(f"{path}: [scan] quick and full exclude each other: give one.")
    if found.get("attack"):
        found["attack"] = [_placed(path, spec) for spec in found["attack"]]
    if found.get("lpips_weights"):
        found["lpips_weights"] = path.parent / str(found["lpips_weights"])
        if not found["lpips_weights"].is_file():
            raise UserError(f"{path}: [scan] lpips-weights: there is no file {found['lpips_weights']}.")
    return found


def _plain(hint: Any) -> Any:
    """Return what may be None besides as what it is."""
    return next((kind for kind in get_args(hint) if kind is not NoneType), hint)


def _models(path: Path, models: Sequence[str | Model]) -> tuple[Model, ...]:
    found: list[Model] = []
    for i, each in enumerate(models):
        model = Model(each) if isinstance(each, str) else each
        name = model.name or model.target
        if not name:
            raise UserError(f"{path}: models[{i}] has an empty target: name a file or a module.")
        if name in [other.name for other in found]:
            raise UserError(
                f"{path}: two models are called {short(name)}: give each a name, {{ target = …, name = … }}."
            )
        place, factory = named(model.target)
        if is_file(place) or (path.parent / place).exists():
            place = str(path.parent / place)
        for key in ("data", "checkpoint"):
            given = getattr(model, key)
            if given and not (path.parent / given).exists():
                raise UserError(f"{path}: models[{i}].{key}: there is no {path.parent / given}.")
        found.append(
            Model(
                place if factory is None else f"{place}:{factory}",
                name,
                str(path.parent / model.data) if model.data else "",
                str(path.parent / model.checkpoint) if model.checkpoint else "",
            )
        )
    return tuple(found)


def _strengths(path: Path, file: File) -> tuple[Strength, ...]:
    found: list[Strength] = []
    for i, each in enumerate(file.defenses):
        place = f"{path}: defenses[{i}]"
        made = [Strength(_placed(path, each))] if isinstance(each, str) else _varied(path, place, each)
        for one in made:
            if one.spec in ("", "none"):
                raise UserError(f"{place} names no defense: the undefended model is in every scan by itself.")
            if one.spec in [other.spec for other in found]:
                raise UserError(f"{place}: {one.spec} is there twice: give each once.")
            found.append(replace(one, line=one.line or one.spec))
    return tuple(found)


def _varied(path: Path, place: str, table: Mapping[str, Value | tuple[Value, ...]]) -> list[Strength]:
    """Return every combination of the values of a defense's settings, the last setting varied first."""
    base = table.get("spec")
    if not isinstance(base, str):
        raise UserError(f'{place} has no spec: write spec = "gaussian", say, beside its settings.')
    own = {key.replace("-", "_"): value for key, value in table.items() if key != "spec"}
    if len(own) < len(table) - 1:
        raise UserError(f"{place} has a setting twice, with a hyphen and with an underscore: leave one out.")
    axes = {key: value if isinstance(value, tuple) else (value,) for key, value in own.items()}
    if axes and "," in base:
        raise UserError(
            f"{place}: {short(base)} is a chain, and whose setting {next(iter(axes))} is nobody knows: "
            "write its settings in spec, and a spec for each strength."
        )
    for key, values in axes.items():
        if not values:
            raise UserError(f"{place}.{key} is empty: give at least one value.")
        if re.search(rf":\s*{re.escape(key)}\s*=", base.replace("-", "_")):
            raise UserError(f"{place}.{key} is set in its spec, too: leave it out of one.")
        for value in values:
            if isinstance(value, str) and re.search(r"[:,]", value):
                raise UserError(f"{place}.{key} is {short(value)}: no setting holds a colon or a comma.")
    _bounded(path, prod(map(len, axes.values())))
    base, several = _placed(path, base), [key for key, value in own.items() if isinstance(value, tuple)]
    last = several[-1] if several else ""
    found = []
    for values in product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        spec = _spec(base, given)
        line = _spec(base, {k: v for k, v in given.items() if k != last})
        found.append(Strength(spec, line, {key: given[key] for key in several}))
    return found


def _spec(base: str, settings: Mapping[str, Value]) -> str:
    told = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()]
    return ":".join([base, *told])


def _placed(path: Path, spec: str) -> str:
    """Return a spec with the files in it as they are called from the present folder."""
    parts = []
    for part in spec.split(","):
        name, _ = split(part)
        own = ".py:" in name or name.endswith(".py")
        parts.append(str(path.parent / part.strip()) if own else part)
    return ",".join(parts)


def scans(asked: Asked) -> tuple[Scan, ...]:
    """Return the scans of a sweep in their order: by model, moment of training, defense. Loads what a plan needs.

    Raises UserError naming the file for a setting out of its range, and for a defense or an attack that is unknown,
    unless a model's file may register it.
    """
    from leakaudit.options.plans import check_specs, planned

    wait = all(registers(model.target) for model in asked.models)
    with _naming(f"{asked.path}: [scan] "):
        images = getattr(asked.options["images"], "value", asked.options["images"]) or default_images()
        plan = planned(asked.options | {"defense": None, "stages": None}, images)
        check_specs(plan, wait=wait)
    for one in asked.strengths:
        with _naming(f"{asked.path}: defenses: "):
            check_specs(replace(plan, attacks=(), defenses=(one.spec,) if one.spec else ()), wait=wait)
    return tuple(_listed(asked, plan))


def _listed(asked: Asked, plan: Plan) -> Iterator[Scan]:
    taken: set[str] = set()
    for model, stage, one in product(asked.models, asked.stages, asked.strengths):
        own = replace(plan, defenses=(one.spec,) if one.spec else (), stages=(stage,) if stage else ())
        words = [Path(model.name).name.removesuffix(".py"), stage, one.spec or "none"]
        wanted = re.sub(r"[^\w.=-]+", "-", "-".join(filter(None, words)), flags=re.ASCII).strip("-.")[:LONGEST]
        name, count = wanted or "scan", 1
        while name.lower() in taken:  # file systems may know no difference
            count += 1
            name = f"{wanted}-{count}"
        taken.add(name.lower())
        command = _command(asked, model, stage, one)
        yield Scan(name, model, stage, one, own, command, asked.options["device"], asked.options["lpips_weights"])


def listed(asked: Asked, found: Sequence[Scan]) -> Iterator[str]:
    """Yield what a sweep will do, in lines: the scans, and how much work they are and share."""
    from leakaudit.audit.pieces import outline

    parts = [f"{len(asked.models)} model{'s' * (len(asked.models) > 1)}"]
    parts += [f"{len(asked.stages)} moments of training"] if len(asked.stages) > 1 else []
    parts += [f"{len(asked.strengths)} defenses and strengths"] if len(asked.strengths) > 1 else []
    yield f"{asked.path}: {len(found)} scan{'s' * (len(found) > 1)} ({', '.join(parts)})"
    yield from (f"  {each.name:<40}  {each.command}" for each in found)
    try:
        pieces = [(each.model, each.stage, piece.work) for each in found for piece in outline(each.plan)]
    except UserError:  # what a model's file registers is not known yet
        return
    once = len(set(pieces))
    yield f"{once} pieces of work" + ("; what scans share is computed once" if once < len(pieces) else "")


def _command(asked: Asked, model: Model, stage: str, one: Strength) -> str:
    """Return the command that does one scan by itself."""
    words = ["leakaudit", "scan", model.target]
    given = {"data": model.data, "checkpoint": model.checkpoint, "defense": one.spec, "stages": stage}
    for key, value in (given | asked.written).items():
        option = "--" + key.replace("_", "-")
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is True:
                words.append(option)
            elif each not in ("", False, None):
                words += [option, str(getattr(each, "value", each))]
    return shlex.join(words)


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Say ahead of what is wrong where it stands, and each setting as the file has it."""
    try:
        yield
    except UserError as error:
        told = error.spelled(lambda setting: as_option(setting).removeprefix("--"))
        raise UserError(f"{place}{told}") from error
