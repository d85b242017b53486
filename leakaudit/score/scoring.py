"""From what an attack claims to what it recovered: the only place besides the client where the truth is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leakaudit.errors import first_line
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.registry import settings_values
from leakaudit.protocol.target import Records
from leakaudit.result.rounding import coarse, coarse_record
from leakaudit.result.rules import STATUSES, scored_statuses
from leakaudit.result.schema import AttackResult, Estimate, Further, Images, Picture, RecordScore, Value
from leakaudit.score import standin
from leakaudit.score.identification import CandidateSets, identify, identify_by_scores
from leakaudit.score.metrics import METRICS, MetricFunction, assign, further, mse, psnr
from leakaudit.score.pictures import encode
from leakaudit.stats import intervals

NO_PICTURE = Estimate(reason="the attack draws no picture")
NOT_REPLACED = Estimate(reason="the defense does not replace records")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What attacks on V victims of B records each are scored against."""

    records: Records  # the V·B private records, victim by victim
    released: Records | None  # what a data-replacing defense put in their place; None where nothing is replaced
    classes: Sequence[str]
    candidates: CandidateSets  # of the same records
    class_means: Tensor  # (V·B, C, H, W), of the same records
    lpips: MetricFunction | str  # or why there is none
    batch_size: int | None = None  # None: V is as many as an attack has statuses

    def shape(self, reconstruction: Reconstruction) -> tuple[int, int]:
        """Return V and B."""
        count = len(self.records)
        victims = count // self.batch_size if self.batch_size else max(1, len(reconstruction.statuses))
        return victims, count // victims

    def name_of(self, label: int) -> str:
        """Return the name of a class."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)


@dataclass(frozen=True)
class Drawn:
    """What is measured on the pictures of an attack: scores by name and record, and the pictures as they are paired."""

    columns: dict[str, dict[int, float]] = field(default_factory=dict)
    guess: Tensor | None = None  # (V·B, C, H, W)
    r2: Estimate = NO_PICTURE
    psnr_released: Estimate = NO_PICTURE

    def median(self, name: str, missing: str) -> Estimate:
        """Return the median of a score over the records that have it."""
        return intervals.median(list(self.columns.get(name, {}).values()), missing)


def score(
    attack: Attack,
    role: str,
    tuned: Mapping[str, Value],
    reconstruction: object,
    truth: Truth,
    images: Images = "full",
    gallery: int = 8,
) -> AttackResult:
    """Score one attack on V victims of B records each.

    Pictures are paired within each batch before scoring: with the private records for every score but `psnr_released`,
    with the released ones for that one. Only victims whose status is in `scored_statuses` are scored; the others are in
    no numerator and no denominator, and `n` shows it. A linkage attack is judged on each victim's first record, whose
    line-up it is asked about (`CandidateSets.first_of_each`). What is no `Reconstruction`, or not one of these V
    victims of B records, has no score: every victim is `failed`. `images` says whether the gallery holds the pictures,
    stand-ins of the same PSNR, or none; without the pictures the scores are rounded (`leakaudit.result.rounding`).
    """
    if not isinstance(reconstruction, Reconstruction):
        wrong = f"the attack returned a {type(reconstruction).__name__}, not a Reconstruction"
        return failed(attack, role, tuned, len(truth.records) // (truth.batch_size or 1), "failed", wrong)
    victims, batch = truth.shape(reconstruction)
    mismatch = _mismatch(attack, reconstruction, victims, batch, truth.records, truth.candidates.size)
    if mismatch is not None:
        return failed(attack, role, tuned, victims, "failed", f"the attack returned {mismatch}")
    statuses, broken = _checked_statuses(reconstruction)
    scored = torch.tensor([s in scored_statuses(attack.kind) for s in statuses], dtype=torch.bool)
    rows = scored.repeat_interleave(batch).nonzero()[:, 0]
    missing = _why_not(statuses, reconstruction.reason)
    order, drawn = torch.arange(victims * batch), Drawn()
    if reconstruction.images is not None:
        pictures = reconstruction.images.detach().to(truth.records.images).flatten(0, 1).clamp(0, 1)
        order = _orders(truth.records.images, pictures, scored, batch)
        drawn = _drawn(truth, pictures, order, scored, batch, missing)
    rank, hit = _identified(attack, reconstruction, truth.candidates, drawn.guess, rows, scored, batch)
    guessed, label_accuracy = _labels(reconstruction.labels, truth.records.labels, scored, order, batch, missing)
    columns: dict[str, Mapping[int, Any]] = {**drawn.columns, "rank": rank, "identified": hit}
    records = _records(truth, statuses, guessed, columns)
    records = records if images == "full" else tuple(map(coarse_record, records))
    identification = _identification(attack, truth.candidates, hit, missing)
    no_picture = missing if drawn.guess is not None else str(NO_PICTURE.reason)
    result = replace(
        failed(attack, role, tuned, victims, "", no_picture),
        statuses=dict(sorted(Counter(statuses).items())),
        reason="; ".join(filter(None, [reconstruction.reason, broken])) or None,
        identification=identification,
        candidates=truth.candidates.size if identification.value is not None else 0,
        psnr=drawn.median("psnr", no_picture),
        ssim=drawn.median("ssim", no_picture),
        lpips=drawn.median("lpips", truth.lpips if isinstance(truth.lpips, str) else no_picture),
        r2=drawn.r2,
        psnr_released=drawn.psnr_released if truth.released is not None else NOT_REPLACED,
        label_accuracy=label_accuracy,
        records=records,
        gallery=_gallery(records, truth, drawn.guess, images, gallery),
        notes=tuple(map(str, reconstruction.notes)),
        doubts={str(name): str(told) for name, told in reconstruction.doubts.items()},
        further=() if drawn.guess is None else _further(truth.records.images[rows], drawn.guess[rows], missing),
    )
    return result if images == "full" else coarse(result)


def failed(
    attack: Attack, role: str, tuned: Mapping[str, Value], victims: int, status: str, reason: str
) -> AttackResult:
    """Return the row of an attack that crashed or could not run: a status and a reason, and no score anywhere."""
    nothing = Estimate(reason=reason)
    return AttackResult(
        name=attack.name,
        kind=attack.kind,
        role=role,
        settings=dict(settings_values(attack)),
        tuned=dict(tuned),
        requires=tuple(sorted(attack.requires)),
        statuses={status: victims},
        reason=reason,
        identification=nothing,
        candidates=0,
        psnr=nothing,
        ssim=nothing,
        lpips=nothing,
        r2=nothing,
        psnr_released=nothing,
        label_accuracy=nothing,
    )


def _mismatch(
    attack: Attack, claimed: Reconstruction, victims: int, batch: int, truth: Records, candidates: int
) -> str | None:
    """Return what does not fit V victims of B records, or None where everything does."""
    statuses = claimed.statuses
    if not isinstance(statuses, tuple | list) or len(statuses) != victims or victims * batch != len(truth):
        counted = len(statuses) if isinstance(statuses, tuple | list) else "no list of"
        return f"{counted} statuses for {len(truth)} records in batches of {batch}"
    unknown = [str(s) for s in statuses if s not in STATUSES]
    if unknown:
        return f"the status {unknown[0]!r}, which is none of {', '.join(STATUSES)}"
    shapes = {"images": (victims, batch, *truth.images.shape[1:]), "labels": (victims, batch)}
    if attack.kind == "linkage":
        shapes["linkage"] = (victims, candidates)
    for name, shape in shapes.items():
        value: object = getattr(claimed, name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            return f"{name} that are a {type(value).__name__}, not a tensor"
        if tuple(value.shape) != shape:
            return f"{name} of shape {tuple(value.shape)} where {shape} was asked for"
        if value.is_complex() or (name == "labels" and value.is_floating_point()):
            return f"{name} of type {value.dtype}"
    return None


def _checked_statuses(reconstruction: Reconstruction) -> tuple[list[str], str | None]:
    """Return statuses in which a picture or score that is not finite counts as diverged, whatever the attack says."""
    statuses: list[str] = list(reconstruction.statuses)
    found = 0
    for claimed in (reconstruction.images, reconstruction.linkage):
        if claimed is None:
            continue
        for v, finite in enumerate(claimed.flatten(1).isfinite().all(1).tolist()):
            if not finite and statuses[v] in ("converged", "budget"):
                statuses[v] = "diverged"
                found += 1
    return statuses, f"{found} victim(s) ended in values that are not finite" if found else None


def _why_not(statuses: list[str], reason: str | None) -> str:
    ended = ", ".join(f"{count} {status}" for status, count in sorted(Counter(statuses).items()))
    return f"no victim was scored ({ended}{': ' + reason if reason else ''})"


def _further(x: Tensor, guess: Tensor, missing: str) -> tuple[Further, ...]:
    """Return what the metrics of plug-ins say of pictures (N, C, H, W); one that fails has no score, and says why."""
    found = []
    for metric in further():
        try:
            with torch.random.fork_rng(devices=[]):
                scores = metric.function(x.clone(), guess.clone()) if len(x) else x.new_zeros(0)
            if tuple(scores.shape) != (len(x),) or not scores.isfinite().all():
                raise ValueError(f"it gave {tuple(scores.shape)} scores, or some that are no number")
            estimate = intervals.median(scores.double().tolist(), missing)
        except Exception as error:  # somebody else's code may raise anything
            estimate = Estimate(reason=f"the metric failed ({first_line(error)})")
        found.append(Further(metric.name, estimate, metric.higher_leaks, metric.unit))
    return tuple(found)


def _orders(target: Tensor, drawn: Tensor, scored: Tensor, batch: int) -> Tensor:
    """Return indices (V·B,) such that `drawn[indices]` is aligned with `target` within every scored victim's batch."""
    order = torch.arange(len(target))
    for v in scored.nonzero()[:, 0].tolist():
        part = slice(v * batch, (v + 1) * batch)
        order[part] = v * batch + assign(target[part], drawn[part]).cpu()
    return order


