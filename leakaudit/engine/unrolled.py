"""A client's local training as a function of its pictures: what its weights lose, and slopes through all of its steps.

With w_k = w_{k−1} − u_k, where the optimiser makes the move u_k of the gradient g_k = ∇ℓ(w_{k−1}; x_k), an objective of
w₀ − w_E has its slopes by the adjoint method: ā = ∂d/∂w_E goes backwards through the steps. The optimiser's own
derivative gives ḡ_k of ā in closed form; one double backward of step k alone then gives ∂⟨ḡ_k, g_k⟩/∂x_k, the slope of
its pictures, and ∂⟨ḡ_k, g_k⟩/∂w_{k−1}, which is added to ā. One graph of all steps would hold E of a step's graphs.
Here the weights of every step are held, and of the graphs only the last `KEPT`: the others are built once more when
their turn comes, so that memory hardly grows with the steps and few steps pay nothing for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from leakaudit.engine.distances import Distance
from leakaudit.engine.matching import listed
from leakaudit.engine.stacked import twice_differentiable
from leakaudit.protocol.federation import Client
from leakaudit.protocol.gradients import Gradients, parameters_of, with_parameters
from leakaudit.protocol.target import LossFunction, PixelModel
from leakaudit.work.memory import in_pieces
from leakaudit.work.precision import exact as exact_float32
from leakaudit.work.seeding import RandomStates, random_states, set_random_states

KEPT = 4  # graphs of the last steps that are held until their turn comes, over all clients

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of torch's Adam, which the clients run


@dataclass(frozen=True)
class Training:
    """What the `client`s behind an update do: `plans` say of each which of the S pictures its steps see, in order.

    Each of them has `own` records: the pseudo-gradient is what weights lose over `client.moved(own)`.
    """

    client: Client
    plans: tuple[tuple[Tensor, ...], ...]
    own: int

    @property
    def steps(self) -> int:
        """How many optimiser steps all clients take together."""
        return sum(map(len, self.plans))


Adjoint = tuple[Gradients, ...]  # of the optimiser's state, one tensor per parameter each


class Rule(Protocol):
    """An optimiser: its state after a gradient and the move it makes, and the same backwards."""

    def begin(self, weights: Gradients) -> Adjoint:
        """Return the state before the first step, or its adjoint after the last: zeros."""
        ...

    def move(self, k: int, state: Adjoint, g: Gradients) -> tuple[Adjoint, Gradients]:
        """Return the state after step k = 1, 2, … with gradient `g`, and what is taken off the weights."""
        ...

    def back(self, k: int, after: Adjoint, g: Gradients, state: Adjoint, move: Gradients) -> tuple[Adjoint, Gradients]:
        """Return the adjoints of the state before step k and of `g`, of those of the state `after` it and the move."""
        ...


@dataclass(frozen=True)
class Sgd:
    """v ← μ·v + g, and w ← w − lr·v."""

    rate: float
    momentum: float

    def begin(self, weights: Gradients) -> Adjoint:
        """Return a velocity of zero."""
        return (tuple(torch.zeros_like(w) for w in weights),)

    def move(self, k: int, state: Adjoint, g: Gradients) -> tuple[Adjoint, Gradients]:
        """Return the velocity and the move."""
        velocity = tuple(torch._foreach_add(g, state[0], alpha=self.momentum))
        return (velocity,), tuple(torch._foreach_mul(velocity, self.rate))

    def back(self, k: int, after: Adjoint, g: Gradients, state: Adjoint, move: Gradients) -> tuple[Adjoint, Gradients]:
        """v̄ takes lr·ū, and hands on μ of it; ḡ is v̄."""
        whole = tuple(torch._foreach_add(state[0], move, alpha=self.rate))
        return (tuple(torch._foreach_mul(whole, self.momentum)),), whole


@dataclass(frozen=True)
class Adam:
    """m ← β₁m + (1 − β₁)g, s ← β₂s + (1 − β₂)g², w ← w − lr·m̂ / (√ŝ + ε) (Kingma and Ba 2015, algorithm 1)."""

    rate: float

    def begin(self, weights: Gradients) -> Adjoint:
        """Return moments of zero."""
        return tuple(torch.zeros_like(w) for w in weights), tuple(torch.zeros_like(w) for w in weights)

    def move(self, k: int, state: Adjoint, g: Gradients) -> tuple[Adjoint, Gradients]:
        """Return both moments and the move."""
        (b1, b2), (first, second) = BETAS, state
        m = tuple(b1 * was + (1 - b1) * now for was, now in zip(first, g, strict=True))
        s = tuple(b2 * was + (1 - b2) * now * now for was, now in zip(second, g, strict=True))
        moves = (a * (self.rate / (1 - b1**k)) / self._below(k, b) for a, b in zip(m, s, strict=True))
        return (m, s), tuple(moves)

    def _below(self, k: int, second: Tensor) -> Tensor:
        below: Tensor = (second / (1 - BETAS[1] ** k)).sqrt() + EPSILON
        return below

    def back(self, k: int, after: Adjoint, g: Gradients, state: Adjoint, move: Gradients) -> tuple[Adjoint, Gradients]:
        """The derivative of both moments and the quotient, entry by entry; √s at s = 0, where g is 0, passes none."""
        (b1, b2), rate = BETAS, self.rate / (1 - BETAS[0] ** k)
        found = []
        for m, s, now, m_bar, s_bar, u_bar in zip(*after, g, *state, move, strict=True):
            below = self._below(k, s)
            m_bar = m_bar + u_bar * rate / below
            root = torch.where(s > 0, 0.5 / ((s * (1 - b2**k)).sqrt()), 0)
            s_bar = s_bar - u_bar * rate * m / below**2 * root
            found.append((b1 * m_bar, b2 * s_bar, (1 - b1) * m_bar + 2 * (1 - b2) * now * s_bar))
        m_bars, s_bars, g_bars = (tuple(column) for column in zip(*found, strict=True))
        return (m_bars, s_bars), g_bars


def rule_of(client: Client) -> Rule:
    """Return the optimiser of a client's local training."""
    return Adam(client.local_lr) if client.optimizer == "adam" else Sgd(client.local_lr, client.momentum)


