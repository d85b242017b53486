"""What no look at a result's files can tell, and what this one does not hold: said beside every agreement."""

from __future__ import annotations

from leakaudit.gate.claims import current
from leakaudit.result.schema import AuditResult
from leakaudit.version import __version__

ALWAYS = (
    "whether the scores were measured: who invents every record’s score, and all that follows, agrees with himself",
    "whether the hashes, shapes and counts are those of your model, data and generators, which are not in the files: "
    "scan again to see",
    "what the scan saw and keeps no numbers of: what became of the planted leak, what was tried of each defense, what "
    "its proofs say, warnings about the model and the data, notes on the data at the end of the assumptions",
    "scores kept as one number: R², metrics of plug-ins, how close guesses come, the test of the auxiliary records",
    "what it holds twice and is not compared yet: the scores beside pictures, the size of line-ups in findings, the "
    "words of a few findings and of why accuracy was not measured, the sum of the timings",
    "when, with which command, on which machine and code it ran, and who says so: a signature tells who vouches for it",
)


def not_checked(result: AuditResult) -> tuple[str, ...]:
    """Return clauses that say what this result does not hold, or what only another version can compute again."""
    found = []
    if not result.made:
        found.append("when it was made: it has no date, as results of versions before dates were")
    if result.made and not current(result):
        made = result.environment.get("leakaudit") or "an unknown version"
        found.append(f"it says that leakaudit {made} made it, and this is leakaudit {__version__}")
    if not current(result):
        found.append(
            "its assumptions, what was not tested, its findings, and which attacks had to run, in which role: only the "
            "version that wrote them can compute them again"
        )
    lost = [name for name in ("configuration", "environment") if name not in result.hashes]
    if lost:
        found.append(f"its {' and '.join(lost)}: it holds no hash of {'them' if len(lost) > 1 else 'it'}")
    if not any(r.gain is not None for d in result.defenses for a in d.attacks for r in a.records):
        found.append("how much closer than a guess its pictures are, record by record: it does not hold that")
    return tuple(found)
