"""A piece of work by what it depends on, and the name of its outcome."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

FORMAT = "leakaudit.outcome/1"


@dataclass(frozen=True)
class Unit:
    """A pure function's name and all that it depends on: hashes, settings and versions, by what they are of.

    `work` is what is shown of it. A `private` outcome (records, updates, networks trained on them) is for one scan: it
    is removed when that ends, unless it was asked for.
    """

    kind: str  # fit, prepare, tune, run, attack, …
    work: str
    depends: Mapping[str, object] = field(repr=False)  # text, numbers, truths, lists and mappings of those
    private: bool = False

    @property
    def images(self) -> str:
        """Return how records appear in the scan that it is of; empty where nothing says so."""
        settings = self.depends.get("settings")
        return str(settings.get("images", "")) if isinstance(settings, Mapping) else ""

    @property
    def key(self) -> str:
        """Return the SHA-256 of all that the outcome depends on."""
        text = json.dumps([FORMAT, self.kind, self.depends], sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Elsewhere(Exception):
    """Somebody else is at this piece of work now: take another one, and come back."""
