"""The smallest thing to scan: a CNN on the 200 pictures inside scikit-image. `leakaudit scan examples/minimal.py`"""

import torch
from skimage.data import lfw_subset
from torch import nn
from torch.utils.data import TensorDataset

images = torch.from_numpy(lfw_subset()).float().unsqueeze(1)  # (200, 1, 25, 25) in [0, 1]: 100 faces, 100 others
labels = torch.arange(200) // 100

train_data = TensorDataset(images, labels)
classes = ["face", "other"]


def model() -> nn.Module:
    """Build the classifier. A function rather than an object lets every training run start afresh."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 2),
    )
