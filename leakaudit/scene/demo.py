"""`leakaudit demo`: scikit-image's 200 embedded 25×25 pictures (100 faces, 100 others), a small CNN, a whole audit."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from leakaudit.load.loading import target_from_objects
from leakaudit.protocol.target import Target
from leakaudit.result.outward import default_images
from leakaudit.result.schema import Images
from leakaudit.scene.plan import Plan
from leakaudit.score.utility import train
from leakaudit.work.progress import stage
from leakaudit.work.seeding import derive, forked, generator_for

CLASSES = ("not a face", "face")


def faces() -> tuple[Tensor, Tensor]:
    """Return the pictures (200, 1, 25, 25) in [0, 1] and labels (200,), 1 for a face. Ships inside scikit-image."""
    from skimage.data import lfw_subset

    images = torch.from_numpy(lfw_subset()).float().unsqueeze(1)
    return images, torch.cat([torch.ones(100, dtype=torch.long), torch.zeros(100, dtype=torch.long)])


def network() -> nn.Module:
    """Return a small face classifier for 25×25 grey pictures; about 8,000 weights, trained from scratch."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2, padding=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(12, 16, 5, stride=2, padding=2),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 2),
    )


def demo_target(seed: int = 0, device: str = "cpu") -> Target:
    """Return the demo's target: 110 private, 40 test and 50 auxiliary pictures, and the CNN trained on the private.

    Sets one thread: a network this small gains nothing from more, and loses much where other work holds the cores.
    """
    torch.set_num_threads(1)
    images, labels = faces()
    order = torch.randperm(len(labels), generator=generator_for(seed, "demo", "split"))
    private, test, auxiliary = (TensorDataset(images[i], labels[i]) for i in torch.split(order, [110, 40, 50]))
    with forked(derive(seed, "demo", "weights")):
        built = network()
    target = target_from_objects(
        built,
        private,
        test_data=test,
        auxiliary_data=auxiliary,
        classes=CLASSES,
        device=device,
        seed=seed,
        name="demo (lfw_subset)",
        factory=network,
    )
    stage(f"training a small CNN on {len(target.private)} pictures")
    train(target.model, target.private, target.loss, epochs=3, seed=seed)
    return target


def demo_plan(seed: int = 0, images: Images | None = None) -> Plan:
    """Return the demo's settings: small enough to end within three minutes of one core. `images`: by CI where None."""
    return Plan(
        defenses=("gaussian", "prune", "obscure"),
        battery="quick",
        records=16,
        images=images or default_images(),
        seed=seed,
        seeds=3,
        epochs=15,
    )
