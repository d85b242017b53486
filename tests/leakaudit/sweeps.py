"""A sweep made by hand: two models, the second of which could not be audited, and a scan that was not begun."""

from __future__ import annotations

from collections.abc import Sequence

from leakaudit.compare.sweep import Entry, ended
from leakaudit.result.schema import AuditResult, Verdict
from tests.leakaudit.results import attack, defense, result, some

SETTINGS = {"battery": "standard", "seed": 0, "records": 40, "batch_size": 1, "max_accuracy_loss": 0.1}
RIGHT = (0.80, 0.81, 0.82)


def scanned(spec: str, hits: int, accuracies: Sequence[float], verdict: Verdict) -> AuditResult:
    """One scan: the control, of which all is identified, and a defense."""
    control = defense("none", attack(some(40)), accuracies=RIGHT)
    row = defense(spec, attack(some(hits)), accuracies=accuracies, verdict=verdict)
    return result(control, row, verdict=verdict, settings=dict(SETTINGS))


def entries() -> list[Entry]:
    """Three strengths of noise, of which the strongest waits; one that is best; one of a model that is broken."""
    noise = [
        Entry(f"model-gaussian-std={std}", "model.py", "early", f"gaussian:std={std}", "gaussian", {"std": std})
        for std in (0.01, 0.1, 1.0)
    ]
    best = Entry("model-obscure", "model.py", "early", "obscure", "obscure")
    return [
        ended(noise[0], scanned(noise[0].spec, 34, (0.78, 0.79, 0.80), "fail")),
        ended(noise[1], scanned(noise[1].spec, 12, (0.60, 0.61, 0.62), "inconclusive")),
        noise[2],
        ended(best, scanned("obscure", 0, (0.76, 0.77, 0.78), "pass")),
        Entry("other-obscure", "other.py", "early", "obscure", "obscure", trouble="other.py has no model: write one."),
    ]
