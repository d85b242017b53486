"""What the records of a result's attacks say of each other, and of the numbers that are of all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from leakaudit.judge.scope import whole
from leakaudit.result.rules import EXACT, SHARP, SKIPPED, STATUSES, chance_of, scored_statuses
from leakaudit.result.schema import AttackResult, AuditResult, Estimate, RecordScore
from leakaudit.stats.intervals import rate, rate_of_clients

CEILING = 160.0  # dB, where PSNR ends
NEAR = 0.01  # dB, by which a PSNR may differ from that of the same record's squared error, taken in float32


def contradictions(result: AuditResult) -> Iterator[str]:
    """Yield a clause for each thing in which records, or numbers about all of them, contradict each other."""
    yield from _same_records(result)
    yield from _chance(result)
    yield from _baselines(result)
    for defense in result.defenses:
        for attack in defense.attacks:
            yield from (f"{attack.name} on {defense.spec}: {what}" for what in _attack(result, attack))


def without_line_up(result: AuditResult) -> int | None:
    """Return how many attacked records have no line-up; None where no attack drew a picture of all of them."""
    for attack in (a for d in result.defenses for a in d.attacks):
        if attack.records and all(r.psnr is not None for r in attack.records):
            return sum(r.identified is None for r in attack.records)
    return None


def _same_records(result: AuditResult) -> Iterator[str]:
    """Yield where two attacks speak of one record as of two, or of more or fewer than were to be attacked."""
    labels: dict[tuple[int, int], str] = {}
    for attack in (a for d in result.defenses for a in d.attacks):
        keys = [(r.victim, r.record) for r in attack.records]
        if len(set(keys)) < len(keys):
            yield f"{attack.name} has a record twice"
        if any(labels.setdefault(k, r.label) != r.label for k, r in zip(keys, attack.records, strict=True)):
            yield "a record has one label in one attack and another in the next"
            return


def _chance(result: AuditResult) -> Iterator[str]:
    """Yield where what guessing would identify is not what the line-ups' sizes give."""
    size = whole(result.settings, "batch_size") or 1
    few = whole(result.settings, "records")
    for attack in (a for d in result.defenses for a in d.attacks if a.identification.n):
        of = [r for r in attack.records if r.victim * size + r.record < few] if few else list(attack.records)
        asked = [r for r in of if r.identified is not None]
        sizes = [r.candidates for r in asked if r.candidates]
        if few and len(asked) < few:  # line-ups of others may be of other sizes
            continue
        chance = math.fsum(1 / s for s in sizes) / len(sizes) if sizes else chance_of(attack)
        if chance is not None and abs(chance - result.chance_identification) > 1e-9:
            yield (
                f"the share that guessing identifies is given as {result.chance_identification}, by the line-ups of "
                f"{attack.name} it is {chance}"
            )
            return
    most = whole(result.settings, "candidates")
    known = [a.candidates for d in result.defenses for a in d.attacks]
    known += [r.candidates or 0 for d in result.defenses for a in d.attacks for r in a.records]
    if most and max(known, default=0) > most:
        yield "a line-up holds more candidates than were asked for"


