"""The client's side: private records in, what the server receives out. The truth stops here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leakaudit.errors import OutOfTime, UserError, message_of, worded
from leakaudit.protocol.defense import Defense, chain, parts_of
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import FEDSGD, Client, local_batches
from leakaudit.protocol.gradients import (
    ExampleGradients,
    Gradients,
    Mode,
    bytes_of,
    example_gradients,
    in_mode,
    mean_gradient,
    parameters_of,
)
from leakaudit.protocol.target import LossFunction, PictureGenerator, PixelModel, Records
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.work.memory import need
from leakaudit.work.progress import track


@dataclass(frozen=True)
class SharedUpdate:
    """Everything the server receives for a stack of V victims of B records each, and what `Exposure` grants. No truth.

    `gradients` are the defended FedSGD gradients, each (V, *parameter.shape), in the order of `names`. Of a `client`
    with local steps they are what the weights lost, w₀ − w_E, over how far one gradient would have moved them
    (`Client.moved`): about the mean of its steps' gradients. Of several clients or rounds they are the mean. Every
    tensor here lies on the model's device, auxiliary records included, and so do the candidates that `Attack.link` is
    given.
    """

    gradients: Gradients
    names: tuple[str, ...]
    batch_size: int
    input_shape: tuple[int, int, int]
    classes: int
    loss: LossFunction
    mode: Mode
    exposure: Exposure
    labels: Tensor | None = None  # (V, B), or probabilities (V, B, classes), if exposed
    buffers: tuple[dict[str, Tensor], ...] | None = None  # BatchNorm statistics after the forward pass, if exposed
    defense: Defense | None = None  # if exposed
    auxiliary: Records | None = None  # if exposed
    released: Tensor | None = None  # (V, B, C, H, W) what a data-replacing defense put in place, if exposed (the bound)
    released_labels: Tensor | None = None  # (V, B), or probabilities (V, B, classes), beside them
    prior: PictureGenerator | None = None  # of pictures, if auxiliary records are exposed and the user gave one
    places: tuple[int, ...] | None = None  # which record of its batch each victim is asked about, where attacks link
    candidate_labels: Tensor | None = None  # (V, M) of the records in the line-ups, where attacks link
    client: Client = FEDSGD  # who sent it: local steps, and how many clients' updates are summed
    task: Task = CLASSES  # what a label is
    candidate_targets: Tensor | None = None  # (V, M, *shape) beside `candidate_labels`, where labels are no classes

    @property
    def victims(self) -> int:
        """How many victims are stacked."""
        return int(self.gradients[0].shape[0])

    @property
    def own(self) -> int:
        """How many records each client behind an update holds: B / `client.clients`."""
        return self.batch_size // self.client.clients

    @property
    def steps(self) -> int:
        """How many optimiser steps are behind an update: 1 for FedSGD."""
        return self.client.steps(self.own)

    @property
    def is_gradient(self) -> bool:
        """Whether `gradients` are one mean gradient, but for defenses: FedSGD, or one sgd step on all records."""
        client = self.client
        once = self.steps == 1 and client.step_size(self.own) == self.own
        return not client.local or (once and client.optimizer == "sgd")

    @property
    def moved(self) -> float:
        """By how much of one gradient a client's weights moved: w₀ − w_E = moved · `gradients`; 1 for FedSGD."""
        return self.client.moved(self.own)


def defended_gradient(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    defense: Defense,
    generator: torch.Generator,
    each: ExampleGradients = example_gradients,
) -> Gradients:
    """Return one client's update on records that already passed the defense's record stage: the later stages.

    `each` computes the per-example gradients; training runs pass a faster one that gives the same numbers.
    """
    batch = int(labels.shape[0])
    defense = defense.observe(model, images, labels, generator)
    if defense.needs_example_gradients:
        stacked = each(model, loss, images, labels)
        gradient = tuple(g.mean(0) for g in defense.transform_example_gradients(stacked, generator))
    else:
        gradient = mean_gradient(model, loss, images, labels)
    return tuple(g.detach() for g in defense.transform_update(gradient, batch, generator))


def release(defense: Defense, records: Records, generator: torch.Generator) -> Records:
    """Pass records through the record stage once.

    Where labels are no classes, what is released carries the targets as its labels.

    They may lie on any device, and stay there. The caller keeps the result: T fresh draws would leak T times, unless
    the defense is `renewable`.
    """
    images, labels = defense.transform_records(records.images, records.taught, generator)
    return Records(images.detach().clamp(0, 1), labels.detach())


def sent(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    defense: Defense,
    mode: Mode,
    generator: torch.Generator,
    client: Client = FEDSGD,
) -> tuple[Gradients, dict[str, Tensor]]:
    """Return what the server receives of records (B, ...) after `release`: the update, and the buffers after it.

    Of several clients, who hold the records in turn, and of several rounds both are the mean, as secure aggregation and
    FedAvg give it. The model is as it was afterwards.
    """
    own = len(labels) // client.clients
    found: list[tuple[Gradients, dict[str, Tensor]]] = []
    for _ in range(client.rounds):
        for x, y in zip(torch.split(images, own), torch.split(labels, own), strict=True):
            with in_mode(model, mode):
                if client.local:
                    gradients = trained_update(model, loss, x, y, defense, generator, client)
                else:
                    gradients = defended_gradient(model, loss, x, y, defense, generator)
                buffers = {n: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()}
            found.append((gradients, buffers))
    if len(found) == 1:
        return found[0]
    updates, statistics = zip(*found, strict=True)
    mean = tuple(torch.stack(column).mean(0) for column in zip(*updates, strict=True))
    return mean, {name: torch.stack([each[name] for each in statistics]).mean(0) for name in statistics[0]}


