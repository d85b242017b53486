"""The ε that a claim states beside the one that its clip and its noise have."""

from __future__ import annotations

import math
from dataclasses import replace

from leakaudit.captured.form import Claims
from leakaudit.captured.mechanism import SERVERS, Mechanism
from leakaudit.protocol.accounting import classical_std, epsilon, gaussian_epsilon
from leakaudit.protocol.federation import Client
from leakaudit.result.claims import ClaimRow, Judged
from leakaudit.result.numbers import significant


def epsilon_row(
    claimed: Mechanism, claims: Claims, client: Client, noise: tuple[float | None, float | None]
) -> ClaimRow:
    """Return the stated ε beside the one that the mechanism has, with the noise that it claims or that can be there.

    `noise` is the claimed standard deviation and the largest possible one. Of a mechanism that acts on the update the
    neighbours are a client that sends and one that sends nothing, so that the sensitivity is the clip; of one that acts
    in every step they are one record more or less.
    """
    std, most = noise
    unit = f"at δ = {significant(claimed.delta)}"
    row = ClaimRow(what="epsilon", mechanism=claimed.name, claimed=claimed.epsilon, unit=unit)
    if claimed.noise is None or (claimed.noise != 0 and (std is None or most is None)):
        server = claimed.name in SERVERS
        why = "Noise is the server's here: no update says what it adds." if server else "The noise is not known."
        return replace(row, reason=why)
    if claimed.noise == 0 or not std or not most:
        there = "adds no noise" if not claimed.noise else "claims noise, and there is none"
        named = claimed.epsilon is not None or claimed.entry is not None or bool(claimed.noise)
        why = f"{claimed.name} {there}: no ε bounds what an update tells."
        return replace(row, measured=math.inf, verdict="broken" if named else "cannot be told", reason=why)
    if claimed.clip is None:
        found: Judged = "broken" if claimed.epsilon is not None else "cannot be told"
        return replace(row, measured=math.inf, verdict=found, reason="Nothing is clipped: no noise has an ε.")
    share = min(1.0, most / std)
    if claimed.place == "step":
        return _accounted(claimed, claims, client, row, share)
    return _released(claimed, row, claimed.clip / (std * share), share)


def _of(share: float) -> str:
    return "" if share == 1.0 else ", with the noise that can be there at most"


def _released(claimed: Mechanism, row: ClaimRow, shift: float, share: float) -> ClaimRow:
    """Return the row of one release; `shift` is the clip in standard deviations of the noise."""
    assert claimed.clip is not None
    opacus, by = epsilon(1 / shift, 1.0, 1, claimed.delta)
    formula = classical_std(1.0, 1.0, claimed.delta) * shift
    double = gaussian_epsilon(2 * shift, claimed.delta)
    why = (
        f"The exact ε of one update{_of(share)}, between a client that sends and one that does not (the sensitivity is "
        f"the clip, {significant(claimed.clip)}); {significant(double)} between any two updates of a client (twice the "
        f"clip). The classical formula, proven for ε ≤ 1 alone, says {significant(formula)}, Opacus's {by} accountant "
        f"{significant(opacus)}"
    )
    if claimed.sensitivity is not None and claimed.sensitivity < claimed.clip * (1 - 1e-9):
        why += f". The noise was computed for a sensitivity of {significant(claimed.sensitivity)}, not for the clip"
    return _against(claimed, gaussian_epsilon(shift, claimed.delta), row, f"{why}.")


def _accounted(claimed: Mechanism, claims: Claims, client: Client, row: ClaimRow, share: float) -> ClaimRow:
    """Return the row of a mechanism in every local step, by Opacus's accountant, over the client's own records."""
    assert claimed.noise is not None
    records = claims.records or claims.batch_size or 1
    size, steps = client.step_size(records), client.steps(records) * client.rounds
    value, by = epsilon(claimed.noise * share, size / records, steps, claimed.delta)
    if math.isnan(value):
        return replace(row, reason="This is beyond what the accountant reckons with.")
    why = (
        f"By Opacus's {by} accountant{_of(share)}: {steps} step(s) of {size} of {records} records, Poisson sampling, "
        "add-or-remove-one-record neighbours"
    )
    found = _against(claimed, value, row, f"{why}.")
    if found.verdict == "broken" and share == 1.0:  # with all of the noise: the run may have drawn from more records
        return replace(found, verdict="cannot be told", reason=f"{why}; what is stated may count on more records.")
    return found


def _against(claimed: Mechanism, value: float, row: ClaimRow, why: str) -> ClaimRow:
    if claimed.epsilon is None:
        return replace(row, measured=value, reason=f"None is stated. {why}")
    verdict: Judged = "broken" if value > claimed.epsilon * (1 + 1e-3) else "holds"
    return replace(row, measured=value, verdict=verdict, reason=why)
