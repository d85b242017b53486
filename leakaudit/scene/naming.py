"""What each piece of an audit depends on: the table by which its outcome is named, kept, and found again."""

from __future__ import annotations

import copy
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from leakaudit.files.own import sha256
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import attacks, built_in, defenses, places
from leakaudit.protocol.target import PixelModel, Target, trained_names
from leakaudit.protocol.usercode import is_file, named
from leakaudit.scene import fingerprint
from leakaudit.scene.plan import Plan
from leakaudit.scene.provenance import card
from leakaudit.scene.reached import numbers, reached
from leakaudit.score.metrics import further, lpips_file
from leakaudit.units.code import of_classes, of_files, of_named
from leakaudit.units.unit import Unit
from leakaudit.version import __version__
from leakaudit.work.seeding import forked

Kind = Literal["moment", "scene", "fit", "prepare", "tune", "run", "attack", "weakened", "training"]

# The settings of a plan that an outcome of each kind depends on. What is missing here changes no outcome of the kind:
# `tests/leakaudit/test_naming.py` tries every setting.
_SCENE = ("seed", "records", "batch_size", "client", "candidates", "mode", "exposure", "images")
SETTINGS: Mapping[Kind, tuple[str, ...]] = {
    "moment": ("seed", "images"),
    "scene": _SCENE,
    "fit": ("seed", "images"),
    "prepare": _SCENE,
    "tune": (*_SCENE, "memory"),
    "run": (*_SCENE, "memory"),
    "attack": (*_SCENE, "memory"),
    "weakened": (*_SCENE, "memory", "max_identification"),
    "training": ("seed", "images", "batch_size", "client"),
}
# Outcomes with scores in them: LPIPS's weights and the metrics of plug-ins have a part in these alone.
SCORED: frozenset[Kind] = frozenset({"scene", "attack", "weakened"})
# Our modules that compute an outcome of each kind; the classes of its attack and defense come beside them.
CODE: Mapping[Kind, tuple[str, ...]] = {
    "moment": ("leakaudit.audit.stages",),
    "scene": ("leakaudit.scene.scene",),
    "fit": ("leakaudit.audit.fitting",),
    "prepare": ("leakaudit.audit.fitting",),
    "tune": ("leakaudit.audit.attacking",),
    "run": ("leakaudit.audit.attacking",),
    "attack": ("leakaudit.audit.attacking",),
    "weakened": ("leakaudit.audit.weaker",),
    "training": ("leakaudit.score.utility",),
}
# Outcomes that hold records, what was shared of them, or what was drawn of them before it was scored.
PRIVATE: frozenset[Kind] = frozenset({"moment", "prepare", "run"})
METRICS = "metrics"
# Of a target, what no outcome depends on, and what is looked at in a way of its own.
BESIDES = (
    *("notes", "given", "folder"),
    *("model", "loss", "factory", "private", "test", "auxiliary", "classes", "generator", "received"),
)
# Variables by which libraries choose other instructions, or less precise ones.
LIBRARIES = re.compile(r"(ONEDNN|DNNL|MKL|CUBLAS|CUDNN|NVIDIA_TF32|TORCH_ALLOW_TF32)_(?!VERBOSE|NUM_THREADS)")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
FEW = 4  # records of which a gradient is taken
SHOWN, LATENTS = 64, 2  # records that a model is tried on at most, besides the first few; pictures that are drawn


@dataclass(frozen=True)
class Facts:
    """All that no piece of a scan may differ in: the target, bit for bit, its code, and the versions at work."""

    plan: Plan
    target: Mapping[str, str] = field(repr=False)
    fits_stay: bool = True  # whether what a defense learned may be kept when the scan ends

    def unit(
        self,
        kind: Kind,
        work: str,
        *,
        defense: tuple[str, Defense] | None = None,
        attack: Attack | None = None,
        **more: object,
    ) -> Unit:
        """Return the name of a piece's outcome; `defense` is one as it was asked for, with its spec, before its fit."""
        depends: dict[str, object] = {
            **{name: value for name, value in self.target.items() if name != METRICS or kind in SCORED},
            "settings": {name: getattr(self.plan, name) for name in SETTINGS[kind]},
            **more,
        }
        classes: list[type] = []
        if defense is not None:
            parts = parts_of(defense[1])
            classes += [type(part) for part in parts]
            depends |= {"defense": defense[0], "parts": [_settings(part) for part in parts]}
        if attack is not None:
            classes.append(type(attack))
            depends |= {"attack": attack.name, "values": _settings(attack)}
        files = {file for cls in classes for file in places(cls)}
        depends["code"] = of_classes(classes, *CODE[kind], places=files | reached(*classes).files)
        depends["declared"] = declared(classes)
        ours = all(built_in(cls) for cls in classes)  # what somebody else's learned may hold records
        return Unit(kind, work, depends, kind in PRIVATE or (kind == "fit" and not (self.fits_stay and ours)))


