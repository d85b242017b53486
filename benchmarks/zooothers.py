"""What is brought to the zoo and is not about pictures: all of it is refused in the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.zookit import CLASSES, RECORDS, Brought, Entry, labels, pictures, small

OTHERS: list[Entry] = []
NOT_FOR_US = ("models of pictures",)  # what every refusal of another kind of data says


def other(name: str, about: str, **told: Any) -> Callable[..., Any]:
    """Decorator: an entry of a function that returns (model, data): no pictures, to be refused."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        told.setdefault("says", NOT_FOR_US)
        OTHERS.append(Entry(name=name, about=about, build=lambda _: Brought(*build()), expect="refused", **told))
        return build

    return add


@other("text", "Token ids for an embedding")
def _text() -> Any:
    ids = torch.randint(0, 50, (RECORDS, 12), generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(96, CLASSES))
    return net, TensorDataset(ids, labels())


@other("text-transformer", "Rows of input_ids for BERT (transformers)", package="transformers")
def _bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    told = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = BertForSequenceClassification(BertConfig(**told, intermediate_size=32, num_labels=CLASSES))  # type: ignore[arg-type]
    rows = [
        {"input_ids": torch.arange(12) % (k + 2), "attention_mask": torch.ones(12), "label": k % CLASSES}
        for k in range(RECORDS)
    ]
    return net, rows


@other("strings", "Sentences as records")
def _strings() -> Any:
    return small(), [(f"sentence number {k}", k % CLASSES) for k in range(RECORDS)]


@other("table", "Rows of a table for dense layers")
def _table() -> Any:
    rows = torch.rand(RECORDS, 10, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, CLASSES)), TensorDataset(rows, labels())


@other("audio", "Waveforms (1, samples) for one-dimensional convolutions")
def _audio() -> Any:
    waves = torch.randn(RECORDS, 1, 4000, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(
        nn.Conv1d(1, 4, 80, stride=40), nn.ReLU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(16, CLASSES)
    )
    return net, TensorDataset(waves, labels())


@other("series", "Several measured at once over time (channels, steps)")
def _series() -> Any:
    rows = torch.randn(RECORDS, 6, 100, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Conv1d(6, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(384, CLASSES))
    return net, TensorDataset(rows, labels())


@other("detection", "Boxes as labels, a detector (torchvision)", package="torchvision")
def _detection() -> Any:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large as build

    boxes = {"boxes": torch.tensor([[2.0, 3.0, 20.0, 22.0]]), "labels": torch.tensor([1])}
    return build(weights=None, weights_backbone=None, num_classes=3), [(x, boxes) for x in pictures()]


@other("boxes", "Boxes as labels, a classifier")
def _boxes() -> Any:
    return small(), [(x, [{"bbox": [2, 3, 20, 22], "category_id": k % CLASSES}]) for k, x in enumerate(pictures())]


@other("graph", "Dicts of nodes and edges")
def _graph() -> Any:
    return small(), [
        ({"nodes": torch.rand(5, 4), "edges": torch.zeros(2, 6, dtype=torch.long)}, k % 3) for k in range(RECORDS)
    ]
