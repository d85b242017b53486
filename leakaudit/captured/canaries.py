"""What a likelihood-ratio test shows at least of the ε of a claimed defense, played here with a canary.

A game of Jagielski et al. 2020 (arXiv 2006.07709): the claimed mechanism runs many times with a canary and without it,
an attacker who knows everything else guesses, and exact bounds on how often it is right bound ε from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from leakaudit.captured.form import CapturedUpdate
from leakaudit.captured.mechanism import Mechanism, defense_spec, mechanism_of
from leakaudit.captured.reading import client_of
from leakaudit.errors import OutOfTime
from leakaudit.protocol.accounting import gaussian_epsilon
from leakaudit.protocol.client import by_place, scaled_update_stage, sent
from leakaudit.protocol.defense import Defense, chain, parts_of
from leakaudit.protocol.federation import FEDSGD, Client
from leakaudit.protocol.gradients import Mode, parameters_of
from leakaudit.protocol.registry import parse_defense
from leakaudit.protocol.target import LossFunction, PixelModel, Records, Target
from leakaudit.result.claims import ClaimRow
from leakaudit.result.numbers import significant
from leakaudit.stats.intervals import rate
from leakaudit.work.progress import track

NOISES = ("noise_multiplier", "std")  # the settings of our own defenses that say how much noise they add
CONFIDENCE = 0.95
MOST_WORK = 5e6  # parameters times records times passes, of one update that is drawn 800 times
Play = Callable[[Defense, torch.Generator], Tensor]  # one update, flat, through a defense


@dataclass(frozen=True)
class Game:
    """Who plays: the model, its loss and mode, the client, and how many updates are drawn with the canary and without.

    Half of the `draws` choose the threshold, the other half are judged.
    """

    model: PixelModel
    loss: LossFunction
    mode: Mode = "eval"
    client: Client = FEDSGD
    draws: int = 1000
    classes: int = 0  # 0: as many as the model has outputs


def played(captured: CapturedUpdate, target: Target, source: str) -> tuple[ClaimRow, ...]:
    """Return the row of a canary where an ε is stated that the claimed defense can be played for; else none.

    The records are auxiliary ones: a guarantee holds for any. Raises UserError as `measure_claims` does.
    """
    claims = captured.claims
    spec = defense_spec(claims.settings) or claims.defense
    defense = parse_defense(spec) if spec else None
    claimed = mechanism_of(claims, defense)
    if claimed is None or claimed.epsilon is None or defense is None:
        return ()
    client = client_of(claims, source)
    records = target.auxiliary[: claims.records or claims.batch_size or 1]
    size = sum(p.numel() for p in parameters_of(target.model)[1])
    if size * len(records) * client.passes(len(records)) > MOST_WORK:
        row = ClaimRow(what="canary", mechanism=claimed.name, claimed=claimed.epsilon)
        return (replace(row, reason="The model is large: its canary is left to leakaudit.captured.canaries."),)
    mode: Mode = "train" if client.mode == "train" else "eval"
    game = Game(target.model, target.loss, mode, client, draws=400, classes=len(target.classes))
    return (canary_row(game, records, defense, claimed, torch.Generator().manual_seed(0)),)


def canary_row(
    game: Game, records: Records, defense: Defense, claimed: Mechanism, generator: torch.Generator
) -> ClaimRow:
    """Return the ε that is stated (or nothing) beside the one that the claimed `defense` has at least, at 95 %.

    Of a mechanism that acts on the update the canary is the client itself, which sends or sends nothing; of one in
    every step it is one record of `records`, under a label that is not its own, which is there or not. Several local
    steps with a canary inside are not played. It tests what the claimed settings are worth, not what a client did.
    """
    row = ClaimRow(
        what="canary", mechanism=claimed.name, claimed=claimed.epsilon, unit=f"at δ = {significant(claimed.delta)}"
    )
    if game.client.clients > 1 or game.client.rounds > 1:
        return replace(row, reason="One update of one client is played, not those of several.")
    if claimed.place == "step" and game.client.steps(len(records)) > 1:
        return replace(row, reason="A canary inside several local steps is not played.")
    if not any(getattr(part, name, None) is not None for part in parts_of(defense) for name in NOISES):
        return replace(row, reason="The claimed defense has no noise that could be played.")
    there, away = _plays(game, records, claimed)
    direction, middle = _direction(there, away, defense, generator)
    scores = []
    for play, name in ((there, "with the canary"), (away, "without the canary")):
        drawn = [float((play(defense, generator) - middle) @ direction) for _ in track(f"updates {name}", game.draws)]
        if len(drawn) < game.draws:
            raise OutOfTime("the time budget ended before the canary was played")
        scores.append(torch.tensor(drawn, dtype=torch.float64))
    least, gaussian = _bounds(scores[0], scores[1], claimed.delta)
    found = max(least, gaussian)
    what = (
        "a record under a wrong label"
        if claimed.place == "step"
        else "the client itself, against one that sends nothing"
    )
    why = (
        f"At least so much by a likelihood-ratio test, at {CONFIDENCE:.0%} confidence: the canary is {what}; "
        f"{game.draws} updates with it and as many without. Whatever the mechanism is, ε is at least "
        f"{significant(least)}; of a Gaussian one at least {significant(gaussian)}."
    )
    stated = claimed.epsilon is not None
    verdict = "broken" if stated and found > (claimed.epsilon or 0.0) else "cannot be told"
    return replace(row, measured=found, low=found, high=math.inf, verdict=verdict, reason=why)  # type: ignore[arg-type]


def _classes(game: Game, one: Tensor) -> int:
    """Return how many classes or label groups there are: as many as the game says, else as the model has outputs."""
    if game.classes:
        return game.classes
    with torch.no_grad():
        return int(game.model(one).shape[-1])


def _plays(game: Game, records: Records, claimed: Mechanism) -> tuple[Play, Play]:
    """Return what draws one update with the canary, and without it."""
    _, parameters = parameters_of(game.model)
    images, labels = records.images, records.labels.clone()

    def whole(defense: Defense, generator: torch.Generator) -> Tensor:
        return _flat(sent(game.model, game.loss, images, labels, defense, game.mode, generator, game.client)[0])

    def nothing(defense: Defense, generator: torch.Generator) -> Tensor:
        none = tuple(torch.zeros_like(p) for p in parameters)
        after = defense if claimed.place == "step" else by_place(defense)[1]
        return _flat(scaled_update_stage(after, none, len(labels), generator, game.client))

    if claimed.place == "update" or len(labels) == 1:
        return whole, nothing
    labels[-1] = (labels[-1] + 1) % _classes(game, images[:1])
    share = (len(labels) - 1) / len(labels)  # of a sum over one record less, divided by as many, noise and all

    def without(defense: Defense, generator: torch.Generator) -> Tensor:
        x, y = images[:-1], labels[:-1]
        own = replace(game.client, batch_size=0) if game.client.local else game.client
        return share * _flat(sent(game.model, game.loss, x, y, defense, game.mode, generator, own)[0])

    return whole, without


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.detach().double().cpu().flatten() for g in gradients])


def _silent(defense: Defense) -> Defense:
    """Return a defense without its noise."""
    return chain(*(replace(p, **{f.name: 0.0 for f in fields(p) if f.name in NOISES}) for p in parts_of(defense)))


def _direction(there: Play, away: Play, defense: Defense, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the unit vector between the two updates without noise, and the point in the middle between them.

    For Gaussian noise the projection on it is the likelihood ratio. Where batches are drawn it is that of the means.
    """
    silent = _silent(defense)
    first, second = (torch.stack([play(silent, generator) for _ in range(4)]).mean(0) for play in (there, away))
    apart = first - second
    return apart / apart.norm().clamp_min(1e-30), (first + second) / 2


