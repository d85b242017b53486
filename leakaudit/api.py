"""The audit from Python: `leakaudit.scan(model, train_data, ...)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Never

from torch import Tensor, nn
from torch.utils.data import Dataset

from leakaudit.audit.stages import audit_at_stages
from leakaudit.errors import Setting, UserError, did_you_mean, quoting, sentence
from leakaudit.files.reading import check_text, short
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target
from leakaudit.result.federation import Client, spec_of
from leakaudit.result.outward import default_images
from leakaudit.result.schema import AuditResult, Images
from leakaudit.scene.plan import Plan
from leakaudit.work.progress import monitored
from leakaudit.work.quantities import parse, seconds

Data = Dataset[Any] | Iterable[Any]  # a Dataset or DataLoader of (picture, label), or dicts


def scan(  # noqa: PLR0913 - the public surface
    model: nn.Module | Callable[[], nn.Module],
    train_data: Data,
    *,
    defense: str | Sequence[str] = (),
    test_data: Data | None = None,
    auxiliary_data: Data | None = None,
    groups: Sequence[Any] | Mapping[str, Sequence[Any]] | None = None,
    loss: Callable[[Any, Tensor], Tensor] | None = None,
    output: int | str | Callable[[Any], Tensor] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    generator: Callable[[Tensor], Tensor] | None = None,
    latent: int | Sequence[int] | None = None,
    checkpoint: Path | str | None = None,
    lpips_weights: Path | str | None = None,
    progress: bool = False,
    attacks: str | Sequence[str] = (),
    battery: Literal["quick", "standard", "full"] = "standard",
    exposure: Literal["adaptive", "honest-but-curious", "malicious-server"] = "adaptive",
    mode: Literal["eval", "train"] = "eval",
    records: int = Plan.records,
    batch_size: int = Plan.batch_size,
    client: str | Client = Plan.client,
    augment: str | Sequence[str] = (),
    stages: str | Sequence[str] = (),
    candidates: int = Plan.candidates,
    max_identification: float = Plan.max_identification,
    max_accuracy_loss: float = Plan.max_accuracy_loss,
    utility: bool = Plan.utility,
    seeds: int | None = None,
    epochs: int | None = None,
    budget: float | str | None = None,
    memory: int | str | None = None,
    all_attacks: bool = Plan.all_attacks,
    images: Images | None = None,
    seed: int = Plan.seed,
    **unknown: Never,
) -> AuditResult:
    """Audit a classifier and return the result: a notebook shows its first screen, `to_pandas()` gives its numbers.

    `model` is a `torch.nn.Module` (or a function that builds one) giving logits (N, classes); `train_data` holds
    (picture, label), pictures (C, H, W) as the model takes them: with `mean` and `std`, pixel = value · std + mean lies
    in [0, 1]. `groups`: whose each record is, ids in the order of `train_data` (or a dict by data name). `defense` is
    one spec or several, as is `attacks` (by default the battery's). `battery` is quick, standard or full; `exposure` is
    adaptive, honest-but-curious or malicious-server; `mode` is eval or train. `records` are attacked, in batches of
    `batch_size`, and looked for among `candidates`; the limits are shares. `client` says what a client does before it
    sends: a `leakaudit.Client`, or a spec like "fedavg:epochs=1:batch=8:lr=0.01". `augment` is what training does to
    pictures, as `("crop", "mirror")`. `utility=False` trains nothing. `seeds` and `epochs` are the battery's by
    default; `budget` takes seconds or "10m" (by default it has none), `memory` bytes or "4GB" (by default what is
    free). `all_attacks` skips none where the verdict is settled. `images` is full, redacted or none: by default full,
    and redacted where CI=true. `progress` shows what is computed. `generator` is what the adversary knows of pictures:
    from normal latents (N, *latent) to pictures (N, C, H, W) in [0, 1]. Raises leakaudit.UserError on bad input.

    Examples:
        >>> leakaudit.scan(model, train_data, defense=["prune:sparsity=0.99", "obscure"], battery="quick").verdict
    """
    if unknown:
        name = next(iter(unknown))
        meant = did_you_mean(name, signature(scan).parameters)
        raise UserError(f"scan takes no setting {short(name)}{meant}: help(leakaudit.scan) lists them.")
    plan = Plan(
        defenses=_specs("defense", defense),
        attacks=_specs("attacks", attacks),
        battery=battery,
        exposure=exposure,
        mode=mode,
        records=records,
        batch_size=batch_size,
        client=spec_of(client) if isinstance(client, Client) else client,
        stages=_specs("stages", stages),
        candidates=candidates,
        max_identification=max_identification,
        max_accuracy_loss=max_accuracy_loss,
        utility=utility,
        all_attacks=all_attacks,
        seeds=seeds,
        epochs=epochs,
        budget=seconds(budget) if isinstance(budget, str) else budget,
        memory=parse(memory) if isinstance(memory, str) else memory,
        images=default_images() if images is None else images,
        seed=seed,
    )
    weights = _weights(lpips_weights)
    with _quoted(plan):
        target = target_from_objects(
            model,
            train_data,
            test_data=test_data,
            auxiliary_data=auxiliary_data,
            groups=groups,
            loss=loss,
            output=output,
            mean=mean,
            std=std,
            classes=classes,
            device=device,
            generator=generator,
            latent=latent,
            augment=augment,
            checkpoint=_path("checkpoint", checkpoint),
            seed=plan.seed,
        )
        return _audited(target, plan, weights, progress)


@contextmanager
def _quoted(plan: Plan) -> Iterator[None]:
    """Quote exceptions within as the plan's level has it: below full no traceback shows what they say either."""
    with quoting(plan.images == "full"):
        try:
            yield
        except UserError as error:
            if plan.images == "full":
                raise
            raise UserError(*sentence(error).parts) from None


def _audited(target: Target, plan: Plan, weights: Path | None, progress: bool) -> AuditResult:
    if not progress:
        return audit_at_stages(target, plan, lpips_weights=weights, command="leakaudit.scan(...)")
    from leakaudit.watch.console import progress_monitor

    with progress_monitor(plan=plan) as monitor, monitored(monitor):
        return audit_at_stages(target, plan, lpips_weights=weights, keep=monitor.kept, command="leakaudit.scan(...)")


def _specs(name: str, given: Any) -> tuple[str, ...]:
    """Return one spec or several as a tuple; raises UserError for what is neither."""
    found = (given,) if isinstance(given, str) else given
    if not isinstance(found, list | tuple) or not all(isinstance(spec, str) for spec in found):
        raise UserError(f"{name} takes a spec like 'prune:sparsity=0.9' or several, not {short(given)}.")
    for spec in found:
        check_text(spec, name)
    return tuple(found)


def _path(name: str, given: Any) -> Path | None:
    if given is not None and not isinstance(given, str | Path):
        raise UserError(f"{name} takes a path, not {short(given)}.")
    if given is not None:
        check_text(str(given), name)
    return None if given is None else Path(given)


def _weights(given: Any) -> Path | None:
    found = _path("lpips_weights", given)
    if found is not None and not found.is_file():
        raise UserError(Setting("lpips_weights"), f" {found}: no such file.")
    return found
