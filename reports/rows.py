"""A result as a table: one row for every number, for notebooks, spreadsheets and trackers of experiments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from leakaudit.errors import UserError
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AttackResult, AuditResult, DefenseResult, Estimate
from leakaudit.result.scores import of_attacks

if TYPE_CHECKING:
    from pandas import DataFrame

UNION = "any attack"  # in place of an attack: what all of a defense's attacks found together


@dataclass(frozen=True)
class Row:
    """One number. `value` is None where it was asked for and not measured; `attack` is empty where none made it."""

    defense: str  # as typed
    attack: str
    metric: str  # a key of `SCORES`, the measure of models, or of a metric that a plug-in brings
    value: float | None  # shares in [0, 1], PSNR and gain in dB
    low: float | None  # bounds of the 95 % interval
    high: float | None
    records: int  # behind the number; of an accuracy training runs


def rows(result: AuditResult) -> tuple[Row, ...]:
    """Return every score of every attack on every defense, what all attacks found together, and the accuracies.

    In the order of the result. A score that no attack of its kind can have is left out; one that was not measured is
    there without a value, so that it cannot be taken for a low one.
    """
    found: list[Row] = []
    for defense in result.defenses:
        for attack in defense.attacks:
            found += [_row(defense.spec, attack.name, name, e) for name, e in _scored(defense, attack)]
        if defense.examined is not None:
            found.append(_row(defense.spec, UNION, "identification", defense.examined.union))
        found.append(_row(defense.spec, "", result.measure, defense.accuracy))
    return tuple(found)


def frame(result: AuditResult) -> DataFrame:
    """Return `rows` as a pandas table with the columns of `Row`; raises UserError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError:
        raise UserError("to_pandas needs pandas: pip install pandas.") from None
    table = pd.DataFrame([asdict(row) for row in rows(result)], columns=[f.name for f in fields(Row)])
    return table.astype({"value": "float64", "low": "float64", "high": "float64", "records": "int64"})


def _scored(defense: DefenseResult, attack: AttackResult) -> Iterator[tuple[str, Estimate]]:
    for score in of_attacks():
        if score.field == "psnr_released" and not defense.replaces_records:
            continue
        if not score.kinds or attack.kind in score.kinds:
            yield score.name, getattr(attack, score.field)
    for metric in attack.further:
        yield visible(metric.name), metric.estimate


def _row(defense: str, attack: str, metric: str, of: Estimate) -> Row:
    return Row(visible(defense), visible(attack), metric, of.value, of.low, of.high, of.n)
