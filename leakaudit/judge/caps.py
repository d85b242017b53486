"""What an audit as a whole cannot support: why it is no pass, whatever its attacks found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leakaudit.result.rules import PLANTING, beats
from leakaudit.result.schema import AttackResult, AuditResult, Controls, Finding, Reason, Value, Verdict

# Findings that make attacks which learn on auxiliary records prove little.
OWN = ("auxiliary-differs", "auxiliary-few")
WEAKENED = ("weak-adversary", "effort-lowered", "attacks-left-out", "canary-missed", "canary-unfinished")
FAR_OFF = 0.7  # AUC at its lower bound: seen apart more often than not, as blurred, grey or noisy pictures are
# What does not matter where a proof carries the pass, which `replay` confirms without learning from other records.
PROVEN, NOT_ASKED = ("independent", "proven"), ("quick-battery", *OWN)


def caps_of(result: AuditResult) -> tuple[Reason, ...]:
    """Return why a stored audit supports no pass, empty where it does."""
    return caps(result.settings, result.exposure, result.controls, result.findings)


def caps(
    settings: Mapping[str, Value],
    exposure: Mapping[str, Value],
    controls: Controls | None,
    findings: Iterable[Finding] = (),
) -> tuple[Reason, ...]:
    """Return why an audit with these settings and controls supports no pass.

    It was a first look, granted its adversary too little or left out what it granted, gave attacks less effort than the
    battery, left some out, or missed the leak that was planted or did not look for it to the end. Results without
    controls are older, and had fewer.
    """
    found = [Reason("quick-battery")] if settings.get("battery") == "quick" else []
    if controls is None:
        return tuple(found)
    found += [] if exposure.get("defense") and exposure.get("auxiliary") else [Reason("weak-adversary")]
    for name, attacks in (("effort-lowered", controls.lowered), ("attacks-left-out", controls.left_out)):
        found += [Reason(name, facts={"attacks": ", ".join(attacks)})] if attacks else []
    if controls.canary_ended:
        found.append(Reason("canary-unfinished", facts={"ended": controls.canary_ended}))
    elif controls.canary not in (None, "fail"):
        found.append(Reason("canary-missed", facts={"told": controls.canary_told}))
    noticed = {finding.id for finding in findings}
    apart = (controls.auxiliary.low or 0.0) >= FAR_OFF
    return (*found, *(Reason(name) for name in OWN if name in noticed and (apart or name != OWN[0])))


def unplanted(attacks: Iterable[AttackResult], control: Iterable[AttackResult], floor: float) -> tuple[Reason, ...]:
    """Return why nothing follows about a server that may change the model; empty where something does.

    Then attacks that change it beat `floor`, what a guess identifies, on the undefended model, and each of those was
    scored on the defense.
    """
    works = [a.name for a in control if PLANTING in a.requires and beats(a, floor)]
    scored = {a.name for a in attacks if a.identification.n}
    missed = [name for name in works if name not in scored]
    if works and not missed:
        return ()
    return (Reason("malicious-server", facts={"attacks": ", ".join(missed)} if missed else {}),)


def capped(verdict: Verdict, reasons: Sequence[Reason], caps: Sequence[Reason]) -> tuple[Verdict, tuple[Reason, ...]]:
    """Turn a pass that an audit cannot support into `inconclusive`, with the reasons for that first.

    What was undecided before is told as well how the audit was weakened (`WEAKENED`).
    """
    proven = any(reason.id in PROVEN for reason in reasons)
    why = tuple(cap for cap in caps if not (proven and cap.id in NOT_ASKED))
    if verdict == "pass" and why:
        return "inconclusive", (*why, *reasons)
    weaker = tuple(cap for cap in why if cap.id in WEAKENED and verdict == "inconclusive")
    return verdict, (*weaker, *reasons)