def _settings(part: Attack | Defense) -> str:
    """Return the hash of the settings of an attack or a defense, and of the files that they name."""
    return fingerprint.of_value((part, [of_named(getattr(part, f.name)) for f in fields(part)]))


def declared(classes: Iterable[type]) -> list[str]:
    """Return hashes of what stands in classes beside their functions, and of what those reach."""
    return [fingerprint.of_value((_beside_functions(cls), reached(cls).values)) for cls in classes]


def _beside_functions(cls: type) -> str:
    """Return the hash of what stands in a class beside its functions: whoever imports it may set that."""
    kinds = (*fingerprint.PLAIN, tuple, list, set, frozenset, Mapping, torch.Tensor, type(None))
    every = {name: value for each in reversed(cls.__mro__) for name, value in vars(each).items()}
    own = {n: v for n, v in every.items() if not n.startswith("__") and isinstance(v, kinds)}
    return fingerprint.of_value(own)


def facts_of(target: Target, plan: Plan, lpips_weights: Path | None = None) -> Facts:
    """Return what every piece of an audit depends on.

    The code of network and loss is told by its files, as far as they can be found, and both by what they say of a few
    records: other files that they read when they are called show only there.
    """
    modules = [module for module in (*target.model.modules(), target.loss) if isinstance(module, nn.Module)]
    kinds = {type(module) for module in modules}
    given = (target.loss, target.model.read, getattr(target.generator, "make", None))
    reach = reached(*sorted(kinds, key=lambda cls: (cls.__module__, cls.__qualname__)), *given)
    declared(cls for cls in (*attacks().values(), *defenses().values()) if not built_in(cls))  # before they run
    beside = {f.name: getattr(target, f.name) for f in fields(target) if f.name not in BESIDES}
    found = {
        "versions": _versions(target),
        "model": _model(target.model),
        "fresh model": _fresh(target),
        "loss": fingerprint.of_value((target.loss, _told(target.loss))),
        "behaviour": _behaviour(target),
        "code of the model": of_files(*_files(target), *reach.files) + of_classes(kinds),
        "reached": fingerprint.of_value(reach.values),
        "data": fingerprint.of_value((target.private, target.test, target.auxiliary, target.classes)),
        "task": fingerprint.of_value((beside, target.sizes)),
        "generator": _drawn(target),
        "captured": "" if target.received is None else fingerprint.of_value(target.received),
        METRICS: _metrics(target, lpips_weights),
    }
    return Facts(plan, found, plan.images == "full")


def _versions(target: Target) -> str:
    packages = [f"{name} {version(name)}" for name in ("numpy", "scipy", "torchvision")]
    python = "python " + ".".join(platform.python_version_tuple()[:2])
    # Tensors come back to the very device that they were on, and each kind of card rounds in its own way.
    device = f"{target.device.type} {target.device.index or 0} {card(target.device)}"
    where = f"{device}, {torch.get_num_threads()} threads, {platform.machine()} {_capability()}"
    return ", ".join([f"leakaudit {__version__}", python, f"torch {torch.__version__}", *packages, where, _flags()])


def _capability() -> str:
    """Return which instructions of a processor torch computes with: with wider ones sums are added up otherwise."""
    return str(torch.backends.cpu.get_cpu_capability())


