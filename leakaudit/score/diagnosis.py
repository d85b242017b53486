"""What goes wrong with defenses that replace records, where no attack would show it: each check returns Findings.

Thresholds are constants with their reasons. A finding says what was measured; none of them changes a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.errors import first_line
from leakaudit.judge.noticed import exceeded
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.target import Records, Target
from leakaudit.protocol.task import CLASSES, Task
from leakaudit.result.numbers import learned, percent
from leakaudit.result.schema import DefenseResult, Estimate, Finding, Severity, Value
from leakaudit.score.copies import copies
from leakaudit.score.measures import as_records, chance, measured
from leakaudit.score.utility import Utility
from leakaudit.stats import intervals
from leakaudit.work.seeding import generator_for

LEARNED = 0.95  # of the released records right: what a network calls learned by heart, a few odd labels left aside
LOST = 0.5  # of the undefended accuracy above chance: more of what can be learned is missing than is there
SHOWN = 256  # records whose releases are compared: equality needs few, and a share of one half ± 6 %
AGREES = 0.5  # of what the audited model knows above chance: below it, labels and model disagree more than they agree
COPY = 0.5 / 255  # root mean square: less than half of one of 256 grey levels apart is the same picture as stored


def inspected(spec: str, defense: Defense, target: Target, released: Records, seed: int) -> tuple[Finding, ...]:
    """Check a fitted defense that replaces records; `released` are the private ones after its record stage.

    A check that cannot be run (a record stage that only bears some records or labels, say) is a finding itself.
    """
    checks: tuple[Callable[[], tuple[Finding, ...]], ...] = (
        lambda: collapsed(
            spec, defense, target.private, len(target.classes), generator_for(seed, spec, "collapse"), target.task
        ),
        lambda: stale_reference(spec, defense, target, generator_for(seed, spec, "stale")),
        lambda: copies(
            spec, _shown(defense, released), target.private.images, target.auxiliary.images, target.test.images
        ),
    )
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # a record stage of the user's own may raise anything on records it did not expect
            message = f"{spec}: a check for the failures of such defenses could not be run: {first_line(error)}."
            found.append(Finding("not-diagnosed", "warning", message, {"defense": spec}))
    return tuple(found)


def _shown(defense: Defense, released: Records) -> Tensor:
    """Return the pictures of a release, and all that might have come in their place where these are kept."""
    kept = [part.bank for part in parts_of(defense) if part.bank is not None]
    size = released.images.shape[2:]
    fitting = [bank.to(released.images) for bank in kept if bank.shape[1] == released.images.shape[1]]
    whole = [
        F.interpolate(b, size, mode="bilinear", align_corners=False) if b.shape[2:] != size else b for b in fitting
    ]
    return torch.cat([*whole, released.images])


def compare_with_control(
    row: DefenseResult,
    control: DefenseResult,
    outcome: Utility | None,
    batch_size: int,
    measure: str = "accuracy",
) -> tuple[Finding, ...]:
    """Check the row of a defense that was attacked and trained with, beside the undefended `control`."""
    found = exceeded(row.spec, row.guarantees, row.attacks, batch_size)
    if outcome is None or not row.replaces_records:
        return found
    rows = outcome.released, outcome.estimate, control.accuracy
    return (*found, *label_stuffing(row.spec, *rows, outcome.chance, measure))


def label_stuffing(
    spec: str,
    released: Sequence[float],
    clean: Estimate,
    undefended: Estimate,
    chance: float,
    measure: str = "accuracy",
) -> tuple[Finding, ...]:
    """Return `label-stuffing` where training on x̃ taught nearly all of x̃ and little of real pictures.

    `released` are accuracies on the released records by seed, `clean` and `undefended` those on test records with and
    without the defense. Triggers where the mean on x̃ is at least `LEARNED` and the clean accuracy, even at its upper
    bound, keeps less than `LOST` of what the undefended one, even at its lower bound, has above chance.
    """
    if not released or clean.value is None or undefended.value is None:
        return ()
    mean = math.fsum(released) / len(released)
    best = clean.value if clean.high is None else clean.high
    least = undefended.value if undefended.low is None else undefended.low
    if mean < LEARNED or least <= chance or best - chance >= LOST * (least - chance):
        return ()
    own, real, plain = (learned(value, measure) for value in (mean, clean.value, undefended.value))
    told = f"gets {own} of those right and {real} of real test records, where {plain} are right without the defense"
    if measure != "accuracy":
        told = f"reaches a {measure} of {own} on those and of {real} on real test records, {plain} without the defense"
    message = (
        f"{spec}: a model trained on the released records {told}: what it learned was put into the released records "
        "and does not hold for real ones."
    )
    evidence = {"released_accuracy": mean, "accuracy": clean.value, "undefended_accuracy": undefended.value}
    return (_finding("label-stuffing", "warning", message, spec, **evidence, chance=chance),)


def collapsed(
    spec: str,
    defense: Defense,
    private: Records,
    classes: int,
    generator: torch.Generator,
    task: Task = CLASSES,
) -> tuple[Finding, ...]:
    """Return `collapsed-to-class-conditional` where x̃ and its label do not depend on the record beyond its label.

    Records are released three times under one seed: as they are, with each record's picture taken by the next of its
    class (or label group), and with the next class's label. Exact equality of pictures and labels is asked for: a
    dependence in the last bit can be amplified by whoever owns the defense. A difference below half a grey level is
    said as well, as what it is. Info where the defense says that it is so (`renewable`), else a warning.
    """
    some = private[torch.randperm(len(private), generator=generator)[:SHOWN].to(private.labels.device)]
    order = _next_of_class(some.labels)
    moved = order != torch.arange(len(order), device=order.device)
    if not bool(moved.any()):
        return ()
    seed = int(torch.randint(2**62, (1,), generator=generator))

    def drawn(images: Tensor, labels: Tensor) -> Records:
        return release(defense, Records(images, labels), torch.Generator().manual_seed(seed))

    first, swapped = drawn(some.images, some.taught), drawn(some.images[order], some.taught)
    largest = float((first.images - swapped.images).abs().max())
    told = float((first.labels - swapped.labels).abs().max())
    if largest >= COPY or told >= COPY:
        return ()
    renamed = drawn(some.images, _next_label(some, classes, task))
    label_matters = not (torch.equal(first.images, renamed.images) and torch.equal(first.labels, renamed.labels))
    exact = largest == told == 0
    what = "its record beyond the label" if label_matters else "its record, not even on the label"
    how = (
        "equal under the same seed with the pictures swapped within their classes"
        if exact
        else f"differing by at most {max(largest, told):.2g} with the pictures swapped within their classes, which is "
        "too little to see and may still be enough to attack"
    )
    carries = (
        "What predicts is then carried by pictures drawn in advance and by the probabilities beside them, both learned "
        "from the records as a whole"
        if first.labels.is_floating_point() and not task.own_targets
        else "What predicts is then carried by what was learned of each class as a whole"
    )
    design = "by design" if defense.renewable else "though it is not said to be made so"
    message = f"{spec}: a released record does not depend on {what}, {design} ({how}). {carries}."
    return (
        _finding(
            "collapsed-to-class-conditional",
            "info" if defense.renewable else "warning",
            message,
            spec,
            records=int(moved.sum()),
            largest_change=max(largest, told),
            depends_on_label=label_matters,
        ),
    )


def stale_reference(spec: str, defense: Defense, target: Target, generator: torch.Generator) -> tuple[Finding, ...]:
    """Return `stale-reference` where released probabilities know less of their pictures than the audited model does.

    Only where probabilities are a teacher's: those that do not follow the label a record comes with (a mixture's do).
    The teacher is gone by then, but what it said is there. The rule: the audited model, if its accuracy on clean test
    records is above the commonest class even at the lower bound, agrees with the likeliest labels of x̃ on less, even
    at the upper bound, than chance plus `AGREES` of what it knows above chance. A teacher of the same state as the
    model agrees about as often as the model is right; one that never learned agrees by chance.
    """
    private, classes = target.private, len(target.classes)
    some = private[torch.randperm(len(private), generator=generator)[:SHOWN].to(private.labels.device)]
    seed = int(torch.randint(2**62, (1,), generator=generator))
    first, renamed = (
        release(defense, Records(some.images, labels), torch.Generator().manual_seed(seed))
        for labels in (some.taught, _next_label(some, classes, target.task))
    )
    if target.task.grouped:
        return ()  # a teacher's answers and labels are of one form, and no class is likeliest
    if not first.labels.is_floating_point() or not torch.equal(first.labels, renamed.labels):
        return ()
    right = measured(target.model, target.test, target.task, target.loss)
    known = intervals.rate(round(right * len(target.test)), len(target.test))
    least = chance(target.test, target.task)
    if known.low is None or known.low <= least:
        return ()
    agrees = _agreement(target, as_records(first.images, first.labels, target.task))
    wanted = least + AGREES * (right - least)
    if agrees.high is None or agrees.high >= wanted:
        return ()
    message = (
        f"{spec}: the audited model gets {percent(right)} of clean test records right but agrees with the likeliest "
        f"labels of the released records on only {percent(agrees.value or 0.0)} (chance {percent(least)}): these "
        "labels were learned from an older or weaker state than the model's, or the pictures mean nothing to it."
    )
    evidence = {"agreement": agrees.value, "agreement_high": agrees.high, "test_accuracy": right, "wanted": wanted}
    return (_finding("stale-reference", "warning", message, spec, **evidence),)


def _finding(identifier: str, severity: Severity, message: str, spec: str, **evidence: Value) -> Finding:
    return Finding(identifier, severity, message, {"defense": spec, **evidence})


def _next_of_class(labels: Tensor) -> Tensor:
    """Return indices (N,): for every record the next one of its class, itself where it is the only one."""
    order = torch.arange(len(labels), device=labels.device)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        order[members] = members.roll(1)
    return order


def _next_label(records: Records, classes: int, task: Task) -> Tensor:
    """Return what a loss takes for the next class or label group of every record."""
    following = (records.labels + 1) % classes
    return following if records.targets is None or task.table is None else task.table.to(following.device)[following]


def _agreement(target: Target, records: Records) -> Estimate:
    right = measured(target.model, records, target.task, target.loss)
    return intervals.rate(round(right * len(records)), len(records))
