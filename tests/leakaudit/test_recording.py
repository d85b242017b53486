"""What captures inside somebody's training: settings are checked at once, and no failure ends a round."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leakaudit.captured.reading import read_capture
from leakaudit.captured.recording import recorder, settings_of
from leakaudit.errors import UserError

STATE = {"weight": torch.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"batchsize": 8}, "did you mean 'batch_size'"),
        ({"epochs": 1, "steps": 4}, "not both"),
        ({"lr": -1.0, "epochs": 1}, "local_lr must be positive"),
        ({"records": 0}, "records is 0: it must be between 1"),
        ({"schema": "other"}, "no setting 'schema'"),
        ({"note": object()}, "hold what JSON does not"),
    ],
)
def test_what_no_client_can_be_is_refused_before_the_training(said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        recorder("updates", said, "flwr")


def test_one_gradient_has_no_local_steps() -> None:
    with pytest.raises(UserError, match="one step's gradient"):
        recorder("updates", {"epochs": 1}, "transformers", steps=False)


def test_what_the_user_says_stands_above_what_a_configuration_says() -> None:
    told = {"learning-rate": 0.1, "local-epochs": 3, "Batch_Size": 16, "momentum": 0.0, "optimizer": "SGD", "seed": 1}
    found = recorder("updates", {"lr": 0.5, "steps": 7}, "flwr").claimed(told)
    assert found == {"local_lr": 0.5, "local_steps": 7, "batch_size": 16, "momentum": 0.0, "optimizer": "sgd"}
    assert recorder("updates", {}, "flwr").claimed(told)["local_epochs"] == 3
    assert recorder("updates", {}, "flwr").claimed({**told, "local_steps": 2})["local_steps"] == 2
    odd = {"lr": "0.1", "batch_size": 1.5, "local_epochs": 0, "records": True, "optimizer": "lion", "mode": 3}
    assert recorder("updates", {}, "flwr").claimed(odd) == {}


def test_a_capture_holds_what_was_said(tmp_path: Path) -> None:
    kept = recorder(tmp_path / "new", {"epochs": 1}, "no-such-package", [{"name": "LocalDpMod", "epsilon": 1.0}])
    kept.capture(lambda: kept.write("round-0001", {"lr": 0.1}, "round 1", before=STATE, after=STATE))
    found = read_capture(tmp_path / "new" / "round-0001.safetensors")
    assert (found.claims.local_epochs, found.claims.local_lr, found.claims.note) == (1, 0.1, "round 1")
    assert found.claims.settings == ({"name": "LocalDpMod", "epsilon": 1.0},)
    assert found.claims.framework == "no-such-package"
    assert torch.equal(found.updates[0]["weight"], STATE["weight"])


def test_a_failure_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    kept = recorder(tmp_path / "file", {}, "flwr")
    with caplog.at_level(logging.WARNING, "leakaudit"):
        for _ in range(3):
            kept.capture(lambda: kept.write("round-0001", before=STATE, after=STATE))
        kept.capture(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert len(caplog.records) == 1
    assert "Training goes on" in caplog.text
    assert str(tmp_path / "file") in caplog.text


def test_the_settings_of_a_defense_are_those_that_can_be_told() -> None:
    odd = SimpleNamespace(clipping_norm=1.0, epsilon=10, _hidden=3, table=[1], on=True)
    assert settings_of(odd) == {"name": "SimpleNamespace", "clipping_norm": 1.0, "epsilon": 10, "on": True}
    assert settings_of(settings_of) == {"name": "settings_of"}
    with pytest.raises(UserError, match="needs a name"):
        settings_of({"epsilon": 1})
