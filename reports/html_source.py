"""A fingerprint of what decides a page beside the result: two states of one version give two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

WORDS = (
    "advice",
    "conclusions",
    "coarse",
    "consistency",
    "gate",
    "intervals",
    "mends",
    "plaintext",
    "result",
    "rules",
    "verdict",
)
DRAWN = ("html", "figures", "view", "steps", "standing", "mapping", "pdf")


@cache
def fingerprint() -> str:
    """Return the first 12 hex digits of the SHA-256 over the templates and the modules that make a page."""
    here = [f for f in files("leakaudit.reports").iterdir() if _makes_pages(f.name)]
    return of([*here, *(files("leakaudit") / f"{name}.py" for name in WORDS)])


def of(sources: Iterable[Traversable]) -> str:
    """Return the fingerprint of files, whatever their order and line ends; one that is not there counts as empty."""
    digest = hashlib.sha256()
    for source in sorted(sources, key=lambda f: f.name):
        text = source.read_bytes() if source.is_file() else b""
        digest.update(source.name.encode() + b"\0" + text.replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:12]


def _makes_pages(name: str) -> bool:
    stem = name.partition(".")[0].partition("_")[0]
    return stem != "history" and (name.endswith(".html.j2") or (name.endswith(".py") and stem in DRAWN))
