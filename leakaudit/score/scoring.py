"""From what an attack claims to what it recovered: the only place besides the client where the truth is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from leakaudit.errors import UserError, first_line
from leakaudit.judge.words import ended
from leakaudit.protocol.attack import Attack, Reconstruction
from leakaudit.protocol.registry import settings_values
from leakaudit.protocol.target import Records
from leakaudit.result.outward import modest
from leakaudit.result.rounding import coarse, coarse_record
from leakaudit.result.rules import SKIPPED, STATUSES, scored_statuses
from leakaudit.result.schema import AttackResult, Estimate, Further, Images, RecordScore, Value
from leakaudit.score import nulls
from leakaudit.score.identification import CandidateSets, identify, identify_by_scores
from leakaudit.score.labelling import labels_found
from leakaudit.score.metrics import MetricFunction, assign, further, metrics_for, mse, psnr
from leakaudit.score.pictures import gallery as pictures_of
from leakaudit.stats import intervals
from leakaudit.work.seeding import forked

LEAST = 0.1  # of its steps, that an attack which the time ended must have made for its pictures to be its own
NO_PICTURE = Estimate(reason="the attack draws no picture")
NO_OTHERS = "no other victim's record is of the same class or label group"
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
    guesses: Tensor | None = None  # (G, V·B, C, H, W), what can be drawn without an update, besides the class means
    units: Tensor | None = None  # (V·B,) which person, say, each record is of; None where each is its own
    depth: int = 1  # slices of a volume (`PixelModel`)

    def shape(self, reconstruction: Reconstruction) -> tuple[int, int]:
        """Return V and B."""
        count = len(self.records)
        victims = count // self.batch_size if self.batch_size else max(1, len(reconstruction.statuses))
        return victims, count // victims

    def known(self) -> Tensor:
        """Return all that can be drawn without an update, class means included (G, V·B, C, H, W)."""
        means = self.class_means[None].to(self.records.images)
        return means if self.guesses is None else torch.cat([means, self.guesses.to(means)])

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
    swapped: Estimate = NO_PICTURE
    gain: dict[int, float] = field(default_factory=dict)  # dB by record
    batch: int = 1  # records of one client, the unit of the intervals

    def estimates(self, missing: str, no_lpips: str) -> dict[str, Any]:
        """Return the estimates over the records that have them, by field; medians, but of R²."""
        reasons = {"psnr": missing, "ssim": missing, "lpips": no_lpips}
        found = {n: _median(self.columns.get(n, {}), self.batch, reasons[n]) for n in reasons}
        gain = _median(self.gain, self.batch, missing)
        return found | {"r2": self.r2, "swapped": self.swapped, "gain": gain}


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
    with the released ones for that one. Victims without a status in `scored_statuses`, and in identification records
    without a line-up, are in no numerator and no denominator. A linkage attack is judged on each victim's first record,
    whose line-up it is asked about. What is no `Reconstruction`, or not one of these V victims of B records, has no
    score: every victim is `failed`. `images` says whether the gallery holds the pictures, stand-ins of the same PSNR,
    or none; without the pictures the scores are rounded (`leakaudit.result.rounding`).
    """
    size = truth.batch_size or 1
    if not isinstance(reconstruction, Reconstruction):
        wrong = f"the attack returned a {type(reconstruction).__name__}, not a Reconstruction"
        return failed(attack, role, tuned, len(truth.records) // size, "failed", wrong)
    if attack.kind == "linkage":  # it is asked about every record by itself
        truth = replace(truth, batch_size=1)
    victims, batch = truth.shape(reconstruction)
    mismatch = _mismatch(attack, reconstruction, victims, batch, truth.records, truth.candidates.columns)
    if mismatch is not None:
        return failed(attack, role, tuned, victims, "failed", f"the attack returned {mismatch}")
    statuses, broken = _checked_statuses(reconstruction)
    scored = _scorable(attack, reconstruction, statuses)
    rows, order, drawn = scored.repeat_interleave(batch).nonzero()[:, 0], torch.arange(victims * batch), Drawn()
    missing, x = _why_not(statuses, reconstruction.reason), truth.records.images
    if reconstruction.images is not None:
        pictures = reconstruction.images.detach().to(x).flatten(0, 1).clamp(0, 1)
        order = _orders(x, pictures, scored, batch)
        drawn = _drawn(truth, pictures, order, scored, batch, missing)
    rank, hit = _identified(attack, reconstruction, truth.candidates, drawn.guess, rows, scored, batch)
    exact = _exact(reconstruction, drawn, hit, batch)
    guessed, label_accuracy = labels_found(reconstruction.labels, truth.records.labels, scored, order, batch, missing)
    columns = {**drawn.columns, **_looked(truth.candidates, rank, hit), "exact": exact}
    records = tuple(_placed(r, max(1, size // batch), images) for r in _records(truth, statuses, guessed, columns))
    identification = _identification(attack, truth.candidates, hit, size, missing)
    no_picture = missing if drawn.guess is not None else str(NO_PICTURE.reason)
    result = replace(
        failed(attack, role, tuned, victims, "", no_picture),
        statuses=dict(sorted(Counter(statuses).items())),
        reason="; ".join(filter(None, [reconstruction.reason, broken])) or None,
        identification=identification,
        candidates=truth.candidates.size if identification.value is not None else 0,
        **drawn.estimates(no_picture, truth.lpips if isinstance(truth.lpips, str) else no_picture),
        psnr_released=drawn.psnr_released if truth.released is not None else NOT_REPLACED,
        label_accuracy=label_accuracy,
        exact=sum(exact.values()),
        records=records,
        gallery=pictures_of(records, x, truth.released, drawn.guess, images, gallery, truth.depth),
        notes=tuple(map(str, reconstruction.notes)),
        doubts={str(name): str(told) for name, told in reconstruction.doubts.items()},
        further=() if drawn.guess is None else _further(x[rows], drawn.guess[rows], rows.tolist(), batch, missing),
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
        swapped=nothing,
        gain=nothing,
    )


def skipped(attack: Attack, role: str, victims: int, settled_by: str) -> AttackResult:
    """Return the row of an attack that was not begun, since the attack `settled_by` had settled the verdict."""
    row = failed(attack, role, {}, victims, SKIPPED, f"the verdict was settled by {settled_by}")
    return replace(row, settled_by=settled_by)


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
        return f"the status {modest(unknown[0])!r}, which is none of {', '.join(STATUSES)}"
    shapes = {"images": (victims, batch, *truth.images.shape[1:]), "labels": (victims, batch)}
    if attack.kind == "linkage":
        shapes["linkage"] = (victims, candidates)
    shapes |= {"certain": (victims,), "progress": (victims,)}
    for name, shape in shapes.items():
        value: object = getattr(claimed, name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            return f"{name} that are a {type(value).__name__}, not a tensor"
        if tuple(value.shape) != shape:
            return f"{name} of shape {tuple(value.shape)} where {shape} was asked for"
        whole = name == "labels" and value.is_floating_point()
        if value.is_complex() or whole or (name == "certain" and value.dtype != torch.bool):
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


def _scorable(attack: Attack, claimed: Reconstruction, statuses: list[str]) -> Tensor:
    """Return which victims (V,) are scored: by status, and of those that the time ended the ones that had begun."""
    progress = [1.0] * len(statuses) if claimed.progress is None else claimed.progress.tolist()
    allowed, pairs = scored_statuses(attack.kind), zip(statuses, progress, strict=True)
    return torch.tensor([s in allowed and (s != "budget" or p >= LEAST) for s, p in pairs])


def _placed(score: RecordScore, batch: int, images: Images) -> RecordScore:
    """Return the score of a record that was asked about by itself under its place in its victim's batch."""
    placed = score if batch == 1 else replace(score, victim=score.victim // batch, record=score.victim % batch)
    return placed if images == "full" else coarse_record(placed)


def _why_not(statuses: list[str], reason: str | None) -> str:
    how = ended(", ".join(f"{count} {status}" for status, count in sorted(Counter(statuses).items())))
    return f"no victim was scored ({how}{': ' + reason if reason else ''})"


def _further(x: Tensor, guess: Tensor, rows: list[int], batch: int, missing: str) -> tuple[Further, ...]:
    """Return what the metrics of plug-ins say of pictures (N, C, H, W) of records `rows`, `batch` of one client.

    One that fails has no score, and says why.
    """
    found = []
    for metric in further():
        try:
            with forked():
                scores = metric.function(x.clone(), guess.clone()) if len(x) else x.new_zeros(0)
            if tuple(scores.shape) != (len(x),) or not scores.isfinite().all():
                raise UserError(f"it gave {tuple(scores.shape)} scores, or some that are no number")
            estimate = _median(dict(zip(rows, scores.double().tolist(), strict=True)), batch, missing)
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


def _median(values: Mapping[int, float], batch: int, missing: str) -> Estimate:
    """Return the median of values by record, `batch` of one client, with an interval whose unit is the client."""
    return intervals.median_of_clients(intervals.by_client(values, batch), missing)


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
    own = metrics_for(truth.depth)
    functions = own if isinstance(truth.lpips, str) else own | {"lpips": truth.lpips}
    columns = {name: _column(rows, function(x, seen)) for name, function in functions.items()}
    r2 = _explained(x, seen, truth.class_means[rows].to(x), missing)
    victims = torch.arange(len(guess)) // batch
    null = nulls.swapped(truth.records.images, guess, truth.records.labels, victims, rows, truth.units)
    gain = nulls.gained(columns["psnr"], nulls.best_guess(truth.records.images, truth.known(), batch), null)
    columns |= {"gain": gain, "swapped": null}
    done = Drawn(columns, guess, r2, swapped=_median(null, batch, NO_OTHERS), gain=gain, batch=batch)
    if truth.released is None:
        return done
    replaced = truth.released.images
    theirs = pictures[_orders(replaced, pictures, scored, batch)]
    columns["psnr_released"] = _column(rows, psnr(replaced[rows], theirs[rows]))
    return replace(done, psnr_released=_median(columns["psnr_released"], batch, missing))


def _exact(claimed: Reconstruction, drawn: Drawn, hit: dict[int, bool], batch: int) -> dict[int, bool]:
    """Return by record whether it was rebuilt, or by a linkage attack confirmed, beyond doubt; empty where unknown."""
    if drawn.guess is not None:
        return nulls.exactly(drawn.columns["psnr"], drawn.gain, hit)
    if claimed.certain is None or claimed.linkage is None:
        return {}
    sure = claimed.certain.tolist()
    return {row: found and sure[row // batch] for row, found in hit.items()}


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


def _identification(
    attack: Attack, candidates: CandidateSets, hit: dict[int, bool], size: int, missing: str
) -> Estimate:
    """Return the rate of hits, `size` records of one client: they were in one update, so the unit is the client."""
    if not candidates.lined.any():
        return Estimate(reason="fewer than two candidates of the class")
    if attack.kind == "labels":
        return Estimate(reason="an attack on labels draws no picture")
    return intervals.rate_of_clients(intervals.by_client(hit, size), missing)


def _looked(
    candidates: CandidateSets, rank: Mapping[int, int], hit: Mapping[int, bool]
) -> dict[str, Mapping[int, Any]]:
    """Return what is known of the records that were looked for, by field; where line-ups differ, the size of each."""
    sizes = candidates.sizes.tolist()
    own = {i: sizes[i] for i in hit} if len(set(sizes)) > 1 else {}
    return {"rank": rank, "identified": hit, "candidates": own}


def _identified(
    attack: Attack,
    reconstruction: Reconstruction,
    candidates: CandidateSets,
    guess: Tensor | None,
    rows: Tensor,
    scored: Tensor,
    batch: int,
) -> tuple[dict[int, int], dict[int, bool]]:
    """Return each record's rank and whether it is first, of those that were looked for and have a line-up."""
    lined = candidates.lined
    if attack.kind == "linkage" and reconstruction.linkage is not None:
        victims = (scored & lined[::batch]).nonzero()[:, 0]
        asked = victims * batch
        scores = reconstruction.linkage.detach().cpu()[victims]
        rank, hit = identify_by_scores(scores, candidates.position[asked], candidates.sizes[asked])
    elif guess is not None:
        asked = rows[lined[rows]]
        rank, hit = identify(candidates[asked], guess[asked])
    else:
        return {}, {}
    where = asked.tolist()
    return dict(zip(where, rank.tolist(), strict=True)), dict(zip(where, hit.tolist(), strict=True))
