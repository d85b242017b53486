"""A leak that is planted, and must be found: what shows in every scan that the audit itself works.

A small dense network on made pictures gives its records away, and so it does behind a permutation of the update's
entries by a key that the adversary knows. Both are audited by the code that audits the user's model; where they do not
fail, something of that code is broken (an attack, the scores, the rules), and a pass of the same scan means nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.errors import first_line, quotes
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.registry import attacks, built_in
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.rules import VERDICTS
from leakaudit.result.schema import AuditResult, DefenseResult, Verdict
from leakaudit.scene.naming import Facts, declared
from leakaudit.scene.plan import Plan
from leakaudit.scene.scene import Scene, set_scene
from leakaudit.units import desk
from leakaudit.units.code import of_classes
from leakaudit.units.packing import Values
from leakaudit.units.unit import Unit
from leakaudit.work.progress import Monitor, Work, current, expired, monitored, note_passing
from leakaudit.work.seeding import generator_for, seeded

SHARE = 0.1  # of a time budget, that it may take
SHAPE = (1, 8, 8)
CLASSES, OF_EACH = 10, 12  # private and test records of a class: a line-up of 20 needs as many together
LINE_UP, VICTIMS = 20, 20  # all of 20 found is 83 % at the lower bound, far above any limit
# Besides those that every audit runs. What is learned or iterated is kept short: that the code works shows as well.
ATTACKS = ("analytic", "linkage", "expectation:steps=8", "learned-inversion:pairs=64:decoder_steps=20")


@dataclass(frozen=True, kw_only=True)
class KeyedPermutation(Defense):
    """The planted defense: the entries of every tensor are permuted by a key that never changes. It hides nothing.

    It is not registered: nobody can choose it.
    """

    name: ClassVar[str] = "planted-permutation"
    adaptive: ClassVar[tuple[str, ...]] = ("linkage",)

    key: int = 0

    def transform_update(self, gradients: Gradients, batch_size: int, generator: torch.Generator) -> Gradients:
        """Permute each tensor's entries; the same way for every update."""
        permuted = []
        for i, g in enumerate(gradients):
            order = torch.randperm(g.numel(), generator=generator_for(self.key, "canary", i))
            permuted.append(g.flatten()[order.to(g.device)].view_as(g))
        return tuple(permuted)


@dataclass(frozen=True)
class Planting(Values):
    """What became of the planted leak: "fail" where it was found, and what ended the search where that was cut off."""

    verdict: Verdict
    told: str = ""
    ended: Literal["", "budget", "interrupt"] = ""


Planted = tuple[tuple[str, Defense], ...]  # by their specs, the undefended model first
# What audits the user's model: it calls this file, so it is handed in.
Audited = Callable[[Scene, Planted], AuditResult]
PLANTED: Planted = (("none", Defense()), (KeyedPermutation.name, KeyedPermutation()))


def planted(plan: Plan, begun: float, audited: Audited, facts: Facts | None = None) -> Planting:
    """Return what became of the planted leak. Under a time budget it gets a tenth of what is left of that.

    By these `facts` it is looked for once on the same machine, versions and code.
    """
    unit = None
    if facts is not None:
        taking_part = [cls for cls in attacks().values() if built_in(cls) or cls.examines]  # of others only such do
        code = of_classes(taking_part, __name__, audited.__module__)
        depends = {"versions": facts.target["versions"], "seed": plan.seed, "quotes": quotes(), "code": code}
        depends["declared"] = declared(taking_part)
        unit = Unit("canary", "the planted leak", depends)

    def looked() -> Planting:
        with desk.at(None):
            found = _canary(plan.seed, audited)
        if not found.ended and found.verdict != "fail":
            note_passing()
        return found

    now = time.monotonic()
    deadline = None if plan.budget is None else now + SHARE * max(0.0, begun + plan.budget - now)
    with monitored(current() if deadline is None else replace(current(), deadline=deadline)):
        return desk.done(unit, Planting, looked, wait=True)


_planted: dict[tuple[int, bool], Planting] = {}  # by seed, and whether exceptions are quoted


def _canary(seed: int, audited: Audited) -> Planting:
    """Audit what is planted, once in a process for each seed: the code does not change between scans."""
    if (seed, quotes()) in _planted:
        return _planted[seed, quotes()]
    found = canary(seed, audited)
    if not found.ended:  # what the time ended is tried again
        _planted[seed, quotes()] = found
    return found


def canary(seed: int, audited: Audited, planted: Planted = PLANTED) -> Planting:
    """Audit what is `planted` by the very code that audits the user's model; return what became of it.

    "fail" where each of them failed, as it must; else the verdict furthest from that, which discredits a pass. It shows
    nothing, and leaves random states as they are; what breaks in it is inconclusive.
    """
    try:
        outer = current()

        def show(work: Work, done: int, total: int) -> None:
            if total == 0:
                outer.stage(f"looking for the planted leak: {work.name}")

        with monitored(Monitor(show, outer.deadline)), seeded(seed, "canary"):
            rows = () if expired() else _rows(seed, audited, planted)
        if expired():
            return Planting("inconclusive", ended="budget")
    except Exception as error:  # as broken as whatever it was to show
        if expired():  # what breaks for want of time is looked at with more of it
            return Planting("inconclusive", ended="budget")
        return Planting("inconclusive", f"the planted leak could not be audited ({first_line(error)})")
    missed = [row for row in rows if row.verdict != "fail"]
    verdict: Verdict = max([row.verdict for row in rows], key=VERDICTS.index)
    return Planting(verdict, "; ".join(map(_told, missed or rows)))


def leaky(seed: int) -> Target:
    """Return a dense network, initialised under the present random state, and made records around it."""
    generator = generator_for(seed, "canary", "records")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    means = torch.rand(CLASSES, 1, 4, 4, generator=generator)
    labels = torch.arange(CLASSES * OF_EACH) % CLASSES

    def drawn() -> Records:
        own = torch.rand(len(labels), 1, 4, 4, generator=generator)
        coarse = F.interpolate((means[labels] + own) / 2, SHAPE[1:], mode="bilinear")
        return Records((coarse + 0.05 * torch.randn(coarse.shape, generator=generator)).clamp(0, 1), labels)

    names = tuple(str(k) for k in range(CLASSES))
    return Target("canary", PixelModel(network), nn.CrossEntropyLoss(), drawn(), drawn(), drawn(), names)


def _rows(seed: int, audited: Audited, planted: Planted) -> tuple[DefenseResult, ...]:
    plan = Plan(attacks=ATTACKS, battery="quick", records=VICTIMS, candidates=LINE_UP, utility=False, seed=seed)
    plan = replace(plan, images="full")  # made records: its scores are judged, and nothing of it is shown
    result = audited(set_scene(leaky(seed), plan, None, "", ()), planted)
    if not result.complete:  # whoever interrupts means the scan
        raise KeyboardInterrupt
    return result.defenses


def _told(row: DefenseResult) -> str:
    """Return what became of a planted leak, for the report."""
    scored = [a for a in row.attacks if a.identification.value is not None]
    best = max(scored, key=lambda a: a.identification.value or 0.0, default=None)
    where = "without a defense" if row.spec == "none" else f"behind {row.spec}"
    if best is None:
        return f"{where} no attack was scored ({row.verdict})"
    hits = round((best.identification.value or 0.0) * best.identification.n)
    return f"{where} {best.name} picked out {hits} of {best.identification.n} records ({row.verdict})"
