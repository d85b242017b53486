"""Fishing: a malicious server sets the last layer so that a batch's gradient is that of one class's records alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from leakaudit.attacks._attacking import client_mode, cut_short, memory_safe, reason_of
from leakaudit.attacks._labels import probe_pictures
from leakaudit.attacks.analytic import known_labels_or_none
from leakaudit.attacks.imprint import own_records
from leakaudit.attacks.inverting_gradients import InvertingGradients, inversion_of
from leakaudit.engine import head as engine_head
from leakaudit.errors import NotApplicable, OutOfTime
from leakaudit.protocol.amounts import Amount, Sizes
from leakaudit.protocol.attack import Beforehand, Needs, Reconstruction, Status
from leakaudit.protocol.client import SharedUpdate, release, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.gradients import in_mode, parameters_of
from leakaudit.protocol.registry import register_attack
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.tuning import RUNS, tune
from leakaudit.work.progress import note_untuned, while_tuning

DEEP = 20.0  # how far below the other logits the fished class's is, at most e^-20 of which is taken for it
OWN = 500  # auxiliary records by which class and bias are chosen
REHEARSED = 4  # batches of auxiliary records on which the inversion is tuned


def last_layer(model: PixelModel, known: Beforehand | SharedUpdate, pictures: Tensor) -> nn.Linear:
    """Return the dense layer with a bias that gives the logits; raises NotApplicable where none does."""
    if known.task.kind != "classes":
        raise NotApplicable("it fishes in one class, and a record's label is no class here")
    found, _ = engine_head.find(model, known.loss, pictures)
    layer = None if found is None or not found.direct else found.layer
    if not isinstance(layer, nn.Linear) or layer.bias is None or not layer.bias.requires_grad:
        raise NotApplicable("no dense layer with a trained bias gives the logits")
    return layer


def bait(layer: nn.Linear, features: Tensor, target: int) -> None:
    """Set a last layer so that the records of class `target` alone have a slope in their features (N, D).

    All rows but one are zero, and that one's logit is at most −`DEEP`: p − y is then −1 in that row for records of the
    class and nothing for all others (Wen et al. 2022, eq. 4).
    """
    with torch.no_grad():
        row = layer.weight[target].clone()
        layer.weight.zero_()
        layer.weight[target] = row
        layer.bias.zero_()
        layer.bias[target] = -DEEP - (features @ row).max().clamp_min(0)


def caught(layer: nn.Linear, bias: Tensor, batch: int) -> tuple[int, list[int]]:
    """Return the class that is fished in, and how many records of each update are of it, by ∂b (V, K): −n/B exactly."""
    target = int(layer.bias.argmin())
    shares = -bias[:, target].double() * batch
    seen = shares > 0.1 * batch * bias.double().norm(dim=1)
    return target, [
        min(batch, max(1, round(s))) if any_ else 0 for s, any_ in zip(shares.tolist(), seen.tolist(), strict=True)
    ]


@register_attack
@dataclass(frozen=True, kw_only=True)
class Fishing(InvertingGradients):
    """Make a batch's gradient that of one class's records, and invert that (Wen et al. 2022, arXiv 2202.00580).

    The server sets weights and biases of the last layer alone: all classes but one get the same logit, the fished one a
    far smaller one. Records of other classes then pass nothing back to the features, those of the class all of it, and
    the bias's gradient says how many there are. What is left is inverted as that of a small batch whose labels are
    known, on the other layers, by `inverting-gradients` tuned on auxiliary records in batches like these. The class is
    the one of which a batch holds one record most often, by the auxiliary records' labels. Of the records of other
    classes nothing is claimed: their slots hold the mean auxiliary picture.

    Several records of the class are inverted together: what Wen et al. tell them apart by, one feature's threshold,
    asks that no record of another class exceeds it.
    """

    name: ClassVar[str] = "fishing"
    summary: ClassVar[str] = "malicious server: a last layer that passes one class's gradient back, and inversion of it"
    source: ClassVar[str] = "Wen et al. 2022 (Fishing for User Data)"
    family: ClassVar[str] = "malicious-server"
    requires: ClassVar[frozenset[str]] = frozenset({"model_control", "auxiliary"})
    examines: ClassVar[frozenset[str]] = frozenset({"anything"})
    needs: ClassVar[Needs] = Needs(several_records=True)
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {}  # it tunes on batches that hold the class

    def amount(self, sizes: Sizes) -> Amount:
        """Return how much work it is: an inversion of every victim, and the tuning."""
        runs = sizes.victims + RUNS * REHEARSED
        return Amount(updates=sizes.victims + REHEARSED, slopes=self.steps * self.restarts * runs)

    def plant(self, model: PixelModel, known: Beforehand, generator: torch.Generator) -> PixelModel:
        """Return the model with a last layer that fishes in one class."""
        if known.batch_size == 1:
            raise NotApplicable("it needs several records per update: one is all of its gradient")
        own = own_records(known.auxiliary, generator, OWN)
        with in_mode(model, "eval"):
            layer = last_layer(model, known, own.images[:64])
            given: list[Tensor] = []
            handle = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
            with torch.no_grad():
                model(own.images)
            handle.remove()
        counts = torch.bincount(own.labels.cpu(), minlength=known.classes).double()
        share = counts / counts.sum()
        once = known.batch_size * share * (1 - share) ** (known.batch_size - 1)
        order = torch.randperm(known.classes, generator=generator, device=generator.device)
        bait(layer, given[0], int(order[once[order].argmax()]))
        return model

    @memory_safe
    def __call__(self, model: PixelModel, update: SharedUpdate, generator: torch.Generator) -> Reconstruction:
        """Return the pictures of the fished class's records first, the mean picture in all other slots."""
        own = own_records(update.auxiliary, generator, OWN)
        labels = known_labels_or_none(model, update, generator)
        with client_mode(model, update, generator):
            layer = last_layer(model, update, probe_pictures(update, generator, model.mean.device, 16))
        target, inverter = int(layer.bias.argmin()), self._tuned(model, update, own, generator)
        finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1) for g in update.gradients]).all(0).tolist()
        statuses: list[Status] = ["converged" if f else "diverged" for f in finite]
        images = own.images.mean(0).expand(update.victims, update.batch_size, *update.input_shape).clone()
        objective, progress = torch.zeros(update.victims).to(images), torch.ones(update.victims)
        found = fished(model, update)
        for victims, line in found:
            drawn = inverter(line[0], line[1], generator)
            assert drawn.images is not None
            images[victims, : line[1].batch_size] = drawn.images
            objective[victims] = drawn.objective
            progress[victims] = torch.ones(len(victims)) if drawn.progress is None else drawn.progress.cpu()
            for v, status in zip(victims, drawn.statuses, strict=True):
                statuses[v] = status
        count = sum(len(victims) * line[1].batch_size for victims, line in found)
        of = f"{update.victims * update.batch_size} records"
        return cut_short(
            Reconstruction(
                images=images,
                labels=labels,
                objective=objective,
                statuses=tuple(statuses),
                reason=reason_of(tuple(statuses)),
                notes=(f"It fished in class {target}, and claims {count} of {of}; other slots are the mean picture.",),
                progress=progress,
            )
        )

    def _tuned(
        self, model: PixelModel, update: SharedUpdate, own: Records, generator: torch.Generator
    ) -> InvertingGradients:
        """Return the inversion, tuned on batches of the adversary's own that hold one record of the class."""
        plain = inversion_of(self)
        try:
            with while_tuning():
                rehearsal, truth = rehearsed(model, update, own, generator)
                lines = [(victims, line) for victims, line in fished(model, rehearsal) if line[1].batch_size == 1]
                for victims, (alone, seen) in lines[:1]:
                    tuned, _ = tune(plain, alone, seen, truth[victims], generator)
                    assert isinstance(tuned, InvertingGradients)
                    return replace(tuned, steps=self.steps)
        except OutOfTime:
            note_untuned()
        return plain


