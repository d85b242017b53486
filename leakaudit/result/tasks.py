"""What a model learns, and by what measure it is judged: the one table that loading, scores and reports read."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Measure:
    """What is called accuracy of a class: its name in reports, and how its numbers are written."""

    name: str
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
    """Return a measure by its name; of one that is not known, a number."""
    return MEASURES.get(name) or Measure(name, False, "", -inf)


@dataclass(frozen=True)
class Kind:
    """One kind of task: what it is called, the measure it is judged by, and what a label is."""

    name: str
    measure: str  # a key of `MEASURES`
    label: str


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("classes", "accuracy", "one of K classes, a whole number"),
        Kind("one logit", "accuracy", "0 or 1, beside one logit"),
        Kind("soft labels", "accuracy", "a probability for each class"),
        Kind("multi-label", "mean AUC", "0 or 1 for each finding"),
        Kind("regression", "R²", "one number or several"),
        Kind("segmentation", "mean IoU", "a class, or 0 and 1, for each pixel"),
    )
}
