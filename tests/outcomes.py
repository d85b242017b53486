"""Outcomes of the gate built by hand, one for each thing a gate can say: every output format must show them all."""

from __future__ import annotations

from dataclasses import replace

from leakaudit.result.outcome import Check, Outcome, WaiverState
from leakaudit.result.schema import AuditResult, Estimate, Finding, Verdict, Waiver, digest

LEAKY, OPEN, SAFE = "gaussian:std=0.01", "dp-sgd:noise_multiplier=1", "obscure"  # of the golden result
WAIVER = Waiver("identification", "Accepted by the board for the pilot.", "2027-06-30", LEAKY, "*", "the DPO")


def check(status: Verdict, defense: str = LEAKY, rule: str = "identification", **changes: object) -> Check:
    """A check with numbers that say the same as its status."""
    low, value, high = {"fail": (0.4, 0.75, 0.9), "inconclusive": (0.1, 0.2, 0.35), "pass": (0.0, 0.05, 0.2)}[status]
    words = {"fail": "identified too many", "inconclusive": "may identify too many", "pass": "identified few enough"}
    made = Check(
        id=f"{rule}/{defense}" if defense else rule,
        rule=rule,
        level="error",
        defense=defense,
        attack="expectation-over-noise",
        status=status,
        message=f"{defense}: the attack expectation-over-noise {words[status]} ({rule}).",
        mend="" if status == "pass" else "Strengthen the defense.",
        measured=Estimate(value, low, high, 40),
        threshold=0.3,
        direction="max",
        evidence={} if status == "pass" else {"attacks": "expectation-over-noise"},
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def outcome(result: AuditResult, verdict: Verdict, *checks: Check, **changes: object) -> Outcome:
    made = Outcome(
        source="leakaudit-out/result.json",
        verdict=verdict,
        reasons=tuple(c.message for c in checks if c.status != "pass" and c.level == "error") or ("All passed.",),
        checks=checks,
        waivers=(),
        date="2026-11-23",
        result_digest=digest(result),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def every(golden: AuditResult) -> dict[str, tuple[AuditResult, Outcome]]:
    """Return a result and an outcome for each thing a gate can say, by name."""
    late, idle = replace(WAIVER, expires="2026-01-31"), replace(WAIVER, rule="psnr", by="")
    changed = check(
        "fail",
        SAFE,
        "regression-identification",
        evidence={"before": 0.05, "after": 0.4, "p_corrected": 0.0004},
        measured=Estimate(0.35, 0.2, 0.5, 40),
    )
    noticed = Finding("dead-parameters", "error", "2 parameters get no gradient.")
    found = check("fail", "", "finding-dead-parameters", message=noticed.message, attack="")
    passed = check("pass", SAFE)
    held = {"waivers": (WaiverState(WAIVER, "in-force", (f"identification/{LEAKY}",)), WaiverState(idle, "unused"))}
    cases: dict[str, Outcome] = {
        "pass": outcome(golden, "pass", passed, check("pass", LEAKY)),
        "fail": outcome(golden, "fail", check("fail"), passed),
        "inconclusive": outcome(golden, "inconclusive", check("inconclusive", OPEN), passed),
        "warn": outcome(golden, "pass", check("fail", level="warn"), check("inconclusive", OPEN, level="warn"), passed),
        "waived": outcome(golden, "pass", check("fail", waiver=WAIVER), passed, **held),
        "expired": outcome(golden, "fail", check("fail"), waivers=(WaiverState(late, "expired"),)),
        "only-expired": outcome(golden, "fail", passed, waivers=(WaiverState(late, "expired"),)),
        "finding": outcome(golden, "fail", found, passed),
        "regression": outcome(golden, "fail", changed, passed, baseline="main.json", baseline_digest="c0ffee" * 10),
        "nothing": outcome(golden, "inconclusive", reasons=("Nothing is asserted, so nothing was judged.",)),
    }
    made = {name: (golden, each) for name, each in cases.items()}
    cut = replace(golden, complete=False, verdict="inconclusive", defenses=golden.defenses[:2])
    unfinished = check("inconclusive", "", "complete", message="The audit was interrupted.", attack="")
    return made | {"incomplete": (cut, outcome(cut, "inconclusive", unfinished))}
