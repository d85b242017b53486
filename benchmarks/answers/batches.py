"""Updates of several records: which candidates are in one, and how often each class is, beside published rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.answers.situation import Outcome, Situation, pictures
from benchmarks.networks import build, trained_resnet20
from leakaudit.attacks._labels import Head, find_head
from leakaudit.attacks.labels import Labels
from leakaudit.attacks.linkage import Linkage
from leakaudit.audit.attacking import repeated
from leakaudit.protocol.client import SharedUpdate, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.federation import Client, parse_client
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.result.numbers import interval, percent, significant
from leakaudit.score.identification import candidate_sets, identify_by_scores
from leakaudit.stats.intervals import rate_of_clients
from leakaudit.work.seeding import generator_for

FIRST, LAST = 1100, 3000  # of the test pictures that are attacked, or stand beside: nothing was tuned on them
AUXILIARY = 1000  # of training file a, the adversary's own
LINE_UP = 20
ALARMS = 0.005  # of the adversary's own candidates beyond the threshold, which at most twice as many others may pass
GAP = 0.25  # of the way from there to the median of its own records, at which the threshold stands
KNOWS = Exposure(defense=True, auxiliary=True)
LOCAL = "fedavg:epochs=2:batch=8:lr=0.05"


def network(name: str) -> PixelModel:
    """Return an untrained network, or the trained ResNet-20."""
    return trained_resnet20() if name == "resnet20" else build(name).eval()


def updates(
    model: PixelModel, records: Records, batch: int, client: Client, who: str, own: int = AUXILIARY
) -> SharedUpdate:
    """Return what undefended clients of `batch` records each send in eval mode."""
    return share(
        model, F.cross_entropy, records, Defense(), KNOWS,
        batch_size=batch, classes=10, mode="eval", generator=generator_for(0, "batches", who),
        auxiliary=pictures("train_a")[:own], client=client,
    )  # fmt: skip


def asked(
    model: PixelModel, records: Records, batch: int, clients: int, client: Client, who: str, own: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return linkage's scores (N, M) of line-ups for N records in batches, the record's place, and whether it is there.

    Every other line-up holds none of the update's records: another of the class stands in its place.
    """
    private, pool = records[: clients * batch], records[clients * batch :]
    generator = generator_for(0, "batches", who, "line-ups")
    every = torch.arange(len(private))
    sets = candidate_sets(private, every, pool, LINE_UP, generator, batch_size=batch)
    present = every % 2 == 0
    indices = sets.indices.clone()
    for i in every[~present].tolist():
        alike = (pool.labels == private.labels[i]).nonzero()[:, 0] + len(private)
        others = alike[~torch.isin(alike, indices[i])]
        indices[i, sets.position[i]] = others[torch.randint(len(others), (1,), generator=generator)[0]]
    sets = replace(sets, indices=indices)
    update = repeated(updates(model, private, batch, client, who, own), batch)
    update = replace(update, candidate_labels=sets.image_labels())
    found = Linkage().link(model, update, sets.images(), generator_for(0, "batches", "attack"))
    assert found.linkage is not None
    return found.linkage, sets.position, present


def detected(name: str, batch: int, clients: int, client: str, quick: bool) -> Outcome:
    """Return the share of records found beyond a threshold that the adversary set on batches of its own."""
    model, how, count, few = network(name), parse_client(client), 2 if quick else clients, 160 if quick else AUXILIARY
    scores, position, present = asked(model, pictures("train_b")[:4000], batch, count, how, "own", few)
    wrong = torch.ones_like(scores, dtype=torch.bool).scatter_(1, position[:, None], False)
    limit, own = float(torch.quantile(scores[wrong].double(), 1 - ALARMS)), scores[~wrong & present[:, None]]
    limit += GAP * max(0.0, float(own.median()) - limit)
    scores, position, present = asked(model, pictures("test")[FIRST:LAST], batch, count, how, "victims", few)
    beyond = scores > limit
    true = beyond.gather(1, position[:, None])[:, 0]
    hits = [true[i : i + batch][present[i : i + batch]].tolist() for i in range(0, len(true), batch)]
    false = beyond.clone()
    false[present, position[present]] = False
    counted = torch.ones_like(false)
    counted[present, position[present]] = False
    alarms = [false[i : i + batch][counted[i : i + batch]].tolist() for i in range(0, len(true), batch)]
    _, first = identify_by_scores(scores[present], position[present])
    found, alarm = rate_of_clients(hits), rate_of_clients(alarms)
    assert found.value is not None
    assert alarm.value is not None
    said = (
        f"{percent(found.value)} ({interval(found)}) of {found.n} records of {count} clients at "
        f"{significant(100 * alarm.value, 2)} % false alarms ({interval(alarm)}) of {alarm.n}; "
        f"first of {LINE_UP} of the class: {percent(float(first.float().mean()))}"
    )
    return Outcome(found.value if alarm.value <= 2 * ALARMS else 0.0, said)


def told(found: Tensor, truth: Tensor) -> float:
    """Return the share of labels (V, B) right, as multisets."""
    bags = zip(found.tolist(), truth.tolist(), strict=True)
    return sum((Counter(a) & Counter(b)).total() for a, b in bags) / truth.numel()


