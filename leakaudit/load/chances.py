"""Whether a model answers the same twice: chance that attacks do not know hides part of the update from them."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leakaudit.protocol.gradients import Mode, in_mode
from leakaudit.protocol.target import Target
from leakaudit.result.schema import Finding
from leakaudit.work.seeding import random_states, seeded

LOOKED = 8  # pictures of a pass: a path that is dropped is dropped for each record by itself
PASSES = 32  # at most, where a model draws: a path that is dropped for a whole batch at a tenth differs in 97 of 100
DIFFERS = 1e-4  # of the largest logit, more than a kernel's order of summation does


@dataclass(frozen=True)
class Chance:
    """What was seen: passes under several seeds of torch differ, those under the same one do, and what else drew."""

    seeded: bool
    unseeded: bool
    others: tuple[str, ...]


def chances(target: Target, mode: str) -> list[Finding]:
    """Pass pictures through the model in the client's mode, under one seed and under others, and say what differs.

    Functions (`F.dropout`) and layers of the user's own (a stochastic depth, a DropPath) are found as layers are, and
    in eval mode too, where none should draw.
    """
    found = _seen(target, "train" if mode == "train" else "eval")
    if found is None:
        return []
    findings = []
    if found.seeded:
        still = mode == "train" and _seen(target, "eval") == Chance(False, False, ())
        where = "train mode" if still else "eval mode too, as where F.dropout is not told training=self.training"
        message = (
            f"the model draws at random in its forward pass (two passes under two seeds differ, in {where}): what "
            "attacks fail to rebuild here, one that knows the draws or averages over them may. "
        )
        message += "Scan with --mode eval too." if still else "Let it draw in train mode alone, and scan in eval mode."
        findings.append(Finding("dropout-train-mode" if still else "random-model", "warning", message, {"mode": mode}))
    if found.unseeded:
        source = f" ({' and '.join(found.others)} drew)" if found.others else ""
        message = (
            f"two forward passes under one seed of torch differ in {mode} mode{source}: attacks match a model that "
            "changes between their steps, and a scan does not repeat. Draw from torch, in train mode alone."
        )
        findings.append(Finding("unseeded-model", "warning", message, {"mode": mode}))
    return findings


def _seen(target: Target, mode: Mode) -> Chance | None:
    """Return what was seen in this mode; None where a pass fails, which other checks tell."""
    source = target.auxiliary if len(target.auxiliary) >= LOOKED else target.private
    x = source.images[:LOOKED].to(target.device)
    try:
        with seeded(0, "chance"), torch.no_grad():
            first, drew = _pass(target, x, 0, mode)
            repeats = PASSES if any(drew.values()) else 2
            unseeded = any(_differ(first, _pass(target, x, 0, mode)[0]) for _ in range(1, repeats))
            # Where passes differ under one seed, others tell nothing unless torch draws as well.
            others = range(1, PASSES if drew["torch"] else 1 if unseeded else 2)
            by_seed = any(_differ(first, _pass(target, x, seed, mode)[0]) for seed in others)
    except Exception:  # user code may raise anything
        return None
    return Chance(by_seed, unseeded, tuple(name for name, did in drew.items() if did and name != "torch"))


def _pass(target: Target, x: Tensor, seed: int, mode: Mode) -> tuple[Tensor, dict[str, bool]]:
    """Return the logits under a seed of torch, and which generators were drawn from on the way."""
    torch.manual_seed(seed)
    before = _states()
    with in_mode(target.model, mode):  # each pass begins with the same buffers
        logits = target.model(x)
    after = _states()
    return logits, {name: before[name] != after[name] for name in before}


def _states() -> dict[str, object]:
    name, keys, *rest = np.random.get_state()
    return {
        "torch": [state.numpy().tobytes() for _, state in random_states()],
        "Python's random": random.getstate(),
        "numpy.random": (name, np.asarray(keys).tobytes(), *rest),
    }


def _differ(one: Tensor, other: Tensor) -> bool:
    least = DIFFERS * float(one.abs().max())
    return one.shape != other.shape or bool(((one - other).abs() > least).any())
