"""Claimed and measured: whether captured updates have the noise and the norm that their claims imply, and its ε.

A claim is called broken where what was captured has a probability of at most `ALPHA` under it, whatever the records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leakaudit.captured.epsilons import epsilon_row
from leakaudit.captured.fitting import Fitted, fitted
from leakaudit.captured.form import CapturedUpdate, Claims
from leakaudit.captured.mechanism import SERVERS, Mechanism, mechanism_of, step_weights
from leakaudit.captured.reading import client_of
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.federation import Client
from leakaudit.result.claims import ClaimRow, Judged
from leakaudit.result.numbers import significant

# How unlikely under a claim what was captured must be for its row to be called broken: many rows of many files are
# looked at, and what is wrong by a factor is far below (`python -m benchmarks.claims`).
ALPHA, ODDS = 1e-6, "a million to one"
SURE = 0.01  # how unlikely it is that there is less noise than the lower end of the interval
UNIT = "standard deviation of a number of the update"
LEVELS = 2.0 ** -np.arange(21)  # at which the numbers near 0 are counted, in units of the claimed noise
HOLDS = 0.8  # the share of the claimed noise that must be certain for the claim to hold
QUIET = 30  # directions without signal from which the noise alone is estimated
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """What of the updates the noise would be in, and what is known of it."""

    numbers: Numbers  # of all updates: signal and noise
    rounding: Numbers  # how far each may be off, as weights are stored
    quiet: Numbers  # in directions in which there is no signal, of the same standard deviation
    whence: str  # where those directions are


def measure_claims(
    captured: CapturedUpdate, network: nn.Module, *, source: str = "the file", defense: Defense | None = None
) -> tuple[ClaimRow, ...]:
    """Return every claim of captured updates beside its measurement: noise, norm, ε; none where nothing is claimed.

    `network` is the model that was trained, under whose names the updates are; `defense` the claimed one where the file
    claims it as a spec of ours. Raises UserError where the file is not of this model, or claims what no mechanism has.
    """
    claimed = mechanism_of(captured.claims, defense)
    if claimed is None:
        return ()
    fit = fitted(captured, network, source)
    client = client_of(captured.claims, source)
    std, longest = implied(claimed, captured.claims, client, fit)
    rows: list[ClaimRow] = []
    most = beside = std  # the noise that can be there of what is claimed, and that may stand beside what is clipped
    if claimed.noise != 0 and claimed.name not in SERVERS:
        sample = sample_of(fit, network, claimed, client)
        row = noise_row(claimed.name, std, sample)
        rows.append(row)
        if std and row.high is not None:
            nothing = row.high <= 8 * float(np.median(sample.rounding))  # what is left is how weights are rounded
            most = beside = 0.0 if nothing else min(std, row.high)
            if captured.claims.settings and claimed.place == "step":  # of which `implied` gives the least
                beside = max(most, row.high)
    if claimed.clip is not None:
        rows.append(norm_row(claimed, longest, beside, _norms(fit, network, claimed)))
    if claimed.entry is not None:
        rows.append(_entry_row(claimed, client, captured.claims, fit, network))
    if claimed.clip is not None or claimed.epsilon is not None or claimed.entry is not None:
        rows.append(epsilon_row(claimed, captured.claims, client, (std, most)))
    return tuple(rows)


def implied(claimed: Mechanism, claims: Claims, client: Client, fit: Fitted) -> tuple[float | None, float | None]:
    """Return the standard deviation of the noise on one number of an update, and how long the rest can be.

    None is what is not known. For a mechanism in every step, noise is σC/B of each step's B records, and it moves the
    weights as a gradient does; that later gradients follow from earlier noise is left out.

    A framework draws how many records a step sees, and divides clipped gradients and noise by how many it expects
    (Opacus: by those of one batch of equal ones): the noise is the least that this leaves, the length the most.
    """
    if claims.clients > 1:
        return None, None  # whether they were summed or averaged nobody says
    if claimed.place == "update":
        return claimed.noise, claimed.clip
    records = claims.records or claims.batch_size
    if claimed.noise is None or claimed.clip is None or records is None or client.optimizer != "sgd":
        return None, None
    if client.local and claims.local_lr is None and fit.sends != "gradient":
        return None, None
    steps = step_weights(client, records)
    most = 1.0
    if claims.settings:
        full = client.step_size(records)
        most = records / max(1, records // -(-records // full))
        steps = [(reach, full) for reach, _ in steps]
    variance = sum((reach * claimed.noise * claimed.clip / size) ** 2 for reach, size in steps)
    return math.sqrt(variance), sum(reach for reach, _ in steps) * claimed.clip * most


def _names(fit: Fitted, network: nn.Module, claimed: Mechanism) -> list[str]:
    """Return what the mechanism acts on: trained parameters, or every float that was sent."""
    if claimed.whole:
        return [name for name, value in fit.updates[0].items() if value.is_floating_point() and name in fit.before]
    return [name for name, p in network.named_parameters() if p.requires_grad and name in fit.updates[0]]


def _flat(fit: Fitted, update: int, names: Sequence[str]) -> Numbers:
    return torch.cat([each.flatten() for each in fit.lost(update, names)]).numpy()


def _norms(fit: Fitted, network: nn.Module, claimed: Mechanism) -> tuple[list[float], int, float]:
    """Return the norm of every update, how many numbers it has, and by how much rounding may have lengthened it."""
    names = _names(fit, network, claimed)
    norms = [float(np.linalg.norm(_flat(fit, k, names))) for k in range(len(fit.updates))]
    rounding = float(np.linalg.norm(_rounding(fit, 0, names)))
    return norms, sum(fit.updates[0][name].numel() for name in names), rounding


def _rounding(fit: Fitted, update: int, names: Sequence[str]) -> Numbers:
    """Return how far each number of w₀ − w_E may be off: weights are stored in few digits, a difference in its own."""
    found = []
    for name in names:
        state = fit.updates[update][name]
        size = state.double().abs() + (fit.before[name].double().abs() if fit.sends == "difference" else 0.0)
        found.append((size * (torch.finfo(state.dtype).eps if state.is_floating_point() else 0.0)).flatten())
    return torch.cat(found).numpy()


def sample_of(fit: Fitted, network: nn.Module, claimed: Mechanism, client: Client) -> Sample:
    """Return the numbers that hold the noise, and those directions among them in which nothing else is."""
    names = _names(fit, network, claimed)
    count = range(len(fit.updates))
    numbers = np.concatenate([_flat(fit, k, names) for k in count])
    rounding = np.concatenate([_rounding(fit, k, names) for k in count])
    quiet: list[Numbers] = []
    whence: list[str] = []
    rounds = client.rounds
    if rounds > 1 and not client.local:  # the same records, all of them in one step: the signal is the same
        pairs = [k for k in count[:-1] if (k + 1) % rounds and not (k % rounds) % 2]
        quiet += [(_flat(fit, k, names) - _flat(fit, k + 1, names)) / math.sqrt(2) for k in pairs]
        whence.append("between rounds of the same records")
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad and n in names]
    if frozen:
        quiet += [_flat(fit, k, frozen) for k in count]
        whence.append("on frozen weights")
    head = _head(network, names) if client.optimizer == "sgd" and not quiet else None
    if head:
        quiet += [_summed(fit, k, head) for k in count]
        whence.append(f"in the column sums of {head[0]}, which the gradients of a softmax leave at 0")
    return Sample(numbers, rounding, np.concatenate(quiet) if quiet else np.empty(0), " and ".join(whence))


def _head(network: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of the last dense layer's weight and bias: with a softmax behind it, Σ_c ∂L/∂W_c = 0."""
    dense = [name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)]
    last = [f"{dense[-1]}." if dense[-1] else ""] if dense else []
    found = [before + part for before in last for part in ("weight", "bias") if before + part in names]
    parameters = [name for name, _ in network.named_parameters()]
    return found if found and parameters[-1] in found else []


