"""By what a model is judged where labels are no classes: against hand counts, and sklearn's where it is installed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.load.tasks import labelled
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.score.measures import as_records, cannot, chance, mean_auc, measured, r_squared

G = torch.Generator().manual_seed(0)


class Says(nn.Module):
    """Says what it is told of the record whose first pixel names it."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.w, self.outputs = nn.Parameter(torch.zeros(())), outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[(x[:, 0, 0, 0] * len(self.outputs)).round().long()] + 0 * self.w


def measured_of(outputs: Tensor, labels: Tensor, loss: object = None) -> tuple[float, float, str]:
    """Return the measure of a model that gives these outputs, what chance gives, and the measure's name."""
    x = (torch.arange(len(outputs)) / len(outputs)).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    records = Records(x, labels)
    roles = {"train_data": records, "test_data": records, "auxiliary_data": records}
    found = labelled(roles, outputs[:1].nan_to_num(0.5), loss)  # type: ignore[arg-type]
    test = found.records["test_data"]
    assert not cannot(test, found.task)
    value = measured(PixelModel(Says(outputs)), test, found.task, found.loss)
    return value, chance(test, found.task), found.task.measure.name


def auc_by_hand(scores: Tensor, there: Tensor) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in scores[there].tolist() for b in scores[~there].tolist()]
    return sum(pairs) / len(pairs)


def test_mean_auc_is_that_of_all_pairs_over_the_findings_that_have_both_values() -> None:
    labels = (torch.rand(60, 5, generator=G) > 0.7).long()
    labels[:, 3] = 0  # a finding that nobody has
    outputs = (torch.randn(60, 5, generator=G) + labels).mul(2).round() / 2  # with ties
    value, by_chance, name = measured_of(outputs, labels, F.binary_cross_entropy_with_logits)
    wanted = [auc_by_hand(outputs[:, k], labels[:, k] > 0) for k in (0, 1, 2, 4)]
    assert value == pytest.approx(sum(wanted) / 4)
    assert (by_chance, name) == (0.5, "mean AUC")
    assert math.isnan(mean_auc(outputs[:, 3:4], labels[:, 3:4]))


def test_a_finding_that_nobody_knows_is_left_out() -> None:
    truth, outputs = torch.randint(-1, 2, (80, 3), generator=G), torch.randn(80, 3, generator=G)
    known = truth >= 0
    each = [auc_by_hand(outputs[known[:, k], k], truth[known[:, k], k] > 0) for k in range(3)]
    assert mean_auc(outputs, truth) == pytest.approx(sum(each) / 3)


def test_an_output_that_is_not_finite_ranks_wrong() -> None:
    truth = torch.tensor([[0.0], [0], [1], [1]])
    assert mean_auc(torch.tensor([[0.0], [1], [2], [3]]), truth) == 1
    assert mean_auc(torch.tensor([[math.nan], [1], [2], [3]]), truth) == 0.5
    assert mean_auc(torch.full((4, 1), math.inf), truth) == 0


@pytest.mark.parametrize("form", ["logit", "probability", "squares", "flat"])
def test_one_logit_is_right_where_the_label_of_least_loss_is_the_records(form: str) -> None:
    labels = (torch.rand(40, generator=G) > 0.6).long()
    logits = torch.randn(40, generator=G) + 2 * labels - 1
    right = float(((logits > 0) == (labels > 0)).double().mean())
    forms = {
        "logit": (logits[:, None], F.binary_cross_entropy_with_logits),
        "probability": (logits.sigmoid()[:, None], nn.BCELoss()),
        "squares": (logits.sigmoid()[:, None], F.mse_loss),
        "flat": (logits, F.binary_cross_entropy_with_logits),
    }
    value, by_chance, name = measured_of(forms[form][0], labels, forms[form][1])
    assert (value, name) == (pytest.approx(right), "accuracy")
    assert by_chance == int(labels.bincount().max()) / 40


def test_soft_labels_are_judged_by_their_likeliest_class() -> None:
    labels = torch.rand(50, 4, generator=G).softmax(1)
    outputs = torch.randn(50, 4, generator=G)
    outputs[0] = math.nan
    right = (outputs.argmax(1) == labels.argmax(1)).double()
    right[0] = 0
    value, by_chance, name = measured_of(outputs, labels)
    assert (value, name) == (pytest.approx(float(right.mean())), "accuracy")
    assert by_chance == float(labels.argmax(1).bincount().max()) / 50


def iou_by_hand(truth: Tensor, answer: Tensor, classes: list[int]) -> float:
    found = []
    for k in classes:
        union = ((truth == k) | (answer == k)).sum()
        found.append(float(((truth == k) & (answer == k)).sum() / union))
    return sum(found) / len(found)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6)])