@dataclass(frozen=True)
class _Step:
    """The graph of one local step: its pictures, its weights and its gradient, None where the loss reaches none."""

    x: Tensor
    weights: tuple[Tensor, ...]
    found: tuple[Tensor | None, ...]

    @property
    def gradient(self) -> Gradients:
        """The gradient, zeros where there is none."""
        pairs = zip(self.found, self.weights, strict=True)
        return tuple(torch.zeros_like(w) if g is None else g.detach() for g, w in pairs)

    def pulled(self, cotangent: Gradients, first: bool) -> tuple[Tensor, Gradients | None]:
        """Return ∂⟨ḡ, g⟩ in the pictures and, but in the first step, in the weights."""
        reached = [i for i, g in enumerate(self.found) if g is not None and g.requires_grad]
        inputs = [self.x] if first else [self.x, *self.weights]
        outputs = [g for i in reached if (g := self.found[i]) is not None]
        slopes: tuple[Tensor | None, ...] = (None,) * len(inputs)
        if outputs:
            slopes = torch.autograd.grad(outputs, inputs, [cotangent[i] for i in reached], allow_unused=True)
        whole = tuple(torch.zeros_like(x) if s is None else s for x, s in zip(inputs, slopes, strict=True))
        return whole[0], None if first else whole[1:]


@dataclass
class _Run:
    """One client's training: the weights before every step, and what going back through them needs."""

    plan: tuple[Tensor, ...]
    rule: Rule
    weights: list[Gradients] = field(default_factory=list)
    states: list[Adjoint] = field(default_factory=list)  # after every step
    steps: dict[int, _Step] = field(default_factory=dict)  # graphs that are held
    random: dict[int, RandomStates] = field(default_factory=dict)  # before every step, where a model may draw


