"""Which attacks a scan would run on a defense, and why: what is settled before it, and what it finds out by trying.

The reasons are values; `leakaudit.scene.plan.attacks_for` is what a scan does by the same facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from leakaudit.judge.scope import roles
from leakaudit.protocol.attack import Attack
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import attacks
from leakaudit.protocol.stages import CHANGES, declared
from leakaudit.result.adversary import PRESETS
from leakaudit.result.batteries import BATTERIES
from leakaudit.result.rules import ANYTHING, PLANTING
from leakaudit.result.specs import split
from leakaudit.scene.plan import catalogue, own_attacks

# always: whatever the scan sees. expected: where it sees change what the defense's code may change. possible: where
# it sees change something else. granted: where the exposure lets the server change the model. given: where
# model.py gives a generator of pictures. asked: where somebody names it.
Runs = Literal["always", "expected", "possible", "granted", "given", "asked"]


@dataclass(frozen=True)
class Why:
    """A reason: `battery` (which ones), `anything`, `named` (by which defenses), `changes` (names of `CHANGES`)."""

    id: Literal["battery", "anything", "named", "changes"]
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """What becomes of one attack.

    `lacks` are the exposure presets under which it is not applicable, since they grant it too little; `needs` what it
    must meet besides: names of fields of `Needs`. `role` is empty where it does not run.
    """

    attack: str
    runs: Runs
    role: str
    why: tuple[Why, ...]
    lacks: tuple[str, ...]
    needs: tuple[str, ...]


def choices(defense: Defense) -> tuple[Choice, ...]:
    """Return what becomes of every attack that is known, in the order of `Runs`; nothing is fitted or tried."""
    seen, own = declared(defense), own_attacks(defense)
    found = [_choice(name, cls, defense, seen, own) for name, cls in attacks().items()]
    order: tuple[Runs, ...] = ("always", "expected", "possible", "granted", "given", "asked")
    return tuple(sorted(found, key=lambda choice: order.index(choice.runs)))


def _choice(name: str, cls: type[Attack], defense: Defense, seen: frozenset[str], own: tuple[str, ...]) -> Choice:
    batteries = tuple(each for each, battery in BATTERIES.items() if name in map(_name, battery.attacks))
    namers = tuple(part.name for part in parts_of(defense) if name in map(_name, part.adaptive))
    settled = [
        *([Why("battery", batteries)] if batteries else []),
        *([Why("anything")] if ANYTHING in cls.examines else []),
        *([Why("named", namers)] if namers else []),
    ]
    told, untold = (tuple(c for c in CHANGES if c in cls.examines and (c in seen) is there) for there in (True, False))
    runs: Runs = "always" if settled else "expected" if told else "possible" if untold else "asked"
    if runs != "asked" and not batteries and not namers:
        runs = "granted" if PLANTING in cls.requires else "given" if cls.needs.generator else runs
    if told or (untold and not settled):
        settled.append(Why("changes", told or untold))
    role = roles([name], catalogue(), seen | set(untold if runs == "possible" else ()), own)[name]
    return Choice(name, runs, "" if runs == "asked" else role, tuple(settled), _lacks(cls), _needs(cls))


def _name(spec: str) -> str:
    return split(spec)[0]


def _lacks(cls: type[Attack]) -> tuple[str, ...]:
    wanted = cls.requires - {"released"}  # which a bound is handed under every preset
    return tuple(name for name, granted in PRESETS.items() if wanted - set(granted))


def _needs(cls: type[Attack]) -> tuple[str, ...]:
    return tuple(
        name
        for name in (
            "one_record",
            "several_records",
            "dense_input",
            "tokens",
            "chain",
            "generator",
            "batchnorm",
            "replaced_records",
        )
        if getattr(cls.needs, name)
    )
