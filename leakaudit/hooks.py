"""One training step's gradient, written down for `leakaudit scan --update`: callbacks of Hugging Face and Lightning.

    from leakaudit.hooks import trainer_callback, lightning_callback

    Trainer(..., callbacks=[trainer_callback("updates/")])  # transformers: pip install 'leakaudit[transformers]'
    Trainer(..., callbacks=[lightning_callback("updates/")])  # lightning: pip install 'leakaudit[lightning]'

In a loop of one's own: `leakaudit.captured.writing.write_capture`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leakaudit.captured.recording import Recorder, recorder
from leakaudit.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from torch import nn
    from transformers import TrainerCallback


def trainer_callback(
    folder: Path | str = "updates", *, step: int = 0, prefix: str = "", **said: Any
) -> TrainerCallback:
    """Return a TrainerCallback that writes the gradient of optimiser step `step` (from 0) to `folder`.

    It is what the optimiser gets: summed over accumulated batches, clipped if the Trainer clips. The records behind it
    are taken from the Trainer's arguments; `said` stands above them, as in `leakaudit.flower.capture` (records, mode,
    defense, …). Of a model in which the audited network stands under a name, give the `prefix` of its parameters:
    "vit.". What cannot be written is one warning in the log, and training goes on. Raises leakaudit.UserError for a
    setting that there is not, or where transformers is missing.
    """
    kept = recorder(folder, said, "transformers", steps=False)
    base: Any = _base("transformers", "TrainerCallback", "transformers")

    class Capture(base):  # type: ignore[misc]
        """Writes one gradient."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step and state.is_world_process_zero:
                batch = args.train_batch_size * args.gradient_accumulation_steps * max(args.world_size, 1)
                kept.capture(lambda: _gradient(kept, kwargs["model"], step, prefix, {"records": batch}))

    return Capture()


def lightning_callback(folder: Path | str = "updates", *, step: int = 0, prefix: str = "", **said: Any) -> Callback:
    """Return a Lightning Callback that writes the gradient of optimiser step `step` (from 0) to `folder`.

    It is what the step begins with: summed over accumulated batches, before Lightning's own clipping. `said` and
    `prefix` ("model." for a LightningModule that holds the network as `model`) are those of `trainer_callback`. Raises
    leakaudit.UserError for a setting that there is not, or where Lightning is missing.
    """
    kept = recorder(folder, said, "lightning", steps=False)
    base: Any = _base("lightning.pytorch", "Callback", "lightning")

    class Capture(base):  # type: ignore[misc]
        """Writes one gradient."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step == step and trainer.is_global_zero:
                kept.capture(lambda: _gradient(kept, pl_module, step, prefix, {}))

    return Capture()


def _base(module: str, name: str, package: str) -> Any:
    try:
        return getattr(import_module(module), name)
    except ImportError:
        raise UserError(f"leakaudit.hooks needs {package} here: pip install 'leakaudit[{package}]'.") from None


def _gradient(kept: Recorder, model: nn.Module, step: int, prefix: str, told: dict[str, Any]) -> Path | str:
    """Write the gradient of every parameter under the prefix that has one, and the weights it was taken at."""
    found = {name: p.grad for name, p in model.named_parameters() if name.startswith(prefix) and p.grad is not None}
    if not found:
        return f"no parameter{f' under {prefix!r}' if prefix else ''} has a gradient in step {step}"
    state = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    told = {**told, "mode": "train" if model.training else "eval"}
    cut = len(prefix)
    return kept.write(
        f"step-{step:06d}",
        told,
        f"optimiser step {step}",
        before={name[cut:]: value for name, value in state.items()},
        gradient={name[cut:]: value for name, value in found.items()},
    )


__all__ = ["lightning_callback", "trainer_callback"]
