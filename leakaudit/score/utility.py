"""What a defense costs: a real federated training run, every step from the update the server would receive."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.protocol.client import defended_gradient, release, trained_update
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.federation import FEDSGD, Client
from leakaudit.protocol.gradients import Gradients, Mode, fast_example_gradients, mean_gradient, parameters_of
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import LossFunction, PixelModel, Records, Target, shared_parameters
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.schema import Estimate
from leakaudit.score.augmentation import augmented
from leakaudit.score.measures import as_records, cannot, chance, measured
from leakaudit.stats import intervals
from leakaudit.units import desk
from leakaudit.units.packing import Values
from leakaudit.units.unit import Elsewhere, Unit
from leakaudit.work.progress import observe, track
from leakaudit.work.seeding import derive, forked, generator_for

Update = Callable[[Tensor, Tensor], Gradients]

PEAK_RATE = 2e-3  # Adam's, reached after a tenth of the steps, then a cosine down to 0
ROUNDING = 1e-3  # of a gradient's length: what another layout may change
COHORT = 5  # clients with local steps whose updates a round of training takes together, at least
FEW_RATE = 2e-2  # where most of the parameters are frozen: a head on fixed features takes and needs ten times that


@dataclass(frozen=True)
class Senders:
    """Whose updates a training run is made of: a round takes updates of `batch_size` records together.

    Without local steps they are one client's; else of clients of `own` records each, and at least `COHORT` clients.
    """

    batch_size: int = 32
    client: Client = FEDSGD
    own: int = 1

    def records_of_one(self, private: int) -> int:
        """Return how many records a client with local steps holds, where there are so many private ones."""
        return max(1, min(self.own, private // COHORT))

    def records_of_a_round(self, private: int) -> int:
        """Return how many records are behind the updates of a round."""
        own = self.records_of_one(private)
        clients = max(COHORT, self.client.clients, -(-self.batch_size // own))
        return own * clients if self.client.local else self.batch_size


@dataclass(frozen=True)
class Utility:
    """What training on shared updates learned, by the task's measure on test records, one number per seed.

    For classes that is accuracy, and `chance` the commonest class's share (`score.measures`). `steps` and `epochs` are
    of one whole run, also where the time budget ended it earlier. `released` is the same measure on the released
    records themselves, against their likeliest labels, one number per seed.
    """

    accuracies: tuple[float, ...]
    estimate: Estimate
    chance: float
    steps: int
    epochs: int
    released: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run(Values):
    """What one training run came to: how many steps were `done`, and what it measured if that is all of them."""

    done: int
    accuracy: float | None = None  # None where the outputs of what it learned are not finite
    released: float | None = None  # the same measure on the released records; None where it is no number


def utility(
    target: Target,
    defense: Defense,
    released: Records,
    *,
    senders: Senders = Senders(),
    epochs: int,
    seeds: int,
    seed: int,
    unit: Callable[[int], Unit | None] = lambda k: None,
) -> Utility:
    """Train fresh models on what clients share under `defense` and measure them on `target.test`.

    With local steps that is a federation: every round the server's Adam takes the mean of what `senders`
    each send (FedAvg's average, which Reddi et al. 2021, arXiv 2003.00295, call a pseudo-gradient).

    `released` are the private records after the defense's record stage, drawn once, or before every epoch where the
    defense is `renewable`; per-example and update stages act on every step's batch. Initial weights and the order of
    batches depend on `seed` alone, so two defenses are compared as pairs. A run that the time budget ends early gives
    no accuracy, and the estimate says so. `unit` names the outcome of the k-th run; raises `Elsewhere` where another
    participant makes one of them, once no other is left to make.
    """
    task = target.task
    steps = epochs * steps_per_epoch(len(released), senders.records_of_a_round(len(released)))
    reason = cannot(target.test, task) or None
    runs: list[Run] = []
    elsewhere: Elsewhere | None = None
    for k in range(0 if reason else seeds):

        def run(k: int = k) -> Run:
            label = f"training, seed {k + 1} of {seeds}"
            return _run(target, defense, released, senders, epochs, seed, k, label)

        try:
            runs.append(desk.done(unit(k), Run, run))
        except Elsewhere as error:
            elsewhere = error
            continue
        reason = _unmeasured(runs[-1], steps, f"seed {k + 1} of {seeds}")
        if reason and elsewhere is None:
            break
    if elsewhere is not None:
        raise elsewhere
    accuracies = tuple(run.accuracy for run in runs if run.accuracy is not None)
    least = 1 / len(target.test) if len(target.test) else 0.0
    estimate = intervals.mean(list(accuracies), within=(task.measure.least, 1.0), reason=reason, least=least)
    learned = tuple(run.released for run in runs if run.released is not None)
    return Utility(accuracies, estimate, chance(target.test, task), steps, epochs, learned)


def _unmeasured(run: Run, steps: int, which: str) -> str | None:
    """Return why a training run measured nothing, None where it did."""
    if run.done < steps:
        return f"the time budget ended {which} after {run.done} of {steps} training steps"
    return f"{which} learned a model whose outputs are not finite" if run.accuracy is None else None


def _run(
    target: Target, defense: Defense, released: Records, senders: Senders, epochs: int, seed: int, k: int, label: str
) -> Run:
    """Train the k-th fresh model, and measure it."""
    own = senders.records_of_one(len(released))
    batch_size = senders.records_of_a_round(len(released))
    model, update = _begun(target, defense, released[:batch_size], senders, own, seed, k)
    done = train(
        model,
        released,
        target.loss,
        epochs=epochs,
        batch_size=batch_size,
        seed=derive(seed, "batches", k),
        update=update,
        renew=renewal(target, defense, derive(seed, "renew", k)) if defense.renewable else None,
        augment=target.augment,
        label=label,
    )
    value = math.nan
    if done == epochs * steps_per_epoch(len(released), batch_size):
        value = measured(model, target.test, target.task, target.loss)
    if math.isnan(value):
        return Run(done)
    kept = measured(model, as_records(released.images, released.labels, target.task), target.task, target.loss)
    return Run(done, value, None if math.isnan(kept) else kept)


def _begun(
    target: Target, defense: Defense, batch: Records, senders: Senders, own: int, seed: int, k: int
) -> tuple[PixelModel, Update]:
    """Return the fresh model of the k-th run, and what gives the updates that it is trained by."""
    model = defense.transform_model(target.fresh(derive(seed, "utility", k)), generator_for(seed, "model", k))
    layout = layout_of(model, target.loss, defense, batch.to(target.device))
    model, noise = model.to(memory_format=layout), generator_for(seed, "noise", k)
    if senders.client.local:
        return model, federated_update(model, target.loss, defense, noise, senders.client, own, target.task)
    return model, shared_update(model, target.loss, defense, noise, layout)


def train(  # noqa: PLR0913 - all that a training run depends on
    model: PixelModel,
    records: Records,
    loss: LossFunction,
    *,
    epochs: int,
    batch_size: int = 32,
    seed: int,
    update: Update | None = None,
    mode: Mode = "train",
    renew: Callable[[int], Records] | None = None,
    augment: Sequence[str] = (),
    label: str = "training",
) -> int:
    """Train `model` in place with the server's Adam; return the number of steps taken (fewer when the time is up).

    `update(images, labels)` gives each step's gradients, by default the plain mean gradient. Adam divides the
    gradient's scale out, so a defense that only rescales (a clip) is not punished for it, and one rate serves them all
    (`FEW_RATE` where most parameters are frozen).
    `augment` names what happens to pictures before every step (`score.augmentation`), released ones as private ones.
    `renew(epoch)` gives the records of every epoch but the first, as many again. Records of an epoch that do not fill a
    batch are left out. The global random state, which dropout draws
    from, is seeded and restored.
    """
    _, parameters = parameters_of(model)
    gradients = update or shared_update(model, loss, Defense(), torch.Generator())
    trained, present = shared_parameters(model)
    rate = PEAK_RATE if 2 * trained > present else FEW_RATE
    optimiser = torch.optim.Adam(parameters, lr=rate)
    device = parameters[0].device
    per_epoch = steps_per_epoch(len(records), batch_size)
    size = min(batch_size, len(records))
    total = epochs * per_epoch
    order, moves = generator_for(seed, "order"), generator_for(seed, "augment")
    indices = torch.empty(0, dtype=torch.long)
    done = 0
    model.train(mode == "train")
    with forked(derive(seed, "dropout")):
        for step in track(label, total):
            if step % per_epoch == 0:
                if renew is not None and step:
                    records = renew(step // per_epoch)
                indices = torch.randperm(len(records), generator=order)
            start = step % per_epoch * size
            batch = records[indices[start : start + size].to(records.labels.device)]
            found = gradients(augmented(batch.images.to(device), augment, moves), batch.taught.to(device))
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.grad = gradient.to(parameter)
            for group in optimiser.param_groups:
                group["lr"] = rate * _schedule(step, total)
            optimiser.step()
            done += 1
    model.zero_grad(set_to_none=True)
    model.eval()
    return done


def renewal(target: Target, defense: Defense, seed: int) -> Callable[[int], Records]:
    """Return the function that draws the private records anew for an epoch."""
    return lambda epoch: release(defense, target.private, generator_for(seed, epoch))


def layout_of(model: PixelModel, loss: LossFunction, defense: Defense, batch: Records) -> torch.memory_format:
    """Return how pictures and weights lie in memory while `model` is trained: channels last where it gives the same.

    That is a third faster on a CPU (on CUDA it is not asked for: nobody has measured it). A network that cannot run
    so, or gives other gradients, is left alone, and so is one that a defense has a hand in.
    """
    own = any(
        part.needs_example_gradients
        or type(part).observe is not Defense.observe
        or type(part).transform_model is not Defense.transform_model
        for part in parts_of(defense)
    )
    convolutions = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if own or not convolutions or batch.images.device.type == "cuda":
        return torch.contiguous_format
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        try:
            copied, x = copy.deepcopy(model).to(memory_format=layout), batch.images.contiguous(memory_format=layout)
            gradients: list[Tensor] = []
            for training in (False, True):  # one may compute what the other does not
                copied.train(training)
                for module in copied.modules():  # what it drops depends on the layout
                    if isinstance(module, nn.modules.dropout._DropoutNd):
                        module.eval()
                with forked(0):
                    gradients += mean_gradient(copied, loss, x, batch.taught)
            found.append(gradients)
        except Exception:  # a view that only fits the usual layout, say; what is wrong anyway, the training will say
            return torch.contiguous_format
    least = ROUNDING * float(torch.stack([a.norm() for a in found[0]]).norm())  # a bias before BatchNorm: only rounding
    near = (float((a - b).norm()) <= ROUNDING * max(float(a.norm()), least) for a, b in zip(*found, strict=True))
    return torch.channels_last if all(near) else torch.contiguous_format


def shared_update(
    model: PixelModel,
    loss: LossFunction,
    defense: Defense,
    generator: torch.Generator,
    layout: torch.memory_format = torch.contiguous_format,
) -> Update:
    """Return the function that computes one client's defended update on a batch, as `client.share` does, but fast."""
    each, told = fast_example_gradients(), _watched(loss)

    def update(images: Tensor, labels: Tensor) -> Gradients:
        images = images.contiguous(memory_format=layout)
        return defended_gradient(
            model, told, images, labels, defense, generator, lambda m, _, x, y: each(m, loss, x, y)
        )

    return update


def _watched(loss: LossFunction) -> LossFunction:
    def told(logits: Tensor, wanted: Tensor) -> Tensor:
        value = loss(logits, wanted)
        observe(value)  # what is computed anyway: a forward pass of its own could change the model
        return value

    return told


def federated_update(
    model: PixelModel,
    loss: LossFunction,
    defense: Defense,
    generator: torch.Generator,
    client: Client,
    own: int,
    task: Task = CLASSES,
) -> Update:
    """Return the function that computes the mean of what clients of `own` records each send of a batch of all theirs.

    Every round deals the records to other clients, at random, or sorted by class where the federation is split so.
    """
    each, told = fast_example_gradients(), _watched(loss)

    def plain(m: PixelModel, _: LossFunction, x: Tensor, y: Tensor) -> Gradients:
        return each(m, loss, x, y)

    def update(images: Tensor, labels: Tensor) -> Gradients:
        if client.split == "class":
            order = hard(labels, task).argsort(stable=True)
            images, labels = images[order], labels[order]
        parts = zip(torch.split(images, own), torch.split(labels, own), strict=True)
        found = [trained_update(model, told, x, y, defense, generator, client, plain) for x, y in parts]
        return tuple(torch.stack(column).mean(0) for column in zip(*found, strict=True))

    return update


def steps_per_epoch(records: int, batch_size: int) -> int:
    """Return how many full batches an epoch has; one smaller batch where the records do not fill any."""
    return max(1, records // batch_size)


def _schedule(step: int, total: int) -> float:
    warm = max(1, total // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