def rehearsed(
    model: PixelModel, update: SharedUpdate, own: Records, generator: torch.Generator
) -> tuple[SharedUpdate, Records]:
    """Return what batches of the adversary's own share that hold one record of the class, and these records."""
    with client_mode(model, update, generator):
        layer = last_layer(model, update, own.images[:16])
    is_target = own.labels == int(layer.bias.argmin())
    mine, others = own[is_target.nonzero()[:, 0]], own[(~is_target).nonzero()[:, 0]]
    batches = min(REHEARSED, len(mine), len(others) // max(1, update.batch_size - 1))
    rows = []
    for k in range(batches):
        rest = others[k * (update.batch_size - 1) : (k + 1) * (update.batch_size - 1)]
        rows.append(
            (torch.cat([mine.images[k : k + 1], rest.images]), torch.cat([mine.labels[k : k + 1], rest.labels]))
        )
    defense = update.defense or Defense()
    if not rows:
        raise OutOfTime("the adversary has too few records of the class to tune on")
    batch = Records(torch.cat([x for x, _ in rows]), torch.cat([y for _, y in rows]))
    seed = int(torch.randint(2**62, (1,), generator=generator))
    drawn = torch.Generator().manual_seed(seed)
    sent = share(
        model,
        update.loss,
        release(defense, batch, drawn),
        defense,
        replace(update.exposure, released=False),
        batch_size=update.batch_size,
        classes=update.classes,
        mode=update.mode,
        generator=drawn,
        client=update.client,
        task=update.task,
    )
    return sent, mine[:batches]


def fished(model: PixelModel, update: SharedUpdate) -> list[tuple[list[int], tuple[PixelModel, SharedUpdate]]]:
    """Return victims by how many records of the class they hold, with what these share of the layers before the last.

    The model is a copy whose last layer is not trained, the update one of so many records, whose labels are known.
    """
    alone = copy.deepcopy(model)
    shown = torch.rand((4, *update.input_shape), generator=torch.Generator().manual_seed(0)).to(model.mean)
    with in_mode(alone, "eval"):
        layer = last_layer(alone, update, shown)
    names, parameters = parameters_of(alone)
    own = {id(p) for p in layer.parameters()}
    kept = [i for i, p in enumerate(parameters) if id(p) not in own]
    bias = next(update.gradients[i] for i, p in enumerate(parameters) if p is layer.bias)
    target, counts = caught(layer, bias.nan_to_num(0, 0, 0), update.batch_size)
    finite = torch.stack([g.reshape(len(g), -1).isfinite().all(1) for g in update.gradients]).all(0).tolist()
    layer.requires_grad_(False)
    found = []
    for count in sorted({n for n in counts if n}):
        victims = [v for v, n in enumerate(counts) if n == count and finite[v]]
        if victims and kept:
            some = replace(
                update,
                gradients=tuple(update.gradients[i][victims] * (update.batch_size / count) for i in kept),
                names=tuple(names[i] for i in kept),
                batch_size=count,
                labels=torch.full((len(victims), count), target, device=model.mean.device),
                buffers=None,
                released=None,
                released_labels=None,
            )
            found.append((victims, (alone, some)))
    return found