def test_mean_iou_is_over_classes_that_occur_and_leaves_out_what_is_ignored(shape: tuple[int, ...]) -> None:
    masks = torch.randint(0, 3, (20, 6, 6), generator=G)  # class 3 never occurs
    masks[:, 0] = 255
    outputs = torch.randn(20, 4, 6, 6, generator=G) + F.one_hot(masks.clamp(max=3), 4).permute(0, 3, 1, 2)
    known = masks < 4
    wanted = iou_by_hand(masks[known], outputs.argmax(1)[known], [0, 1, 2])

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y.reshape(-1, 6, 6).long(), ignore_index=255)

    value, by_chance, name = measured_of(outputs, masks.reshape(20, *shape), loss)
    assert (value, name) == (pytest.approx(wanted), "mean IoU")
    shares = [float((masks[known] == k).double().mean()) for k in (0, 1, 2)]
    assert by_chance == pytest.approx(max(shares) / 3)


@pytest.mark.parametrize("shape", [(6, 6), (1, 6, 6)])
@pytest.mark.parametrize("probabilities", [False, True])
def test_one_plane_is_cut_at_0_or_at_a_half(shape: tuple[int, ...], probabilities: bool) -> None:
    masks = torch.randint(0, 2, (30, 6, 6), generator=G)
    logits = torch.randn(30, 1, 6, 6, generator=G) + masks[:, None]
    wanted = iou_by_hand(masks, (logits[:, 0] > 0).long(), [0, 1])
    loss = nn.BCELoss() if probabilities else nn.BCEWithLogitsLoss()
    value, _, _ = measured_of(
        logits.sigmoid() if probabilities else logits,
        masks.reshape(30, *shape),
        lambda z, y: loss(z.reshape(-1), y.float().reshape(-1)),
    )
    assert value == pytest.approx(wanted)


def test_planes_that_do_not_exclude_each_other_have_an_iou_each() -> None:
    masks = torch.randint(0, 2, (20, 3, 5, 5), generator=G)
    masks[:, 2] = 0
    logits = torch.randn(20, 3, 5, 5, generator=G) + masks
    value, by_chance, _ = measured_of(logits, masks.float(), F.binary_cross_entropy_with_logits)
    each = [iou_by_hand(masks[:, k], (logits[:, k] > 0).long(), [1]) for k in (0, 1)]
    assert value == pytest.approx(sum(each) / 2)
    assert by_chance == pytest.approx(float(masks[:, :2].double().mean()))


def test_planes_of_which_one_is_there_are_classes() -> None:
    masks = torch.randint(0, 3, (20, 5, 5), generator=G)
    logits = torch.randn(20, 3, 5, 5, generator=G)
    planes = F.one_hot(masks, 3).permute(0, 3, 1, 2).float()
    value, by_chance, _ = measured_of(logits, planes, F.cross_entropy)
    assert value == pytest.approx(iou_by_hand(masks, logits.argmax(1), [0, 1, 2]))
    assert by_chance == pytest.approx(float(masks.flatten().bincount().max()) / masks.numel() / 3)


@pytest.mark.parametrize("width", [1, 3])
def test_r_squared_is_the_share_of_the_variance_that_is_explained(width: int) -> None:
    y = torch.randn(40, width, generator=G) * 3 + 5
    outputs = y + torch.randn(40, width, generator=G)
    value, by_chance, name = measured_of(
        outputs, y[:, 0] if width == 1 else y, lambda z, t: F.mse_loss(z, t.reshape(z.shape))
    )
    wanted = 1 - float((y - outputs).square().sum() / (y - y.mean(0)).square().sum())
    assert (value, by_chance, name) == (pytest.approx(wanted), 0.0, "R²")
    assert r_squared(-outputs, y) < 0
    assert math.isnan(r_squared(outputs * math.inf, y))


def test_what_no_model_can_be_measured_on_is_said() -> None:
    x = torch.rand(30, 1, 4, 4, generator=G)
    findings = torch.randint(0, 2, (30, 4), generator=G)
    roles = {role: Records(x, findings) for role in ("train_data", "test_data", "auxiliary_data")}
    task = labelled(roles, torch.zeros(1, 4), F.binary_cross_entropy_with_logits).task
    assert "both values" in cannot(Records(x, torch.zeros(30).long(), targets=torch.zeros(30, 4)), task)
    assert "no test records" in cannot(Records(x[:0], torch.zeros(0).long()), task)


def test_released_records_of_groups_are_targets() -> None:
    x = torch.rand(30, 1, 4, 4, generator=G)
    findings = torch.randint(0, 2, (30, 4), generator=G)
    roles = {role: Records(x, findings) for role in ("train_data", "test_data", "auxiliary_data")}
    found = labelled(roles, torch.zeros(1, 4), F.binary_cross_entropy_with_logits)
    own = found.records["train_data"]
    again = as_records(own.images, own.taught, found.task)
    assert torch.equal(again.labels, own.labels)
    assert torch.equal(again.taught, findings.float())
