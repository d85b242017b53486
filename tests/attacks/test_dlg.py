"""DLG and iDLG: which losses they can be run on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from leakaudit.errors import NotApplicable
from leakaudit.protocol.registry import parse_attack
from tests.attacks.attack_scenes import dense_model, records, shared_update

SHAPE = (1, 8, 8)


def test_a_loss_that_takes_no_soft_labels_is_not_applicable(generator: torch.Generator) -> None:
    def hard(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -logits.log_softmax(1).gather(1, labels[:, None]).mean()

    model, private = dense_model(SHAPE), records(2, SHAPE, 3, seed=10)
    update = dataclasses.replace(shared_update(model, private), loss=hard)
    with pytest.raises(NotApplicable, match="soft labels"):
        parse_attack("dlg:steps=5")(model, update, generator)
    assert parse_attack("idlg:steps=5")(model, update, generator).images is not None
