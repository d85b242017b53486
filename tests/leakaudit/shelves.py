"""A shelf in memory, and audits of a tiny target at it, for the tests of what is kept and taken up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from leakaudit.attacks.learned import LearnedInversion
from leakaudit.attacks.replay import Replay
from leakaudit.audit import audit as auditing
from leakaudit.audit.canary import Planting
from leakaudit.audit.stages import audit_at_stages
from leakaudit.protocol.target import Target
from leakaudit.result.schema import AuditResult
from leakaudit.scene.plan import Plan
from leakaudit.units import desk
from leakaudit.units.desk import Desk
from leakaudit.units.packing import Header, header_of
from leakaudit.units.shelf import Claim
from tests.leakaudit import audited

SMALL: dict[str, Any] = {
    "battery": "quick",
    "records": 4,
    "candidates": 20,
    "epochs": 1,
    "seeds": 1,
    "attacks": ("labels",),
    "defenses": ("gaussian:std=30",),
}


class Store(dict[str, bytes]):
    """Outcomes by key; nobody else claims anything."""

    def get(self, key: str, private: bool) -> bytes | None:  # type: ignore[override]
        return dict.get(self, key)

    def has(self, key: str, private: bool) -> bool:
        return key in self

    def put(self, key: str, data: bytes, private: bool) -> None:
        self[key] = data

    def drop(self, key: str) -> None:
        self.pop(key, None)

    def claim(self, key: str, claim: Claim) -> bool:
        return True

    def beat(self, key: str) -> None:
        pass

    def release(self, key: str, who: str) -> None:
        pass

    def claims(self, among: Collection[str] | None = None) -> dict[str, Claim]:
        return {}

    def headers(self) -> dict[str, Header]:
        """Return what is said of every outcome, by its key."""
        return {key: header_of(data, key)[0] for key, data in self.items()}

    def works(self, keys: set[str]) -> list[str]:
        """Return the works of some outcomes with their kinds, sorted."""
        found = self.headers()
        return sorted(f"{found[key].kind} {found[key].work}" for key in keys if key in found)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, short_battery: None) -> None:
    """Audits of a second: no planted leak, no attack that learns, few records for those that link."""
    monkeypatch.setattr(auditing, "planted", lambda *given: Planting("fail"))
    monkeypatch.setattr(LearnedInversion, "examines", frozenset())
    monkeypatch.setattr(Replay, "asks", 8)


@contextmanager
def at(store: Store) -> Iterator[Desk]:
    """Install a desk at a store, that of another run of a scan each time."""
    own = Desk(store)
    with desk.at(own):
        yield own


def scanned(
    store: Store, target: Callable[[], Target] = audited.target, **settings: Any
) -> tuple[AuditResult, list[str]]:
    """Audit a target by the `SMALL` settings and others; return the result, and what was computed for it."""
    with at(store) as own:
        result = audit_at_stages(target(), Plan(**{**SMALL, **settings}))
    return result, store.works(own.computed)
