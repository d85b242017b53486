from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from leakaudit.errors import UserError
from leakaudit.load.loading import target_from_objects
from leakaudit.load.preflight import preflight, raise_on_errors
from leakaudit.protocol.target import Records, Target
from leakaudit.result.schema import Finding
from tests.attacks.task_scenes import target as task_target


def target(network: nn.Module | None = None, count: int = 80, side: int = 6, **given: Any) -> Target:
    torch.manual_seed(0)
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(count) % 2)
    built = network or nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 2))
    return target_from_objects(built, data, **given)


def found(checked: Target, **settings: Any) -> dict[str, Finding]:
    given = {"mode": "eval", "batch_size": 1, "records": 4, "candidates": 5} | settings
    findings = preflight(checked, **given)
    ids = [finding.id for finding in findings]
    assert len(set(ids)) == len(ids)
    assert all(f.id == f.id.lower() and " " not in f.id and f.message.endswith(".") for f in findings)
    return {finding.id: finding for finding in findings}


def test_nothing_is_said_against_a_sound_target() -> None:
    findings = found(target())
    assert list(findings) == ["memory"]
    assert findings["memory"].severity == "info"
    raise_on_errors(tuple(findings.values()))


def test_findings_are_the_same_in_every_run_unless_costs_are_asked_for() -> None:
    checked = target(norm())
    state = torch.get_rng_state()
    assert preflight(checked, mode="train", batch_size=2, records=4) == preflight(
        checked, mode="train", batch_size=2, records=4
    )
    assert torch.equal(state, torch.get_rng_state())
    assert float(checked.model.network[1].running_mean.abs().sum()) == 0  # the statistics are put back
    cost = found(checked, costs=True)["cost"]
    assert float(cost.evidence["step_seconds"] or 0) > 0
    assert float(cost.evidence["double_backward_seconds"] or 0) > float(cost.evidence["step_seconds"] or 0)


def norm() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))


def collapsing() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 6), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_batchnorm_against_the_mode() -> None:
    untrained = target(norm())
    assert found(untrained)["batchnorm-untrained"].severity == "warning"
    assert "batchnorm-untrained" not in found(untrained, mode="train", batch_size=2)
    assert found(untrained, mode="train")["batchnorm-single-record"].severity == "warning"
    assert found(target(collapsing()), mode="train")["batchnorm-single-record"].severity == "error"
    trained = norm()
    trained(torch.rand(4, 3, 6, 6))
    assert list(found(target(trained))) == ["memory"]


def test_dropout_in_train_mode() -> None:
    checked = target(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(108, 2)))
    assert "dropout-train-mode" in found(checked, mode="train")
    assert "dropout-train-mode" not in found(checked)


class Drops(nn.Module):
    """Drops a path or units by one way of drawing, in eval mode too."""

    def __init__(self, draw: Any, always: bool = True) -> None:
        super().__init__()
        self.inner, self.draw, self.always = nn.Linear(108, 2), draw, always

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.inner(self.draw(x) if self.always or self.training else x)


DRAWS: dict[str, Any] = {
    "function": lambda x: nn.functional.dropout(x, 0.3),
    "depth by row": lambda x: x * (torch.rand(len(x), 1) > 0.1),
    "depth by batch": lambda x: x * float(torch.rand(()) > 0.2),
    "python": lambda x: x * (random.random() > 0.5),
    "numpy": lambda x: x + float(np.random.rand()),
}


@pytest.mark.parametrize("draw", DRAWS)
def test_chance_in_a_forward_pass_is_found_in_eval_mode_too(draw: str) -> None:
    unseeded = draw in ("python", "numpy")
    always, training = target(Drops(DRAWS[draw])), target(Drops(DRAWS[draw], always=False))
    states = torch.get_rng_state(), random.getstate()
    assert ("unseeded-model" if unseeded else "random-model") in found(always)
    assert ("random-model" in found(always)) != unseeded
    assert list(found(training)) == ["memory"]
    assert ("unseeded-model" if unseeded else "dropout-train-mode") in found(training, mode="train")
    if unseeded:
        assert draw in found(always)["unseeded-model"].message.lower()
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_draws_without_an_effect_and_changing_buffers_are_no_chance() -> None:
    idle = target(Drops(lambda x: x + 0 * torch.rand(1)))
    assert list(found(idle)) == ["memory"]
    torch.manual_seed(0)
    spectral = nn.Sequential(nn.Flatten(), nn.utils.spectral_norm(nn.Linear(108, 2)))
    assert not {"random-model", "unseeded-model", "dropout-train-mode"} & found(target(spectral), mode="train").keys()


def test_it_says_how_labels_are_told_and_what_is_frozen() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(108, 2), nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x.flatten(1)) + self.other(x.flatten(1)).tanh()

    assert found(target(Sum()))["no-head"].severity == "warning"
    ended = found(target(nn.Sequential(nn.Flatten(), nn.Linear(108, 2), nn.Softmax(1))))["head-followed"]
    assert ended.evidence == {"layer": "network.1"}
    part = nn.Sequential(nn.Flatten(), nn.Linear(108, 5).requires_grad_(False), nn.ReLU(), nn.Linear(5, 2))
    finding = found(target(part))["frozen-parameters"]
    assert finding.message.startswith("12 of 557 parameters are shared")
    assert finding.evidence == {"shared": 12, "parameters": 557}


