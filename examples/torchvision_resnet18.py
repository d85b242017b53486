"""torchvision's resnet18 with ten classes, on CIFAR-10. `leakaudit scan examples/torchvision_resnet18.py`"""

from _cifar10_data import CLASSES, MEAN, STD, part
from torch import nn
from torchvision.models import resnet18

mean, std, classes = MEAN, STD, CLASSES
train_data = part("private", 2000)
auxiliary_data = part("auxiliary", 1000)
test_data = part("test", 2000)
# augment = "crop, mirror"  # if you train so: accuracy is then measured so, too


def model() -> nn.Module:
    """Build the classifier. Add `--checkpoint weights.safetensors` to scan trained weights."""
    return resnet18(num_classes=10)
