"""Every score there is, once: what it is called, how it is written, what a gate may ask of it, how it is rounded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from leakaudit.result import numbers
from leakaudit.result.schema import Estimate
from leakaudit.result.tasks import measure_of, spoken

Direction = Literal["max", "min"]  # whether a threshold is the most or the least that is allowed


@dataclass(frozen=True)
class Score:
    """One score. Whatever shows, judges, compares or rounds it reads it here."""

    name: str  # kebab-case, as `pyproject.toml` and the rules of checks spell it
    title: str  # in a sentence
    heading: str  # of a column
    field: str = ""  # of an `AttackResult`; empty where it is none of an attack's
    unit: Literal["%", "points", "dB", ""] = ""  # of the first two the value is a share
    digits: int = 2  # decimals of what is no share
    summary: str = ""  # what is computed, for `leakaudit list metrics`; empty where no picture is compared
    direction: Direction = "max"  # "max" where more leaks or costs more
    limits: tuple[float, float] | None = None  # of a threshold; None where the gate takes none
    kinds: tuple[str, ...] = ()  # of the attacks that can have it; empty for any
    asks: str = ""  # what a threshold asks
    compared: str = ""  # what of it is compared with a baseline, in a sentence; empty where nothing is
    step: float = 0.0  # to which it is rounded in a result without private pictures; 0 where it is no fingerprint

    @property
    def share(self) -> bool:
        """Whether the value is a share in [0, 1], or a difference of shares."""
        return self.unit in ("%", "points")

    def write(self, value: float, unit: bool = True) -> str:
        """Return `25%`, `3.2 points`, `23.4 dB` or `0.61`; without `unit` as below a heading that names dB."""
        if self.unit == "%":
            return numbers.percent(value)
        if self.unit == "points":
            return numbers.points(value)
        return numbers.decibels(value) if self.unit == "dB" and unit else numbers.number(value, self.digits)

    def ends(self, estimate: Estimate) -> str:
        """Return the interval as `low to high` without unit; empty where there is none."""
        return numbers.interval(estimate, None if self.share else self.digits)

    def measured(self, estimate: Estimate) -> str:
        """Return `25% (7.3 to 52.4)`, without brackets where there is no interval; empty without a value."""
        if estimate.value is None:
            return ""
        ends = self.ends(estimate)
        return self.write(estimate.value) + (f" ({ends})" if ends else "")

    def shift(self, value: float) -> str:
        """Return a change of it, signed and without unit: shares in percentage points."""
        return numbers.shift(value) if self.share else numbers.signed(value, self.digits)

    def shift_ends(self, estimate: Estimate) -> str:
        """Return the interval of a change as `low to high`, both signed; empty where there is none."""
        if estimate.value is None or estimate.low is None or estimate.high is None:
            return ""
        return f"{self.shift(estimate.low)} to {self.shift(estimate.high)}"

    def shifted(self, estimate: Estimate) -> str:
        """Return a change with unit and interval: `−3.2 points (−6 to 0)`; empty without a value."""
        if estimate.value is None:
            return ""
        unit = "points" if self.share else self.unit
        ends = self.shift_ends(estimate)
        return " ".join(filter(None, (self.shift(estimate.value), unit, f"({ends})" if ends else "")))


_PICTURES = ("reconstruction",)

# In the order of their columns.
_ALL = (
    Score(
        "identification",
        "identification",
        "Identified",
        field="identification",
        unit="%",
        limits=(0.0, 1.0),
        kinds=("reconstruction", "linkage"),
        asks="how often records may be identified",
        compared="identification by the worst attack",
    ),
    Score(
        "bound",  # of an attacker who is handed the replaced records
        "identification, handed the replaced records",
        "Identified, handed x̃",
        unit="%",
        asks="how often records may be identified by an attacker handed the replaced ones",
        compared="identification by an attacker handed the replaced records",
    ),
    Score(
        "psnr",
        "PSNR",
        "PSNR",
        field="psnr",
        unit="dB",
        digits=1,
        summary="peak signal-to-noise ratio, at most 160 dB",
        limits=(0.0, 160.0),
        kinds=_PICTURES,
        asks="how close reconstructions may come",
        compared="the closest pictures",
        step=0.5,
    ),
    Score(
        "ssim",
        "SSIM",
        "SSIM",
        field="ssim",
        summary="structural similarity (Wang 2004)",
        limits=(-1.0, 1.0),
        kinds=_PICTURES,
        asks="how alike in structure reconstructions may be",
        step=0.05,
    ),
    Score(
        "lpips",
        "LPIPS",
        "LPIPS",
        field="lpips",
        summary="perceptual distance in AlexNet's features (Zhang 2018)",
        direction="min",  # a distance: less is more alike
        limits=(0.0, 2.0),
        kinds=_PICTURES,
        asks="how alike to the eye reconstructions may be",
        step=0.05,
    ),
    Score("r2", "R²", "R²", field="r2", kinds=_PICTURES, step=0.05),
    Score(
        "psnr-released",
        "PSNR against x̃",
        "PSNR against x̃",
        field="psnr_released",
        unit="dB",
        digits=1,
        kinds=_PICTURES,
        step=0.5,
    ),
    Score(
        "swapped",  # the null of the attack itself
        "PSNR of what it drew for others of the class",
        "PSNR for others",
        field="swapped",
        unit="dB",
        digits=1,
        kinds=_PICTURES,
        step=0.5,
    ),
    Score(
        "gain",  # record by record: guesses without the update, and the swapped null
        "PSNR above the best guess for the record",
        "PSNR above guesses",
        field="gain",
        unit="dB",
        digits=1,
        kinds=_PICTURES,
        step=0.5,
    ),
    Score(
        "label-accuracy",
        "label accuracy",
        "Labels",
        field="label_accuracy",
        unit="%",
        limits=(0.0, 1.0),
        asks="how often labels may be inferred",
    ),
    Score(
        "accuracy",
        "test accuracy",
        "Accuracy",
        unit="%",
        direction="min",
        limits=(0.0, 1.0),
        asks="how accurate the defended model must be",
        compared="accuracy",
    ),
    Score(
        "accuracy-loss",
        "accuracy lost against no defense",
        "Accuracy lost",
        unit="points",
        limits=(0.0, 1.0),
        asks="how much accuracy a defense may cost",
    ),
    Score("mse", "MSE", "MSE", summary="mean squared error of the pixels", direction="min", kinds=_PICTURES),
)
SCORES = {score.name: score for score in _ALL}


def of_attacks() -> tuple[Score, ...]:
    """Return the scores that an `AttackResult` holds."""
    return tuple(score for score in _ALL if score.field)


def assertable() -> tuple[Score, ...]:
    """Return the scores for which the gate takes a threshold."""
    return tuple(score for score in _ALL if score.limits is not None)


def of_rule(rule: str, measure: str = "accuracy") -> Score:
    """Return the score that a check of the gate is about, by its rule; a number without a unit for any other rule."""
    name = rule.removeprefix("regression-")
    return by_measure(name, measure) if name in SCORES else Score(name, name, name)


def by_measure(name: str, measure: str) -> Score:
    """Return a score by its name; that of accuracy as it is of the measure that models are judged by."""
    score = SCORES[name]
    if measure == "accuracy" or name not in ("accuracy", "accuracy-loss"):
        return score
    title, heading, asks = (spoken(words, measure) for words in (score.title, score.heading, score.asks))
    found = replace(score, title=title, heading=heading, asks=asks, compared=spoken(score.compared, measure))
    return found if measure_of(measure).percent else replace(found, unit="", digits=3)
