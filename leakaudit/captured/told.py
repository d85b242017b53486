"""What a file of captured updates says, in lines to read, and what an audit of it would miss."""

from __future__ import annotations

from leakaudit.captured.fitting import Fitted, norm
from leakaudit.captured.form import CapturedUpdate, Claims, Sends
from leakaudit.captured.reading import client_of
from leakaudit.result.federation import spec_of
from leakaudit.result.numbers import pairs, plain, significant

SENT = {
    "after": "weights after local training",
    "difference": "the difference that local training made to the weights",
    "gradient": "a gradient",
}
UNDEFENDED = "none"
Line = tuple[str, str]  # what it is about, and what is said


def records_of(claims: Claims) -> int | None:
    """Return how many records are behind one update, of all its clients; None where the claims do not give it."""
    if claims.records is not None:
        return claims.records
    local = claims.local_steps or claims.local_epochs
    return None if local or claims.batch_size is None else claims.batch_size * claims.clients


def missing(claims: Claims, sends: Sends) -> tuple[str, ...]:
    """Return what an audit must know and nobody said, one sentence each with the option that says it."""
    found = []
    local = bool(claims.local_steps or claims.local_epochs)
    if sends != "gradient" and not local:
        found.append("How long the client trained is not said: --steps or --epochs.")
    if sends != "gradient" and claims.local_lr is None:
        found.append("The learning rate is not said: --lr.")
    if local and claims.batch_size is None:
        found.append("How many records one local step is of is not said: --batch.")
    if records_of(claims) is None:
        found.append("How many records are behind an update is not said: --records.")
    if claims.defense is None and claims.settings:
        names = ", ".join(str(each.get("name", "a defense")) for each in claims.settings)
        found.append(f"What {names} would be here is not said: --defense with a spec, as clip:max_norm=1.")
    return tuple(found)


def assumed(claims: Claims, sends: Sends) -> tuple[str, ...]:
    """Return what an audit takes for granted where nobody said it, one sentence each."""
    found = []
    if sends != "gradient" and not claims.optimizer:
        found.append("The optimiser is not said: plain SGD is assumed.")
    if sends != "gradient" and claims.momentum is None and claims.optimizer in ("", "sgd"):
        found.append("Momentum is not said: none is assumed.")
    if not claims.mode:
        found.append("The mode of the model is not said: what a scan's --mode says is assumed.")
    if claims.defense is None and not claims.settings:
        found.append("No defense is claimed: none is assumed.")
    return tuple(found)


def lines(captured: CapturedUpdate, fit: Fitted | None, source: str) -> tuple[Line, ...]:
    """Return what a file of captured updates holds and claims, line by line; with `fit` beside a model."""
    claims, first = captured.claims, captured.updates[0]
    count = len(captured.updates)
    own, client = records_of(claims), client_of(claims, source)
    behind = "not said" if own is None else f"{own} behind {'the' if count == 1 else 'each'} update"
    if claims.clients > 1:
        behind += f", of {claims.clients} clients whose updates were summed"
    numbers = sum(t.numel() for t in first.values())
    begun = f"{len(captured.before)} tensors" if captured.before else "not in the file: the model's own weights"
    found: list[Line] = [
        ("updates", f"{count}, each {SENT[captured.sends]}: {len(first)} tensors of {numbers:,} numbers"),
        ("before", begun),
        ("framework", claims.framework or "not said"),
        ("client", spec_of(client) if client.local or captured.sends == "gradient" else "how it trained is not said"),
        ("records", behind),
        ("mode", claims.mode or "not said"),
        ("defense", "not said" if claims.defense is None else claims.defense),
        *(("claimed", setting_in_words(each)) for each in claims.settings),
        *([("captured", claims.captured)] if claims.captured else []),
        *([("note", claims.note)] if claims.note else []),
    ]
    if fit is not None:
        found += _beside(fit)
    return tuple(found)


def setting_in_words(values: dict[str, str | int | float | bool | None]) -> str:
    """Return one claimed setting of a framework, as `LocalDpMod: clipping_norm = 1, delta = 1e-05`."""
    rest = {name: value for name, value in values.items() if name != "name"}
    return f"{plain(values.get('name', 'a defense'))}: {pairs(rest)}" if rest else plain(values.get("name"))


def _beside(fit: Fitted) -> list[Line]:
    """Return that a model fits, how far the updates moved it, and what of its state was not sent."""
    names = [n for n, t in fit.before.items() if n in fit.updates[0] and t.is_floating_point()]
    norms = [norm(fit.lost(k, names)) for k in range(len(fit.updates))]
    shown = ", ".join(significant(each) for each in norms[:4]) + (", …" if len(norms) > 4 else "")
    what = "norm of the gradient" if fit.sends == "gradient" else "norm of what the weights moved by"
    left = [n for n, t in fit.before.items() if n not in fit.updates[0] and t.is_floating_point()]
    fits = "it fits" if not left else f"it fits; not sent: {', '.join(left[:4])}{', …' if len(left) > 4 else ''}"
    return [("model", fits), ("size", f"{shown} ({what})")]
