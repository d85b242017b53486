"""Capturing inside somebody's training: what was said is checked at once, and no failure later ever ends a round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from leakaudit.captured.form import SUFFIX, Claims
from leakaudit.captured.mechanism import defense_spec
from leakaudit.captured.reading import client_of
from leakaudit.captured.writing import State, claims_json, write_capture
from leakaudit.errors import UserError, did_you_mean, message_of
from leakaudit.files.reading import short
from leakaudit.result.federation import SHORT
from leakaudit.result.schema import Value

LOG = logging.getLogger("leakaudit")
# What a configuration of a federation calls a setting, beside our own name and the short one of a client's spec.
CALLED = {
    **SHORT,
    "learning_rate": "local_lr",
    "client_lr": "local_lr",
    "num_epochs": "local_epochs",
    "num_examples": "records",
    "num_local_steps": "local_steps",
}
NUMBERS = {"local_steps": int, "local_epochs": int, "batch_size": int, "records": int}
NUMBERS |= {"local_lr": float, "momentum": float}  # type: ignore[dict-item]
OWN = ("schema", "framework", "settings")  # of the claims, what nobody is asked for


@dataclass
class Recorder:
    """Where captures go and what is said of them. Its `capture` never raises; it warns once."""

    folder: Path
    said: dict[str, Any]  # by the user: it stands above what a configuration says
    framework: str = ""
    settings: tuple[dict[str, Value], ...] = ()
    warned: bool = field(default=False, init=False)

    def capture(self, take: Callable[[], Path | str | None]) -> None:
        """Call what writes one capture. It may fail, or return why there is nothing to write: one warning tells."""
        try:
            found = take()
        except Exception as error:
            found = (message_of(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if isinstance(found, str) and not self.warned:
            self.warned = True
            LOG.warning("leakaudit captured no update: %s. Training goes on; this is said once.", found)

    def write(self, name: str, told: Mapping[str, Any] = {}, note: str = "", **states: State | None) -> Path:
        """Write one capture into the folder, with what was said, and of `told` what the user did not say."""
        claims = Claims(**self.claimed(told))
        claims = replace(claims, framework=self.framework, settings=self.settings, note=claims.note or note)
        return write_capture(self.folder / (name + SUFFIX), claims=claims, **states)

    def claimed(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Return the claims of a configuration under the user's own. Steps and epochs exclude each other."""
        found = {name: value for name, value in _known(told).items() if name not in self.said}
        if "local_steps" in self.said or ("local_steps" in found and "local_epochs" not in self.said):
            found.pop("local_epochs", None)
        elif "local_epochs" in self.said:
            found.pop("local_steps", None)
        return found | self.said


def recorder(
    folder: Path | str, said: Mapping[str, Any], package: str, defenses: Iterable[object] = (), steps: bool = True
) -> Recorder:
    """Return a recorder for captures of a framework; UserError for what is no setting of a client.

    `said` are claims by the names of `Claims`, or the short ones of a client's spec; `defenses` are the framework's own
    objects, of which the settings are noted, or dictionaries with a "name". Without `steps` it is of one gradient.
    """
    allowed = [f.name for f in fields(Claims) if f.name not in OWN]
    claims: dict[str, Any] = {}
    for key, value in said.items():
        name = SHORT.get(key, key)
        if name not in allowed:
            hint = did_you_mean(key, [*allowed, *SHORT])
            raise UserError(f"capture has no setting {short(key)}{hint}; its settings: {', '.join(allowed)}.")
        if not steps and name in ("local_steps", "local_epochs"):
            raise UserError(f"{key} is of local training: one step's gradient is captured here.")
        claims[name] = value
    if "local_steps" in claims and "local_epochs" in claims:
        raise UserError("give local_steps or local_epochs, not both.")
    settings = tuple(settings_of(each) for each in defenses)
    if "defense" not in claims and (spec := defense_spec(settings)):
        claims["defense"] = spec
    whole = Claims(**claims, settings=settings)
    claims_json(whole)  # what no file can hold, or no client can be, is refused now
    client_of(whole, "capture")
    return Recorder(Path(folder), claims, _version(package), settings)


def settings_of(defense: object) -> dict[str, Value]:
    """Return a framework's own defense as its name and those of its settings that are numbers, texts or truths."""
    if isinstance(defense, Mapping):
        if not isinstance(defense.get("name"), str):
            raise UserError("a defense that is given as a dictionary needs a name: {'name': 'LocalDpMod', …}.")
        held = {str(key): value for key, value in defense.items()}
    else:
        held = {"name": getattr(defense, "__name__", type(defense).__name__), **getattr(defense, "__dict__", {})}
    return {key: value for key, value in held.items() if not key.startswith("_") and _plain(value)}


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _known(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of a configuration, what is a claim about a client and of the type that it must have."""
    allowed = {*NUMBERS, "optimizer", "mode"}
    found: dict[str, Any] = {}
    for key, value in told.items():
        name = str(key).lower().replace("-", "_")
        name = CALLED.get(name, name)
        if name not in allowed or name in found:
            continue
        if name in NUMBERS:
            if not isinstance(value, int | float) or isinstance(value, bool) or NUMBERS[name](value) != value:
                continue
            if value > 0 or (name == "momentum" and value == 0):
                found[name] = NUMBERS[name](value)
        elif (
            isinstance(value, str) and value.lower() in {"optimizer": ("sgd", "adam"), "mode": ("train", "eval")}[name]
        ):
            found[name] = value.lower()
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