def _column(rows: Tensor, values: Tensor) -> dict[int, float]:
    return dict(zip(rows.tolist(), values.double().tolist(), strict=True))


def _explained(x: Tensor, guess: Tensor, means: Tensor, missing: str) -> Estimate:
    """R² = 1 − Σ‖guess − x‖² / Σ‖class mean − x‖²."""
    if len(x) == 0:
        return Estimate(reason=missing)
    spread = float(mse(means, x).sum())
    if spread == 0:
        return Estimate(reason="the records equal their class means")
    return Estimate(1 - float(mse(guess, x).sum()) / spread, n=len(x))


def _drawn(truth: Truth, pictures: Tensor, order: Tensor, scored: Tensor, batch: int, missing: str) -> Drawn:
    """Measure an attack's pictures (V·B, C, H, W), which `order` pairs with the private ones."""
    rows = scored.repeat_interleave(batch).nonzero()[:, 0]
    guess = pictures[order]
    x, seen = truth.records.images[rows], guess[rows]
    functions = METRICS if isinstance(truth.lpips, str) else METRICS | {"lpips": truth.lpips}
    columns = {name: _column(rows, function(x, seen)) for name, function in functions.items()}
    r2 = _explained(x, seen, truth.class_means[rows].to(x), missing)
    if truth.released is None:
        return Drawn(columns, guess, r2)
    replaced = truth.released.images
    theirs = pictures[_orders(replaced, pictures, scored, batch)]
    columns["psnr_released"] = _column(rows, psnr(replaced[rows], theirs[rows]))
    return Drawn(columns, guess, r2, intervals.median(list(columns["psnr_released"].values()), missing))


