"""Who was in the client's set: what the owner of a fitted defense, or of a model trained on its release, can tell."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leakaudit.defenses._class_code import ClassCode, on_grid
from leakaudit.protocol.defense import Defense, parts_of
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.result.schema import Estimate
from leakaudit.score.identification import identify_by_scores
from leakaudit.score.nearness import nearest, rank_auc
from leakaudit.stats import intervals
from leakaudit.work.seeding import generator_for


@dataclass(frozen=True)
class Knowledge:
    """What one score of the owner of a generator's weights tells: who is in a line-up, and who was trained on."""

    by: str
    identification: Estimate
    auc: float
    records: int
    chance: float


def known_to_weights(defense: Defense, seen: Tensor, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return how well a fitted defense knows pictures (N, C, H, W), by name, (N,), either sign.

    The length of a picture's code, for a defense that has class codes; the loss of its `reference` classifier, if it
    keeps one; the distance to the nearest of all pictures it puts in a record's place, or where it does not keep them,
    of those `seen`, which were released.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for part in parts_of(defense):
            code = getattr(part, "code", None)
            if isinstance(code, ClassCode):
                small = on_grid(pictures, code.shape[1:]).to(code.centre)
                found["code"] = -code.encode(small.flatten(1), labels.to(code.centre.device)).norm(dim=1).cpu()
            logits = getattr(getattr(part, "reference", None), "logits", None)
            if callable(logits):
                found["reference"] = -nn.functional.cross_entropy(logits(pictures), labels, reduction="none")
            bank = getattr(getattr(part, "obscurer", None), "pictures", seen)
            if part.replaces_records and bank.shape[1:] == pictures.shape[1:]:
                found["pictures"] = -nearest(pictures.cpu(), bank.cpu())
    return found


def by_weights(
    target: Target, defense: Defense, released: Records, model: PixelModel, victims: int, candidates: int, seed: int
) -> list[Knowledge]:
    """Return what the owner of a fitted defense, and of a `model` trained on what it released, can tell of members.

    Every victim stands in a line-up of test pictures of its class, of which none was trained on. The scores are those
    of `known_to_weights` and the model's loss, an entry each; the sign is the better one by the area under the curve,
    chosen afterwards: that favours the attacker.
    """
    members, strangers = target.private, target.test
    inside = known_to_weights(defense, released.images, members.images, members.labels)
    outside = known_to_weights(defense, released.images, strangers.images, strangers.labels)
    with torch.no_grad():
        for known, records in ((inside, members), (outside, strangers)):
            parts = zip(torch.split(records.images, 256), torch.split(records.labels, 256), strict=True)
            moved = [(x.to(model.mean.device), y.to(model.mean.device)) for x, y in parts]
            losses = [nn.functional.cross_entropy(model(x), y, reduction="none") for x, y in moved]
            known["the trained model's loss"] = -torch.cat(losses).cpu()
    few = min(int((strangers.labels == c).sum()) for c in set(members.labels.tolist()))
    size, victims = min(candidates, few + 1), min(victims, len(members))
    generator, drawn = generator_for(seed, "outsiders"), []
    for label in members.labels[:victims].tolist():
        pool = (strangers.labels == label).nonzero().flatten()
        drawn.append(pool[torch.randperm(len(pool), generator=generator)[: size - 1]])
    position = torch.full((victims,), size - 1)
    found = []
    for name, scores in inside.items():
        auc = rank_auc(outside[name], scores).value or 0.0
        rows = torch.cat([outside[name][torch.stack(drawn)], scores[:victims, None]], 1)
        _, hit = identify_by_scores(rows if auc >= 0.5 else -rows, position)
        rate = intervals.rate(int(hit.sum()), victims)
        found.append(Knowledge(name, rate, max(auc, 1 - auc), victims, 1 / size))
    return found
