"""A result in three lines, for a prompt or a log: no picture, no record, nothing that a terminal obeys."""

from __future__ import annotations

from leakaudit.judge import ranking
from leakaudit.result.dates import words
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AuditResult, DefenseResult, digest

NAMED = 4  # defenses told one by one
NAME = 36  # letters of a name


def brief(result: AuditResult) -> str:
    """Return three lines: the verdict and what it is of, each defense, where to read on."""
    target = visible(str(result.target.get("name") or "a model"), NAME)
    battery, seed = (visible(str(result.settings.get(name, "?")), NAME) for name in ("battery", "seed"))
    state = "" if result.complete else " (interrupted)"
    about = (target, f"{battery} battery", f"seed {seed}", words(result.made), digest(result)[:8])
    more = len(result.defenses) - NAMED
    told = [_told(defense) for defense in result.defenses[:NAMED]] + ([f"and {more} more"] if more > 0 else [])
    return "\n".join(
        (
            f"<AuditResult: {result.verdict.upper()}{state} · {' · '.join(about)}",
            f" {'; '.join(told) or 'no defense was measured'}",
            " .to_pandas() gives every number, .reasons say why, .save(folder) writes result.json and report.html>",
        )
    )


def _told(defense: DefenseResult) -> str:
    """Return `prune pass, 1 of 16 identified by replay`."""
    worst = ranking.decisive(defense)
    name = f"{visible(defense.spec, NAME)} {defense.verdict}"
    if worst is None or worst.identification.value is None:
        return f"{name}, identification not measured"
    n = worst.identification.n
    return f"{name}, {round(worst.identification.value * n)} of {n} identified by {visible(worst.name, NAME)}"
