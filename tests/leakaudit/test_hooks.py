"""The callbacks of Hugging Face and Lightning write the gradient that one step has. They need those packages."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.captured.reading import read_capture
from leakaudit.errors import UserError
from leakaudit.hooks import lightning_callback, trainer_callback

DATA = [
    {"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "labels": torch.tensor(i % 3)} for i in range(8)
]


def check(file: Path, framework: str) -> None:
    """The gradient in the file is the one of all records at the weights in the file."""
    found = read_capture(file)
    assert (found.sends, found.claims.records, found.claims.mode) == ("gradient", 8, "train")
    assert found.claims.framework.startswith(framework)
    net = nn.Linear(4, 3)
    net.load_state_dict(dict(found.before))
    x, y = torch.stack([each["x"] for each in DATA]), torch.stack([each["labels"] for each in DATA])
    F.cross_entropy(net(x), y).backward()
    for name, p in net.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found.updates[0][name], p.grad, atol=1e-6, rtol=1e-5)


def test_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.net(x), labels)}

    args = transformers.TrainingArguments(
        str(tmp_path / "out"), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3,
        report_to=[], max_grad_norm=0.0, save_strategy="no", use_cpu=True, logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    callback = trainer_callback(tmp_path / "updates", step=1, prefix="net.")
    transformers.Trainer(Net(), args, train_dataset=DATA, callbacks=[callback]).train()
    assert [f.name for f in (tmp_path / "updates").iterdir()] == ["step-000001.safetensors"]
    check(tmp_path / "updates" / "step-000001.safetensors", "transformers ")


def test_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Net(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            return F.cross_entropy(self.net(batch["x"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = lightning.Trainer(
        max_steps=2, callbacks=[lightning_callback(tmp_path / "updates", prefix="net.", records=8)], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Net(), torch.utils.data.DataLoader(DATA, batch_size=8))
    check(tmp_path / "updates" / "step-000000.safetensors", "lightning ")


@pytest.mark.parametrize(("make", "package"), [(trainer_callback, "transformers"), (lightning_callback, "lightning")])
def test_without_the_package_a_sentence_says_what_to_install(make: object, package: str) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UserError, match=rf"pip install 'leakaudit\[{package}\]'"):
        make()  # type: ignore[operator]