def _summed(fit: Fitted, update: int, head: Sequence[str]) -> Numbers:
    return np.concatenate([t.sum(0).reshape(-1).numpy() / math.sqrt(t.shape[0]) for t in fit.lost(update, head)])


def noise_row(name: str, std: float | None, sample: Sample) -> ClaimRow:
    """Return the claim of noise of standard deviation `std` on every number, beside what of it there can be.

    Whatever the signal is, noise that does not depend on it leaves no more numbers within ±t of 0 than noise alone
    would (Anderson 1955), and no less energy: these are exact tests of too little noise. Enough noise is certain only
    where it is seen apart from the signal, in directions that no record moves.
    """
    numbers = sample.numbers
    spread = float(np.median(np.abs(numbers))) / 0.67449 if len(numbers) else 0.0  # the median of |N(0, 1)|
    row = ClaimRow(what="noise", mechanism=name, claimed=std, measured=spread, unit=UNIT)
    if std is None:
        return replace(row, reason="What noise this claims for one update is not known.")
    if np.median(sample.rounding) > std / 4:
        why = "The weights are stored too coarsely for noise as small as is claimed."
        return replace(row, reason=why)
    tests = _Tests(sample, std)
    high = _largest(lambda s: tests.chance(s) > ALPHA, std)
    low = None
    measured, how = spread, "The median of all numbers' sizes, which signal makes larger"
    if len(sample.quiet) >= QUIET:
        measured = float(np.sqrt(np.mean(sample.quiet**2)))
        low = _quiet_bound(sample.quiet, SURE)
        how = f"{len(sample.quiet)} directions {sample.whence}"
    verdict, why = _judged(std, tests.chance(std), low)
    bound = f"at most {significant(high)} can be there, at odds of {ODDS}"
    return replace(row, measured=measured, low=low, high=high, verdict=verdict, reason=f"{how}; {bound}{why}.")


