"""The exact known answers count honestly: what is out of reach, and what is certified but wrong."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.answers.exact import Count, counted, reach
from leakaudit.protocol.attack import Reconstruction
from leakaudit.protocol.target import PixelModel, Records


def model_that_fires(rows: list[list[int]]) -> tuple[PixelModel, torch.Tensor]:
    """Return a model with a unit for each column, and pictures that fire the units of their row."""
    fires = torch.tensor(rows).float()
    first = nn.Linear(len(rows), fires.shape[1])
    with torch.no_grad():
        first.weight.copy_(fires.T)
        first.bias.fill_(-0.5)
    network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(fires.shape[1], 2))
    return PixelModel(network), torch.eye(len(rows)).view(len(rows), 1, 1, len(rows))


def test_reach_follows_what_is_freed_and_stops_where_no_unit_fires_alone() -> None:
    model, pictures = model_that_fires([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert reach(model, pictures) == 2  # the first, then the second; the others share all that is left
    model, pictures = model_that_fires([[1, 0], [1, 1]])
    assert reach(model, pictures) == 2
    model, pictures = model_that_fires([[1], [1]])
    assert reach(model, pictures) == 0


def test_a_certificate_is_false_where_the_picture_or_the_label_is_wrong() -> None:
    model, pictures = model_that_fires([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    truth = Records(pictures, torch.tensor([0, 1, 0, 1]))
    drawn = pictures.clone()
    drawn[1] += 0.1
    found = Reconstruction(
        images=drawn[None],
        labels=torch.tensor([[0, 1, 1, 1]]),
        objective=torch.zeros(1),
        statuses=("converged",),
        certified=torch.tensor([[True, True, True, False]]),
    )
    assert counted(model, truth, found) == Count(records=4, certified=1, false=2, reach=4)
