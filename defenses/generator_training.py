"""How generators are trained: distances between sets of features, feature networks, and the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from leakaudit.defenses.gaussian import normal_like
from leakaudit.defenses.generators import (
    FeatureNetwork,
    GeneratorNetwork,
    Sizes,
    kl,
    latent_of,
    records_on_grid,
)
from leakaudit.progress import expired, track
from leakaudit.target import Records, Target

CLASSES_PER_STEP = 10
EPOCHS = (1, 2, 4)  # of the networks trained a little, in passes over the records and their mirror images
PER_CLASS = 12  # records of each, half of them with two draws of x̃
Scores = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Weights:
    """The weight of every term of the objective; zero leaves a term out."""

    predictive: float
    moments: float
    features: float = 0.0
    distance: float = 0.0
    adversary: float = 0.0
    rate: float = 0.0  # nats allowed without a price
    kl: float = 0.0


def seeded_module(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build a module whose initial weights come from `generator`, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        return build()


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return Euclidean distances (G, n, m) between rows of a (G, n, d) and b (G, m, d), smooth at zero."""
    squares = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - 2 * torch.bmm(a, b.transpose(1, 2))
    return squares.clamp_min(1e-8).sqrt()


def energy_distance(fake: Tensor, real: Tensor) -> Tensor:
    """Return the part that depends on `fake` of the energy distance between sets (G, n, d) and (G, m, d), mean over G.

    2 E‖f − r‖ − E‖f − f′‖ over distinct pairs: its expectation is least where the two distributions agree
    (Székely and Rizzo 2013), means and spread alike, and small sets do not bias it.
    """
    n = fake.shape[1]
    off = ~torch.eye(n, dtype=torch.bool, device=fake.device)
    return 2 * distances(fake, real).mean() - distances(fake, fake)[:, off].mean()


def energy_score(first: Tensor, second: Tensor, real: Tensor) -> Tensor:
    """Return the energy score of two draws given a record against that record's own features, each (N, d).

    E‖f − r‖ − ½ E‖f − f′‖ is least for f ~ p(r | z): a squared error would instead be least for the blurred mean.
    """

    def norm(x: Tensor) -> Tensor:
        return x.square().sum(1).clamp_min(1e-8).sqrt()

    return (0.5 * (norm(first - real) + norm(second - real)) - 0.5 * norm(first - second)).mean()


def mean_gap(fake: Tensor, real: Tensor) -> Tensor:
    """Return ‖E[h(x̃)|c] − E[h(x)|c]‖² estimated without bias from sets (G, n, d) and (G, m, d), mean over G.

    The squared mean over one small set would also penalise its spread; the product of two halves does not.
    """
    half = fake.shape[1] // 2
    wanted = real.mean(1)
    return ((fake[:, :half].mean(1) - wanted) * (fake[:, half:].mean(1) - wanted)).sum(1).mean()


