"""`scan --update`: a plan and a target in which captured updates stand in place of computed ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from leakaudit.captured.fitting import Fitted, fitted
from leakaudit.captured.form import CapturedUpdate
from leakaudit.captured.making import claims_of
from leakaudit.captured.reading import client_of, read_capture
from leakaudit.captured.told import SENT, UNDEFENDED, missing, records_of, setting_in_words
from leakaudit.data.records import fingerprints, without
from leakaudit.errors import Setting, UserError
from leakaudit.files.reading import WEIGHTS, bytes_of
from leakaudit.load.loading import data_records
from leakaudit.protocol.exposure import preset
from leakaudit.protocol.gradients import parameters_of
from leakaudit.protocol.received import Received
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.dates import is_moment
from leakaudit.result.federation import spec_of
from leakaudit.result.outward import modest
from leakaudit.scene.plan import Plan

NETWORK = "network."  # before the names of a PixelModel's network


@dataclass(frozen=True)
class Asked:
    """What `scan --update` asks for: captured updates, the records behind them if they are known, and the plan."""

    source: Path
    captured: CapturedUpdate
    truth: Records | None
    classes: tuple[str, ...] | None  # names that the truth's labels have, if it has any
    plan: Plan


def asked(update: Path, data: Path | None, plan: Plan) -> Asked:
    """Read captured updates and, from `data`, the records behind them, in their order; return them with the plan.

    Client, batch size, mode and defense are those of the file; a defense of the plan takes the place of the claimed
    one. Raises UserError for what cannot be read, for what the file does not say and for what does not fit it.
    """
    captured = read_capture(update)
    truth, classes = data_records(data) if data is not None else (None, None)
    claims, count = captured.claims, len(captured.updates) // captured.claims.rounds
    if len(plan.defenses) > 1:
        raise UserError(f"{update} was sent through one defense: give one ", Setting("defense"), ", or none.")
    if plan.defenses:
        claims = replace(claims, defense=plan.defenses[0])
    if claims.records is None and truth is not None and len(truth) % count == 0:
        claims = replace(claims, records=len(truth) // count)
    for sentence in missing(claims, captured.sends)[:1]:
        raise UserError(
            f"{update} does not say all that an audit needs. {sentence[:-1]}, of leakaudit capture {update} -o FILE."
        )
    size = records_of(claims)
    assert size is not None
    if truth is not None and len(truth) != count * size:
        raise UserError(f"{data} holds {len(truth)} records, and {update} is of {count * size}: give these, in order.")
    if preset(plan.exposure).model_control:
        raise UserError(f"{update} is of the model as it was sent: leave out ", Setting("exposure", plan.exposure), ".")
    if plan.stages:
        raise UserError(f"{update} was sent at one moment of training: leave out ", Setting("stages"), ".")
    client = client_of(claims, str(update))
    if plan.client and plan.sender() != client:
        raise UserError(f"{update} says what its client does: leave out ", Setting("client", plan.client), ".")
    spec = claims.defense or UNDEFENDED
    plan = replace(
        plan,
        defenses=() if spec == UNDEFENDED else (spec,),
        batch_size=size,
        records=count * size if truth is not None else -(-plan.records // size) * size,
        client=spec_of(client),
        mode=client.mode or plan.mode,
        all_attacks=plan.all_attacks or truth is None,  # every one of them may draw
    )
    return Asked(update, replace(captured, claims=claims), truth, classes, plan)


def targeted(asked: Asked, target: Target) -> Target:
    """Return a target whose model has the captured weights, and which holds the captured updates.

    With the truth these records come first among the private ones; copies of them are taken out of all other roles.
    Raises UserError where something does not fit the model.
    """
    fit = fitted(asked.captured, target.model.network, str(asked.source))
    own = target.model.network.state_dict()
    with torch.no_grad():
        for name, value in fit.before.items():
            own[name].copy_(value.reshape(own[name].shape))
    received = replace(
        _received(asked, fit, target.model),
        claims=claims_of(asked.captured, target, str(asked.source)),
    )
    notes = [*target.notes, *_notes(asked, fit)]
    if asked.truth is None:
        return replace(target, received=received, notes=tuple(notes))
    truth = replace(asked.truth, labels=_labels(asked, target), units=None)
    if truth.images.shape[1:] != target.private.images.shape[1:]:
        there, here = (tuple(each.images.shape[1:]) for each in (truth, target.private))
        raise UserError(f"the pictures of --data are {there}, those of train_data {here}: give what the client saw.")
    taken = set(fingerprints(truth.images))
    others, test, auxiliary = (without(each, taken)[0] for each in (target.private, target.test, target.auxiliary))
    if not len(test) or not len(auxiliary):
        raise UserError("every test or auxiliary record is behind the captured updates: give model.py other records.")
    units = None if others.units is None else torch.cat([torch.full((len(truth),), -1), others.units])
    private = Records(torch.cat([truth.images, others.images]), torch.cat([truth.labels, others.labels]), units)
    return replace(target, private=private, test=test, auxiliary=auxiliary, received=received, notes=tuple(notes))


def _labels(asked: Asked, target: Target) -> Tensor:
    """Return the truth's labels as the model counts its classes: by name where both have names."""
    assert asked.truth is not None
    if target.task.own_targets:
        raise UserError(
            f"--data gives the truth as pictures and classes, and the labels of this model are none "
            f"({target.task.described}): leave --data out, and what is captured is attacked without being scored."
        )
    labels, classes = asked.truth.labels, asked.classes
    if classes is not None and classes != target.classes and set(classes) <= set(target.classes):
        places = torch.tensor([target.classes.index(name) for name in classes])
        labels = places[labels]
    most = len(target.classes)
    if int(labels.max()) >= most:
        raise UserError(f"--data holds the label {int(labels.max())}, and the model has {most} classes: from 0.")
    return labels


