"""What code that is not leakaudit's may tell in a result at a level of pictures (`result.outward`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar, cast

from leakaudit.errors import quoting
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.registry import built_in, settings_of
from leakaudit.protocol.target import Target
from leakaudit.result.numbers import plain
from leakaudit.result.outward import MOST_TEXTS, modest, modest_values
from leakaudit.result.schema import Finding, Guarantee, Images, Value
from leakaudit.result.specs import split
from leakaudit.scene.plan import Plan

SETTINGS = 32  # of a defense, of which none is left out
Work = TypeVar("Work", bound=Callable[..., Any])


def at_level(work: Work) -> Work:
    """Decorate what audits a target by a plan: exceptions are quoted within where the plan's pictures are in full."""

    @wraps(work)
    def audited(target: Target, plan: Plan, *args: Any, **named: Any) -> Any:
        with quoting(plan.images == "full"):
            return work(target, plan, *args, **named)

    return cast(Work, audited)


def stated(defense: Defense, values: Mapping[str, Any], images: Images, most: int = MOST_TEXTS) -> dict[str, Value]:
    """Return settings or facts of a defense, those of somebody else's within bounds."""
    return dict(values) if _free(defense, images) else modest_values(values, most)


def quick_fit(spec: str, defense: Defense, images: Images) -> tuple[Finding, ...]:
    """Return a remark where a defense is not what its spec alone makes of it: a quick scan fits in short."""
    parts, short = parts_of(defense), list[str]()
    for each, part in zip(spec.split(","), parts, strict=False):
        given = {pair.partition("=")[0].strip().replace("-", "_") for pair in split(each.strip())[1].split(":")}
        usual = settings_of(type(part))
        left = {name: getattr(part, name) for name in part.quick if name not in given}
        changed = {name: value for name, value in left.items() if value != usual[name].default}
        place = f"{part.name}." if len(parts) > 1 else ""
        short += [f"{place}{name}={plain(value)}" for name, value in stated(part, changed, images, SETTINGS).items()]
    if not short:
        return ()
    costs = " ".join(part.quick_costs for part in parts if part.quick_costs)
    costs = costs if _free(defense, images) else modest(costs)
    said = f"{spec}: a quick scan fits it with {':'.join(short)}"
    told = f"{said}{', which costs ' if costs else ''}{costs}"
    return (Finding("quick-fit", "info", f"{told}; settings that the spec gives are kept."),)


def vouched(defense: Defense, given: tuple[Guarantee, ...], images: Images) -> tuple[Guarantee, ...]:
    """Return the guarantees of a defense, those of somebody else's within bounds."""
    if _free(defense, images):
        return given
    return tuple(
        replace(
            each,
            statement=modest(each.statement),
            assumes=modest(each.assumes),
            states=tuple(map(modest, each.states[:MOST_TEXTS])),
        )
        for each in given[:MOST_TEXTS]
    )


def claimed(attack: Attack, claim: object, images: Images) -> object:
    """Return what an attack claims, the words of somebody else's within bounds."""
    if images == "full" or built_in(type(attack)) or not isinstance(claim, Reconstruction):
        return claim
    return replace(
        claim,
        reason=None if claim.reason is None else modest(str(claim.reason)),
        notes=tuple(modest(str(note)) for note in tuple(claim.notes)[:MOST_TEXTS]),
        doubts={name: str(told) for name, told in modest_values(claim.doubts).items()},
    )


def _free(defense: Defense, images: Images) -> bool:
    return images == "full" or all(built_in(type(part)) for part in parts_of(defense))
