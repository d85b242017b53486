"""Which task labels, outputs and loss make: what people bring, and what is refused in one true sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.errors import UserError
from leakaudit.load.tasks import Labelled, labelled
from leakaudit.protocol.target import Records

N = 40
G = torch.Generator().manual_seed(0)


def whole(*shape: int, below: int = 2) -> Tensor:
    return torch.randint(0, below, (N, *shape), generator=G)


def read(labels: Tensor, out: tuple[int, ...], loss: Any = None) -> Labelled:
    """Return what labels (N, …) are taken as beside a model's output of one record."""
    x = torch.rand(len(labels), 1, 4, 4, generator=G)
    roles = {role: Records(x, labels) for role in ("train_data", "test_data", "auxiliary_data")}
    return labelled(roles, torch.rand(1, *out, generator=G), loss)


def focal(logits: Tensor, labels: Tensor) -> Tensor:
    p = F.cross_entropy(logits, labels, reduction="none")
    return ((1 - (-p).exp()) ** 2 * p).mean()


def dice(logits: Tensor, masks: Tensor) -> Tensor:
    p = logits.sigmoid()
    return 1 - (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    return F.nll_loss(logits.log_softmax(1), labels)


def squeezed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.float())


def masked(logits: Tensor, labels: Tensor) -> Tensor:
    known = labels >= 0
    return F.binary_cross_entropy_with_logits(logits[known], labels[known].float())


def one_hot() -> Tensor:
    return F.one_hot(whole(below=4), 4)


