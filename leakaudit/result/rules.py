"""What the scoring, the verdict and the reports must agree on. Nothing heavy is imported: reports read results only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from leakaudit.result.schema import AttackResult, AuditResult, Baseline, DefenseResult, Severity, Verdict

VERDICTS: tuple[Verdict, ...] = ("fail", "inconclusive", "pass")  # from worst to best
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")  # from worst to best
EXIT: dict[Verdict, int] = {"pass": 0, "fail": 1, "inconclusive": 3}  # codes of every command that judges
SHARP = 3.0  # dB: a picture nearer to the record than the best guess without an update by half the squared error
FIT, UPDATES, WEAKENED, ACCURACY = OTHER_WORK = (  # pieces of an audit's work that are no attack, in timings
    "fit",
    "updates",
    "weakened",  # a defense is turned down until an attack is seen to work
    "accuracy",
)
MOMENT = "training the model itself to the stage"  # what is done before it is audited there, in the words of progress
STAGES = ("init", "early", "trained")  # moments of training at which a model may be audited, in their order
LOCAL = "local-steps"  # what an attack `examines` that runs where clients train on their records before they send
BESIDES = frozenset({"buffers", LOCAL})  # what no stage of a defense makes: it is there with or without one
ANYTHING = "anything"  # what an attack `examines` that runs on every defense
PLANTING = "model_control"  # the fact without which an attack that changes the model is no part of an audit
# dB, an error of 1 % of the range. Of 10,000 pictures of CIFAR-10, the same in 16 grey pixels, and 10,000 of MNIST none
# has another of its class nearer than 30.3 dB: what is within 40 was not drawn from the class alone.
EXACT = 40.0
STATUSES = ("converged", "diverged", "not-applicable", "out-of-memory", "budget", "failed")
SKIPPED = "skipped"  # the status that no attack has of itself: it was not begun, since the verdict was settled


def worst_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts; ValueError where there is none."""
    return min(verdicts, key=VERDICTS.index)


def worst_severity(severities: Iterable[Severity]) -> Severity:
    """Return the worst of some severities; ValueError where there is none."""
    return min(severities, key=SEVERITIES.index)


def scored_statuses(kind: str) -> tuple[str, ...]:
    """Return the statuses whose victims are scored. One with another status has no score: neither leaked nor safe.

    A picture that the time budget cut short is still a picture, unless the attack had hardly begun; a linkage attack
    cut short has compared nothing.
    """
    return ("converged",) if kind == "linkage" else ("converged", "budget")


def scored_victims(attack: AttackResult) -> int:
    """Return how many victims of an attack were scored: none where it has no number at all, whatever its statuses."""
    if all(e.value is None for e in (attack.identification, attack.psnr, attack.label_accuracy)):
        return 0
    return attack.statuses.get("converged", 0) + cut_victims(attack)


def cut_victims(attack: AttackResult) -> int:
    """Return how many victims of an attack are scored although the time budget ended the attack on them early.

    One that had made too few steps has the same status and no score.
    """
    cut = attack.statuses.get("budget", 0) if "budget" in scored_statuses(attack.kind) else 0
    rows = [r for r in attack.records if r.status == "budget"]
    if not cut or not rows:
        return cut
    return len({r.victim for r in rows if r.psnr is not None or r.guessed_label is not None})


def guessing(chance: float, baselines: Iterable[Baseline]) -> float:
    """Return the share that a guess without the update identifies: chance, or the best baseline where that is more.

    Pairing a batch's pictures before they are scored lifts even a guess above one in M.
    """
    return max([chance, *(b.identification.value or 0.0 for b in baselines)])


def chance_of(attack: AttackResult) -> float | None:
    """Return the share that guessing identifies of the records an attack was scored on, None where it was on none.

    1/M; where line-ups differ in size, the mean over them.
    """
    sizes = [r.candidates for r in attack.records if r.candidates]
    if sizes:
        return sum(1 / size for size in sizes) / len(sizes)
    return 1 / attack.candidates if attack.candidates else None


def beats(attack: AttackResult, floor: float) -> bool:
    """Return whether an attack identifies more than `floor` even at its lower bound."""
    return attack.identification.low is not None and attack.identification.low > floor


def most_telling(control: Sequence[AttackResult], floor: float | None = None) -> AttackResult | None:
    """Return the attack that shows whether attacks work on the undefended model, None where none was scored.

    The most successful of those that beat `floor`, the share that a guess identifies; of all where none does. Without
    a floor the one with the highest lower bound, which beats whatever any of them beats.
    """
    scored = [a for a in control if a.identification.value is not None and a.identification.low is not None]
    if floor is not None:
        return most_successful([a for a in scored if beats(a, floor)] or scored)
    return max(scored, key=lambda a: (a.identification.low or 0.0, a.identification.value or 0.0), default=None)


def most_successful(attacks: Iterable[AttackResult]) -> AttackResult | None:
    """Return the attack that identified most: highest rate, of equals highest lower bound, of equals the first listed.

    The one rule by which every report names a most successful or worst attack. None where identification was not
    scored.
    """
    scored = [a for a in attacks if a.identification.value is not None]
    return max(scored, key=lambda a: (a.identification.value or 0.0, a.identification.low or 0.0), default=None)


def identifies(attack: AttackResult, limit: float) -> bool:
    """Return whether an attack identifies more than `limit` even at its lower bound."""
    e = attack.identification
    return e.value is not None and e.low is not None and e.low > limit


def rebuilds(attack: AttackResult, baselines: Iterable[Baseline]) -> bool:
    """Return whether an attack's pictures are `SHARP` closer than every baseline's even at the lower bound.

    Where it is known, the gain record by record must be as large, too: above the best of all guesses for that record,
    what a defense puts in place of any record of the class and what the attack draws for other victims among them.
    """
    known = max((b.psnr.value for b in baselines if b.psnr.value is not None), default=None)
    if known is None or attack.psnr.low is None or attack.psnr.low < known + SHARP:
        return False
    return attack.gain.value is None or (attack.gain.low is not None and attack.gain.low >= SHARP)


def judged(result: AuditResult) -> tuple[DefenseResult, ...]:
    """Return the defenses that the verdict speaks of: the requested ones, the control only where it stands alone."""
    requested = [d for d in result.defenses if d.requested]
    return tuple([d for d in requested if d.spec != "none"] or requested)


def labels_by_chance(result: AuditResult) -> float:
    """Return the share of labels that are right of somebody who always names the commonest class or label group."""
    return result.chance_accuracy if result.chance_labels is None else result.chance_labels


def resolution(result: AuditResult) -> float:
    """Return by how much one test record moves an accuracy; 0 where the result does not say how many there are."""
    tested = result.target.get("test_records")
    return 1 / tested if isinstance(tested, int) and tested > 0 else 0.0
