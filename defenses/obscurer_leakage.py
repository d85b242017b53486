"""A quick measurement of what an obscurer's pictures remember, and of what drawing from it costs a client."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from leakaudit.defenses._class_code import on_grid
from leakaudit.defenses.obscurer import Obscurer
from leakaudit.protocol.target import Records, Target
from leakaudit.score.membership import caught
from leakaudit.score.nearness import nearest, rank_auc
from leakaudit.work.progress import track
from leakaudit.work.seeding import forked

MOST = 1000  # records compared from each side
FALSE_ALARMS = 0.01
BATCH = 32
REPEATS = 9
ENOUGH = 4.0  # seconds of repeated training steps


@torch.no_grad()
def remembered(
    obscurer: Obscurer, private: Records, test: Records, generator: torch.Generator
) -> dict[str, float | int | None]:
    """Measure how near the pictures are to the private records, against test records that they never met.

    Distances are root mean square differences per pixel between a record and the nearest picture or mirror image, at
    the pictures' size. The attacker tells private from test records by them: `auc` is how often a private record is
    the nearer of two (0.5: nothing remembered), `caught` the share of private records
    nearer than the nearest hundredth of the test records (chance: 0.01; exact interval given that threshold), None
    with fewer than 100 test records. `copies` is the share of pictures that are nearer to a private record than to as
    many test records (chance: 0.5). At most 1,000 records from each side, drawn at random.
    """
    n = min(len(private), len(test), MOST)
    inside, outside = (_some(records, n, generator, obscurer.pictures) for records in (private, test))
    to_picture, *to_record = _nearest(torch.cat([inside, outside]), obscurer)
    members, others = to_picture[:n], to_picture[n:]
    auc, told = rank_auc(members, others), caught(-members, -others, FALSE_ALARMS)
    found: dict[str, float | int | None] = {
        "records": n,
        "private_distance": float(members.median()),
        "test_distance": float(others.median()),
        "private_nearest": float(members.min()),
        "test_nearest": float(others.min()),
        "copies": float((to_record[0] < to_record[1]).float().mean()),
        "auc": auc.value,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "caught": told.value,
        "caught_low": told.low,
        "caught_high": told.high,
    }
    return found


def _some(records: Records, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    order = torch.randperm(len(records), generator=generator, device=generator.device)[:n]
    images = records.images[order.to(records.images.device)].to(like)
    return on_grid(images, (like.shape[2], like.shape[3]))


def _nearest(records: Tensor, obscurer: Obscurer) -> tuple[Tensor, Tensor, Tensor]:
    """Return every record's distance to the nearest picture, and every picture's to the first and second half."""
    pictures, mirrored = obscurer.pictures, obscurer.mirror
    pairs = [(records, pictures), *((pictures, half) for half in records.chunk(2))]
    steps = track("measuring what is remembered", len(pairs))
    first, second, third = (nearest(*pairs[i], mirrored=mirrored) for i in steps)
    return first, second, third


def overhead(obscurer: Obscurer, target: Target) -> Mapping[str, float | int]:
    """Return the seconds of drawing a batch in place of records, and of a training step of the model on as many.

    Medians: of CPU time on a CPU, of elapsed time on a GPU. A step is forward, loss, backward and SGD, on a copy.
    Raises whatever the model raises when it is trained.
    """
    batch = target.private[: min(BATCH, len(target.private))]
    images, labels = batch.images.to(target.device), batch.labels.to(target.device)
    model = copy.deepcopy(target.model).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(0)  # what is drawn here is thrown away

    def step() -> None:
        optimiser.zero_grad()
        target.loss(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    with forked(), torch.enable_grad():
        training = _seconds(step, target.device)
        drawing = _seconds(lambda: obscurer.draw(images, generator), target.device)
    return {"batch": len(batch), "drawing": drawing, "training": training}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    def now() -> float:
        if device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    work()  # the first one allocates
    begun = now()
    found: list[float] = []
    while len(found) < REPEATS and (len(found) < 1 or now() - begun < ENOUGH):
        start = now()
        work()
        found.append(now() - start)
    return statistics.median(found)