def _records(
    truth: Truth, statuses: list[str], guessed: dict[int, int], columns: Mapping[str, Mapping[int, Any]]
) -> tuple[RecordScore, ...]:
    """Return each record's scores, `columns` giving them by name and record."""
    labels: list[int] = truth.records.labels.tolist()
    batch = len(labels) // len(statuses)
    return tuple(
        RecordScore(
            victim=i // batch,
            record=i % batch,
            label=truth.name_of(label),
            status=statuses[i // batch],
            guessed_label=truth.name_of(guessed[i]) if i in guessed else None,
            **{name: column.get(i) for name, column in columns.items()},
        )
        for i, label in enumerate(labels)
    )


def _identification(attack: Attack, candidates: CandidateSets, hit: dict[int, bool], missing: str) -> Estimate:
    if candidates.size < 2:
        return Estimate(reason="fewer than two candidates of the class")
    if attack.kind == "labels":
        return Estimate(reason="an attack on labels draws no picture")
    return intervals.rate(sum(hit.values()), len(hit), missing)


def _identified(
    attack: Attack,
    reconstruction: Reconstruction,
    candidates: CandidateSets,
    guess: Tensor | None,
    rows: Tensor,
    scored: Tensor,
    batch: int,
) -> tuple[dict[int, int], dict[int, bool]]:
    if candidates.size < 2:
        return {}, {}
    if attack.kind == "linkage" and reconstruction.linkage is not None:
        victims = scored.nonzero()[:, 0]
        asked = victims * batch
        rank, hit = identify_by_scores(reconstruction.linkage.detach().cpu()[victims], candidates.position[asked])
    elif guess is not None:
        asked = rows
        rank, hit = identify(candidates[rows], guess[rows])
    else:
        return {}, {}
    where = asked.tolist()
    return dict(zip(where, rank.tolist(), strict=True)), dict(zip(where, hit.tolist(), strict=True))


def _labels(
    claimed: Tensor | None, labels: Tensor, scored: Tensor, order: Tensor, batch: int, missing: str
) -> tuple[dict[int, int], Estimate]:
    """Return each record's guessed label and the share of labels found; a batch's labels are an unordered bag.

    Pictures carry their own labels along; without pictures a record gets its label if the bag holds it.
    """
    if claimed is None:
        return {}, Estimate(reason="the attack guesses no labels")
    guesses = claimed.detach().cpu().flatten()[order].tolist()
    truth = labels.tolist()
    guessed: dict[int, int] = {}
    hits = n = 0
    for v in scored.nonzero()[:, 0].tolist():
        part = range(v * batch, (v + 1) * batch)
        bag = Counter(guesses[i] for i in part)
        common = bag & Counter(truth[i] for i in part)
        hits, n = hits + common.total(), n + batch
        aligned = not torch.equal(order[part.start : part.stop], torch.arange(part.start, part.stop))
        guessed |= {i: guesses[i] for i in part} if aligned else _from_bag(bag, [(i, truth[i]) for i in part])
    return guessed, intervals.rate(hits, n, missing)


def _from_bag(bag: Counter[int], wanted: list[tuple[int, int]]) -> dict[int, int]:
    left = bag.copy()
    given: dict[int, int] = {}
    for i, label in wanted:
        if left[label]:
            left[label] -= 1
            given[i] = label
    rest = iter(sorted(left.elements()))
    return given | {i: next(rest) for i, _ in wanted if i not in given}


def _gallery(
    records: tuple[RecordScore, ...], truth: Truth, guess: Tensor | None, images: Images, size: int
) -> tuple[Picture, ...]:
    """Return the `size` most leaking records by PSNR, worst first.

    Redacted, their pictures follow from the scores, the positions and the shape alone: no private pixel is looked at.
    """
    if guess is None:
        return ()
    shown = [(i, r) for i, r in enumerate(records) if r.psnr is not None]
    shown.sort(key=lambda pair: (-(pair[1].psnr or 0.0), pair[0]))
    channels, height, width = truth.records.images.shape[1:]
    pictures: list[Picture] = []
    for i, r in shown[:size]:
        original = released_ = drawn = None
        if images == "full":
            original, drawn = truth.records.images[i], guess[i]
            released_ = truth.released.images[i] if truth.released is not None else None
        elif images == "redacted":
            original = standin.picture((channels, height, width))
            drawn = standin.degraded((channels, height, width), r.psnr or 0.0, r.victim, r.record)
        pictures.append(
            Picture(
                victim=r.victim,
                record=r.record,
                label=r.label,
                original=encode(original),
                shared=encode(released_),
                reconstruction=encode(drawn),
                psnr=r.psnr,
                ssim=r.ssim,
                identified=r.identified,
            )
        )
    return tuple(pictures)