def _received(asked: Asked, fit: Fitted, model: PixelModel) -> Received:
    """Return the captured updates as an attack gets them: over how far one gradient moves the weights."""
    names = [name.removeprefix(NETWORK) for name in parameters_of(model)[0]]
    sender, rounds, plan = asked.plan.sender(), asked.captured.claims.rounds, asked.plan
    moved = 1.0 if fit.sends == "gradient" else sender.moved(plan.own)
    count = len(fit.updates)
    lost = [torch.stack(column) / moved for column in zip(*(fit.lost(k, names) for k in range(count)), strict=True)]
    gradients = tuple(g.reshape(-1, rounds, *g.shape[1:]).mean(1).float() for g in lost)
    whole = [_buffers(fit, model, k) for k in range(count)]
    buffers = None
    if all(each is not None for each in whole):
        states = [each for each in whole if each is not None]
        buffers = tuple(_mean(states[k : k + rounds]) for k in range(0, count, rounds))
    spec = asked.captured.claims.defense or UNDEFENDED
    return Received(gradients, buffers, spec, plan.batch_size, asked.truth is not None, _told(asked, spec))


def _buffers(fit: Fitted, model: PixelModel, update: int) -> dict[str, Tensor] | None:
    """Return every buffer of real numbers after an update, by the model's names; None where one was not sent."""
    found: dict[str, Tensor] = {}
    for name, own in model.named_buffers():
        if not own.is_floating_point():
            continue
        value = fit.after(update, name.removeprefix(NETWORK)) if name.startswith(NETWORK) else own.detach().cpu()
        if value is None:
            return None
        found[name] = value.to(own.dtype)
    return found


def _mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def _notes(asked: Asked, fit: Fitted) -> list[str]:
    plan, claims = asked.plan, asked.captured.claims
    begun = "captured with them" if fit.told else "the model's own, since none were captured with them"
    found = [f"What is attacked was captured, not computed; the weights that it began with are {begun}."]
    if claims.defense not in (None, UNDEFENDED):
        found.append("That the client ran the defense it claims, at these settings, is taken on its word.")
        if asked.truth is not None:
            found.append("Under noise nobody sees whether the records of --data are those behind what was captured.")
    if asked.truth is None:
        found.append(
            f"Nobody says which records are behind what was captured. Every score is of {plan.records} records of "
            "train_data, sent in process by the same client through the defense that it claims."
        )
    return found


def _told(asked: Asked, spec: str) -> dict[str, str | int | float | bool | None]:
    """Return what is said of the updates, as the result holds it."""
    claims, captured = asked.captured.claims, asked.captured
    found: dict[str, str | int | float | bool | None] = {
        "file": str(asked.source),
        "sha256": hashlib.sha256(bytes_of(asked.source, WEIGHTS)).hexdigest(),
        "sends": SENT[captured.sends],
        "updates": len(captured.updates),
        "records": asked.plan.batch_size,
        "client": asked.plan.client,
        "mode": asked.plan.mode,
        "defense": spec,
        "known": asked.truth is not None,
    }
    claimed = "; ".join(setting_in_words(each) for each in claims.settings)
    more = {"framework": claims.framework, "note": claims.note}  # texts of whoever wrote the file
    more |= {} if is_moment(claims.captured) else {"captured": claims.captured}
    more = more if asked.plan.images == "full" else {name: modest(text) for name, text in more.items()}
    more |= {"claimed": claimed} | ({"captured": claims.captured} if is_moment(claims.captured) else {})
    return found | {name: value for name, value in more.items() if value}
