"""A result whose models are not judged by accuracy names its measure on every surface, in its own numbers."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from leakaudit.compare.changes import changes
from leakaudit.compare.comparable import differences
from leakaudit.gate.assertions import Rule
from leakaudit.gate.thresholds import judge_rule
from leakaudit.reports import gate_terminal, markdown
from leakaudit.reports.html import render
from leakaudit.reports.rows import rows
from leakaudit.reports.terminal import summary
from leakaudit.result.schema import AuditResult, Estimate, from_json, to_json
from leakaudit.result.tasks import MEASURES, MeasureName, in_words, spoken
from leakaudit.stats import intervals
from leakaudit.watch.lines import became
from leakaudit.work.progress import Work

OTHERS: tuple[MeasureName, ...] = ("mean AUC", "mean IoU", "R²")
# The name of a section, a setting, and what of labels keeps its name: none of them calls the measure accuracy.
KEPT = re.compile(
    r"Privacy against accuracy|max[-_]accuracy[-_]loss|label[-_ ]accuracy|accuracy-loss|levels of accuracy|"
    r"The accuracy of the deployed model|accuracy-not-measured",
    re.I,
)


def judged_by(golden: AuditResult, measure: MeasureName, shift: float = 0.0) -> AuditResult:
    """Return a result whose numbers of accuracy are of another measure, moved by `shift`."""
    least = MEASURES[measure].least
    task = {"mean AUC": "multi-label, 14 outputs", "mean IoU": "segmentation, 3 classes of pixels"}
    moved = []
    for row in golden.defenses:
        runs = tuple(value + shift for value in row.accuracies)
        found = intervals.mean(runs, (least, 1.0)) if runs else Estimate(reason="it was not measured")
        moved.append(replace(row, accuracies=runs, accuracy=found, stages=()))
    target = golden.target | {"task": task.get(measure, "regression, 2 outputs")}
    return replace(
        golden,
        defenses=tuple(moved),
        measure=measure,
        target=target,
        chance_accuracy=0.3,
        chance_labels=0.4,
        findings=(),
        assumptions=(),
        not_tested=(),
        claims=(),
        reasons=(),
    )


def terminal(result: AuditResult, verbose: bool = False) -> str:
    out = io.StringIO()
    summary(result, Console(file=out, width=80), verbose=verbose)
    return out.getvalue()


def surfaces(result: AuditResult) -> dict[str, str]:
    """Return what each surface says, by its name."""
    return {
        "html": re.sub(r"<(script|style).*?</\1>", "", render(result), flags=re.S),
        "terminal": terminal(result),
        "verbose": terminal(result, verbose=True),
        "markdown": markdown.render(result),
    }


@pytest.mark.parametrize("measure", OTHERS)
def test_every_surface_names_the_measure_and_none_calls_it_accuracy(sound: AuditResult, measure: MeasureName) -> None:
    for name, text in surfaces(judged_by(sound, measure)).items():
        assert spoken("Accuracy", measure) in text or measure in text, name
        text = KEPT.sub("", text)
        left = [text[max(0, at.start() - 40) : at.end() + 20] for at in re.finditer("accuracy", text, re.I)]
        assert not left, (name, left)


def test_a_number_that_is_no_share_is_written_as_one(sound: AuditResult) -> None:
    result = judged_by(sound, "mean AUC")
    row = next(d for d in result.defenses if d.accuracy.value is not None)
    value = f"{row.accuracy.value:.3f}"
    for name, text in surfaces(result).items():
        assert value in text, name
    assert became(result, Work("accuracy", row.spec)) == f"mean AUC {value}"
    assert {each.metric for each in rows(result) if not each.attack} == {"mean AUC"}


def test_an_r_squared_below_0_is_read_and_judged(sound: AuditResult) -> None:
    result = judged_by(sound, "R²", shift=-1.2)
    again = from_json(to_json(result))
    assert again.measure == "R²"
    (check, *_) = judge_rule(again, Rule("accuracy", "min", 0.5))
    assert check.status == "fail"
    assert "test R² is −0." in check.message
    assert check.measure == "R²"
    assert "points" not in check.message


def test_results_of_other_measures_are_not_compared(sound: AuditResult) -> None:
    one, other = judged_by(sound, "mean AUC"), judged_by(sound, "mean IoU")
    assert any("models are judged by mean AUC there and by mean IoU here" in told for told in differences(one, other))
    assert not any("judged by" in told for told in differences(one, one))


def test_a_change_is_told_in_the_measures_own_numbers(sound: AuditResult) -> None:
    before, after = judged_by(sound, "mean AUC"), judged_by(sound, "mean AUC", shift=-0.1)
    found = [each for each in changes(before, after) if each.metric == "accuracy"]
    assert {each.measure for each in found} == {"mean AUC"}
    out = io.StringIO()
    gate_terminal.compared([(each, each.p) for each in found], (), Console(file=out, width=120))
    assert "Mean AUC" in out.getvalue()
    assert "−0.100" in out.getvalue()
    told = markdown.render(after, comparison=[(each, each.p) for each in found])
    assert "<code>mean AUC</code>" in told
    assert "−0.100" in told


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("classes", "9 classes"),
        ("multi-label, 14 outputs", "14 findings (multi-label)"),
        ("regression, 1 output", "regression, 1 output"),
        ("segmentation, 3 classes of pixels", "segmentation, 3 classes of pixels"),
        ("one logit", "one logit for two classes"),
    ],
)
def test_a_task_in_words(task: str, words: str) -> None:
    assert in_words(task, 9) == words
