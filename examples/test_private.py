"""Privacy as a test: `pytest examples/test_private.py`, two minutes. A failing audit keeps its report in a folder.

In your own suite `model` and `train_data` are imported from the code you train.
"""

import pytest
import torch
from skimage.data import lfw_subset
from torch import nn
from torch.utils.data import TensorDataset

from leakaudit.testing import assert_private

train_data = TensorDataset(torch.from_numpy(lfw_subset()).float().unsqueeze(1), torch.arange(200) // 100)


def model() -> nn.Module:
    """Build the classifier of faces (0) and other pictures (1), each (1, 25, 25)."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Conv2d(8, 16, 5, stride=2, padding=2),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(16 * 7 * 7, 2),
    )


@pytest.mark.privacy  # `pytest -m "not privacy"` leaves the slow ones out
def test_obscured_updates_give_no_face_away() -> None:
    """The clients share gradients of drawn pictures: at most a quarter of the faces may be picked out."""
    assert_private(model, train_data, defense="obscure", max_identification=0.25)