@dataclass(frozen=True)
class _Trial:
    """The pictures (S, C, H, W) and labels of one trial, with the model that is trained on them."""

    model: PixelModel
    loss: LossFunction
    images: Tensor
    labels: Tensor
    parameters: tuple[torch.nn.Parameter, ...]

    def step(self, rows: Tensor, weights: Gradients, graph: bool) -> _Step:
        """Return the gradient of some of the pictures at some weights; with its graph or without."""
        rows = rows.to(self.images.device)
        x = self.images[rows].detach().requires_grad_(graph)
        leaves = tuple(w.detach().requires_grad_(True) for w in weights)
        with twice_differentiable(), with_parameters(self.model, self.parameters, leaves):
            outcome = self.loss(self.model(x), self.labels[rows])
        found = torch.autograd.grad(outcome, leaves, create_graph=graph, allow_unused=True)
        return _Step(x, leaves, found)

    def run(self, plan: tuple[Tensor, ...], rule: Rule, kept: int) -> tuple[_Run, Gradients]:
        """Train one client; return what was passed, with the graphs of the last `kept` steps, and the weights' loss."""
        run, weights = _Run(plan, rule), tuple(p.detach() for p in self.parameters)
        state, begun = rule.begin(weights), weights
        for k, rows in enumerate(plan):
            if self.model.training:
                run.random[k] = random_states()
            run.weights.append(weights)
            step = self.step(rows, weights, graph=k >= len(plan) - kept)
            if step.x.requires_grad:
                run.steps[k] = step
            state, move = rule.move(k + 1, state, step.gradient)
            run.states.append(state)
            weights = tuple(torch._foreach_sub(weights, move))
        return run, tuple(torch._foreach_sub(begun, weights))

    def back(self, run: _Run, lost: Gradients, slopes: Tensor) -> None:
        """Add to `slopes` (S, C, H, W) those of one client's pictures, of the cotangent of what its weights `lost`."""
        state = run.rule.begin(lost)
        move = lost  # w₀ − w_E is the sum of all moves
        for k in range(len(run.plan) - 1, -1, -1):
            step = run.steps.pop(k, None)
            if step is None:
                if k in run.random:
                    set_random_states(run.random[k])
                step = self.step(run.plan[k], run.weights[k], graph=True)
            state, cotangent = run.rule.back(k + 1, run.states.pop(), step.gradient, state, move)
            slope, turned = step.pulled(cotangent, first=k == 0)
            slopes.index_add_(0, run.plan[k].to(slopes.device), slope)
            if turned is not None:
                move = tuple(torch._foreach_sub(move, turned))  # w_{k−1} is w₀ less the moves before


def _mean(parts: Sequence[Gradients], moved: float) -> Gradients:
    """Return the mean of what clients lost, over `moved`."""
    return tuple(torch.stack(column).mean(0) / moved for column in zip(*parts, strict=True))


@torch.enable_grad()
@exact_float32()
def trained(model: PixelModel, loss: LossFunction, images: Tensor, labels: Tensor, training: Training) -> Gradients:
    """Return what `training` on pictures (S, C, H, W) and labels (S,) or (S, classes) sends, as `SharedUpdate` has it.

    That is w₀ − w_E over `Client.moved`, of several clients the mean; one tensor (*parameter.shape) per parameter.
    """
    trial = _Trial(model, loss, images, labels, parameters_of(model)[1])
    rule = rule_of(training.client)
    parts = [trial.run(plan, rule, 0)[1] for plan in training.plans]
    return _mean(parts, training.client.moved(training.own))


@torch.enable_grad()
@exact_float32()
def match(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    shared: Gradients,
    distance: Distance,
    trainings: Sequence[Training],
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return objective values (T,) and their slopes in the pictures (T, S, C, H, W), through all local steps.

    As `leakaudit.engine.matching.match` does for one gradient: what trial t's pictures make of the training
    `trainings[rows[t]]` (`trained`) is laid beside row `rows[t]` of `shared`, by default row t. The caller puts
    the model in the client's mode. One trial after another, in pieces that stay within the memory.
    """
    if len(images) == 0:
        return images.new_zeros(0), torch.zeros_like(images)
    numbers = range(len(images)) if rows is None else listed(rows)

    def piece(start: int, stop: int) -> tuple[Tensor, Tensor]:
        found = []
        for t in range(start, stop):
            trial = _Trial(model, loss, images[t], labels[t], parameters_of(model)[1])
            found.append(_one(trial, tuple(s[numbers[t]] for s in shared), distance, trainings[numbers[t]]))
        values, slopes = zip(*found, strict=True)
        return torch.stack(values), torch.stack(slopes)

    key = ("unrolled", images.shape[1:], images.dtype, max(training.steps for training in trainings))
    found = in_pieces(piece, len(images), model, key, images.device)
    values, slopes = (torch.cat(column) for column in zip(*found, strict=True))
    return values, slopes


def _one(trial: _Trial, wanted: Gradients, distance: Distance, training: Training) -> tuple[Tensor, Tensor]:
    """Return the value and the slopes of one trial. The random state is afterwards as one pass forward leaves it."""
    rule, moved = rule_of(training.client), training.client.moved(training.own)
    runs = [trial.run(plan, rule, KEPT // len(training.plans)) for plan in training.plans]
    drawn = random_states() if trial.model.training else None
    value, cotangent = distance(_mean([lost for _, lost in runs], moved), wanted)
    each = tuple(c / (moved * len(runs)) for c in cotangent)
    slopes = torch.zeros_like(trial.images)
    for run, _ in runs:
        trial.back(run, each, slopes)
    if drawn is not None:
        set_random_states(drawn)
    return value.detach(), slopes