def _judged(std: float, chance: float, low: float | None) -> tuple[Judged, str]:
    if chance <= ALPHA:
        return "broken", ", less than is claimed"
    if low is None:
        return "cannot be told", "; signal and noise cannot be parted, so that it may be less"
    if low > std:
        return "cannot be told", "; there is more than the claimed noise in them, so that they may hold signal as well"
    return ("holds", "") if low >= HOLDS * std else ("cannot be told", "; too few to be sure of as much as is claimed")


class _Tests:
    """The tests of too little noise, at any standard deviation; their thresholds are those of the claimed one."""

    def __init__(self, sample: Sample, std: float) -> None:
        self.size = len(sample.numbers)
        self.quiet = sample.quiet
        self.thresholds = std * LEVELS
        sizes = np.sort(np.abs(sample.numbers))
        self.counts = np.searchsorted(sizes, self.thresholds, side="right")
        self.energy = float(np.linalg.norm(sample.numbers) + np.linalg.norm(sample.rounding)) ** 2
        self.rounding = np.quantile(sample.rounding, np.linspace(1 / 16, 1, 16), method="higher")  # each of 1/16

    def chance(self, std: float) -> float:
        """Return the probability of so little under noise of this standard deviation, corrected for all the tests."""
        from scipy.stats import binom, chi2, norm

        if std <= 0:
            return 1.0
        within = 2 * norm.cdf((self.thresholds[:, None] + self.rounding) / std).mean(1) - 1
        found = [float(p) for p in binom.sf(self.counts - 1, self.size, np.clip(within, 0, 1))]
        found.append(float(chi2.cdf(self.energy / std**2, self.size)))
        if len(self.quiet) >= QUIET:
            found.append(float(chi2.cdf(float(np.sum(self.quiet**2)) / std**2, len(self.quiet))))
        return min(1.0, min(found) * len(found))


