"""What goes wrong with defenses that replace records, where no attack would show it: each check returns Findings.

Thresholds are constants with their reasons. A finding says what was measured; none of them changes a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from leakaudit.errors import first_line
from leakaudit.judge.noticed import exceeded
from leakaudit.protocol.client import release
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.labels import hard
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.numbers import interval, percent
from leakaudit.result.schema import DefenseResult, Estimate, Finding, Severity, Value
from leakaudit.score.nearness import nearest, rank_auc
from leakaudit.score.utility import Utility, accuracy, majority
from leakaudit.stats import intervals
from leakaudit.work.seeding import generator_for

LEARNED = 0.95  # of the released records right: what a network calls learned by heart, a few odd labels left aside
LOST = 0.5  # of the undefended accuracy above chance: more of what can be learned is missing than is there
SHOWN = 256  # records whose releases are compared: equality needs few, and a share of one half ± 6 %
AGREES = 0.5  # of what the audited model knows above chance: below it, labels and model disagree more than they agree
LOOK = 8  # pictures are compared averaged to 8×8, so that a copy shifted by a pixel or mirrored is one all the same
RELEASES = 1000  # released pictures, and test pictures, whose neighbours are sought among all private records
NEARER = 0.75  # AUC: three of four times a released picture leans to the private records more than a test one does
LEANS = 0.6  # AUC: more than statistics of the records bring (0.53 for the generators on 1,000 of CIFAR-10), a warning
COPY = 0.5 / 255  # root mean square: less than half of one of 256 grey levels apart is the same picture as stored
UNLIKELY = 0.01  # that a proven bound is exceeded by chance, over all attacks of a defense


def inspected(spec: str, defense: Defense, target: Target, released: Records, seed: int) -> tuple[Finding, ...]:
    """Check a fitted defense that replaces records; `released` are the private ones after its record stage.

    A check that cannot be run (a record stage that only bears some records or labels, say) is a finding itself.
    """
    checks: tuple[Callable[[], tuple[Finding, ...]], ...] = (
        lambda: collapsed(spec, defense, target.private, len(target.classes), generator_for(seed, spec, "collapse")),
        lambda: stale_reference(spec, defense, target, generator_for(seed, spec, "stale")),
        lambda: copies(spec, released.images, target.private.images, target.auxiliary.images, target.test.images),
    )
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:  # a record stage of the user's own may raise anything on records it did not expect
            message = f"{spec}: a check for the failures of such defenses could not be run: {first_line(error)}."
            found.append(Finding("not-diagnosed", "warning", message, {"defense": spec}))
    return tuple(found)


def compare_with_control(
    row: DefenseResult, control: DefenseResult, outcome: Utility | None, batch_size: int
) -> tuple[Finding, ...]:
    """Check the row of a defense that was attacked and trained with, beside the undefended `control`."""
    found = exceeded(row.spec, row.guarantees, row.attacks, batch_size)
    if outcome is None or not row.replaces_records:
        return found
    return (*found, *label_stuffing(row.spec, outcome.released, outcome.estimate, control.accuracy, outcome.chance))


def label_stuffing(
    spec: str, released: Sequence[float], clean: Estimate, undefended: Estimate, chance: float
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
    message = (
        f"{spec}: a model trained on the released records gets {percent(mean)} of those right and "
        f"{percent(clean.value)} of real test records, where {percent(undefended.value)} are right without the "
        "defense: what it learned was put into the released records and does not hold for real ones."
    )
    evidence = {"released_accuracy": mean, "accuracy": clean.value, "undefended_accuracy": undefended.value}
    return (_finding("label-stuffing", "warning", message, spec, **evidence, chance=chance),)


def collapsed(
    spec: str, defense: Defense, private: Records, classes: int, generator: torch.Generator
) -> tuple[Finding, ...]:
    """Return `collapsed-to-class-conditional` where x̃ and its label do not depend on the record beyond its label.

    Records are released three times under one seed: as they are, with each record's picture taken by the next of its
    class, and with the next class's label. Exact equality of pictures and labels is asked for: a dependence in the
    last bit can be amplified by whoever owns the defense. A difference below half a grey level is said as well, as
    what it is. Info where the defense says that it is so (`renewable`), else a warning.
    """
    some = private[torch.randperm(len(private), generator=generator)[:SHOWN].to(private.labels.device)]
    order = _next_of_class(some.labels)
    moved = order != torch.arange(len(order), device=order.device)
    if not bool(moved.any()):
        return ()
    seed = int(torch.randint(2**62, (1,), generator=generator))

    def drawn(images: Tensor, labels: Tensor) -> Records:
        return release(defense, Records(images, labels), torch.Generator().manual_seed(seed))

    first, swapped = drawn(some.images, some.labels), drawn(some.images[order], some.labels)
    largest = float((first.images - swapped.images).abs().max())
    told = float((first.labels - swapped.labels).abs().max())
    if largest >= COPY or told >= COPY:
        return ()
    renamed = drawn(some.images, (some.labels + 1) % classes)
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
        if first.labels.is_floating_point()
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
        for labels in (some.labels, (some.labels + 1) % classes)
    )
    if not first.labels.is_floating_point() or not torch.equal(first.labels, renamed.labels):
        return ()
    right = accuracy(target.model, target.test)
    known = intervals.rate(round(right * len(target.test)), len(target.test))
    chance = majority(target.test)
    if known.low is None or known.low <= chance:
        return ()
    agrees = _agreement(target.model, Records(first.images, hard(first.labels)))
    wanted = chance + AGREES * (right - chance)
    if agrees.high is None or agrees.high >= wanted:
        return ()
    message = (
        f"{spec}: the audited model gets {percent(right)} of clean test records right but agrees with the likeliest "
        f"labels of the released records on only {percent(agrees.value or 0.0)} (chance {percent(chance)}): these "
        "labels were learned from an older or weaker state than the model's, or the pictures mean nothing to it."
    )
    evidence = {"agreement": agrees.value, "agreement_high": agrees.high, "test_accuracy": right, "wanted": wanted}
    return (_finding("stale-reference", "warning", message, spec, **evidence),)


def copies(spec: str, released: Tensor, private: Tensor, strangers: Tensor, test: Tensor) -> tuple[Finding, ...]:
    """Return `copies-private-records` where x̃ lies nearer to private records, of any index, than test records do.

    A smooth picture is near to every other, so distances alone say nothing: compared is r(x) = ln d(x, private) −
    ln d(x, strangers), d the distance to the nearest of each, mirrored or not, for released pictures against test ones
    (the three-sample test of Meehan et al. 2020, arXiv 2004.05675, with a ratio). An error where the area under
    the ROC curve P(r(x̃) < r(test)) is at least `NEARER` even at its lower bound, or where more released pictures are
    copies (`COPY`) than test pictures are, by Fisher's exact test, since flat pictures are copies of each other; a
    warning where the area is at least `LEANS`.
    """
    shown, others = released[_spread(len(released))], test[_spread(len(test))]
    if len(others) < 2 or len(strangers) < 1:
        return ()
    ours, theirs = _near(shown, private), _near(others, private)
    ratios = [
        near.clamp_min(1e-9).log() - _near(pictures, strangers).clamp_min(1e-9).log()
        for pictures, near in ((shown, ours), (others, theirs))
    ]
    auc = rank_auc(*ratios)
    copied, usual = (intervals.rate(int((d < COPY).sum()), len(d)) for d in (ours, theirs))
    copying = _more(int((ours < COPY).sum()), len(ours), int((theirs < COPY).sum()), len(theirs)) < UNLIKELY
    near = auc.low or 0.0
    if near < LEANS and not copying:
        return ()
    same = ""
    if copied.value:
        same = f" {percent(copied.value)} of them are copies (test records: {percent(usual.value or 0.0)})."
    message = (
        f"{spec}: what it puts in place of records lies nearer to private records than test records do, in "
        f"{percent(auc.value or 0.0)} of pairs ({interval(auc)}; 50% where nothing is copied).{same} A picture "
        "that is not its own record's may still be another private one."
    )
    evidence: dict[str, Value] = {
        "auc": auc.value,
        "auc_low": auc.low,
        "copies": copied.value,
        "nearest_private_released": float(ours.median()),
        "nearest_private_test": float(theirs.median()),
    }
    severity: Severity = "error" if near >= NEARER or copying else "warning"
    return (_finding("copies-private-records", severity, message, spec, **evidence),)


def _more(hits: int, n: int, others: int, m: int) -> float:
    """Return Fisher's one-sided probability of so many of n against `others` of m if both rates were the same."""
    from scipy.stats import fisher_exact

    return float(fisher_exact(np.array([[hits, n - hits], [others, m - others]]), alternative="greater").pvalue)


def _finding(identifier: str, severity: Severity, message: str, spec: str, **evidence: Value) -> Finding:
    return Finding(identifier, severity, message, {"defense": spec, **evidence})


def _next_of_class(labels: Tensor) -> Tensor:
    """Return indices (N,): for every record the next one of its class, itself where it is the only one."""
    order = torch.arange(len(labels), device=labels.device)
    for label in torch.unique(labels):
        members = (labels == label).nonzero()[:, 0]
        order[members] = members.roll(1)
    return order


def _agreement(model: PixelModel, records: Records) -> Estimate:
    return intervals.rate(round(accuracy(model, records) * len(records)), len(records))


def _spread(count: int) -> Tensor:
    """Return at most `RELEASES` indices, evenly over `count`."""
    return torch.linspace(0, max(0, count - 1), min(count, RELEASES)).round().long()


def _near(pictures: Tensor, others: Tensor) -> Tensor:
    """Return how near pictures lie to others, mirrored or not, averaged to `LOOK`, to less than `COPY`."""
    ours, theirs = (F.adaptive_avg_pool2d(images.float().cpu(), LOOK) for images in (pictures, others))
    return nearest(ours, theirs, mirrored=True, exact=True)
