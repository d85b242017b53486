"""What was audited, with which settings and on what: the part of a result that lets it be run again."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from leakaudit.load.units import count_units
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import in_mode
from leakaudit.protocol.plugins import failures
from leakaudit.protocol.registry import attacks, defenses, settings_values
from leakaudit.protocol.target import Target, shared_parameters
from leakaudit.result.adversary import GRANTED
from leakaudit.result.schema import Finding, Value
from leakaudit.result.shapes import written
from leakaudit.score.metrics import further
from leakaudit.version import __version__
from leakaudit.work.seeding import forked


def settings(defense: Defense) -> dict[str, Value]:
    """Return a defense's effective settings; those of a chain carry the part's name."""
    parts = parts_of(defense)
    if len(parts) == 1:
        return dict(settings_values(parts[0]))
    return {f"{part.name}.{key}": value for part in parts for key, value in settings_values(part).items()}


def _named(name: str) -> str:
    """Return the name of a class, which code may make of anything, if it is a word."""
    return name if name.isidentifier() and len(name) <= 60 else "a class"


def exposed(exposure: Exposure) -> dict[str, Any]:
    """Return every fact that a preset may grant by name, true or false."""
    return {name: name in exposure.facts() for name in GRANTED}


def describe(target: Target) -> dict[str, Value]:
    """Return what was audited; `private_units` where several private records are of one unit.

    `modes_differ` only where the model was seen to do the same in training mode as in evaluation mode; `augment` only
    where training does something to pictures.
    """
    units = None if target.private.units is None else count_units(target.private.units)
    return {
        "name": target.name,
        "model": _named(type(target.model.network).__name__),
        "parameters": sum(p.numel() for p in target.model.parameters()),
        "shared_parameters": shared_parameters(target.model)[0],
        "input_shape": written(target.sizes),
        "label_groups" if target.task.grouped else "classes": len(target.classes),
        **({} if target.task.kind == "classes" else {"task": target.task.described}),
        "private_records": len(target.private),
        "test_records": len(target.test),
        "auxiliary_records": len(target.auxiliary),
        **({} if units is None or units == len(target.private) else {"private_units": units}),
        **({"modes_differ": False} if _alike(target) else {}),
        **({"augment": ", ".join(target.augment)} if target.augment else {}),
    }


def _alike(target: Target) -> bool:
    """Return whether the model says the same of records in training mode and in evaluation mode, whatever is drawn."""
    shown, said = target.private.images[:8].to(target.device), []
    for mode, seed in (("eval", 0), ("train", 0), ("train", 1)):
        try:
            with torch.no_grad(), forked(seed), in_mode(target.model, "train" if mode == "train" else "eval"):
                said.append(target.model(shown))
        except Exception:  # BatchNorm on few records, say
            return False
    return all(torch.equal(said[0], other) for other in said[1:])


def card(device: torch.device) -> str:
    """Return the name of the GPU, nothing on the CPU: another kind rounds otherwise."""
    named = getattr(getattr(torch, device.type, None), "get_device_name", None)
    return "" if named is None else str(named(device))


def environment(target: Target, command: str, lpips_weights: Path | None = None) -> dict[str, Value]:
    """Return what is needed to run the audit again; `commit` only where the model's code lies in a git repository."""
    found: dict[str, Value] = {
        "command": command,
        "leakaudit": __version__,
        "torch": torch.__version__,
        **{package: _version(package) for package in ("torchvision", "numpy", "scipy")},
        "python": platform.python_version(),
        "device": str(target.device),
        **({"card": name} if (name := card(target.device)) else {}),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        **target.given,
    }
    if lpips_weights is not None:
        found["lpips_weights"] = str(lpips_weights)
    made_of = commit(target.folder) if target.folder is not None else None
    return found if made_of is None else found | {"commit": made_of}


def commit(folder: Path) -> str | None:
    """Return the short hash of the commit that `folder` is at, with "+changes" where tracked files differ from it.

    None where git knows no commit, or does not answer within seconds. Files that git does not track count as no
    change: a result written beside the code must not change what the next one says.
    """
    # A hook sets GIT_DIR and the like, which would name another repository than the folder's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        run = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            env=kept,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=5,
        )
        return run.stdout.strip()

    try:
        found = git("rev-parse", "--short=12", "HEAD")
        return found + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # part of a frozen application: it runs, but nobody knows what it is
        return "unknown"


def left_out_plugins() -> tuple[Finding, ...]:
    """Return a remark for every plug-in that could not be loaded. What was asked for by name ran without it."""
    attacks(), defenses(), further()  # whatever was asked for: which plug-ins there are does not depend on it
    return tuple(Finding("plugin-left-out", "info", sentence) for sentence in failures())
