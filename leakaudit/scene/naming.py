"""What each piece of an audit depends on: the table by which its outcome is named, kept, and found again."""

from __future__ import annotations

import copy
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch

from leakaudit.files.own import sha256
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import built_in
from leakaudit.protocol.target import Target
from leakaudit.protocol.usercode import is_file, named
from leakaudit.scene import fingerprint
from leakaudit.scene.plan import Plan
from leakaudit.scene.provenance import card
from leakaudit.score.metrics import further, lpips_file
from leakaudit.units.code import of_classes, of_files
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
    "training": _SCENE,
}
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
            **self.target,
            "settings": {name: getattr(self.plan, name) for name in SETTINGS[kind]},
            **more,
        }
        classes: list[type] = []
        if defense is not None:
            parts = parts_of(defense[1])
            classes += [type(part) for part in parts]
            depends |= {"defense": defense[0], "parts": [fingerprint.of_value(part) for part in parts]}
        if attack is not None:
            classes.append(type(attack))
            depends |= {"attack": attack.name, "values": fingerprint.of_value(attack)}
        depends["code"] = of_classes(classes, *CODE[kind])
        ours = all(built_in(cls) for cls in classes)  # what somebody else's learned may hold records
        return Unit(kind, work, depends, kind in PRIVATE or (kind == "fit" and not (self.fits_stay and ours)))


def facts_of(target: Target, plan: Plan, lpips_weights: Path | None = None) -> Facts:
    """Return what every piece of an audit depends on.

    The network's own code is told by its files, as far as they can be found, and by what the model says of a few
    records. Files of other formats that it reads when it is called show only there.
    """
    found = {
        "versions": _versions(target),
        "model": fingerprint.of_model(target.model),
        "behaviour": _behaviour(target),
        "code of the model": of_files(*_files(target)),
        "data": fingerprint.of_value((target.private, target.test, target.auxiliary, target.classes)),
        "task": fingerprint.of_value((target.task, target.augment, target.sizes)),
        "generator": "" if target.generator is None else fingerprint.of_generator(target.generator),
        "captured": "" if target.received is None else fingerprint.of_value(target.received),
        "metrics": _metrics(lpips_weights),
    }
    return Facts(plan, found, plan.images == "full")


def _versions(target: Target) -> str:
    packages = [f"{name} {version(name)}" for name in ("numpy", "scipy", "torchvision")]
    # Tensors come back to the very device that they were on, and each kind of card rounds in its own way.
    device = f"{target.device.type} {target.device.index or 0} {card(target.device)}"
    where = f"{device}, {torch.get_num_threads()} threads, {platform.machine()}"
    return ", ".join([f"leakaudit {__version__}", f"torch {torch.__version__}", *packages, where])


def _behaviour(target: Target) -> str:
    """Return the hash of what the model and the loss say of a few records; the same word where they do not repeat."""
    records = target.private[torch.arange(min(4, len(target.private)))].to(target.device)

    def said() -> str:
        with torch.no_grad(), forked(0):
            output = copy.deepcopy(target.model)(records.images)
            return fingerprint.of_value((output, target.loss(output, records.taught)))

    try:
        first, second = said(), said()
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


def _metrics(lpips_weights: Path | None) -> str:
    own = further()
    code = of_classes([type(metric) for metric in own], *(metric.function.__module__ for metric in own))
    return fingerprint.of_value(([metric.name for metric in own], code, sha256(lpips_file(lpips_weights))))