def feature_network(records: Records, classes: int, epochs: int, generator: torch.Generator) -> FeatureNetwork:
    """Return a frozen feature network: random with calibrated BatchNorm, or trained `epochs` on the records."""
    channels, *grid = records.images.shape[1:]
    network = seeded_module(lambda: FeatureNetwork(channels, (grid[0], grid[1]), classes), generator)
    assert isinstance(network, FeatureNetwork)
    network.to(records.images.device)

    def order() -> Tensor:
        return torch.randperm(len(records), generator=generator, device=generator.device).to(records.labels.device)

    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(epochs):
        for chosen in torch.split(order(), 64):
            if len(chosen) > 1 and not expired():
                loss = F.cross_entropy(network.logits(records.images[chosen]), records.labels[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    if not epochs:
        with torch.no_grad():
            for chosen in torch.split(order()[:1024], 256):
                if len(chosen) > 1:
                    network(records.images[chosen])
    return network.eval().requires_grad_(False)


def _coin(generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator, device=generator.device) < 0.5)


class CodeAdversary(nn.Module):
    """D_ψ: guesses a record's whitened code from x̃ and its label."""

    def __init__(self, channels: int, classes: int, latent: int, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.label = nn.Embedding(classes, 2 * width)
        self.hidden = nn.Linear(2 * width * 16, 128)
        self.leave = nn.Linear(128, latent)

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Return guesses (N, k)."""
        h = F.leaky_relu(self.enter(2 * pictures - 1), 0.2)
        h = F.leaky_relu(self.middle(h) + self.label(labels)[:, :, None, None], 0.2)
        guess: Tensor = self.leave(F.leaky_relu(self.hidden(F.adaptive_avg_pool2d(h, 4).flatten(1)), 0.2))
        return guess


def shifted(pictures: Tensor, flip: bool, dx: int, dy: int) -> Tensor:
    """Flip and roll pictures: the same for made and real ones, as differentiable augmentation needs."""
    return torch.roll(pictures.flip(3) if flip else pictures, (dy, dx), (2, 3))


def stratified(records: Records, generator: torch.Generator) -> tuple[Tensor, int]:
    """Return indices of `PER_CLASS` records of each of up to ten classes, class by class, and how many classes."""
    present = torch.unique(records.labels)
    device = generator.device
    order = torch.randperm(len(present), generator=generator, device=device)[:CLASSES_PER_STEP]
    rows = []
    for c in present[order.to(present.device)].sort().values:
        mine = (records.labels == c).nonzero().flatten()
        shuffled = torch.randperm(len(mine), generator=generator, device=device).to(mine.device)
        rows.append(mine[shuffled.repeat(-(-PER_CLASS // len(mine)))[:PER_CLASS]])
    return torch.cat(rows), len(rows)


def train_generator(
    target: Target,
    *,
    sees_records: bool,
    weights: Weights,
    steps: int,
    latent: int,
    width: int,
    rate: float,
    mirror: bool,
    shared: float,
    generator: torch.Generator,
    label: str,
) -> tuple[GeneratorNetwork, FeatureNetwork]:
    """Fit a generator on `target.private`; return it, frozen, with the reference network its features came from.

    The time budget may end the training early; what was learned until then is returned. `rate` nats is met exactly
    as a mean over the private records afterwards, whatever the training left. With `mirror` a record's mirror image
    counts as another record of its class.
    """
    channels, height, wide = target.input_shape
    sizes = Sizes(
        channels, height, wide, len(target.classes), latent_of(latent, len(target.private)), width, sees_records
    )
    network = seeded_module(lambda: GeneratorNetwork(sizes), generator)
    assert isinstance(network, GeneratorNetwork)
    network.to(target.device)
    records = records_on_grid(
        Records(target.private.images.to(target.device), target.private.labels.to(target.device)), network.grid
    )
    shown = records
    if mirror:
        both = torch.cat([records.images, records.images.flip(3)])
        shown = Records(both, records.labels.repeat(2))
    network.code.measure(shown.images.flatten(1), shown.labels, generator, shared)
    nets = [feature_network(shown, sizes.classes, epochs, generator) for epochs in EPOCHS]
    _optimise(network, records, nets, weights, steps, mirror, generator, label)
    if sees_records:
        limit_rate(network, records, rate)
    return network.eval().requires_grad_(False), nets[-1]


def _optimise(
    network: GeneratorNetwork,
    records: Records,
    nets: Sequence[FeatureNetwork],
    weights: Weights,
    steps: int,
    mirror: bool,
    generator: torch.Generator,
    label: str,
) -> None:
    sizes = network.sizes
    adversary = seeded_module(lambda: CodeAdversary(sizes.channels, sizes.classes, sizes.latent), generator)
    adversary.to(records.images.device)
    gates = [p for name, p in network.named_parameters() if name == "gate"]
    others = [p for name, p in network.named_parameters() if name != "gate"]
    optimiser = torch.optim.Adam([{"params": others, "peak": 1e-3}, {"params": gates, "peak": 3e-2}], betas=(0.5, 0.99))
    hunter = torch.optim.Adam(adversary.parameters(), lr=1e-3)
    scatter = torch.stack(
        [records.images[records.labels == c].var(0, correction=0).mean() for c in torch.unique(records.labels)]
    ).mean()
    fresh = feature_network(records, sizes.classes, 0, generator)
    for step in track(label, steps):
        if step and step % 50 == 0:
            fresh = feature_network(records, sizes.classes, 0, generator)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / 20, max(0.02, 2 * (1 - step / steps)))
        pool = [fresh, *nets]
        judge = pool[step % len(pool)]
        chosen, groups = stratified(records, generator)
        x, y = records.images[chosen], records.labels[chosen]
        half = torch.arange(len(y), device=y.device).view(groups, 2, -1)[:, 0].flatten()
        x1, y1 = x[half], y[half]
        y2 = torch.cat([y1, y1])
        price = x.new_zeros(())
        gated = step % 2 == 0
        if sizes.sees_records:
            if gated:
                mean, variance = network.posterior(x1, y1)
                price = weights.kl * (kl(mean, variance).mean() - weights.rate).clamp_min(0)
            else:
                # Any rate between none and all: so that the decoder learns from pairs what a code should look like.
                level = torch.rand(len(y1), 1, generator=generator, device=generator.device).to(x)
                mean, variance = level * network.codes(x1, y1), (1 - level.square()).expand(-1, sizes.latent)
            codes = mean.repeat(2, 1) + variance.sqrt().repeat(2, 1) * normal_like(mean.repeat(2, 1), generator)
        else:
            codes = normal_like(x.new_empty(len(y2), sizes.latent), generator)
        raw = network.decode(codes, y2)
        made = raw.clamp(0, 1)
        price = price + 10 * (raw - made).square().mean()
        flip, dx, dy = mirror and _coin(generator), *_shift(generator)
        seen = judge.maps(shifted(made, flip, dx, dy))
        with torch.no_grad():
            wanted = judge.maps(shifted(x, flip, dx, dy))
        for f, r in zip(seen, wanted, strict=True):
            scale = (r - r.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-6)
            first, second = (f / scale).chunk(2)
            both = torch.cat([first.view(groups, -1, f.shape[1]), second.view(groups, -1, f.shape[1])], 1)
            real = (r / scale).view(groups, -1, f.shape[1])
            price = price + weights.moments * (energy_distance(both, real) + mean_gap(both, real))
            if sizes.sees_records and weights.features:
                price = price + weights.features * energy_score(first, second, r[half] / scale)
        price = price + weights.predictive * F.cross_entropy(nets[-1].logits(made), y2)
        if sizes.sees_records and gated:
            gap = (made - x1.repeat(2, 1, 1, 1)).square().mean() / scatter.clamp_min(1e-8)
            price = price + weights.distance * (1 - gap).clamp_min(0)
            truth = network.code.encode(x1.flatten(1), y1).repeat(2, 1)
            if weights.adversary:
                for _ in range(3):
                    hunter.zero_grad()
                    F.mse_loss(adversary(made.detach(), y2), truth).backward()  # type: ignore[no-untyped-call]
                    hunter.step()
                error = F.mse_loss(adversary(made, y2), truth) / truth.square().mean()
                price = price + weights.adversary * (1 - error).clamp_min(0)
        optimiser.zero_grad()
        price.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()


def _shift(generator: torch.Generator) -> tuple[int, int]:
    dx, dy = torch.randint(-3, 4, (2,), generator=generator, device=generator.device).tolist()
    return dx, dy


@torch.no_grad()
def limit_rate(network: GeneratorNetwork, records: Records, rate: float) -> None:
    """Close the gates together, by bisection, until the mean rate over `records` is at most `rate` nats."""
    learned = torch.sigmoid(network.gate)

    def mean_rate(share: float) -> float:
        network.gate.copy_(torch.logit((share * learned).clamp(1e-6, 1 - 1e-6)))
        return float(network.rates(records.images, records.labels).mean())

    if mean_rate(1.0) <= rate:
        return
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rate(middle) <= rate else (low, middle)
    mean_rate(low)