def _bounds(present: Tensor, absent: Tensor, delta: float) -> tuple[float, float]:
    """Return the lower bounds on ε from scores with and without the canary: of any mechanism, and of a Gaussian one.

    (ε, δ)-DP has TPR ≤ e^ε FPR + δ and the same of the other errors (Kairouz et al. 2015); the shares are taken at
    their Clopper-Pearson bounds, each of which fails once in forty. Those of Gaussian noise are apart by a shift μ of
    at least Φ⁻¹(TPR) − Φ⁻¹(FPR), which has an exact ε (Nasr et al. 2023, arXiv 2302.07956).
    """
    half = len(present) // 2
    tried = torch.tensor(sorted({*present[:half].tolist(), *absent[:half].tolist()}), dtype=torch.float64)
    tried = (tried[1:] + tried[:-1]) / 2 if len(tried) > 1 else tried
    tried = tried[:: max(1, len(tried) // 200)]
    best = [max(tried.tolist(), key=lambda t: _at(present[:half], absent[:half], t, delta)[k]) for k in (0, 1)]
    found = [_at(present[half:], absent[half:], t, delta)[k] for k, t in enumerate(best)]
    return found[0], gaussian_epsilon(found[1], delta) if found[1] > 0 else 0.0


def _at(present: Tensor, absent: Tensor, threshold: float, delta: float) -> tuple[float, float]:
    """Return the bounds of one threshold: on ε, and on the shift between Gaussian scores."""
    from scipy.special import ndtri

    yes = rate(int((present > threshold).sum()), len(present))
    false = rate(int((absent > threshold).sum()), len(absent))
    hits, wrong = yes.low or 0.0, 1.0 if false.high is None else false.high
    shift = float(ndtri(hits) - ndtri(wrong)) if hits > 0 and wrong < 1 else 0.0
    return max(0.0, _log(hits - delta, wrong), _log(1 - wrong - delta, 1 - hits)), shift


def _log(above: float, below: float) -> float:
    return math.log(above / below) if above > 0 and below > 0 else 0.0
