"""What a record adds to an update of several: its gradient through the defense, where the client was, as a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from leakaudit.attacks._sketch import folded, widths_within
from leakaudit.engine import matching as engine
from leakaudit.protocol.client import SharedUpdate, by_place, release
from leakaudit.protocol.defense import Defense, replaces_records
from leakaudit.protocol.gradients import (
    Gradients,
    example_gradients,
    fast_example_gradients,
    parameters_of,
)
from leakaudit.protocol.target import PixelModel, Records
from leakaudit.work.memory import in_pieces, need
from leakaudit.work.progress import track

FEATURES = 2**15  # numbers that a record's gradient is reduced to
_TOGETHER = 64  # records whose gradients are computed at a time
PATH = (0.0, 0.5, 1.0)  # of the way that auxiliary clients go, where a client's local steps lead it
Rows = dict[str, Tensor]  # by view, (N, F) each


@dataclass(frozen=True)
class Reader:
    """How records and updates become rows: a count sketch of each tensor, which is linear, so that sums stay sums.

    The views: "record", the gradient ∇ℓ(x, y) through the defense's per-example stage; where a record stage replaces
    records "replacement", the mean over `draws` of that of its replacements; of clients with local steps "along", the
    mean gradient at some places of the `path` (w₀ − w_E) that auxiliary clients went.
    """

    model: PixelModel
    update: SharedUpdate
    defense: Defense
    widths: tuple[int, ...]
    signs: tuple[Tensor, ...]  # ±1, (n,) per parameter
    draws: int
    path: Gradients | None

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views that there are."""
        replaced = ("replacement",) if replaces_records(self.defense) else ()
        return ("record", *replaced, *(("along",) if self.path is not None else ()))

    def row(self, gradient: Gradients) -> Tensor:
        """Return the row (F,) of one gradient, finite."""
        parts = zip(gradient, self.signs, self.widths, strict=True)
        return torch.cat([folded(g.flatten(), s, w) for g, s, w in parts]).nan_to_num(0, 0, 0)

    def __call__(
        self, records: Records, generator: torch.Generator, label: str, views: tuple[str, ...] = ()
    ) -> Rows | None:
        """Return the rows of N records by view, of all views by default; None where the time did not suffice."""
        asked, found = views or self.views, []
        size = 4 * sum(self.widths) * len(records) * 2 * len(asked)
        need(size, f"the gradients of {len(records)} records", "candidates", records.images.device)
        parts = torch.split(torch.arange(len(records), device=records.labels.device), _TOGETHER)
        for i in track(label, len(parts)):
            found.append({view: self._rows(view, records[parts[i]], generator) for view in asked})
        if len(found) < len(parts):
            return None
        return {view: torch.cat([each[view] for each in found]) for view in asked}

    def _rows(self, view: str, records: Records, generator: torch.Generator) -> Tensor:
        if view == "replacement":
            drawn = (release(self.defense, records, generator) for _ in range(self.draws))
            return torch.stack([self._gradients(each.images, each.labels, generator) for each in drawn]).mean(0)
        if view == "along" and self.path is not None:
            found = []
            for share in PATH:
                with moved_by(self.model, self.path, share):
                    found.append(self._gradients(records.images, records.taught, generator))
            return torch.stack(found).mean(0)
        return self._gradients(records.images, records.taught, generator)

    def _gradients(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        inside, _ = by_place(self.defense)
        fast = fast_example_gradients() if engine.vectorises(self.model) else example_gradients
        work = "contributions", images.shape[1:], labels.shape[1:]

        def some(start: int, stop: int) -> Tensor:
            each = fast(self.model, self.update.loss, images[start:stop], labels[start:stop])
            if inside.needs_example_gradients:
                each = inside.transform_example_gradients(each, generator)
            return torch.stack([self.row(tuple(g[i] for g in each)) for i in range(stop - start)])

        return torch.cat(in_pieces(some, len(images), self.model, work, images.device))


def reader_for(
    model: PixelModel,
    update: SharedUpdate,
    defense: Defense,
    draws: int,
    path: Gradients | None,
    generator: torch.Generator,
) -> Reader:
    """Return the reader of an update's records."""
    sizes = [g[0].numel() for g in update.gradients]
    device = update.gradients[0].device
    drawn = (torch.randint(2, (n,), generator=generator, device=generator.device).to(torch.int8) for n in sizes)
    signs = tuple((2 * s - 1).to(device) for s in drawn)
    return Reader(model, update, defense, widths_within(sizes, FEATURES), signs, draws, path)


@contextmanager
def moved_by(model: PixelModel, path: Gradients, share: float) -> Iterator[None]:
    """Run the enclosed code with the model's weights moved by −`share` of a path, w₀ − w_E."""
    _, parameters = parameters_of(model)
    kept = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            for p, way in zip(parameters, path, strict=True):
                p.sub_(share * way)
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(parameters, kept, strict=True):
                p.copy_(old)


@contextmanager
def with_statistics(model: PixelModel, pictures: Tensor) -> Iterator[None]:
    """Have every BatchNorm in train mode normalise by the statistics of these pictures: a record alone has none.

    What a record does to the statistics of its batch is left out. Afterwards the layers are as they were.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    kept = [(m.momentum, {name: b.clone() for name, b in m.named_buffers()}) for m in norms]
    try:
        for m in norms:
            m.momentum = 1.0
        if norms:
            with torch.no_grad():
                model(pictures)
        for m in norms:
            m.eval()
        yield
    finally:
        for m, (momentum, buffers) in zip(norms, kept, strict=True):
            m.momentum = momentum
            m.train()
            with torch.no_grad():
                for name, b in m.named_buffers():
                    b.copy_(buffers[name])