def _largest(possible: Callable[[float], bool], std: float) -> float:
    """Return the largest standard deviation that is still possible, by doubling and halving from the claimed one."""
    high = std
    while possible(high) and high < std * 2.0**40:
        high *= 2
    low = high
    while not possible(low) and low > std * 2.0**-60:
        low /= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if possible(middle) else (low, middle)
    return high


def _quiet_bound(quiet: Numbers, alpha: float) -> float:
    """Return the lower end for the noise's standard deviation, from directions in which nothing else is."""
    from scipy.stats import chi2

    return math.sqrt(float(np.sum(quiet**2)) / float(chi2.isf(alpha, len(quiet))))


def norm_row(
    claimed: Mechanism, longest: float | None, noise: float | None, seen: tuple[list[float], int, float]
) -> ClaimRow:
    """Return the claim that nothing longer than `longest` is under the noise, beside the longest update's norm.

    ‖update‖² is at most a noncentral χ² of the clip and the noise (Patnaik's approximation). What is left of the square
    without the energy of the noise is the measured norm.
    """
    from scipy.stats import chi2

    norms, size, rounding = seen
    most = max(norms)
    row = ClaimRow(what="norm", mechanism=claimed.name, claimed=longest, unit="Euclidean norm of the update")
    if longest is None or noise is None:
        why = "How long the update can be under noise that is not known cannot be told."
        return replace(row, measured=most, reason=why)
    energy = size * noise**2
    value = math.sqrt(max(0.0, most**2 - energy))
    spread = 4 * math.sqrt(2 * size * noise**4 + 4 * noise**2 * value**2) + 2 * rounding * most
    low, high = (math.sqrt(max(0.0, value**2 + sign * spread)) for sign in (-1, 1))
    least = max(0.0, most - rounding) * (1 - 1e-4)  # frameworks clip in float32
    if noise > 0:
        shift = (longest / noise) ** 2
        scale = (size + 2 * shift) / (size + shift)
        chance = float(chi2.sf((least / noise) ** 2 / scale, (size + shift) / scale)) * len(norms)
    else:
        chance = 1.0 if least <= longest else 0.0
    if chance <= ALPHA:
        verdict: Judged = "broken"
        why = f"It is longer than the clip lets through{' with this noise' if noise else ''}"
    elif claimed.place == "step":
        verdict, why = (
            "cannot be told",
            "A mean of clipped gradients says little of each: nothing longer was seen",
        )
    elif high <= 1.1 * longest:
        verdict, why = "holds", "Nothing longer was seen; whether the clip ever acted is not known"
    else:
        verdict, why = "cannot be told", "The noise is too large beside the clip"
    of = "" if len(norms) == 1 else f", the longest of {len(norms)} updates"
    return replace(row, measured=value, low=low, high=high, verdict=verdict, reason=f"{why}{of}.")


def _entry_row(claimed: Mechanism, client: Client, claims: Claims, fit: Fitted, network: nn.Module) -> ClaimRow:
    """Return the claim of a filter that truncates every entry, per local step, beside the largest one."""
    assert claimed.entry is not None
    names = _names(fit, network, claimed)
    most = max(float(np.abs(_flat(fit, k, names)).max()) for k in range(len(fit.updates)))
    row = ClaimRow(what="largest entry", mechanism=claimed.name, measured=most, unit="of the update")
    known = claims.local_steps or (claims.local_epochs and claims.records)
    if client.local and not known:
        return replace(row, reason="How many local steps there were is not said.")
    limit = claimed.entry * client.steps(claims.records or 1)
    broken = most > limit * (1 + 1e-4) + float(_rounding(fit, 0, names).max())
    why = "It is larger than the filter lets through." if broken else "Nothing larger was seen."
    return replace(row, claimed=limit, verdict="broken" if broken else "holds", reason=why)
