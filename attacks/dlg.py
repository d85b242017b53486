"""Deep leakage from gradients, with the label optimised along (DLG) or inferred first (iDLG)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from leakaudit.attacks._attacking import client_mode, memory_safe, room_for, starts, tied
from leakaudit.attacks._labels import known_labels
from leakaudit.attacks._optimise import Descent, best_restart
from leakaudit.engine import matching as engine
from leakaudit.errors import NotApplicable
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Attack, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate
from leakaudit.protocol.gradients import Gradients
from leakaudit.protocol.labels import hard
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel
from leakaudit.protocol.task import Task
from leakaudit.work.memory import bearable, exhausted, held
from leakaudit.work.progress import expired, followed, observe, track

_COPIES = 6  # of the pictures and soft labels of all trials, that are held at once
_FALLEN = 0.1  # what the scaled objective must have fallen to, for L-BFGS to begin anew where it stops
_HISTORY = 50  # steps whose curvature L-BFGS knows
_CHUNK = 5  # iterations of L-BFGS between looks at the clock


@register_attack
@dataclass(frozen=True, kw_only=True)
class DLG(Attack):
    """Minimise ‖∇ℓ(x̂, ŷ) − g‖² jointly over the pictures and soft labels by L-BFGS (Zhu et al. 2019, arXiv 1906.08935).

    The soft label is the softmax of free logits, so the loss must take class probabilities; where it does not, and the
    labels are not exposed, NotApplicable. Where labels are no classes the targets themselves are free, begun at the
    mean of what is known of targets; where those must be whole numbers (a mask of many classes) they are inferred
    first. Pictures are optimised unboxed and clamped at the end. L-BFGS needs a smooth
    model: on kinked activations (ReLU) it often ends `diverged`, as in the paper's follow-ups. `steps` counts
    L-BFGS iterations.
    """

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "dlg"
    summary: ClassVar[str] = "match gradients jointly in picture and soft label (L-BFGS)"
    source: ClassVar[str] = "Zhu et al. 2019"

    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise ValueError("steps and restarts must be at least 1")

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: a line search looks about twice at each step, and trials run one by one."""
        return Amount(slopes=2 * self.steps * self.restarts * sizes.victims)

    def fixed_labels(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor | None:
        """Return labels (V, B), or targets (V, B, *shape), that stay fixed, or None to optimise them."""
        whole = update.task.own_targets and not update.task.dtype.is_floating_point
        return known_labels(model, update, generator) if whole else update.labels

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Invert every victim; a trial whose objective is not finite or never falls is `diverged`."""
        trials = update.victims * self.restarts
        told = f"{trials} trials (restarts={self.restarts})"
        width = update.classes if softened(update.task) else prod(update.task.shape)
        size = room_for(update, trials, _COPIES, width) + room_for(update, 1, 2 * _HISTORY + 10)
        with held(size, told, "restarts or records", model.mean.device):
            return self._inverted(model, update, trials, generator)

    def _inverted(
        self, model: PixelModel, update: SharedUpdate, trials: int, generator: torch.Generator
    ) -> Reconstruction:
        labels = self.fixed_labels(model, update, generator)
        start = starts(model, update, self.restarts, generator)
        free = free_labels(update, trials, generator).to(start)
        ends: list[tuple[Tensor, Tensor, float, Status]] = []
        made: list[float] = []
        with client_mode(model, update, generator):
            for t in range(trials):
                fixed = None if labels is None else labels[t // self.restarts]
                shared = tuple(g[t // self.restarts] for g in update.gradients)
                with followed() as course:
                    ends.append(self._invert(model, update, start[t], free[t], fixed, shared, t // self.restarts))
                made.append(course.least)
        images, guesses, values, statuses = zip(*ends, strict=True)
        descent = Descent(torch.stack(images), torch.tensor(values), statuses)
        found = best_restart(update, descent, labels if labels is not None else torch.stack(guesses), self.restarts)
        return replace(found, progress=torch.tensor(made).view(update.victims, -1).max(1).values)

    def _invert(
        self,
        model: PixelModel,
        update: SharedUpdate,
        start: Tensor,
        begun: Tensor,
        fixed: Tensor | None,
        shared: Gradients,
        victim: int,
    ) -> tuple[Tensor, Tensor, float, Status]:
        x, label = start.clone().requires_grad_(True), begun.clone().requires_grad_(True)
        free = [x] if fixed is not None else [x, label]
        optimiser = _optimiser(free)
        best, best_x, best_label, first, scale = torch.inf, start, begun, torch.inf, 1.0

        def matched() -> tuple[Tensor, tuple[Tensor, ...]]:
            target = fixed if fixed is not None else label.softmax(1) if softened(update.task) else label
            with engine.twice_differentiable():
                outcome = self._loss(update, model(x), target)
            return engine.match_one(model, outcome, free, shared, engine.squared)

        bearable(matched, model, (self.name, x.shape), x.device)

        def closure() -> float:
            nonlocal best, best_x, best_label, first, scale
            value, slopes = matched()
            number = float(value)
            if first == torch.inf:
                first, scale = number, _scale(number)
            for leaf, slope in zip(free, slopes, strict=True):
                own = tied(slope) if model.grey and leaf is x else slope
                leaf.grad = (scale * own).contiguous()  # the optimiser takes views of it
            if number < best:
                best, best_x, best_label = number, x.detach().clone(), label.detach().clone()
            return scale * number

        for _ in track(self.name, max(1, self.steps // _CHUNK)):
            before = best
            optimiser.step(closure)
            observe(torch.tensor([best]), best_x[None], torch.tensor([victim]), of=update.victims)
            if not x.isfinite().all():
                break
            if best >= before * 0.999:
                if scale * best > _FALLEN:
                    break
                optimiser, scale = _optimiser(free), _scale(best)
        status: Status = "converged" if best < first else "diverged"
        if expired():
            status = "budget"
        found = best_label.argmax(1) if softened(update.task) else hard(best_label, update.task)
        return best_x.clamp(0, 1), found, best, status

    def _loss(self, update: SharedUpdate, logits: Tensor, target: Tensor) -> Tensor:
        try:
            return update.loss(logits, target)
        except (RuntimeError, TypeError, ValueError) as error:
            if not target.is_floating_point() or exhausted(error):
                raise
            raise NotApplicable("the loss does not take soft labels, and the labels are not exposed") from error


def _optimiser(free: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(free, lr=1.0, max_iter=_CHUNK, history_size=_HISTORY, line_search_fn="strong_wolfe")


def _scale(objective: float) -> float:
    """Return what a small objective is multiplied by, so that L-BFGS, whose tolerances are absolute, goes on.

    A loss that is a mean over findings has small gradients, and their distance is smaller by the square.
    """
    return 1 / objective if 0 < objective < 1 else 1.0


def softened(task: Task) -> bool:
    """Whether labels are optimised as the softmax of free logits: probabilities, not targets of another kind."""
    return task.by_class or not task.own_targets


def free_labels(update: SharedUpdate, trials: int, generator: torch.Generator) -> Tensor:
    """Return what labels are optimised from: random logits (T, B, K), or targets (T, B, *shape) about their mean."""
    task, table = update.task, update.task.table
    shape = (update.classes,) if softened(task) else task.shape
    noise = torch.randn((trials, update.batch_size, *shape), generator=generator, device=generator.device)
    if softened(task) or table is None:
        return noise
    return table.mean(0).to(noise) + 0.1 * table.std(0, correction=0).to(noise) * noise


@register_attack
@dataclass(frozen=True, kw_only=True)
class IDLG(DLG):
    """DLG with the label inferred from the last layer first (Zhao et al. 2020, arXiv 2001.02610)."""

    family: ClassVar[str] = "matching"
    name: ClassVar[str] = "idlg"
    summary: ClassVar[str] = "infer the label, then match gradients in the picture (L-BFGS)"
    source: ClassVar[str] = "Zhao et al. 2020"

    def fixed_labels(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Tensor | None:
        """Return the exposed or inferred labels."""
        return known_labels(model, update, generator)
