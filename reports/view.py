"""What every report says about a result, in words and rounded numbers: the part that HTML and terminal share."""

from __future__ import annotations

from string import ascii_uppercase

from leakaudit.judge.verdict import overall_reasons
from leakaudit.judge.words import sentences
from leakaudit.result.numbers import percent
from leakaudit.result.schema import AuditResult, Verdict
from leakaudit.result.tasks import measure_of, spoken


def training(result: AuditResult) -> str:
    """Return how the models were trained whose accuracy is shown, as far as the settings say; else nothing."""
    if all(d.accuracy.value is None for d in result.defenses):
        return ""
    words = {
        "epochs": "{} epoch",
        "training_batch_size": "batches of {} record",
        "seeds": "{} seed",
    }
    parts = []
    for name, form in words.items():
        value = result.settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            parts.append(form.format(value) + ("" if value == 1 else "s"))
    told = spoken("Accuracy: of a model trained on the shared updates", result.measure)
    summary = "" if result.measure == "accuracy" else f": {measure_of(result.measure).summary}"
    return f"{told} ({', '.join(parts)}){summary}." if parts else ""


def key(index: int) -> str:
    """Return the letter a defense carries in the figure and the tables: A … Z, then A1 …"""
    turn, letter = divmod(index, len(ascii_uppercase))
    return ascii_uppercase[letter] + (str(turn) if turn else "")


def reasons(result: AuditResult) -> tuple[str, ...]:
    """Return the overall reasons that no defense gives itself as `spec: reason`."""
    return sentences(reason for reason in overall_reasons(result) if not reason.defense)


def heading(verdict: Verdict) -> str:
    """Return the verdict as a title says it."""
    return verdict.capitalize()


def meaning(result: AuditResult) -> str:
    """Return what the overall verdict means, for somebody who has read nothing else."""
    limit = percent(result.max_identification)
    return {
        "pass": f"Under the assumptions below, every tested attack, those built against a defense included, stayed "
        f"within the limit of {limit} of the private records identified, or hit no more of them than guesses do. This "
        "says nothing about attacks that were not tested.",
        "fail": "At least one tested attack gets more out of what the clients share than this audit allows: "
        f"{limit} of the private records identified, no reconstruction far closer than a guess and no record known "
        "exactly.",
        "inconclusive": "The measurements do not settle whether the private records are safe from the tested attacks: "
        f"at most {limit} of them may be identified. This is not a pass.",
    }[result.verdict]
