"""Whether an attack works through a defense at all: it must be seen to, with the strength turned down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from leakaudit.audit.attacking import attacked
from leakaudit.judge.proof import REPLAY
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.registry import parse_attack
from leakaudit.protocol.weakened import weakened
from leakaudit.result.rules import WEAKENED, identifies
from leakaudit.result.schema import AttackResult, Estimate
from leakaudit.scene.examine import Subject, released_by
from leakaudit.scene.scene import Scene
from leakaudit.scene.updates import Updates
from leakaudit.units import desk
from leakaudit.units.packing import Values
from leakaudit.units.unit import Unit
from leakaudit.work.progress import expired

SHARES = (0.1, 0.01, 0.001, 1e-4, 1e-6, 1e-9)  # of the defense's strength, tried in turn
MOST, AMONG = 16, 20  # victims and candidates: what is seen to work on so many need not be measured closely


@dataclass(frozen=True)
class Seen(Values):
    """At which share of its strength `replay` was seen to work through a defense, and what it identified there."""

    strength: float | None
    weakened: Estimate


def seen_weakened(
    scene: Scene,
    subject: Subject,
    asked: Defense,
    results: Sequence[AttackResult],
    too_long: str = "",
    settled: str = "",
) -> Seen:
    """Return the share of its strength at which an attack identifies more than the limit, and what it identified.

    1 where an adaptive attack does at full strength. Else `replay` is tried on `weakened` defenses. None where it was
    never seen, with the last estimate, whose `reason` says what kept it from one. `asked` is the defense before its
    fit. Raises `Elsewhere` where another participant tries it.
    """
    for a in results:
        if a.role == "adaptive" and identifies(a, scene.plan.max_identification):
            return Seen(1.0, a.identification)
    if settled and not too_long:  # whatever earlier scans found: what is told must not depend on that
        return _seen(scene, subject, settled)
    return desk.done(
        unit_of(scene, subject.spec, asked), Seen, lambda: _seen(scene, subject, too_long), begin=not too_long
    )


def unit_of(scene: Scene, spec: str, asked: Defense) -> Unit | None:
    """Return the name of what `seen_weakened` finds; None where none is kept."""
    return scene.unit("weakened", f"{spec}: {WEAKENED}", defense=(spec, asked), attack=parse_attack(REPLAY))


def _seen(scene: Scene, subject: Subject, too_long: str) -> Seen:
    smaller, found = _smaller(scene), Estimate(reason=too_long or "the time budget was spent")
    for share in SHARES:
        if too_long or expired():
            break
        spec, defense = f"{subject.spec} at {share:g}", weakened(subject.defense, share, scene.target.task)
        weaker = replace(subject, spec=spec, defense=defense, released=released_by(smaller, spec, defense))
        result = attacked(Updates(smaller, weaker), parse_attack(REPLAY), "adaptive")
        found = result.identification
        if identifies(result, scene.plan.max_identification):
            return Seen(share, found)
    return Seen(None, found)


def _smaller(scene: Scene) -> Scene:
    """Return a scene with few victims in short line-ups, for what need not be measured closely."""
    size = scene.plan.batch_size
    few = max(1, min(scene.plan.victims, MOST // size)) * size
    line_ups = scene.candidates[torch.arange(few)].shortened(AMONG)
    plan = replace(scene.plan, records=few)
    return replace(
        scene,
        plan=plan,
        victims=scene.victims[:few],
        asked=scene.victims[:few],
        candidates=line_ups,
        line_ups=line_ups,
    )
