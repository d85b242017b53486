"""Which candidates make up an update of several records: their gradients laid beside it, one by one or all together.

An update of B records is their mean contribution, G = a Σ r_i with a = 1/B. Beside one of its records stand B − 1 that
nobody knows, and what gradients have in common (the class, the mean picture, the bias) hides it: so what the gradients
of auxiliary records span is regressed off first, a ridge regression, and products are taken of what is left. That is
the metric of a matched filter, x'C⁻¹y with C the auxiliary records' second moment and a ridge, up to a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLUMNS = 4096  # that are taken to float64 at a time
SWEEPS = 10  # over the records of a batch, in which each is chosen anew
RIDGES = {"": None, ", whitened": 1e-2, ", partly whitened": 1.0, ", slightly whitened": 100.0}  # of a mean square norm
RULES = ("cosine", "share", "jointly", "jointly, scaled")


def products(x: Tensor, y: Tensor) -> Tensor:
    """Return the inner products (N, U) in float64 of rows (N, F) and (U, F): of what nearly cancels, digits count."""
    found = x.new_zeros((len(x), len(y)), dtype=torch.float64)
    for start in range(0, x.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        found += x[:, part].double() @ y[:, part].double().T
    return found


@dataclass(frozen=True)
class Span:
    """Rows (n, F) of auxiliary records, and (R Rᵀ + ridge)⁻¹ (n, n) by the name of the ridge; None for no regression.

    x'y − (R x)'(R Rᵀ + l)⁻¹(R y) is l·x'(RᵀR + l)⁻¹y, by Woodbury's identity.
    """

    rows: Tensor
    inverses: dict[str, Tensor | None]

    def along(self, rows: Tensor) -> Tensor:
        """Return R x, (N, n), of rows x (N, F)."""
        return products(rows, self.rows)


def span_of(rows: Tensor) -> Span:
    """Return the span of auxiliary records' rows (n, F); nothing is regressed off where there are none."""
    if not len(rows):
        return Span(rows, {"": None})
    gram = products(rows, rows)
    unit = torch.eye(len(rows), dtype=gram.dtype, device=gram.device)
    size = gram.diagonal().mean().clamp_min(1e-300)
    inverses = {name: None if r is None else torch.linalg.inv(gram + r * size * unit) for name, r in RIDGES.items()}
    return Span(rows, inverses)


@dataclass(frozen=True)
class Products:
    """Of one update G and the candidates that may be in it: G'G, G'r (U,) and r'r (U, U), in one metric."""

    whole: float
    across: Tensor
    inner: Tensor


def products_in(span: Span, name: str, update: Tensor, rows: Tensor, along: Tensor) -> Products:
    """Return the products in the metric of this name, of an update (F,) and candidates (U, F), with `along` R r."""
    every = torch.cat([update[None].to(rows), rows])
    found = products(every, every)
    inverse = span.inverses[name]
    if inverse is not None:
        beside = torch.cat([span.along(every[:1]), along])
        found = found - beside @ inverse @ beside.T
    return Products(float(found[0, 0]), found[0, 1:], found[1:, 1:])


def explained(by: Products, line_ups: Tensor, weight: float, rule: str) -> Tensor:
    """Return scores (B, M) of line-ups (B, M) of places among the candidates, for the B records of one update.

    "cosine" is of G and r. "share" is 1 − ‖G − a r‖²/‖G‖², how much of the update a candidate accounts for at the
    `weight` a that a record has in it. "jointly" is the same of G − a Σ r over what is chosen in the other line-ups:
    the candidate that accounts for most is chosen first, and then all are chosen anew until nothing changes, a
    coordinate descent on ‖G − a Σ r‖². Where everything is found, nothing is left. "jointly, scaled" fits a as well.
    """
    across, own = by.across[line_ups], by.inner.diagonal()[line_ups].clamp_min(0)
    if rule == "cosine":
        return across / (own * max(by.whole, 1e-300)).clamp_min(1e-300).sqrt()
    if rule == "share":
        return (2 * weight * across - weight**2 * own) / max(by.whole, 1e-300)
    chosen = [-1] * len(line_ups)
    for _ in range(3 if rule == "jointly, scaled" else 1):
        _descend(by, line_ups, weight, chosen)
        taken = [c for c in chosen if c >= 0]
        if rule == "jointly, scaled" and taken:
            length = float(by.inner[taken][:, taken].sum())
            weight = float(by.across[taken].sum()) / length if length > 0 else weight
    return _left(by, line_ups, weight, chosen)


def _descend(by: Products, line_ups: Tensor, weight: float, chosen: list[int]) -> None:
    """Choose (B,) a candidate in each of the line-ups (B, M), −1 for none, such that they account for most of G."""
    own = weight**2 * by.inner.diagonal()[line_ups]
    left = by.across - weight * by.inner[[c for c in chosen if c >= 0]].sum(0)  # r'(G − a Σ r over what is chosen)
    open_ = [k for k, c in enumerate(chosen) if c < 0]
    while open_:
        best, place = (2 * weight * left[line_ups[open_]] - own[open_]).max(1)
        k = int(best.argmax())
        if not float(best[k]) > 0:
            break
        chosen[open_[k]] = int(line_ups[open_[k], place[k]])
        left = left - weight * by.inner[chosen[open_[k]]]
        open_.pop(k)
    for _ in range(SWEEPS):
        before = list(chosen)
        for k in range(len(chosen)):
            without = left + weight * by.inner[chosen[k]] if chosen[k] >= 0 else left
            gain, place = (2 * weight * without[line_ups[k]] - own[k]).max(0)
            chosen[k] = int(line_ups[k, place]) if float(gain) > 0 else -1
            left = without - weight * by.inner[chosen[k]] if chosen[k] >= 0 else without
        if chosen == before:
            break


def _left(by: Products, line_ups: Tensor, weight: float, chosen: Sequence[int]) -> Tensor:
    """Return the shares (B, M) that candidates account for of what the choices in the other line-ups leave of G."""
    own = by.inner.diagonal()[line_ups]
    rows = []
    for k in range(len(line_ups)):
        others = [c for i, c in enumerate(chosen) if c >= 0 and i != k]
        left = by.across - weight * by.inner[others].sum(0)
        length = (
            by.whole
            - 2 * weight * float(by.across[others].sum())
            + weight**2 * float(by.inner[others][:, others].sum())
        )
        rows.append((2 * weight * left[line_ups[k]] - weight**2 * own[k]) / max(length, 1e-12 * by.whole, 1e-300))
    return torch.stack(rows)


def shared_weight(updates: Tensor, sums: Tensor) -> float:
    """Return the weight a for which updates (N, F) are a times the sums (N, F) of their records' rows: the median."""
    along = (updates.double() * sums.double()).sum(1) / sums.double().square().sum(1).clamp_min(1e-300)
    return float(along.median())
