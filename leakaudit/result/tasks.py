"""What a model learns, and by what measure it is judged: the one table that loading, scores and reports read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

MeasureName = Literal["accuracy", "mean AUC", "mean IoU", "R²"]


@dataclass(frozen=True)
class Measure:
    """What is called accuracy of a class: its name in reports, and how its numbers are written."""

    name: MeasureName
    percent: bool  # a share that is written in percent; else a number with three digits
    summary: str
    least: float = 0.0  # it lies between this and 1


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("accuracy", True, "the share of test records classified correctly"),
        Measure("mean AUC", False, "the area under the ROC curve, the mean over the findings that have both values"),
        Measure("mean IoU", True, "intersection over union, the mean over the classes that occur"),
        Measure("R²", False, "the share of the variance that is explained; a constant explains 0 at most", -inf),
    )
}


def measure_of(name: str) -> Measure:
    """Return a measure by its name."""
    return MEASURES[name]


def measure_in(target: Mapping[str, object]) -> MeasureName:
    """Return the name of the measure of an audit's target, as a result describes it."""
    kind = _kind_in(target)
    return kind.measure if kind else "accuracy"


def shares_labels(target: Mapping[str, object]) -> bool:
    """Return whether the candidates of a line-up share their label: they do where labels are classes."""
    kind = _kind_in(target)
    return kind is None or kind.shared


def in_words(task: str, classes: int) -> str:
    """Return what a target learns, of its description: `10 classes`, `14 findings (multi-label)`."""
    kind, _, size = task.partition(", ")
    if kind == "classes":
        return f"{classes} classes"
    if kind == "one logit":
        return "one logit for two classes"
    return f"{size.replace('output', 'finding')} (multi-label)" if kind == "multi-label" else task


def _kind_in(target: Mapping[str, object]) -> Kind | None:
    return KINDS.get(str(target.get("task", "classes")).split(",")[0])


def spoken(text: str, measure: str) -> str:
    """Return a sentence on accuracy with the measure's name in its place."""
    if measure == "accuracy":
        return text
    return text.replace("accuracy", measure).replace("Accuracy", measure[:1].upper() + measure[1:])


@dataclass(frozen=True)
class Kind:
    """One kind of task: what it is called, the measure it is judged by, and what a label is."""

    name: str
    measure: MeasureName
    label: str
    shared: bool = False  # whether the candidates of a line-up share it


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("classes", "accuracy", "one of K classes, a whole number", shared=True),
        Kind("one logit", "accuracy", "0 or 1 (or −1 and 1), beside one logit", shared=True),
        Kind("soft labels", "accuracy", "a probability for each class"),
        Kind("multi-label", "mean AUC", "0 or 1 for each finding"),
        Kind("regression", "R²", "one number or several"),
        Kind("segmentation", "mean IoU", "a class, or 0 and 1, for each pixel"),
    )
}
