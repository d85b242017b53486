"""The likelihood-ratio attack on membership, LiRA (Carlini et al. 2022, arXiv 2112.03570), on numbers of any kind.

Many shadows are fitted, each on a random half of a pool of records. Of every record each shadow gives some numbers (how
sure a model trained on what it releases is of the record, say). For a victim and a record x, the numbers of the other
shadows that had x are one Gaussian, of those that had it not another::

    online   log N(φ; μ_in(x), σ_in²) − log N(φ; μ_out(x), σ_out²)        (their algorithm 1)
    offline  (φ − μ_out(x)) / σ_out                                       (their eq. 4, of which Φ is taken: same order)

With few shadows the variances are pooled over records, as they advise below 64. Two things are ours. With few shadows
μ_in(x) − μ_out(x) is mostly noise where little is remembered: `shrunk` pulls it towards its mean over records as far as
its spread is no more than noise (empirical Bayes). And several numbers are put together by a logistic regression that
is fitted on the other shadows, each attacked by the rest. The truth of a victim is never asked for by its attack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

PER_RECORD = 64  # shadows, from which on each record has variances of its own
LEAST = 3  # shadows beside the victim: one for each side, and one to combine on
ROUNDS = 25  # of Newton's method
RIDGE = 1e-3  # per record, of the standardised weights


@dataclass(frozen=True)
class Gaussians:
    """Means (R, Q) and variances (R or 1, Q) of Q numbers of R records, in shadows that had them and that had not."""

    inside: Tensor
    outside: Tensor
    inside_variance: Tensor
    outside_variance: Tensor
    inside_count: Tensor  # (R, 1)
    outside_count: Tensor


def gaussians(values: Tensor, inside: Tensor) -> Gaussians:
    """Return what shadows (S, R, Q) say of their records, given who had which, (S, R).

    A record that no shadow had, or that all had, takes the other mean and the usual difference.
    """
    sides = []
    for had in (inside, ~inside):
        weight = had[..., None].to(values)
        count = weight.sum(0)
        mean = (values * weight).sum(0) / count.clamp_min(1)
        spread = ((values - mean).square() * weight).sum(0)
        degrees = (count - 1).clamp_min(0)
        if len(values) >= PER_RECORD:
            variance = spread / degrees.clamp_min(1)
        else:
            variance = spread.sum(0, keepdim=True) / degrees.sum(0, keepdim=True).clamp_min(1)
        sides.append((mean, variance.clamp_min(1e-12), count))
    (first, first_variance, first_count), (second, second_variance, second_count) = sides
    both = (first_count > 0) & (second_count > 0)
    usual = ((first - second) * both).sum(0) / both.sum(0).clamp_min(1)
    return Gaussians(
        torch.where(first_count > 0, first, second + usual),
        torch.where(second_count > 0, second, first - usual),
        first_variance,
        second_variance,
        first_count,
        second_count,
    )


def online(known: Gaussians, seen: Tensor) -> Tensor:
    """Return the log-likelihood ratio (R, Q) of numbers (R, Q) of a victim."""
    return _ratio(seen, known.inside, known.inside_variance, known.outside, known.outside_variance)


def offline(known: Gaussians, seen: Tensor) -> Tensor:
    """Return how many deviations (R, Q) numbers lie above those of shadows that had not the record."""
    return (seen - known.outside) / known.outside_variance.sqrt()


def shrunk(known: Gaussians, seen: Tensor) -> Tensor:
    """Return the log-likelihood ratio (R, Q) where differences between records count as far as they are no noise.

    The difference d(x) of the two means has variance v(x) = σ_in²/n_in + σ_out²/n_out about its true value. Over
    records d varies by τ² + mean v: it is replaced by d̄ + τ²/(τ² + v) · (d − d̄), about the same middle of the means.
    """
    apart = known.inside - known.outside
    noise = known.inside_variance / known.inside_count.clamp_min(1)
    noise = noise + known.outside_variance / known.outside_count.clamp_min(1)
    usual = apart.mean(0)
    true = (apart.var(0, correction=0) - noise.mean(0)).clamp_min(0)
    apart = usual + true / (true + noise) * (apart - usual)
    weight = known.inside_count / (known.inside_count + known.outside_count)
    mean = weight * known.inside + (1 - weight) * known.outside  # as many of each as there were
    within = (known.inside_variance + known.outside_variance) / 2
    return _ratio(seen, mean + (1 - weight) * apart, within, mean - weight * apart, within)


def _ratio(seen: Tensor, inside: Tensor, inside_variance: Tensor, outside: Tensor, outside_variance: Tensor) -> Tensor:
    return _log_density(seen, inside, inside_variance) - _log_density(seen, outside, outside_variance)


def _log_density(seen: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((seen - mean).square() / variance + variance.log() + math.log(2 * math.pi))


WAYS = {"offline": offline, "online": online, "shrunk": shrunk}


def attacked(values: Tensor, inside: Tensor, victim: int, way: str) -> Tensor:
    """Return one way's scores (R, Q) of one of the shadows (S, R, Q), from the others and who had what in them."""
    others = [s for s in range(len(values)) if s != victim]
    return WAYS[way](gaussians(values[others], inside[others]), values[victim])


def combined(values: Tensor, inside: Tensor, victim: int) -> Tensor:
    """Return the scores (R,) of a victim by all its numbers: logits of a regression fitted on the other shadows.

    Its features are the offline and shrunk scores. Those of a shadow s that it is fitted on come from the shadows
    other than s and the victim; the victim's own row of `inside` is not read.
    """
    others = [s for s in range(len(values)) if s != victim]
    if len(others) < LEAST:
        raise ValueError(f"{LEAST + 1} shadows are needed at least, not {len(values)}")
    features = []
    for each in others:
        rest = [s for s in others if s != each]
        features.append(_features(gaussians(values[rest], inside[rest]), values[each]))
    seen = _features(gaussians(values[others], inside[others]), values[victim])
    fitted, centre, scale = logistic(torch.cat(features), inside[others].flatten())
    return ((seen - centre) / scale) @ fitted[1:] + fitted[0]


def _features(known: Gaussians, seen: Tensor) -> Tensor:
    return torch.cat([offline(known, seen), shrunk(known, seen).clamp(-20, 20)], 1)


def logistic(features: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights (1 + F,) of a logistic regression on standardised features (N, F), their means and deviations.

    Maximum likelihood by Newton's method under a small ridge, the constant first.
    """
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-9)
    x = torch.cat([features.new_ones(len(features), 1), (features - centre) / scale], 1)
    y = truth.to(x)
    weights = x.new_zeros(x.shape[1])
    ridge = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    ridge[0, 0] = 0
    for _ in range(ROUNDS):
        chance = (x @ weights).sigmoid()
        slope = x.T @ (y - chance) - ridge @ weights
        curve = (x * (chance * (1 - chance)).clamp_min(1e-6)[:, None]).T @ x + ridge
        weights = weights + torch.linalg.solve(curve, slope).clamp(-4, 4)  # separable features have no maximum
    return weights, centre, scale
