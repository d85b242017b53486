"""Automatic transformation search: pictures are augmented so that their gradients are hard to match."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from leakaudit.defenses._augmentations import Policy, applied, library
from leakaudit.engine import matching as engine
from leakaudit.errors import OutOfTime, UserError
from leakaudit.protocol.defense import Defense, state
from leakaudit.protocol.gradients import in_mode, mean_gradient
from leakaudit.protocol.registry import register_defense
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.work.memory import need
from leakaudit.work.progress import expired, track

LENGTH = 3  # transforms in a policy, as published
PROBES = 32  # records whose Jacobians the accuracy score compares
_LOOK = 64  # candidates, or points of a path, after which the clock is looked at
T = TypeVar("T")


def _in_time(items: Iterable[T]) -> Iterator[T]:
    """Yield the items. Raises OutOfTime where the time budget is spent after some of many."""
    for k, item in enumerate(items):
        if k % _LOOK == _LOOK - 1 and expired():
            raise OutOfTime("the time budget ended the search for transforms: give fewer candidates or points")
        yield item


def privacy_score(target: Target, policy: Policy, records: Records, noise: Tensor, points: int) -> float:
    """Return S_pri, the mean cosine of ∇ℓ(x′(i)) and ∇ℓ(T(x)) over x′(i) = (1 − i/K)·noise + (i/K)·T(x), i = 0 … K − 1.

    `records` N, `noise` (N, C, H, W), K = `points` (the privacy score of Gao et al. 2021). Smaller is more private: the
    path from where an attacker begins to the record is then one along which its gradient says little.
    """
    found = []
    for x, label, begin in zip(applied(policy, records.images), records.taught[:, None], noise, strict=True):
        wanted = mean_gradient(target.model, target.loss, x[None], label)
        for i in _in_time(range(points)):
            between = torch.lerp(begin, x, i / points)
            at = mean_gradient(target.model, target.loss, between[None], label)
            found.append(1 - float(engine.cosine(at, wanted)[0]))
    return sum(found) / len(found)


def accuracy_score(model: PixelModel, images: Tensor) -> float:
    """Return S_acc, how differently an untrained model sees pictures (N, C, H, W): larger is easier to learn from.

    −Σ_i (log(σ_i + ε) + 1/(σ_i + ε)) over the eigenvalues σ of the correlation matrix of the input Jacobians (Mellor et
    al. 2021, arXiv 2006.04647, as Gao et al. use it), ε = 1e-5.
    """
    x = images.clone().requires_grad_(True)
    (rows,) = torch.autograd.grad(model(x).sum(), x)
    powers = torch.linalg.eigvalsh(torch.corrcoef(rows.flatten(1).double()).nan_to_num(0)).clamp_min(0) + 1e-5
    return -float((powers.log() + 1 / powers).sum())


@register_defense
@dataclass(frozen=True, kw_only=True)
class ATS(Defense):
    """x̃ = T(x), T one of the `policies` best sequences of three transforms found by search; labels stay.

    `candidates` random sequences out of the 50 transforms of `augmentations` (published: 1600) are scored. The `useful`
    share of them with the highest accuracy score, on an untrained copy of the model, compete by the lowest privacy
    score on `pictures` private records and `points` points of the path, under the model as it is. On untrained models
    the scores of different sequences hardly differ.
    As published every record is shared under one of several policies at random (there: two); magnitudes have fixed
    signs here. Left out: the published privacy score is of a half-trained model, and its accuracy score has a fixed
    threshold in place of a share. The search is not private: which policy won says a little of the records.

    Raises ValueError on a setting out of range.
    """

    name: ClassVar[str] = "ats"
    summary: ClassVar[str] = "share augmented records, by the transforms whose gradients are hardest to match"
    source: ClassVar[str] = (
        "Gao et al.: Privacy-preserving collaborative learning with ATS, CVPR 2021 (arXiv 2011.12505)"
    )
    replaces_records: ClassVar[bool] = True
    adaptive: ClassVar[tuple[str, ...]] = ("untransform", "linkage", "released-linkage")
    unproven: ClassVar[str] = (
        "what an augmented picture tells of its record: most transforms of the policies can be undone"
    )

    candidates: int = 50
    policies: int = 2
    pictures: int = 8
    points: int = 5
    useful: float = 0.5
    chosen: tuple[Policy, ...] = state(())
    score: float | None = state()

    def __post_init__(self) -> None:
        for setting in ("candidates", "policies", "pictures", "points"):
            if getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be at least 1, not {getattr(self, setting)}.")
        if not 0 < self.useful <= 1:
            raise ValueError(f"useful must be above 0 and at most 1, not {self.useful}.")
        if self.policies > self.candidates:
            raise ValueError(f"policies must not exceed the {self.candidates} candidates, which {self.policies} does.")

    def fit(self, target: Target, generator: torch.Generator) -> Defense:
        """Search. Costs one pass and `pictures`·(`points` + 1) gradients of one record per useful candidate.

        Raises UserError where labels are masks.
        """
        if target.task.kind == "segmentation":
            raise UserError(f"ats moves pixels, and a mask would stay where it is: leave it out for {target.name}.")
        device = target.device
        order = torch.randperm(len(target.private), generator=generator, device=generator.device)
        records = target.private[order[:PROBES].to(target.private.labels.device)].to(device)
        shown = records[: self.pictures]
        noise = torch.rand(shown.images.shape, generator=generator, device=generator.device).to(device)
        names = list(library())
        need(1000 * self.candidates, f"{self.candidates} candidates", "candidates", torch.device("cpu"))
        drawn = torch.randint(len(names), (self.candidates, LENGTH), generator=generator, device=generator.device)
        found = [tuple(names[i] for i in row) for row in drawn.tolist()]
        untrained = target.fresh(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
        with in_mode(untrained, "eval"):
            useful = [accuracy_score(untrained, applied(policy, records.images)) for policy in _in_time(found)]
        keep = max(self.policies, round(self.useful * len(found)))
        found = [found[i] for i in sorted(range(len(found)), key=lambda i: -useful[i])[:keep]]
        scores: list[float] = []
        with in_mode(target.model, "eval"):
            for i in track("searching for transforms", len(found)):
                scores.append(privacy_score(target, found[i], shown, noise, self.points))
        best = sorted(range(len(scores)), key=lambda i: scores[i])[: self.policies]
        if not best:
            return replace(self, chosen=tuple(found[: self.policies]))
        return replace(self, chosen=tuple(found[i] for i in best), score=sum(scores[i] for i in best) / len(best))

    def transform_records(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Transform every record by one of the policies. Raises RuntimeError before `fit`."""
        if not self.chosen:
            raise RuntimeError("this defense has not been fitted: call fit(target, generator) first")
        which = torch.randint(len(self.chosen), (len(images),), generator=generator, device=generator.device)
        replaced = torch.zeros_like(images)
        for i, policy in enumerate(self.chosen):
            rows = (which == i).nonzero()[:, 0].to(images.device)
            replaced = replaced.index_copy(0, rows, applied(policy, images[rows]))
        return replaced, labels

    def facts(self, records: int, batch_size: int, steps: int) -> dict[str, str | float]:
        """State the policies, their privacy score, and that nothing is proven."""
        stated: dict[str, str | float] = {"privacy proven": "none"}
        if self.chosen:
            stated["policies"] = "; ".join(", ".join(policy) for policy in self.chosen)
        if self.score is not None:
            stated["privacy score (mean cosine along the path)"] = round(self.score, 4)
        return stated
