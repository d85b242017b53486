"""The plan of a scan, from the options of `scan` by the names of its parameters, wherever they were given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from leakaudit.protocol.registry import UnknownName, parse_attack, parse_defense
from leakaudit.result.schema import Images
from leakaudit.scene.plan import Plan
from leakaudit.work.quantities import parse, seconds


def planned(asked: Mapping[str, Any], images: Images) -> Plan:
    """Return the plan that the options ask for; UserError naming the setting where they ask for what cannot be.

    A choice may be a member of its enumeration or that member's value.
    """
    battery = "quick" if asked["quick"] else "full" if asked["full"] else "standard"
    budget, memory = asked["budget"], asked["memory"]
    return Plan(
        defenses=tuple(asked["defense"] or ()),
        attacks=tuple(asked["attack"] or ()),
        battery=battery,
        exposure=_value(asked["exposure"]),
        mode=_value(asked["mode"]),
        records=asked["records"],
        batch_size=asked["batch_size"],
        client=asked["client"],
        stages=tuple(part.strip() for part in (asked["stages"] or "").split(",") if part.strip()),
        candidates=asked["candidates"],
        max_identification=asked["max_identification"],
        max_accuracy_loss=asked["max_accuracy_loss"],
        all_attacks=asked["all_attacks"],
        utility=not asked["no_utility"],
        seeds=asked["seeds"],
        epochs=asked["epochs"],
        budget=None if budget is None else seconds(budget),
        memory=None if memory is None else parse(memory),
        images=images,
        seed=asked["seed"],
    )


def check_specs(plan: Plan, *, wait: bool) -> None:
    """Find a mistyped defense or attack before anything takes long; an unknown name may `wait` for the model's file."""
    parsers: tuple[tuple[tuple[str, ...], Callable[[str], object]], ...] = (
        (plan.defenses, parse_defense),
        (plan.attacks, parse_attack),
    )
    for specs, parse_one in parsers:
        for spec in specs:
            try:
                parse_one(spec)
            except UnknownName:
                if not wait:
                    raise


def _value(choice: Any) -> Any:
    return getattr(choice, "value", choice)
