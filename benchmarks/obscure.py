"""What the generators keep and hide on real CIFAR-10, beside defenses of the update.

    python -m benchmarks.obscure [--private 2000] [--seeds 1] [--epochs 15] [--defenses SPEC ...] [--json FILE]

Private records come from `cifar10_train_a`, the attacker's auxiliary ones from `cifar10_train_b`; accuracy is that of
networks trained from scratch on the shared updates, on `cifar10_test`. The attacker picks the record out of 100 of its
class: (update) by gradient similarity to a one-record update, knowing the defense; (x̃), for the generators, handed the
replaced record itself: by a fresh decoder, by pixels and reference features, and by the likelihood of its code. The
best attacker counts, chosen afterwards, which favours it: `class-conditional` shows what that gives for an empty x̃.
R² is the share of the variance beyond the class mean that the decoder explains. Memory is the area under the curve of
telling training records from test records by the length of their code in the generator's weights (.5: nothing
remembered); it takes the weights, and no update. It needs `../shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.inversion import DATA, load
from benchmarks.networks import CIFAR_MEAN, CIFAR_STD
from leakaudit.attacks.decoder import fit_decoder
from leakaudit.attacks.linkage import features_of, gradient_scores, released_scores, sum_of
from leakaudit.client import defended_gradient, release
from leakaudit.defense import Defense, parts_of, replaces_records
from leakaudit.defenses.generators import GeneratorNetwork
from leakaudit.identification import CandidateSets, candidate_sets, identify, identify_by_scores
from leakaudit.metrics import psnr
from leakaudit.registry import parse_defense
from leakaudit.seeding import derive, generator_for
from leakaudit.target import PixelModel, Records, Target
from leakaudit.utility import utility

DEFENSES = ("none", "gaussian", "prune", "dp-sgd", "class-conditional", "obscure")
CANDIDATES = 100
DRAWS = 4  # replacements of a candidate that the attacker averages


@dataclass(frozen=True)
class Row:
    """One defense. None: it replaces no record, so x̃ is x and the bound says nothing."""

    defense: str
    accuracy: float
    accuracies: tuple[float, ...]
    identified_update: float
    identified_released: float | None
    by_attacker: dict[str, float]
    decoder_r2: float | None
    decoder_psnr: float | None
    distance: float | None  # mean squared distance of x̃ from x over that of the class mean
    memory: float | None
    facts: dict[str, str | float]
    fit_seconds: float


def network(classes: int = 10) -> nn.Module:
    """Return a small ConvNet whose normalisation does not mix examples, so that DP-SGD can train it."""
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, classes))


def make_target(private: int, auxiliary: int, test: int, seed: int) -> Target:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "model"))
        model = PixelModel(network(), CIFAR_MEAN, CIFAR_STD)
    sets = (load("train_a")[:private], load("test")[:test], load("train_b")[:auxiliary])
    return Target("cifar10", model, F.cross_entropy, *sets, classes=tuple(map(str, range(10))))


def class_means(records: Records, classes: int) -> Tensor:
    return torch.stack([records.images[records.labels == c].mean(0) for c in range(classes)])


def by_update(target: Target, defense: Defense, line_up: CandidateSets, victims: Tensor, seed: int) -> float:
    """Return the share of one-record updates whose record the better gradient similarity finds."""
    found: dict[str, list[Tensor]] = {}
    for row, victim in enumerate(victims.tolist()):
        generator = generator_for(seed, "update", row)
        record = target.private[[victim]]
        replaced = release(defense, record, generator)
        shared = defended_gradient(target.model, target.loss, replaced.images, replaced.labels, defense, generator)
        shown = line_up.images(slice(row, row + 1))[0]
        scores = gradient_scores(target.model, target.loss, defense, shared, record.labels, shown, generator, 4)
        for name, values in scores.items():
            found.setdefault(name, []).append(values)
    position = line_up.position[: len(victims)]
    return max(float(identify_by_scores(torch.cat(each), position)[1].float().mean()) for each in found.values())


def code_scores(generator: GeneratorNetwork, released: Tensor, labels: Tensor, pictures: Tensor) -> Tensor:
    """Return log-likelihoods (N, M) of the code of x̃ under q(z | x_j) for candidates (N, M, C, H, W).

    Exact where the refiner is the identity, close where it changes little.
    """
    codes = generator.code.encode(released.flatten(1), labels)
    rows = []
    for code, label, shown in zip(codes, labels, pictures, strict=True):
        mean, variance = generator.posterior(shown, label.expand(len(shown)))
        rows.append(-0.5 * ((code - mean).square() / variance + variance.log()).sum(1))
    return torch.stack(rows)


def by_release(
    target: Target, defense: Defense, released: Tensor, guess: Tensor, line_up: CandidateSets, seed: int
) -> dict[str, float]:
    """Return the identification rate of every attacker who is handed x̃."""
    count = len(released)
    labels = target.private.labels[:count]
    found = {"decoder": float(identify(line_up, guess)[1].float().mean())}
    features = features_of(target.model, defense, released)
    rows: dict[str, list[Tensor]] = {}
    for i in range(count):
        shown = line_up.images(slice(i, i + 1))[0]
        told = Records(shown, labels[i].expand(len(shown)))
        draws = [
            features_of(target.model, defense, release(defense, told, generator_for(seed, "draws", i, k)).images)
            for k in range(DRAWS)
        ]
        mean = {name: torch.stack([d[name] for d in draws]).mean(0) for name in features}
        own = {name: value[i : i + 1] for name, value in features.items()}
        scores = released_scores(features_of(target.model, defense, shown), mean, own)
        scores["all"] = sum_of(scores, ())
        for name, values in scores.items():
            rows.setdefault(name, []).append(values)
    for name, each in rows.items():
        found[name] = float(identify_by_scores(torch.cat(each), line_up.position[:count])[1].float().mean())
    for part in parts_of(defense):
        generator = getattr(part, "network", None)
        if isinstance(generator, GeneratorNetwork) and generator.sizes.sees_records:
            with torch.no_grad():
                scores_of = code_scores(generator, released, labels, line_up.images(slice(0, count)))
            found["code"] = float(identify_by_scores(scores_of, line_up.position[:count])[1].float().mean())
    return found


def memory(defense: Defense, members: Records, others: Records) -> float | None:
    """Return the area under the curve of telling members from others by the length of their code, either way."""
    for part in parts_of(defense):
        generator = getattr(part, "network", None)
        if isinstance(generator, GeneratorNetwork):
            a, b = (generator.code.encode(r.images.flatten(1), r.labels).norm(dim=1) for r in (members, others))
            area = float((a[:, None] < b[None]).float().mean())
            return max(area, 1 - area)
    return None


def measure(spec: str, target: Target, *, records: int, updates: int, epochs: int, seeds: int, seed: int) -> Row:
    began = time.perf_counter()
    defense = parse_defense(spec).fit(target, generator_for(seed, "fit", spec))
    fitted = time.perf_counter() - began
    private = release(defense, target.private, generator_for(seed, "release", spec))
    trained = utility(target, defense, private, epochs=epochs, seeds=seeds, seed=seed)
    victims = torch.arange(records)
    line_up = candidate_sets(target.private, victims, target.test, CANDIDATES, generator_for(seed, "candidates"))
    truth, labels = target.private.images[:records], target.private.labels[:records]
    bound, r2, decoded, distance = {}, None, None, None
    if replaces_records(defense):
        means = class_means(target.private, len(target.classes))[labels]
        decoder = fit_decoder(defense, target.auxiliary, len(target.classes), generator_for(seed, "decoder"), steps=600)
        guess = decoder(private.images[:records], labels)
        spread = (truth - means).square().sum()
        r2 = float(1 - (truth - guess).square().sum() / spread)
        distance = float((truth - private.images[:records]).square().sum() / spread)
        decoded = float(psnr(truth, guess).median())
        bound = by_release(target, defense, private.images[:records], guess, line_up, seed)
    return Row(
        defense=spec,
        accuracy=sum(trained.accuracies) / len(trained.accuracies),
        accuracies=trained.accuracies,
        identified_update=by_update(target, defense, line_up, victims[:updates], seed),
        identified_released=max(bound.values()) if bound else None,
        by_attacker=bound,
        decoder_r2=r2,
        decoder_psnr=decoded,
        distance=distance,
        memory=memory(defense, target.private, target.test),
        facts=defense.facts(len(target.private), 32, epochs * (len(target.private) // 32)),
        fit_seconds=fitted,
    )


def text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--private", type=int, default=2000, help="private records")
    parser.add_argument("--auxiliary", type=int, default=1000, help="the attacker's records")
    parser.add_argument("--test", type=int, default=4000, help="test records")
    parser.add_argument("--records", type=int, default=100, help="records the x̃-handed attackers are asked about")
    parser.add_argument("--updates", type=int, default=32, help="one-record updates linked")
    parser.add_argument("--seeds", type=int, default=1, help="training runs per defense")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--defenses", nargs="+", default=DEFENSES, help="specs as of `leakaudit scan --defense`")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    if not DATA.is_dir():
        print(f"skipped: the CIFAR-10 pictures are not at {DATA}")
        return
    torch.set_num_threads(1)
    target = make_target(options.private, options.auxiliary, options.test, options.seed)
    print("defense             accuracy  id. by update  id. by x̃  decoder R²  PSNR dB  distance  memory  fit s")
    rows = []
    for spec in options.defenses:
        row = measure(
            spec,
            target,
            records=min(options.records, options.private),
            updates=min(options.updates, options.records, options.private),
            epochs=options.epochs,
            seeds=options.seeds,
            seed=options.seed,
        )
        rows.append(asdict(row))
        columns = (
            f"{spec:18s} {row.accuracy:9.1%} {row.identified_update:14.1%}",
            f"{text(row.identified_released, '.1%'):>9}",
            f"{text(row.decoder_r2, '.3f'):>11}",
            f"{text(row.decoder_psnr, '.1f'):>8}",
            f"{text(row.distance, '.2f'):>9}",
            f"{text(row.memory, '.2f'):>7} {row.fit_seconds:6.0f}",
        )
        print(" ".join(columns), flush=True)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
