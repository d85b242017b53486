"""Labels as indices or probabilities: one loss takes both, and the record stage may give either."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from leakaudit.protocol.client import release, share
from leakaudit.protocol.defense import Defense
from leakaudit.protocol.exposure import Exposure
from leakaudit.protocol.gradients import mean_gradient
from leakaudit.protocol.labels import expected_loss, hard, soft
from leakaudit.protocol.target import PixelModel, Records, Target
from leakaudit.score.utility import Senders, utility


def focal(logits, labels):
    """A loss that takes indices alone: log_softmax to a power is not linear in a probability."""
    picked = F.log_softmax(logits, 1).gather(1, labels[:, None])
    return (-picked * (1 - picked.exp()) ** 2).mean()


def test_cross_entropy_takes_probabilities_itself(generator):
    logits = torch.randn(5, 4, generator=generator)
    labels = torch.tensor([0, 3, 1, 1, 2])
    assert expected_loss(F.cross_entropy) is F.cross_entropy
    assert torch.allclose(F.cross_entropy(logits, soft(labels, 4)), F.cross_entropy(logits, labels))
    assert hard(soft(labels, 4)).tolist() == hard(labels).tolist() == labels.tolist()


def test_any_other_loss_is_averaged_over_labels_drawn_from_the_probabilities(generator):
    logits, p = torch.randn(3, 4, generator=generator), torch.rand(3, 4, generator=generator)
    p = p / p.sum(1, keepdim=True)
    loss = expected_loss(focal)
    assert torch.equal(loss(logits, torch.tensor([0, 1, 2])), focal(logits, torch.tensor([0, 1, 2])))
    drawn = torch.multinomial(p, 40_000, replacement=True, generator=generator)
    empirical = torch.stack([focal(logits, y) for y in drawn.T[:4000]]).mean()
    assert abs(float(loss(logits, p)) - float(empirical)) < 0.05 * float(empirical)
    plain = expected_loss(lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1))
    native = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert expected_loss(native) is native
    assert torch.allclose(plain(logits, p), native(logits, p), atol=1e-6)


@dataclass(frozen=True, kw_only=True)
class Softened(Defense):
    """Replaces pictures by noise and labels by probabilities, anew each time it is asked."""

    replaces_records = True

    def transform_records(self, images, labels, generator):
        """Draw noise."""
        return torch.rand(images.shape, generator=generator), 0.5 * soft(labels, 3) + 0.5 / 3

    @property
    def renewable(self):
        """Noise says nothing of a record, however often it is drawn."""
        return True


@dataclass(frozen=True, kw_only=True)
class Counted(Softened):
    """The same, and it remembers how often."""

    calls: list

    def transform_records(self, images, labels, generator):
        """Count, then draw."""
        found = super().transform_records(images, labels, generator)
        self.calls.append(float(found[0].sum()))
        return found


def _target(generator):
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    records = Records(torch.rand(24, 1, 4, 4, generator=generator), torch.arange(24) % 3)
    return Target("t", model, F.cross_entropy, records, records, records, ("a", "b", "c"))


def test_probabilities_reach_the_update(generator):
    target = _target(generator)
    released = release(Softened(), target.private, generator)
    shared = share(
        target.model,
        target.loss,
        released,
        Softened(),
        Exposure(labels=True),
        batch_size=2,
        classes=3,
        mode="eval",
        generator=generator,
    )
    assert shared.labels.shape == (12, 2, 3)
    wanted = mean_gradient(target.model, target.loss, released.images[2:4], released.labels[2:4])
    assert torch.allclose(shared.gradients[0][1], wanted[0])


def test_a_renewable_defense_is_drawn_anew_each_epoch_and_the_same_for_the_same_seed(generator):
    target, runs = _target(generator), []
    for _ in range(2):
        defense = Counted(calls=[])
        utility(target, defense, target.private, senders=Senders(8), epochs=3, seeds=1, seed=0)
        runs.append(defense.calls)
    assert len(set(runs[0])) == 2  # the first epoch has the records it was given
    assert runs[0] == runs[1]
