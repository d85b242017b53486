"""A result in a tracker of experiments: `to_mlflow(result)`, `to_wandb(result)`, beside the training they are of.

Both log every number that was measured, the settings, and the verdicts; the report goes along unless it holds private
pictures, which must not leave for a server by accident. `pip install 'leakaudit[mlflow]'` or `'leakaudit[wandb]'`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from leakaudit.errors import UserError, first_line
from leakaudit.reports.html import render
from leakaudit.reports.rows import rows
from leakaudit.result.numbers import plain
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, digest, is_private

if TYPE_CHECKING:
    from wandb import Run

PAGE = "leakaudit/report.html"


def to_mlflow(result: AuditResult) -> None:
    """Log a result to MLflow's active run, or to one that this starts.

    Raises leakaudit.UserError where MLflow is missing.

    >>> with mlflow.start_run():
    ...     to_mlflow(leakaudit.scan(model, train_data, defense="obscure", images="redacted"))
    """
    try:
        import mlflow
    except ImportError:
        raise UserError("to_mlflow needs MLflow: pip install mlflow.") from None
    try:
        mlflow.log_metrics({_key(name): value for name, value in _numbers(result).items()})
        mlflow.log_params({_key(f"leakaudit/{name}"): plain(value)[:500] for name, value in result.settings.items()})
        mlflow.set_tags({_key(name): value for name, value in _verdicts(result).items()})
        if not is_private(result):
            mlflow.log_text(render(result), PAGE)
    except mlflow.exceptions.MlflowException as error:
        raise UserError(f"MLflow took no result: {first_line(error)}. Look at mlflow.set_tracking_uri.") from error


def to_wandb(result: AuditResult, run: Run | None = None) -> None:
    """Log a result to a run of Weights & Biases, by default the one begun last.

    Raises leakaudit.UserError where there is none.

    >>> with wandb.init(project="privacy"):
    ...     to_wandb(leakaudit.scan(model, train_data, defense="obscure", images="redacted"))
    """
    try:
        import wandb
    except ImportError:
        raise UserError("to_wandb needs Weights & Biases: pip install wandb.") from None
    run = run or wandb.run
    if run is None:
        raise UserError("to_wandb logs to a run, and none has begun: call wandb.init(...) first.")
    run.summary.update(_numbers(result) | _verdicts(result))
    run.config.update({"leakaudit": dict(result.settings)})
    if not is_private(result):
        run.log({PAGE: wandb.Html(render(result))})


def _numbers(result: AuditResult) -> dict[str, float]:
    """Return what was measured by name, `leakaudit/DEFENSE/ATTACK/METRIC`; what was not has no number to log."""
    return {
        "/".join(filter(None, ("leakaudit", row.defense, row.attack, row.metric))): row.value
        for row in rows(result)
        if row.value is not None
    }


def _verdicts(result: AuditResult) -> dict[str, str]:
    found = {"leakaudit/verdict": str(result.verdict), "leakaudit/result-sha256": digest(result)}
    return found | {f"leakaudit/{visible(d.spec)}/verdict": str(d.verdict) for d in result.defenses}


def _key(name: str) -> str:
    """Return a name as MLflow takes it: letters, digits and `_-. :/`, at most 250 of them."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]
