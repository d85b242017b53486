"""The options of `scan` by which the next one measures what a stored one did."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.work.quantities import typed_bytes, typed_seconds

if TYPE_CHECKING:
    from leakaudit.result.schema import AuditResult

# Settings of a plan that `scan` has under another name or in another form; the others are options as they stand.
OTHERWISE = ("defenses", "attacks", "battery", "records", "utility", "seeds", "epochs", "budget", "memory")
FORMS = ("defense", "attack", "quick", "full", "no_utility")  # and these names
# Options of `scan` by what a result's environment calls them: kept as they were given.
GIVEN = {"data": "data", "checkpoint": "checkpoint", "lpips_weights": "lpips_weights", "device_asked": "device"}


def kept(table: Mapping[str, Any], known: Set[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options in a table that is replaced, by their name with underscores, and the keys that are none."""
    found = {key.replace("-", "_"): value for key, value in table.items() if key not in ("assert", "waiver")}
    plain = {k: v for k, v in found.items() if isinstance(v, str | int | float)}
    return {k: v for k, v in plain.items() if k in known}, tuple(repr(k) for k in found if k not in known)


def again(result: AuditResult, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `scan` that are not the defaults, so that the next scan measures the same.

    What the result knows is taken from there, wherever the first scan had it from; the rest from the table that is
    replaced.
    """
    from dataclasses import fields

    from leakaudit.result.batteries import BATTERIES
    from leakaudit.result.specs import apart
    from leakaudit.scene.plan import Plan

    settings, usual = result.settings, {f.name: f.default for f in fields(Plan)} | {"images": "full"}
    found: dict[str, Any] = {
        key: settings[key]
        for key, value in usual.items()
        if key not in OTHERWISE and settings.get(key) is not None and settings[key] != value
    }
    name = str(settings.get("battery"))
    if name == "full":
        found["full"] = True
    battery = BATTERIES.get(name, BATTERIES["standard"])
    attacks = settings.get("attacks")
    if isinstance(attacks, str) and attacks and apart(attacks) != list(battery.attacks):
        found["attack"] = apart(attacks)
    for key, own in (("seeds", battery.seeds), ("epochs", battery.epochs)):
        if settings.get(key) is not None and settings[key] != own:
            found[key] = settings[key]
    if settings.get("utility") is False:
        found["no_utility"] = True
    for key, written in (("budget", typed_seconds), ("memory", typed_bytes)):
        value = settings.get(key)
        if isinstance(value, int | float):
            found[key] = written(value)
    found |= {option: told for key, option in GIVEN.items() if (told := given(result, key))}
    decided = {*usual, *FORMS} - {"images"}  # whatever the table says, which may show less than the scan did
    rest = {key: value for key, value in before.items() if key not in decided and key not in found}
    return {key.replace("_", "-"): value for key, value in (found | rest).items()}


def given(result: AuditResult, name: str) -> str:
    """Return what the first scan was given, empty where the result does not say: of some paths it has the end alone."""
    told = str(result.environment.get(name) or "")
    return "" if told.startswith("…") else str(Path(told).expanduser()) if told.startswith("~/") else told