@pytest.mark.parametrize("kind", ["one logit", "multi-label", "one number", "segmentation", "mask of classes"])
def test_it_says_of_every_kind_of_label_how_it_is_told(kind: str) -> None:
    said = [f for f in found(task_target(kind)) if f in ("no-head", "head-followed", "labels-guessed")]
    assert said == (["labels-guessed"] if kind in ("segmentation", "mask of classes") else [])


def test_weights_that_are_not_finite() -> None:
    checked = target()
    with torch.no_grad():
        checked.model.network[1].bias[0] = float("nan")
    finding = found(checked)["non-finite-weights"]
    assert finding.severity == "error"
    with pytest.raises(UserError, match=r"'1\.bias' of the model holds NaN"):
        raise_on_errors((Finding("a", "warning", "w."), finding))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.spare = nn.Linear(108, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x.flatten(1))


class Flat(nn.Module):
    """Loses its gradient: the logits hardly depend on the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(108, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1)) * 1e-12


def test_gradients_that_are_missing_or_vanish() -> None:
    finding = found(target(Unused()))["no-gradient"]
    assert (finding.evidence["parameters"], finding.evidence["first"]) == (2, "network.spare.weight")
    assert found(target(Flat()))["gradient-near-zero"].severity == "warning"


def test_losses_that_sum_over_the_batch() -> None:
    summed = nn.CrossEntropyLoss(reduction="sum")
    assert "loss-reduction" in found(target(loss=summed))
    assert "loss-reduction" not in found(target(loss=nn.CrossEntropyLoss()))


def test_losses_that_are_not_finite() -> None:
    checked = replace(target(), loss=lambda logits, labels: logits.sum() * float("inf"))
    assert found(checked)["non-finite-gradient"].severity == "error"


def test_models_that_fail_in_this_mode() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(108, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("no labels")
            return self.inner(x.flatten(1))

    checked = target(Fails())
    finding = found(checked, mode="train")["gradient-fails"]
    assert finding.severity == "error"
    assert "in train mode (RuntimeError: no labels)" in finding.message
    assert "gradient-fails" not in found(checked)


def test_too_few_records_for_the_settings() -> None:
    checked = target(count=40)  # 22 private
    assert found(checked, batch_size=23, records=23)["batch-larger-than-data"].severity == "error"
    assert found(checked, records=23)["too-few-records"].severity == "error"
    assert found(checked, batch_size=8, records=4)["too-few-records"].severity == "error"
    assert found(checked, batch_size=3, records=7)["records-not-used"].evidence["used"] == 6
    assert found(checked, batch_size=0)["setting-range"].severity == "error"
    smallest = found(checked, candidates=100)["few-candidates"].evidence["smallest"]
    labels = torch.cat([checked.private.labels, checked.test.labels])
    assert smallest == int(torch.bincount(labels).min())


def test_values_and_labels_of_records_built_by_hand() -> None:
    checked = target()
    images, labels = checked.test.images, checked.test.labels
    assert found(replace(checked, test=Records(images * 2, labels)))["value-range"].severity == "error"
    assert found(replace(checked, auxiliary=Records(images, labels + 1)))["label-range"].severity == "error"
    assert found(replace(checked, test=Records(images / 0, labels)))["value-range"].severity == "error"
    single = checked.private.labels * 0
    assert "absent-classes" in found(replace(checked, private=Records(checked.private.images, single)))


def test_ranges_that_are_legal_but_odd() -> None:
    """Data in [0, 1] that was never normalised though constants are declared still lands inside [0, 1]."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert "as if it was not normalised" in found(target(mean=mean, std=std))["value-range"].message
    dim = target()
    dim = replace(dim, private=Records(dim.private.images * 0.05, dim.private.labels))
    assert found(dim)["value-range"].severity == "warning"


def test_memory_grows_with_the_victims() -> None:
    one, many = (found(target(norm()), records=r)["memory"].evidence for r in (1, 4))
    assert (one["victims"], many["victims"]) == (1, 4)
    parameters = sum(p.numel() for p in norm().parameters())
    assert one["parameters"] == parameters
    assert int(many["bytes"] or 0) - 4 * parameters == 4 * (int(one["bytes"] or 0) - 4 * parameters)
    assert int(one["activation_bytes"] or 0) >= 4 * (4 * 4 * 4)  # at least the convolution's output is kept


def test_torchvision_models() -> None:
    from torchvision.models import VisionTransformer, resnet18

    findings = found(target(resnet18(num_classes=2), 40, 32), mode="train", batch_size=2)
    assert list(findings) == ["memory"]
    vit = VisionTransformer(image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    finding = found(target(vit, 40, 32), batch_size=2)["no-gradient"]
    assert "starts at zero" in finding.message  # as torchvision builds its head: nothing behind it gets a gradient
    assert finding.evidence["parameters"] == len(list(vit.parameters())) - 2


def test_a_stack_that_is_too_large_runs_in_pieces_and_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = found(target(norm()), records=16)["memory"]
    needed = int(usual.evidence["bytes"] or 0)
    monkeypatch.setattr("leakaudit.load.preflight._capacity", lambda device: needed // 2)
    split = found(target(norm()), records=16)["memory"]
    assert split.severity == "info"
    assert "runs in pieces" in split.message
    monkeypatch.setattr("leakaudit.load.preflight._capacity", lambda device: needed // 1000)
    assert found(target(norm()), records=16)["memory"].severity == "warning"
