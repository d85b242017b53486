"""The names of outcomes, by their kinds, and which of them differ."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_attack, parse_defense
from leakaudit.protocol.target import Target
from leakaudit.scene.naming import Kind, facts_of
from leakaudit.scene.plan import Plan
from tests.leakaudit.shelves import SMALL

KINDS: tuple[Kind, ...] = get_args(Kind)
EVERY = frozenset(KINDS)


def keys(target: Target, weights: Path | None = None, spec: str = "prune", attack: str = "replay") -> dict[Kind, str]:
    """Return the key of an outcome of every kind, for one defense and one attack."""
    facts = facts_of(target, Plan(**{**SMALL, "defenses": ()}), weights)
    defense: tuple[str, Defense] = spec, parse_defense(spec)
    of_attacks = {"tune", "run", "attack", "weakened"}
    return {
        kind: facts.unit(
            kind,
            "work",
            defense=None if kind in ("moment", "scene") else defense,
            attack=parse_attack(attack) if kind in of_attacks else None,
        ).key
        for kind in KINDS
    }


def changed(one: dict[Kind, str], other: dict[Kind, str]) -> frozenset[Kind]:
    return frozenset(kind for kind in KINDS if one[kind] != other[kind])
