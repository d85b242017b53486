"""SHA-256 of values that a result holds itself: whoever has the result can take them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping

from leakaudit.result.schema import Value

# Settings of how it is shown or how long it may take: they change no measurement.
NO_INFLUENCE = ("budget", "memory", "images")
# Entries of a result's environment that say nothing of the machine.
NOT_VERSIONS = ("command", "commit", "target", "data", "checkpoint", "device_asked", "lpips_weights")


def of_settings(settings: Mapping[str, Value], without: Iterable[str] = ()) -> str:
    """Return the hash of settings as canonical JSON, without those named; ValueError where a number is none."""
    left = {name: value for name, value in settings.items() if name not in set(without)}
    text = json.dumps(left, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_values(settings: Mapping[str, Value], environment: Mapping[str, Value]) -> dict[str, str]:
    """Return the hashes of a scan's settings and of the versions it ran with, by what they are of."""
    return {
        "configuration": of_settings(settings, NO_INFLUENCE),
        "environment": of_settings(environment, NOT_VERSIONS),
    }