def _baselines(result: AuditResult) -> Iterator[str]:
    """Yield where a guess has a rate that none has, or is closer to the records than attacks' own scores leave room.

    An attack's gain is its PSNR less that of the best guess, the baselines among them, record by record: so no baseline
    has a median above that of the differences.
    """
    few = whole(result.settings, "records")
    for b in result.baselines:
        e = b.identification
        if e.n and not _equal(e, rate(round((e.value or 0.0) * e.n), e.n)):
            yield f"what the guess {b.name} identified is no share of {e.n} records with its interval"
        if few and max(e.n, b.psnr.n) > few:
            yield f"the guess {b.name} was made for more records than were attacked"
    slack = 1e-6 if result.images == "full" else 1.0  # of two numbers rounded to half a decibel, and a median of them
    best = [b.psnr.value for b in result.baselines if b.psnr.value is not None]
    for attack in (a for d in result.defenses for a in d.attacks):
        left = sorted(r.psnr - r.gain for r in attack.records if r.psnr is not None and r.gain is not None)
        if not left or len(left) < max(few, 1) or not best:
            continue
        middle = (left[(len(left) - 1) // 2] + left[len(left) // 2]) / 2
        if max(best) > middle + slack:
            yield "a guess without the update is said to be closer to the records than the attacks’ own scores allow"
            return


def _attack(result: AuditResult, attack: AttackResult) -> Iterator[str]:
    """Yield what an attack's records do not have in common with its counts, or with each other."""
    size, few = whole(result.settings, "batch_size") or 1, whole(result.settings, "records")
    victims = sum(attack.statuses.values())
    asked = few if attack.kind == "linkage" else few // size
    if few and attack.records and not (victims == asked or (attack.kind == "linkage" and victims >= asked)):
        yield f"it ended on {victims} victims, of the {asked} that were attacked"
    if few and attack.records and (attack.kind != "linkage" and len(attack.records) != few):
        yield f"it has {len(attack.records)} records, of the {few} that were attacked"
    ended = {*attack.statuses, *(r.status for r in attack.records)}
    if (ended == {SKIPPED}) is not bool(attack.settled_by) or (attack.settled_by and attack.records):
        yield "it was skipped and ran, or was not and did not"
    if not ended <= {*STATUSES, SKIPPED}:
        yield "a victim ended in a way that none can"
    yield from dict.fromkeys(w for r in attack.records for w in _record(result, attack, r))
    guessed = [r for r in attack.records if r.guessed_label is not None]
    if guessed and not _equal(attack.label_accuracy, _labels(guessed)):
        yield "its share of labels found is not that of its records"


def _record(result: AuditResult, attack: AttackResult, r: RecordScore) -> Iterator[str]:
    scores = (r.psnr, r.ssim, r.lpips, r.identified, r.rank, r.gain)
    if r.status not in scored_statuses(attack.kind) and any(s is not None for s in scores):
        yield "a record has scores, although its victim’s status allows none"
    if r.rank is not None and r.identified is not None and r.identified is not (r.rank == 1):
        yield "a record is identified and not the first among its candidates, or first and not identified"
    if r.rank is not None and not 1 <= r.rank <= max(r.candidates or attack.candidates, 1):
        yield "a record stands behind more candidates than there are"
    if r.mse is not None and r.psnr is not None:
        given = CEILING if r.mse <= 0 else min(CEILING, -10 * math.log10(r.mse))
        if abs(given - r.psnr) > NEAR:
            yield "a record has a PSNR that is not that of its squared error"
    if result.images != "full" and (r.mse is not None or r.rank is not None):
        yield "scores of its records are in full, although pictures are not"
    if result.images == "full" and r.gain is not None and r.psnr is not None:
        rebuilt = r.psnr >= EXACT and r.gain >= SHARP and r.identified is not False
        if r.exact is not None and r.exact is not rebuilt:
            yield "a record counts as rebuilt exactly and is not, or is and does not"
    if attack.kind == "linkage" and r.exact and not r.identified:
        yield "a record counts as confirmed exactly, and was not identified"


def _labels(guessed: list[RecordScore]) -> Estimate:
    """Return the share of labels found: those of a victim's records are a bag without an order."""
    found = []
    for victim in sorted({r.victim for r in guessed}):
        those = [r for r in guessed if r.victim == victim]
        hits = (Counter(r.guessed_label for r in those) & Counter(r.label for r in those)).total()
        found.append([i < hits for i in range(len(those))])
    return rate_of_clients(found)


def _equal(stored: Estimate, given: Estimate) -> bool:
    pairs = ((stored.value, given.value), (stored.low, given.low), (stored.high, given.high))
    return stored.n == given.n and all(
        a is b is None if a is None or b is None else abs(a - b) <= 1e-9 for a, b in pairs
    )
