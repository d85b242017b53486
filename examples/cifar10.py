"""A small ConvNet on CIFAR-10. `leakaudit scan examples/cifar10.py --defense obscure`"""

from _cifar10_data import CLASSES, MEAN, STD, part
from torch import nn

# The data comes normalised, as the model takes it; with mean and std the audit works in pixels.
mean, std, classes = MEAN, STD, CLASSES
train_data = part("private", 2000)
auxiliary_data = part("auxiliary", 1000)  # what an adversary might own
test_data = part("test", 2000)
# augment = "crop, mirror"  # if you train so: accuracy is then measured so, too


def model() -> nn.Module:
    """Build the classifier: three stages of convolution, BatchNorm and pooling."""

    def stage(channels: int, wider: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, wider, 3, padding=1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]

    return nn.Sequential(*stage(3, 32), *stage(32, 64), *stage(64, 128), nn.Flatten(), nn.Linear(128 * 4 * 4, 10))