# Labels, the output of one record, the loss; and the kind, the shape and the type of what the loss is given.
TABLE: dict[str, tuple[Callable[[], Tensor], tuple[int, ...], Any, str, tuple[int, ...], torch.dtype]] = {
    "classes": (lambda: whole(below=4), (4,), None, "classes", (), torch.long),
    "classes (N, 1)": (lambda: whole(1, below=4), (4,), None, "classes", (), torch.long),
    "classes, weights": (lambda: whole(below=4), (4,), nn.CrossEntropyLoss(torch.ones(4)), "classes", (), torch.long),
    "classes, smoothed": (
        lambda: whole(below=4),
        (4,),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        "classes",
        (),
        torch.long,
    ),
    "classes, focal": (lambda: whole(below=4), (4,), focal, "classes", (), torch.long),
    "classes, nll": (
        lambda: whole(below=4),
        (4,),
        nll,
        "classes",
        (),
        torch.long,
    ),
    "two logits, 0 and 1": (lambda: whole(), (2,), None, "classes", (), torch.long),
    "classes as floats": (lambda: whole(below=4).float(), (4,), None, "classes", (), torch.long),
    "one-hot": (one_hot, (4,), None, "classes", (), torch.long),
    "one-hot floats": (lambda: one_hot().float(), (4,), nn.CrossEntropyLoss(), "classes", (), torch.long),
    "one-hot, squares": (lambda: one_hot().float(), (4,), F.mse_loss, "soft labels", (4,), torch.float32),
    "soft": (lambda: torch.rand(N, 4, generator=G).softmax(1), (4,), None, "soft labels", (4,), torch.float32),
    "one logit": (lambda: whole(), (1,), None, "one logit", (1,), torch.float32),
    "one logit, BCE": (lambda: whole(), (1,), nn.BCEWithLogitsLoss(), "one logit", (1,), torch.float32),
    "one logit (N, 1)": (lambda: whole(1).float(), (1,), nn.BCEWithLogitsLoss(), "one logit", (1,), torch.float32),
    "one logit, squeezed": (
        lambda: whole(),
        (1,),
        squeezed,
        "one logit",
        (),
        torch.long,
    ),
    "one logit, flat output": (lambda: whole(), (), nn.BCEWithLogitsLoss(), "one logit", (), torch.float32),
    "one logit, BCELoss": (lambda: whole(), (1,), nn.BCELoss(), "one logit", (1,), torch.float32),
    "findings": (lambda: whole(14), (14,), nn.BCEWithLogitsLoss(), "multi-label", (14,), torch.float32),
    "findings, no loss": (lambda: whole(14).float(), (14,), None, "multi-label", (14,), torch.float32),
    "findings, BCELoss": (lambda: whole(3).float(), (3,), nn.BCELoss(), "multi-label", (3,), torch.float32),
    "findings, margin": (lambda: whole(3), (3,), nn.MultiLabelSoftMarginLoss(), "multi-label", (3,), torch.int64),
    "findings, smoothed": (
        lambda: whole(4) * 0.8 + 0.1,
        (4,),
        nn.BCEWithLogitsLoss(),
        "multi-label",
        (4,),
        torch.float32,
    ),
    "findings, some unknown": (lambda: whole(4, below=3) - 1, (4,), masked, "multi-label", (4,), torch.long),
    "one logit, smoothed": (
        lambda: whole() * 0.8 + 0.1,
        (1,),
        F.binary_cross_entropy_with_logits,
        "multi-label",
        (1,),
        torch.float32,
    ),
    "a number": (lambda: torch.randn(N, generator=G), (1,), nn.MSELoss(), "regression", (1,), torch.float32),
    "a number (N, 1)": (lambda: torch.randn(N, 1, generator=G), (1,), F.l1_loss, "regression", (1,), torch.float32),
    "an age": (lambda: whole(below=90), (1,), nn.MSELoss(), "regression", (1,), torch.float32),
    "numbers": (lambda: torch.randn(N, 3, generator=G), (3,), nn.HuberLoss(), "regression", (3,), torch.float32),
    "a picture": (
        lambda: torch.rand(N, 1, 4, 4, generator=G),
        (1, 4, 4),
        F.mse_loss,
        "regression",
        (1, 4, 4),
        torch.float32,
    ),
    "a mask": (lambda: whole(4, 4, below=3), (3, 4, 4), None, "segmentation", (4, 4), torch.long),
    "a mask (1, H, W)": (lambda: whole(1, 4, 4, below=3), (3, 4, 4), None, "segmentation", (4, 4), torch.long),
    "a mask of floats": (lambda: whole(4, 4, below=3).float(), (3, 4, 4), None, "segmentation", (4, 4), torch.long),
    "a volume's mask": (lambda: whole(2, 4, 4, below=3), (3, 2, 4, 4), None, "segmentation", (2, 4, 4), torch.long),
    "a binary mask": (lambda: whole(4, 4), (1, 4, 4), None, "segmentation", (1, 4, 4), torch.float32),
    "a binary mask (1, H, W)": (
        lambda: whole(1, 4, 4).float(),
        (1, 4, 4),
        dice,
        "segmentation",
        (1, 4, 4),
        torch.float32,
    ),
    "planes": (
        lambda: whole(3, 4, 4).float(),
        (3, 4, 4),
        nn.BCEWithLogitsLoss(),
        "segmentation",
        (3, 4, 4),
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_people_bring(name: str) -> None:
    labels, out, loss, kind, shape, dtype = TABLE[name]
    given = labels()
    found = read(given, out, loss)
    assert (found.task.kind, found.task.shape, found.task.dtype) == (kind, shape, dtype)
    private = found.records["train_data"]
    assert private.labels.shape == (N,)
    assert private.labels.dtype == torch.long
    assert int(private.labels.max()) < len(found.names)
    outputs = torch.rand(N, *out, generator=G, requires_grad=True)
    values = [found.loss(outputs, each) for each in (private.taught, private.labels)]
    assert all(value.ndim == 0 and value.requires_grad for value in values)
    if private.targets is not None:
        assert private.targets.dtype == torch.float32
        assert torch.equal(private.targets.reshape(-1), given.float().reshape(-1))


def test_the_loss_of_targets_is_the_users_own() -> None:
    findings, logits = whole(5), torch.randn(N, 5, generator=G)
    found = read(findings, (5,), nn.BCEWithLogitsLoss())
    wanted = F.binary_cross_entropy_with_logits(logits, findings.float())
    assert float(found.loss(logits, found.records["train_data"].taught)) == pytest.approx(float(wanted))


def test_a_class_that_is_ignored_in_a_mask_stays_in_it() -> None:
    masks = whole(4, 4, below=3)
    masks[:, 0] = 255
    loss = nn.CrossEntropyLoss(ignore_index=255)
    found, logits = read(masks, (3, 4, 4), loss), torch.randn(N, 3, 4, 4, generator=G)
    assert (found.task.kind, found.task.values) == ("segmentation", 3)
    value = found.loss(logits, found.records["train_data"].taught)
    assert float(value) == pytest.approx(float(loss(logits, masks)))


def test_a_binary_mask_may_leave_pixels_out() -> None:
    masks = whole(4, 4)
    masks[:, 0] = 255

    def loss(z: Tensor, y: Tensor) -> Tensor:
        z, y = z.reshape(-1), y.reshape(-1)
        return F.binary_cross_entropy_with_logits(z[y != 255], y[y != 255].float())

    found = read(masks, (1, 4, 4), loss)
    assert (found.task.kind, found.task.values) == ("segmentation", 2)


REFUSED: dict[str, tuple[Callable[[], Tensor], tuple[int, ...], Any, str]] = {
    "numbers without a loss": (lambda: torch.randn(N, generator=G), (1,), None, "give `loss`"),
    "shapes": (lambda: whole(3), (5,), None, r"labels of shape \(3,\) .* output of shape \(5,\)"),
    "findings for cross-entropy": (lambda: whole(3), (5,), nn.CrossEntropyLoss(), r"\(3,\) .* \(5,\)"),
    "masks for a classifier": (lambda: whole(4, 4), (5,), None, r"\(4, 4\) .* \(5,\)"),
    "classes for maps": (lambda: whole(below=3), (3, 4, 4), None, r"shape \(\) .* \(3, 4, 4\)"),
    "masks of another size": (lambda: whole(8, 8, below=3), (3, 4, 4), None, r"\(8, 8\) .* \(3, 4, 4\)"),
    "a loss that fails": (lambda: whole(below=3), (3,), lambda z, y: F.nll_loss(z, y[:, None]), "`loss` fails on"),
    "a loss for each record": (lambda: whole(below=3), (3,), nn.CrossEntropyLoss(reduction="none"), "average"),
    "a loss without a gradient": (lambda: whole(below=3), (3,), lambda z, y: z.detach().sum(), "gradient"),
    "masks of 0 and 255": (lambda: whole(4, 4) * 255, (1, 4, 4), None, "0 and 255"),
    "fractions as classes": (lambda: torch.rand(N, generator=G), (4,), None, r"fractional numbers.* \(4,\)"),
    "a mean and a variance": (lambda: torch.rand(N, generator=G), (2,), F.mse_loss, "one output for each number"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_one_sentence(name: str) -> None:
    labels, out, loss, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        read(labels(), out, loss)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_label_groups_come_from_the_adversarys_records_alone() -> None:
    x = torch.rand(N, 1, 4, 4, generator=G)
    roles = {role: Records(x, whole(6)) for role in ("train_data", "test_data", "auxiliary_data")}
    found = labelled(roles, torch.rand(1, 6), nn.BCEWithLogitsLoss())
    table = found.task.table
    assert table is not None
    own = {tuple(row) for row in roles["auxiliary_data"].labels.tolist()}
    assert {tuple(map(int, row)) for row in table.tolist()} <= own
    again = labelled(roles | {"train_data": Records(x, 1 - roles["train_data"].labels)}, torch.rand(1, 6), None)
    assert again.task.table is not None
    assert torch.equal(again.task.table, table)


def test_groups_are_of_the_nearest_target() -> None:
    found = read(torch.randn(N, 2, generator=G), (2,), nn.MSELoss())
    own, table = found.records["train_data"], found.task.table
    assert own.targets is not None
    assert table is not None
    nearest = (own.targets[:, None] - table[None]).square().sum(2).argmin(1)
    assert torch.equal(own.labels, nearest)
