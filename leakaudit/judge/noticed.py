"""Findings that follow from numbers which a result holds: the audit notices them, and who verifies it does again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leakaudit.result.numbers import interval, percent
from leakaudit.result.schema import AttackResult, Estimate, Finding, Guarantee, Value

UNLIKELY = 0.01  # that a proven bound is exceeded by chance, over all attacks of a defense
# AUC at its lower bound: 3 of 1,300 splits of CIFAR-10, MNIST and faces came so far, and every one of 600 and 1,500
# records whose auxiliary pictures were 5 % brighter, of 0.8 of the contrast, blurred, grey or noisy (docs/attacks.md).
TOLD = 0.55
# Learned inversion on an undefended network identifies 2 of 40 records among 50 (chance 1) having learned on 16, 5 to 8
# on 32, 16 on 64, 34 on 600: with fewer than 32, finding nothing means nothing.
FEW = 32


def exceeded(
    spec: str, guarantees: Sequence[Guarantee], attacks: Sequence[AttackResult], batch_size: int
) -> tuple[Finding, ...]:
    """Return `bound-exceeded` where attacks pick out more records than a proven bound allows: an assumption is wrong.

    By the exact probability of as many hits, `UNLIKELY` over all attacks together. A bound b for M candidates is taken
    as b·M/m for a record with a line-up of m < M, which is at least what holds there, and as b for a larger one. A
    batch's pictures are paired with its records before they are scored, which helps a guess too, so only batches of
    one are compared.
    """
    scored = [a for a in attacks if a.identification.value is not None and a.identification.n]
    found = []
    for each in guarantees if batch_size == 1 else ():
        if each.identification is None or each.kind != "proven" or each.candidates < 1:
            continue
        for a in scored:
            hits, n = round((a.identification.value or 0.0) * a.identification.n), a.identification.n
            sizes = [r.candidates for r in a.records if r.candidates] or [each.candidates] * n
            shares = [min(1.0, each.identification * max(1.0, each.candidates / size)) for size in sizes]
            if a.candidates == each.candidates and _tail(hits, shares) < UNLIKELY / len(scored):
                message = (
                    f"{spec}: the attack {a.name} identified {hits} of {n} records, more than is proven possible "
                    f"({percent(each.identification)} of {each.candidates} candidates): something the proof assumes "
                    f"does not hold ({each.assumes})."
                )
                evidence: dict[str, Value] = {"defense": spec, "hits": hits, "n": n, "bound": each.identification}
                found.append(Finding("bound-exceeded", "error", message, evidence))
    return tuple(found)


def auxiliary_differs(told: Estimate) -> tuple[Finding, ...]:
    """Return `auxiliary-differs` where auxiliary records are told from private ones (`told`, an AUC) too well.

    That is at least `TOLD` even at the lower bound: attacks that learn on them are then weak.
    """
    if told.value is None or (told.low or 0.0) < TOLD:
        return ()
    message = (
        f"A classifier tells the auxiliary records from private ones of the same classes in {percent(told.value)} "
        f"of pairs ({interval(told)}; 50% if they were of one kind): attacks that learn on them are weaker than "
        "those of whoever owns records like the private ones."
    )
    evidence: dict[str, Value] = {"auc": told.value, "auc_low": told.low, "records": told.n}
    return (Finding("auxiliary-differs", "warning", message, evidence),)


def auxiliary_few(records: int, missing: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Return `auxiliary-few` where there are fewer than `FEW` auxiliary records, or none of the `missing` classes."""
    if records >= FEW and not missing:
        return ()
    none = f", none of {len(missing)} classes of private records, {missing[0]} among them" if missing else ""
    message = (
        f"There are {records} auxiliary records{none}: attacks that learn on them cannot learn what the "
        "private ones look like, so that finding nothing proves little."
    )
    return (Finding("auxiliary-few", "warning", message, {"records": records, "missing": len(missing)}),)


def no_line_up(alone: int, records: int) -> tuple[Finding, ...]:
    """Return `no-line-up` where some (`alone`) of the attacked records have nobody to be told from."""
    if not alone:
        return ()
    message = (
        f"{alone} of the {records} attacked records {'has' if alone == 1 else 'have'} no line-up, for want of another "
        f"unit of the class in train_data and test_data: identification is measured on the other {records - alone}."
    )
    return (Finding("no-line-up", "warning", message, {"records": alone, "of": records}),)


def frozen(shared: int, parameters: int) -> tuple[Finding, ...]:
    """Return `frozen-parameters` where a model shares only some of its parameters."""
    if shared == parameters:
        return ()
    message = (
        f"{shared:,} of {parameters:,} parameters are shared, the rest is frozen and stays as it is in training runs."
    )
    return (Finding("frozen-parameters", "info", message, {"shared": shared, "parameters": parameters}),)


def _tail(hits: int, shares: Sequence[float]) -> float:
    """Return the probability of `hits` or more where each record is hit with its own share (Poisson-binomial)."""
    chances = [1.0]  # of 0, 1, … hits among the records so far
    for share in shares:
        more = [c * share for c in chances]
        kept = [c * (1 - share) for c in chances]
        chances = [a + b for a, b in zip([*kept, 0.0], [0.0, *more], strict=True)]
    return math.fsum(chances[hits:])
