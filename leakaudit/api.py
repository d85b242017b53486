"""The audit from Python: `leakaudit.scan(model, train_data, ...)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from leakaudit.audit.audit import audit
from leakaudit.audit.plan import Plan
from leakaudit.errors import Setting, UserError, quoting, sentence
from leakaudit.files.reading import check_text, short
from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target
from leakaudit.result.schema import AuditResult
from leakaudit.work.progress import monitored
from leakaudit.work.quantities import parse, seconds


def scan(  # noqa: PLR0913 - the public surface
    model: Any,
    train_data: Any,
    *,
    defense: str | Sequence[str] = (),
    test_data: Any = None,
    auxiliary_data: Any = None,
    groups: Any = None,
    loss: Any = None,
    mean: Any = None,
    std: Any = None,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    checkpoint: Path | str | None = None,
    lpips_weights: Path | str | None = None,
    progress: bool = False,
    **settings: Any,
) -> AuditResult:
    """Audit a classifier and return the result.

    `model` is a `torch.nn.Module` (or a zero-argument callable that builds one) giving logits (N, classes);
    `train_data` a Dataset or DataLoader of (picture, label). Pictures come as the model takes them; with `mean` and
    `std`, pixel = value · std + mean lies in [0, 1]. `groups`: whose each record is, ids in the order of `train_data`
    (or a dict by data name). `defense` is one spec or several; `settings` are those of `leakaudit.audit.plan.Plan`;
    `budget` takes seconds or "10m", `memory` bytes or "4GB"; `images` is "redacted" by default where CI=true. Raises
    UserError on bad input.

    >>> leakaudit.scan(model, train_data, defense=["prune:sparsity=0.99", "obscure"], battery="quick").verdict
    """
    unknown = sorted(set(settings) - {f.name for f in fields(Plan)} | set(settings) & {"defenses"})
    if unknown:
        known = ", ".join(f.name for f in fields(Plan) if f.name != "defenses")
        raise UserError(f"scan takes no setting {unknown[0]!r}; it takes {known}.")
    attacks, budget = settings.get("attacks", ()), settings.get("budget")
    settings["attacks"] = _specs("attacks", attacks)
    settings["budget"] = seconds(budget) if isinstance(budget, str) else budget
    memory, weights = settings.get("memory"), _weights(lpips_weights)
    settings["memory"] = parse(memory) if isinstance(memory, str) else memory
    plan = Plan(defenses=_specs("defense", defense), **settings)
    with _quoted(plan):
        target = target_from_objects(
            model,
            train_data,
            test_data=test_data,
            auxiliary_data=auxiliary_data,
            groups=groups,
            loss=loss,
            mean=mean,
            std=std,
            classes=classes,
            device=device,
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
        return audit(target, plan, lpips_weights=weights, command="leakaudit.scan(...)")
    from leakaudit.watch.console import progress_monitor

    with progress_monitor(plan=plan) as monitor, monitored(monitor):
        return audit(target, plan, lpips_weights=weights, keep=monitor.kept, command="leakaudit.scan(...)")


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
