"""What was audited, with which settings and on what: the part of a result that lets it be run again."""

from __future__ import annotations

import platform
from typing import Any

import torch

import leakaudit
from leakaudit.defense import Defense, parts_of
from leakaudit.exposure import Exposure
from leakaudit.registry import settings_values
from leakaudit.result import Value
from leakaudit.target import Target


def settings(defense: Defense) -> dict[str, Value]:
    """Return a defense's effective settings; those of a chain carry the part's name."""
    parts = parts_of(defense)
    if len(parts) == 1:
        return dict(settings_values(parts[0]))
    return {f"{part.name}.{key}": value for part in parts for key, value in settings_values(part).items()}


def exposed(exposure: Exposure) -> dict[str, Any]:
    """Return every fact about the adversary by name, true or false."""
    facts = exposure.facts()
    return {name: name in facts for name in ("labels", "buffers", "defense", "auxiliary", "model_control")}


def describe(target: Target) -> dict[str, Value]:
    """Return what was audited."""
    return {
        "name": target.name,
        "model": type(target.model.network).__name__,
        "parameters": sum(p.numel() for p in target.model.parameters()),
        "input_shape": "×".join(map(str, target.input_shape)),
        "classes": len(target.classes),
        "private_records": len(target.private),
        "test_records": len(target.test),
        "auxiliary_records": len(target.auxiliary),
    }


def environment(target: Target, command: str) -> dict[str, Value]:
    """Return what is needed to run the audit again."""
    return {
        "command": command,
        "leakaudit": leakaudit.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(target.device),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }
