"""A result in a tracker of experiments: `to_mlflow(result)`, `to_wandb(result)`, beside the training they are of.

Both log every number that was measured, the settings, and the verdicts; the report goes along unless it holds private
pictures, which must not leave for a server by accident. `pip install 'leakaudit[mlflow]'` or `'leakaudit[wandb]'`.
"""

from __future__ import annotations

import re
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from leakaudit.errors import UserError
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
        mlflow.log_params(_keyed({f"leakaudit/{name}": plain(value)[:500] for name, value in result.settings.items()}))
        mlflow.log_metrics(_keyed(_numbers(result)))
        mlflow.set_tags(_keyed(_verdicts(result)))
        if not is_private(result):
            mlflow.log_text(render(result), PAGE)
    except mlflow.exceptions.MlflowException as error:
        why = (str(error).splitlines() or [""])[0][:300].rstrip(".")
        raise UserError(f"MLflow did not take the result: {why}. One run holds one result.") from error


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


def _keyed(values: dict[str, Any]) -> dict[str, Any]:
    """Return values under names as MLflow takes them: letters, digits and `_-. :/`, at most 250, no two alike."""
    names = {name: "/".join(_part(part) for part in name.split("/") if part.strip(". "))[:250] for name in values}
    alike = {key for key, n in Counter(names.values()).items() if n > 1}
    mark = {name: "-" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8] for name in values}
    return {names[n][:240] + mark[n] if names[n] in alike else names[n]: value for n, value in values.items()}


def _part(words: str) -> str:
    return re.sub(r"[^\w\-. :]", "_", words)