def _flags() -> str:
    """Return what user's code may have set for the whole process, and changes numbers."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    chosen = " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if LIBRARIES.match(name))
    how = f"{torch.get_default_dtype()}, deterministic {deterministic}, fused attention {_attention()}"
    return f"{how}, {_kernels()} {chosen}"


def _kernels() -> str:
    return " ".join(name for name in ("mkldnn", "cudnn") if getattr(torch.backends, name).enabled)


def _attention() -> bool:
    return torch.backends.mha.get_fastpath_enabled()


def _model(model: PixelModel) -> str:
    """Return the hash of a network: weights, what is trained of it and in which mode, and how it is run and read."""
    modes = [module.training for module in model.modules()]
    return fingerprint.of_value(
        (model, _told(model), numbers(model), sorted(trained_names(model)), modes, model.reading())
    )


def _told(module: object) -> str:
    """Return what a module says of itself: rates, strides and the like are neither parameters nor buffers."""
    try:
        return ADDRESS.sub("", repr(module)) if isinstance(module, nn.Module) else ""
    except Exception:  # code of somebody else's
        return ""


def _behaviour(target: Target) -> str:
    """Return the hash of what the model and the loss say of a few records; the same word where they do not repeat.

    In both modes, with what a pass leaves in the buffers, the slopes of the loss for every class, and the gradient: a
    network may go back otherwise than it goes forward.
    """
    labels = target.private.labels.tolist()
    firsts = {label: i for i, label in reversed([*enumerate(labels)])}
    chosen = sorted({*range(min(FEW, len(labels))), *sorted(firsts.values())[:SHOWN]})
    records = target.private[torch.tensor(chosen, dtype=torch.long)].to(target.device)

    def said(training: bool) -> str:
        with forked(0):
            model = copy.deepcopy(target.model).train(training)
            with torch.no_grad():
                output = model(records.images)
            output = output.detach().requires_grad_()
            loss = target.loss(output, records.taught)
            slope = torch.autograd.grad(loss, output)
        return fingerprint.of_value([output, loss, slope, dict(model.named_buffers())])

    def back(training: bool) -> str:
        few = records[:FEW]
        with forked(0), torch.enable_grad():
            model = copy.deepcopy(target.model).train(training)
            trained = [p for p in model.parameters() if p.requires_grad]
            output = model(few.images)
            found = torch.autograd.grad(target.loss(output, few.taught), trained, allow_unused=True)
        return fingerprint.of_value((output, found))

    looks = (partial(look, training) for look in (said, back) for training in (False, True))
    return " ".join(map(_repeated, looks))  # one may fail by itself


def _fresh(target: Target) -> str:
    """Return the hash of the network that a training run begins with."""

    def made() -> str:
        model = target.fresh(0)
        return _model(model)

    return _repeated(made)


def _drawn(target: Target) -> str:
    """Return the hash of what an adversary's generator of pictures is, and draws."""
    generator = target.generator
    if generator is None:
        return ""

    def pictures() -> str:
        latents = torch.randn(LATENTS, *generator.latent, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), forked(0):
            return fingerprint.of_value(generator.make(latents.to(target.device)))

    return fingerprint.of_generator(generator) + _repeated(pictures)


def _repeated(look: Callable[[], str]) -> str:
    """Return what is seen, if it is the same a second time."""
    try:
        first, second = look(), look()
    except Exception:  # the audit will say so
        return "fails"
    return first if first == second else "varies"


def _files(target: Target) -> list[Path]:
    place, _ = named(target.given.get("target", ""))
    if not place:
        return []
    if is_file(place):
        return [Path(place).absolute()]
    import importlib.util

    try:
        spec = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return []
    return [Path(spec.origin)] if spec is not None and spec.origin else []


def _metrics(target: Target, lpips_weights: Path | None) -> str:
    own = further()
    code = of_classes([type(metric) for metric in own], *(metric.function.__module__ for metric in own))
    weights = str(lpips_weights or ""), sha256(lpips_file(lpips_weights))
    shown = [(metric.name, metric.higher_leaks, metric.unit, metric.summary) for metric in own]
    one, other = torch.rand(2, LATENTS, *target.input_shape, generator=torch.Generator().manual_seed(0))
    said = [_repeated(lambda metric=metric: fingerprint.of_value(metric.function(one, other))) for metric in own]  # type: ignore[misc]
    values = reached(*(metric.function for metric in own)).values
    return fingerprint.of_value((shown, code, said, weights, values))