def trained_update(
    model: PixelModel,
    loss: LossFunction,
    images: Tensor,
    labels: Tensor,
    defense: Defense,
    generator: torch.Generator,
    client: Client,
    each: ExampleGradients = example_gradients,
) -> Gradients:
    """Return what one client's local training sends, over `Client.moved`; the buffers stay as the training left them.

    Parts of the defense that act on each record's gradient (DP-SGD) act in every local step, all of their later stages;
    the others act once a round, on w₀ − w_E itself: they clip and add noise in units of weights, as Flower's and
    NVFlare's do.
    """
    inside, after = by_place(defense)
    after = after.observe(model, images, labels, generator)
    _, parameters = parameters_of(model)
    before = [p.detach().clone() for p in parameters]
    optimiser = optimiser_of(client, parameters)
    try:
        for rows in local_batches(client, len(labels), generator):
            x, y = images[rows.to(images.device)], labels[rows.to(labels.device)]
            found = defended_gradient(model, loss, x, y, inside, generator, each)
            for p, g in zip(parameters, found, strict=True):
                p.grad = g.to(p)
            optimiser.step()
        lost = tuple(old - p.detach() for old, p in zip(before, parameters, strict=True))
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old)
                p.grad = None
    return scaled_update_stage(after, lost, len(labels), generator, client)


def by_place(defense: Defense) -> tuple[Defense, Defense]:
    """Return the parts of a defense that act in every local step, and those that act once a round, as two chains."""
    inside = [part for part in parts_of(defense) if part.needs_example_gradients]
    return chain(*inside), chain(*(part for part in parts_of(defense) if not part.needs_example_gradients))


def optimiser_of(client: Client, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of a client's local training."""
    if client.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=client.local_lr)
    return torch.optim.SGD(parameters, lr=client.local_lr, momentum=client.momentum)


def scaled_update_stage(
    defense: Defense, lost: Gradients, records: int, generator: torch.Generator, client: Client
) -> Gradients:
    """Return a client's defended update over `Client.moved`, of what its weights lost: the stage acts on the loss."""
    moved = client.moved(records)
    return tuple(g.detach() / moved for g in defense.transform_update(lost, records, generator))


def _written(stacks: Gradients, gradients: Gradients, victim: int, victims: int) -> Gradients:
    """Return stacks (V, *p), made for the first victim, with one victim's gradients written into them."""
    stacks = stacks or tuple(g.new_empty(victims, *g.shape) for g in gradients)
    for whole, g in zip(stacks, gradients, strict=True):
        if (g.shape, g.dtype) != (whole.shape[1:], whole.dtype):  # or it would be broadcast without a word
            raise RuntimeError(f"a client's gradient is {g.dtype} {tuple(g.shape)}, another's is not")
        whole[victim] = g
    return stacks


def _too_few(records: int) -> UserError:
    told = (
        "BatchNorm cannot run in train mode on {records} record(s) of this size: use {--mode eval} or a larger "
        "{--batch-size}."
    )
    return UserError(*worded(told, records=records))


def share(  # noqa: PLR0913 - all that an update depends on
    model: PixelModel,
    loss: LossFunction,
    released: Records,
    defense: Defense,
    exposure: Exposure,
    *,
    batch_size: int,
    classes: int,
    mode: Mode,
    generator: torch.Generator,
    auxiliary: Records | None = None,
    client: Client = FEDSGD,
    task: Task = CLASSES,
) -> SharedUpdate:
    """Compute what the server receives in V = N / batch_size updates, each of `client.clients` clients together.

    `released` holds the victims' N records in order, after `release`, on the model's device. Auxiliary records are
    taken there where they are not. Raises UserError when the model cannot compute a gradient in this mode, OutOfTime
    where the time budget ends before all are computed.
    """
    victims = len(released) // batch_size
    images = released.images[: victims * batch_size].reshape(victims, batch_size, *released.images.shape[1:])
    labels = released.labels[: victims * batch_size].reshape(victims, batch_size, *released.labels.shape[1:])
    names, parameters = parameters_of(model)
    need(bytes_of(parameters) * victims, f"the updates of {victims} clients", "records", model.mean.device)
    stacks: Gradients = ()  # written to victim by victim: a list of all, and then a stack, would take twice as much
    buffers: list[dict[str, Tensor]] = []
    for v in track("computing updates", victims):
        x, y = images[v], labels[v]
        try:
            gradients, statistics = sent(model, loss, x, y, defense, mode, generator, client)
        except (ValueError, RuntimeError) as error:
            if mode == "train" and "more than 1 value per channel" in message_of(error):
                raise _too_few(client.step_size(batch_size // client.clients)) from error
            raise
        stacks = _written(stacks, gradients, v, victims)
        buffers.append(statistics)
    if len(buffers) < victims:
        raise OutOfTime("the time budget ended before the updates were computed")
    return SharedUpdate(
        gradients=stacks,
        names=names,
        batch_size=batch_size,
        input_shape=(int(images.shape[2]), int(images.shape[3]), int(images.shape[4])),
        classes=classes,
        loss=loss,
        mode=mode,
        exposure=exposure,
        labels=labels.clone() if exposure.labels else None,
        buffers=tuple(buffers) if exposure.buffers else None,
        defense=defense if exposure.defense else None,
        auxiliary=auxiliary.to(model.mean.device) if exposure.auxiliary and auxiliary is not None else None,
        released=images.clone() if exposure.released else None,
        released_labels=labels.clone() if exposure.released else None,
        client=client,
        task=task,
    )
