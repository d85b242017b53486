"""The same audit at several moments of training: as initialised, early in it, trained.

A network leaks most before it has learned anything and least when it is sure of its records, so an audit of one moment
says little of the others. The target itself is trained to get there; the last stage is the audit that is returned, and
each row holds what the earlier ones found of its defense.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from leakaudit.audit import audit as auditing
from leakaudit.audit.audit import Keep, KeepLearned
from leakaudit.audit.course import Staged
from leakaudit.errors import Setting, UserError, first_line
from leakaudit.protocol.target import PixelModel, Target
from leakaudit.result.rules import MOMENT
from leakaudit.result.schema import AuditResult, Stage, Waiver
from leakaudit.scene.naming import facts_of
from leakaudit.scene.plan import Plan
from leakaudit.score.measures import cannot, measured
from leakaudit.score.utility import train
from leakaudit.units import desk
from leakaudit.work.progress import current, expired, monitored, stage
from leakaudit.work.seeding import derive

EARLY = 1  # epochs after which training is still early


@dataclass(frozen=True)
class Moment:
    """A network at one moment of training."""

    name: str
    epochs: int
    model: PixelModel
    accuracy: float  # on the test records


@dataclass(frozen=True)
class Weights:
    """What is kept of a network at a moment of training: `state_dict`, and how good it is on the test records."""

    state: dict[str, Tensor]
    accuracy: float


def audit_at_stages(
    target: Target,
    plan: Plan,
    *,
    lpips_weights: Path | None = None,
    keep: Keep | None = None,
    keep_learned: KeepLearned | None = None,
    command: str = "",
    waivers: tuple[Waiver, ...] = (),
) -> AuditResult:
    """Audit a target as `audit` does, at the stages of the plan one after another; at its own weights without any.

    An interrupt ends the audit of a stage, and with it all of it. The time budget is split evenly between stages, and
    what one leaves of its part goes to the next. Raises UserError where the target cannot be trained.
    """
    with monitored(replace(current(), started=current().started or time.monotonic())):  # one clock for all stages
        found = Staged()
        for k, name in enumerate(plan.stages[:-1]):
            moment = trained_to(target, name, plan)
            budget = None if plan.budget is None else plan.budget * (k + 1) / len(plan.stages)
            result = auditing.audit(
                replace(target, model=moment.model),
                replace(plan, utility=False, budget=budget),
                lpips_weights=lpips_weights,
                keep=_unfinished(keep),
                command=command,
                waivers=waivers,
                staged=replace(found, now=at(moment)),
            )
            found = Staged({row.spec: row.stages for row in result.defenses})
            if not result.complete:
                return result
        last = trained_to(target, plan.stages[-1], plan) if plan.stages else None
        return auditing.audit(
            target if last is None else replace(target, model=last.model),
            plan,
            lpips_weights=lpips_weights,
            keep=keep,
            keep_learned=keep_learned,
            command=command,
            waivers=waivers,
            staged=replace(found, now=None if last is None else at(last)),
        )


def _unfinished(keep: Keep | None) -> Keep | None:
    """Return what keeps no finished result: what an earlier stage ends with is not the end of the audit."""
    return None if keep is None else lambda result: None if result.complete else keep(result)


def trained_to(target: Target, name: str, plan: Plan) -> Moment:
    """Return the target at a stage: fresh weights, trained on the private records without a defense for its epochs.

    Each stage is trained from the same fresh weights. Raises UserError naming the setting where that fails.
    """
    epochs = {"init": 0, "early": EARLY}.get(name, plan.effort().epochs)
    stage(f"{MOMENT} {name}")

    def trained() -> Weights:
        model = target.fresh(derive(plan.seed, "stages"))
        if epochs:
            seed = derive(plan.seed, "stages", "batches")
            train(model, target.private, target.loss, epochs=epochs, seed=seed, augment=target.augment)
        return Weights(model.state_dict(), measured(model, target.test, target.task, target.loss))

    facts = None if desk.current() is None else facts_of(target, plan)
    unit = None if facts is None else facts.unit("moment", f"{MOMENT} {name}", epochs=epochs)
    try:
        found = desk.done(unit, Weights, trained, wait=True)
        model, right = target.fresh(derive(plan.seed, "stages")), found.accuracy
        model.load_state_dict(found.state)
        model.train(not epochs and model.training)  # as it is left by training
    except UserError:
        raise
    except Exception as error:  # the user's model, loss or factory may raise anything
        raise UserError(Setting("stages"), f" trains the model, and that failed ({first_line(error)}).") from error
    if math.isnan(right):
        why = cannot(target.test, target.task) or "its outputs are not finite"
        raise UserError(Setting("stages"), f" says how good the model is at each, and that is not known: {why}.")
    if expired():
        raise UserError("the time budget ended while the model was trained for ", Setting("stages"), ".")
    return Moment(name, epochs, model, right)


def at(moment: Moment) -> Stage:
    """Return a stage that nothing was found at yet."""
    return Stage(moment.name, moment.epochs, moment.accuracy, "inconclusive")