def yin(weight: Tensor, bias: Tensor, batch: int) -> Tensor:
    """Return labels (B,) by the least entry of each row of ∂W (K, D), Yin et al. 2021, eq. 6; classes do not repeat."""
    order = weight.amin(1).argsort()
    return order[torch.arange(batch) % len(order)]


def llg(weight: Tensor, bias: Tensor, batch: int) -> Tensor:
    """Return labels (B,) of LLG, Wainakh et al. 2021, algorithm 1, from the gradient alone.

    Every class whose row sum is negative is in the batch; each record adds m = (1 + 1/K) Σ min(g, 0) / B.
    """
    left = weight.sum(1).clone()
    impact = (1 + 1 / len(left)) * left.clamp_max(0).sum() / batch
    labels = left.argsort()[: int((left < 0).sum())].tolist()[:batch]
    left[labels] -= impact
    while len(labels) < batch:
        labels.append(int(left.argmin()))
        left[labels[-1]] -= impact
    return torch.tensor(labels)


def ilrg(weight: Tensor, bias: Tensor, batch: int, model: PixelModel, head: Head) -> Tensor:
    """Return labels (B,) of iLRG, Ma et al. 2023: Σ_j n_j p_j − n = B ∂b for counts n, p_j of the feature ∂W_j/∂b_j."""
    features = weight.double() / bias.double()[:, None]
    chances = head.at.given(features).softmax(1).nan_to_num(1 / len(bias))
    system = torch.cat([chances.T - torch.eye(len(bias)).to(chances), torch.ones(1, len(bias)).to(chances)])
    given = torch.cat([batch * bias.double(), torch.tensor([float(batch)]).to(chances)])
    wanted = (torch.linalg.pinv(system) @ given).clamp_min(0)
    wanted = wanted * batch / wanted.sum().clamp_min(1e-12)
    counts = wanted.floor()
    for _ in range(batch - int(counts.sum())):
        counts[int((wanted - counts).argmax())] += 1
    return torch.arange(len(bias)).repeat_interleave(counts.long())


def rules(model: PixelModel, update: SharedUpdate) -> dict[str, Tensor]:
    """Return what published rules say of the labels (V, B), by name."""
    head = find_head(model, update, pictures("train_a")[:64].images, by_class=True)
    assert head is not None
    weights, biases = head.gradients(update.gradients)
    assert biases is not None
    size, rows = update.batch_size, list(zip(weights, biases, strict=True))
    return {
        "Yin": torch.stack([yin(w, b, size) for w, b in rows]),
        "LLG": torch.stack([llg(w, b, size) for w, b in rows]),
        "iLRG": torch.stack([ilrg(w, b, size, model, head) for w, b in rows]),
    }


def counted(name: str, client: str, quick: bool) -> Outcome:
    """Return the share of labels told at the largest batch, and of each batch size beside published rules."""
    model, how, said, last = network(name), parse_client(client), [], 0.0
    for batch in (8,) if quick else (8, 32, 64):
        clients = 2 if quick else 12
        truth = pictures("test")[FIRST : FIRST + clients * batch]
        update = updates(model, truth, batch, how, "labels")
        found = Labels()(model, update, generator_for(0, "batches", "labels"))
        assert found.labels is not None
        labels = truth.labels.view(clients, batch)
        last = told(found.labels, labels)
        others = ", ".join(f"{rule} {told(each, labels):.3f}" for rule, each in rules(model, update).items())
        said.append(f"B = {batch}: {last:.3f} ({others})")
    return Outcome(last, "; ".join(said))


LABELS = "Yin et al. 2021, LLG (Wainakh et al. 2021), iLRG (Ma et al. 2023), from their formulas on the same updates"
LINKED = "goal of this project; threshold set on the adversary's own batches, half of the line-ups hold no record"

SITUATIONS = (
    Situation(
        "linkage, batches of 8, untrained CNN", None, "share of records", LINKED,
        partial(detected, "cnn6", 8, 32, "fedsgd"), goal=0.8,
    ),
    Situation(
        "linkage, batches of 32, untrained CNN", None, "share of records", LINKED,
        partial(detected, "cnn6", 32, 12, "fedsgd"), goal=0.8,
    ),
    Situation(
        "linkage, batches of 8, trained ResNet-20", None, "share of records", LINKED,
        partial(detected, "resnet20", 8, 32, "fedsgd"),
    ),
    Situation(
        "linkage, batches of 8, local steps", None, "share of records", LINKED,
        partial(detected, "cnn6", 8, 16, LOCAL), goal=0.8,
    ),
    Situation(
        "label counts, local steps, untrained CNN", None, "share of labels", LABELS, partial(counted, "cnn6", LOCAL)
    ),
    Situation(
        "label counts, local steps, adam", None, "share of labels", LABELS,
        partial(counted, "cnn6", "fedavg:epochs=2:batch=8:lr=0.001:optimizer=adam"),
    ),
    Situation(
        "label counts, local steps, trained ResNet-20", None, "share of labels", LABELS,
        partial(counted, "resnet20", LOCAL),
    ),
    Situation(
        "label counts, one step, trained ResNet-20", None, "share of labels", LABELS,
        partial(counted, "resnet20", "fedsgd"),
    ),
)  # fmt: skip
