"""Which task a target is, told by what the data gives as labels, what the model gives, and the user's loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.errors import UserError, first_line
from leakaudit.protocol.labels import task_loss
from leakaudit.protocol.target import LossFunction, Records
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.work.freememory import free_bytes
from leakaudit.work.quantities import readable

MOST = 16  # label groups at most
EACH = 10  # auxiliary records to a label group, at least on average
_TRIED = 8  # records on which it is tried whether a loss is of one alone
_SHAPING = ("Squeeze", "Unsqueeze", "View", "UnsafeView", "ReshapeAlias", "Select", "ToCopy", "Alias")
_ROUNDS = 10  # in which groups are drawn around their means


@dataclass(frozen=True)
class Labelled:
    """What labels were taken as: the task, the loss of an audit, the records, names of classes or groups, and notes."""

    task: Task
    loss: LossFunction
    records: Mapping[str, Records]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Given:
    """What there is to tell a task by: all labels (N, *shape), the outputs (1, *out) of one record, and the loss."""

    labels: Tensor
    outputs: Tensor
    loss: LossFunction | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.labels.shape[1:])

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(self.outputs.shape[1:])

    @property
    def whole(self) -> bool:
        return not self.labels.is_floating_point()

    @property
    def binary(self) -> bool:
        return bool(((self.labels == 0) | (self.labels == 1)).all())

    @property
    def signs(self) -> bool:
        """Whether labels are −1 and 1, as losses of a margin take them."""
        return bool((self.labels.abs() == 1).all()) and bool((self.labels < 0).any())

    @property
    def counts(self) -> bool:
        """Whether all labels are whole numbers, whatever type they are of."""
        return self.whole or bool((self.labels == self.labels.round()).all())

    @property
    def ignoring(self) -> bool:
        """Whether labels are 0 and 1, but for one other whole number: what the loss leaves out (ignore_index)."""
        others = self.labels[(self.labels != 0) & (self.labels != 1)]
        return self.counts and bool((others == others[:1]).all())

    @property
    def within(self) -> bool:
        """Whether all labels lie between 0 and 1."""
        return bool(((self.labels >= 0) & (self.labels <= 1)).all())

    @property
    def shares(self) -> bool:
        """Whether labels lie between 0 and 1 and the loss is binary cross-entropy: smoothed labels of findings."""
        return _binary(self.loss) and self.within

    @property
    def entropy(self) -> bool:
        """Whether the loss is cross-entropy, for which one-hot labels are classes."""
        return self.loss is None or self.loss is F.cross_entropy or isinstance(self.loss, nn.CrossEntropyLoss)


def labelled(records: Mapping[str, Records], outputs: Tensor, loss: LossFunction | None) -> Labelled:
    """Tell the task of records whose labels stand as they were given (N, *shape), of all roles, and prepare it.

    `outputs` (1, ...) are what the model gives of the first record of train_data; `loss` is the user's, None: the usual
    one of the task. Raises UserError where labels, outputs and loss do not fit together.
    """
    _same_shape(records)
    given = _Given(torch.cat([each.labels for each in records.values()]), outputs, loss)
    kind = _kind(given)
    if kind == "classes":
        return _of_classes(given, records)
    chosen = loss or _usual(kind, given)
    if _binary(chosen) and not given.within:
        raise UserError(
            f"labels of train_data run from {float(given.labels.min()):g} to {float(given.labels.max()):g}, and binary "
            "cross-entropy takes 0 to 1: give those, or a `loss` that leaves out what is neither."
        )
    task, own = _fitted(kind, given, chosen)
    _room(records)
    targets = {role: each.labels.float().reshape(-1, *task.shape) for role, each in records.items()}
    taken = "binary cross-entropy of what its sigmoid gives" if chosen is F.binary_cross_entropy else _USUAL.get(kind)
    notes = [] if loss is not None else [f"No loss was given: {taken} was taken."]
    if kind == "one logit":
        names = ("-1", "1") if given.signs else ("0", "1")
        pair = torch.tensor([float(name) for name in names]).view(2, *[1] * len(task.shape)).expand(2, *task.shape)
        task = replace(task, table=pair.clone())
        found = {role: replace(each, labels=(targets[role].reshape(-1) > 0).long()) for role, each in records.items()}
        return Labelled(task, task_loss(chosen, task), found, names, tuple(notes))
    width = given.out[0]
    task = replace(task, table=torch.eye(width) if kind == "soft labels" else representatives(task, targets), **own)
    found = {
        role: replace(each, labels=task.groups_of(targets[role]), targets=targets[role])
        for role, each in records.items()
    }
    return Labelled(task, task_loss(chosen, task), found, _names(kind, task), (*notes, *_told(kind, task)))


def _binary(loss: LossFunction | None) -> bool:
    """Whether a loss is plain binary cross-entropy, which takes any number as a label and leaves none out."""
    losses = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
    return loss in losses or isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss)


def representatives(task: Task, targets: Mapping[str, Tensor]) -> Tensor:
    """Return the targets (K, *shape) that stand for all: medoids of the adversary's own, at most `MOST`.

    Begun with those farthest apart, and drawn around the means of what lies nearest to each (Lloyd's algorithm).
    """
    own = targets["auxiliary_data"]
    rows = task.features(own).double()
    wanted = max(2, min(MOST, len(rows) // EACH))
    chosen = [int((rows - rows.mean(0)).square().sum(1).argmin())]
    gaps = (rows - rows[chosen[0]]).square().sum(1)
    while len(chosen) < wanted and float(gaps.max()) > 0:
        chosen.append(int(gaps.argmax()))
        gaps = torch.minimum(gaps, (rows - rows[chosen[-1]]).square().sum(1))
    for _ in range(_ROUNDS):
        near = torch.cdist(rows, rows[chosen], compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        means = torch.stack([rows[near == k].mean(0) for k in range(len(chosen))])
        again = [_medoid(rows, near == k, means[k]) for k in range(len(chosen))]
        if again == chosen:
            break
        chosen = again
    return own[chosen]


def _medoid(rows: Tensor, members: Tensor, mean: Tensor) -> int:
    places = members.nonzero()[:, 0]
    return int(places[(rows[places] - mean).square().sum(1).argmin()])


def _room(records: Mapping[str, Records]) -> None:
    """Raise UserError where the targets of all records, as float32 and once more as they are sorted, find no room."""
    size = 2 * 4 * sum(each.labels.numel() for each in records.values())
    free = free_bytes(torch.device("cpu"))
    if free is not None and size > free:
        count, shape = sum(map(len, records.values())), tuple(next(iter(records.values())).labels.shape[1:])
        raise UserError(
            f"labels of shape {shape} of {count} records take about {readable(size)}, and {readable(free)} are free: "
            "give smaller masks, or fewer records."
        )


def _same_shape(records: Mapping[str, Records]) -> None:
    first_role, first = next(iter(records.items()))
    for role, each in records.items():
        if each.labels.shape[1:] != first.labels.shape[1:]:
            raise UserError(
                f"{first_role} gives labels of shape {tuple(first.labels.shape[1:])}, but {role} of shape "
                f"{tuple(each.labels.shape[1:])}: give labels of one shape."
            )


def _kind(given: _Given) -> str:
    shape, out = given.shape, given.out
    if shape in ((), (1,)) and len(out) == 1 and out[0] > 1 and given.counts:
        return "classes"
    if prod(shape) == 1 and prod(out) == 1 and len(out) <= 1:
        return "one logit" if given.binary or given.signs else "multi-label" if given.shares else "regression"
    if len(out) == 1 and shape == out:
        return _of_rows(given)
    if len(out) >= 3 and _is_mask(given):
        return "segmentation"
    if given.loss is not None and _alike(shape, out):
        return "regression"
    raise UserError(_unfit(given))


def _of_rows(given: _Given) -> str:
    """Tell what labels of one number per output are."""
    rows = given.labels.float()
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        return "classes" if given.binary and given.entropy else "soft labels"
    if given.binary or given.shares:
        return "multi-label"
    unsure = bool(((rows == 0) | (rows.abs() == 1)).all()) and bool((rows == 0).any())
    return "multi-label" if unsure else "regression"  # −1: a finding that nobody knows, for the loss to leave out


def _is_mask(given: _Given) -> bool:
    shape, (width, *places) = given.shape, given.out
    flat = shape in (tuple(places), (1, *places), (*places, 1))
    if flat and bool(((given.labels == 0) | (given.labels == 255)).all()) and not given.binary:
        raise UserError("the masks of train_data hold 0 and 255: give 0 and 1, e.g. mask > 127.")
    if width > 1 and flat and bool((given.labels == given.labels.round()).all()):
        return True  # what lies beyond the classes is for the loss to leave out (ignore_index)
    known = given.binary or given.shares or (width == 1 and given.ignoring)
    return known and (shape == given.out or (width == 1 and flat))


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether labels of one shape are those of the other in the same order: but for sides of one, or laid in a row."""
    rows, plain = min(len(one), len(other)) <= 1, [[n for n in shape if n > 1] for shape in (one, other)]
    return prod(one) == prod(other) and (rows or plain[0] == plain[1])


def _unfit(given: _Given) -> str:
    what = "whole" if given.counts else "fractional"
    told = (
        f"train_data gives labels of shape {given.shape or '()'} ({what} numbers) and the model an output of shape "
        f"{given.out or '()'} for one picture: a classifier gives one logit for each class, beside whole numbers as "
        "labels"
    )
    if given.loss is None and prod(given.shape) == prod(given.out):
        return f"{told}; for another task give `loss`, a function of (outputs, labels)."
    if given.loss is not None and prod(given.shape) == prod(given.out):
        return f"{told}; for another task give labels in the order of the output, as {given.out}."
    if len(given.out) >= 3 and len(given.shape) >= 2 and given.shape[-2:] != given.out[-2:]:
        return f"{told}; for masks give both one size, e.g. by F.interpolate within `model`."
    return f"{told}; another model gives one output for each number of a label, or a map of logits for each pixel."


_USUAL = {
    "one logit": "binary cross-entropy of the logit",
    "multi-label": "binary cross-entropy of each finding's logit",
    "soft labels": "cross-entropy",
    "segmentation": "cross-entropy of each pixel",
}


_AS_THEY_ARE = "R² compares the outputs of the model with the labels as they are, whatever the loss makes of either."


def _usual(kind: str, given: _Given) -> LossFunction:
    if kind == "regression":
        raise UserError("labels are numbers, not classes: give `loss`, e.g. torch.nn.functional.mse_loss.")
    if kind == "soft labels" or (kind == "segmentation" and given.out[0] > 1 and given.shape != given.out):
        return F.cross_entropy
    return F.binary_cross_entropy if _ends_in_sigmoid(given.outputs) else F.binary_cross_entropy_with_logits


def _ends_in_sigmoid(outputs: Tensor) -> bool:
    """Whether outputs are probabilities already, by the operation that they come from."""
    node = outputs.grad_fn
    while node is not None and node.name().startswith(_SHAPING):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("Sigmoid")


def _of_classes(given: _Given, records: Mapping[str, Records]) -> Labelled:
    width = given.out[0]
    notes: tuple[str, ...] = ()
    found = dict(records)
    if given.shape not in ((), (1,)):
        found = {role: replace(each, labels=each.labels.argmax(1)) for role, each in records.items()}
        notes = ("Labels are one-hot, and were taken as the classes that they name.",)
    elif given.shape or not given.whole:
        found = {role: replace(each, labels=each.labels.reshape(-1).long()) for role, each in records.items()}
        notes = () if given.whole else ("Labels are whole numbers as floats, and were taken as classes.",)
    loss = given.loss or F.cross_entropy
    reject(loss, given.outputs, next(iter(found.values())).labels[:1].clamp(0, width - 1))  # others are named later
    _check_alone(loss, given.outputs, next(iter(found.values())).labels.clamp(0, width - 1))
    return Labelled(CLASSES, task_loss(loss, CLASSES), found, tuple(map(str, range(width))), notes)


def _check_alone(loss: LossFunction, outputs: Tensor, labels: Tensor) -> None:
    """Raise UserError where a loss has no gradient for any record alone, and has one for several of them together."""
    drawn = torch.Generator().manual_seed(0)
    rows = outputs.detach() + torch.randn((_TRIED, *outputs.shape[1:]), generator=drawn).to(outputs.device)
    some = labels[torch.arange(_TRIED) % len(labels)].to(rows.device)
    try:
        alone = [_slope(loss, rows[k : k + 1], some[k : k + 1]) for k in range(_TRIED)]
        together = _slope(loss, rows, some)
    except Exception:  # user code may raise anything, and what fails is told elsewhere
        return
    if not any(alone) and together:
        raise UserError(
            "`loss` compares the records of a batch with each other, and has no gradient for one alone: leakaudit "
            "audits losses that are a mean over records, so give one of those."
        )


def _slope(loss: LossFunction, outputs: Tensor, labels: Tensor) -> float:
    given = outputs.clone().requires_grad_()
    with torch.enable_grad():
        return float(torch.autograd.grad(loss(given, labels), given)[0].abs().max())


def _fitted(kind: str, given: _Given, loss: LossFunction) -> tuple[Task, dict[str, Any]]:
    """Return the task in the form of labels that the loss takes: as given, as floats, or in the output's shape."""
    values = 0
    if kind == "segmentation" and given.shape != given.out:
        values = max(2, given.out[0])
    elif kind == "segmentation" and given.out[0] == 1:
        values = 2
    last = torch.int64 if given.whole or values >= 2 else torch.float32
    first = torch.float32 if kind == "regression" else given.labels.dtype  # a mean of two numbers is one, too
    dtypes = dict.fromkeys((first, torch.float32, last))
    shapes = [given.shape, *([given.out] if _alike(given.shape, given.out) else [])]
    if given.shape[:1] == (1,) and len(given.shape) > 1:
        shapes.append(given.shape[1:])
    if given.shape[-1:] == (1,) and len(given.shape) > 2:
        shapes.append(given.shape[:-1])
    failure: UserError | None = None
    largest = int(given.labels.reshape(len(given.labels), -1).amax(1).argmax())  # a number may lie beyond the classes
    for shape in dict.fromkeys(shapes):
        for dtype in dtypes:
            one = given.labels[largest : largest + 1].reshape(1, *shape).to(dtype)
            try:
                reject(loss, given.outputs, one)
                reject(loss, torch.cat([given.outputs] * 2), torch.cat([one] * 2))  # where shapes have to be the same
            except UserError as error:
                failure = failure or error
                continue
            return Task(kind, shape, dtype, values=values), {"own_targets": True}
    assert failure is not None
    most = int(given.labels.max())
    if values and given.out[0] <= most:
        raise UserError(
            f"the masks of train_data hold numbers up to {most}, but the model has {given.out[0]} classes of pixels: "
            f"give 0 to {given.out[0] - 1}, or a `loss` that leaves the others out (ignore_index)."
        )
    raise failure


def reject(loss: Callable[..., Any], outputs: Tensor, labels: Tensor) -> None:
    """Raise UserError where a loss fails on outputs and labels of one record, or gives no scalar with a gradient."""
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")  # it would be broadcast to another meaning
            value = loss(outputs.detach().clone().requires_grad_(), labels.to(outputs.device))
    except Exception as error:  # user code may raise anything
        raise UserError(
            f"`loss` fails on logits {tuple(outputs.shape)} and labels {tuple(labels.shape)} ({first_line(error)}): "
            "give a function of (logits, labels) that returns a scalar."
        ) from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"`loss` returns {found}, not a scalar tensor: average over the batch (reduction='mean').")
    if not value.requires_grad:
        raise UserError("`loss` returns a value without a gradient: compute it from the logits without detaching them.")


def _names(kind: str, task: Task) -> tuple[str, ...]:
    assert task.table is not None
    if kind == "soft labels":
        return tuple(map(str, range(len(task.table))))
    if kind == "regression" and prod(task.shape) == 1:
        return tuple(f"near {float(value):.3g}" for value in task.table.reshape(-1))
    return tuple(f"group {k + 1}" for k in range(len(task.table)))


def _told(kind: str, task: Task) -> Sequence[str]:
    assert task.table is not None
    if kind == "soft labels":
        return ()
    groups = (
        f"Labels are no classes ({kind}): where an attack or a defense asks for a class it is given one of "
        f"{len(task.table)} label groups, the nearest of as many labels of auxiliary records.",
    )
    return (*groups, _AS_THEY_ARE) if kind == "regression" else groups
