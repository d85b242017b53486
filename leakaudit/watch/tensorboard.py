"""Live logging of a scan to TensorBoard, when asked: losses while attacks and training run, then what was measured.

Tags are `loss/DEFENSE/WORK/best` and `/median` over the steps of a loop (`tuning/…` while an attack is tuned on the
adversary's own records; `…/run 2` where a piece of work runs the loop again), `victims/…` for pictures as they emerge,
and `identification/DEFENSE/ATTACK`, `psnr/…`, `accuracy/DEFENSE` for results. Pictures are written only where the
result holds them in full.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leakaudit.errors import UserError, first_line
from leakaudit.files.pictures import embedded
from leakaudit.files.writing import created, make
from leakaudit.result.outward import in_place
from leakaudit.result.plaintext import visible
from leakaudit.result.schema import AttackResult, AuditResult, Images
from leakaudit.score.pictures import plane
from leakaudit.work.progress import Monitor, Original, Sight, Work, harmless

EVERY, PICTURES_EVERY = 0.1, 2.0  # seconds between points of a curve, and between pictures


@contextmanager
def tensorboard_monitor(folder: Path, images: Images) -> Iterator[Monitor]:
    """Yield a monitor that writes event files into `folder`. Raises UserError where that cannot be."""
    try:
        import torch.utils.tensorboard  # noqa: F401 - looked for here, used by `Events`
    except ImportError as error:
        raise UserError(
            f"--tensorboard needs TensorBoard, which is not installed ({first_line(error)}): "
            "pip install 'leakaudit[tensorboard]'."
        ) from error
    try:
        events = Events(folder, private=images == "full")
    except OSError as error:
        raise UserError(
            f"cannot write to --tensorboard {folder}: {error.strerror or error}; choose another folder."
        ) from error
    log = Log(events, images == "full")
    try:
        yield Monitor(
            show=harmless(log.show), see=harmless(log.see), kept=harmless(log.kept), originals=harmless(log.beside)
        )
    finally:
        harmless(events.close)()


class Events:
    """An event file whose name and content say nothing of the machine: TensorBoard's own writer names the host.

    What `SummaryWriter` does, with the same records, by the parts that it is made of.
    """

    def __init__(self, folder: Path, *, private: bool) -> None:
        """Begin a new file in `folder`, which its owner alone may read where it is `private`. Raises OSError."""
        self._event: Any = import_module("tensorboard.compat.proto.event_pb2").Event
        self._summary: Any = import_module("torch.utils.tensorboard.summary")
        records: Any = import_module("tensorboard.summary.writer.record_writer")
        make(folder, private)
        begun, count = int(time.time()), 0
        while True:
            try:  # TensorBoard takes what has "tfevents" in its name
                file = created(folder / f"events.out.tfevents.{begun}.leakaudit.{count}", private)
                break
            except FileExistsError:  # of another scan that began in this second
                count += 1
        self._records: Any = records.RecordWriter(file)
        self._write(file_version="brain.Event:2")
        self.flush()

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        self._write(summary=self._summary.scalar(tag, value), step=step)

    def add_images(self, tag: str, pictures: Tensor, step: int) -> None:
        """Write pictures (N, C, H, W) in [0, 1]."""
        self._write(summary=self._summary.image(tag, pictures, dataformats="NCHW"), step=step)

    def flush(self) -> None:
        """Hand what was written to the system."""
        self._records.flush()

    def close(self) -> None:
        """End the file."""
        self._records.close()

    def _write(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


class Log:
    """Turns what a monitor hears into TensorBoard's scalars and pictures."""

    def __init__(self, writer: Any, pictures: bool) -> None:
        """`writer` is `Events` or a `SummaryWriter`; `pictures` whether any picture may be written."""
        self.writer, self.pictures = writer, pictures
        self.piece, self.loop, self.step = Work(""), Work(""), 0
        self.runs: dict[Work, int] = {}  # how often each loop began in this piece of work
        self.looked = self.pictured = -math.inf  # when, on `time.monotonic`
        self.told: set[tuple[str, str]] = set()
        self.depth = 1  # of volumes

    def show(self, work: Work, done: int, total: int) -> None:
        """Take in where the work is."""
        if total == 0:
            self.piece, self.loop, self.step, self.runs = work, Work(""), 0, {}
        elif work != self.loop or done < self.step:
            self.runs[work] = self.runs.get(work, 0) + 1
            self.loop, self.step = work, done
            self.looked = self.pictured = -math.inf  # however short it is, every run of a loop has a point
        else:
            self.step = done

    def beside(self, original: Original) -> None:
        """Take in how deep the records are that pictures are to become; they themselves are not written."""
        shape = original(0).shape
        self.depth = int(shape[2]) if len(shape) == 5 else 1

    def see(self, make: Callable[[], Sight]) -> None:
        """Look at the work now and then."""
        now = time.monotonic()
        if now - self.looked >= EVERY:
            self.looked = now
            self.look(make())

    def look(self, sight: Sight) -> None:
        """Write the losses, and now and then the pictures."""
        tuning, run = self.loop.tuning, self.runs.get(self.loop, 1)
        inner = "" if self.loop.name == self.piece.name else str(self.loop)
        name = tag(*filter(None, (self.piece.defense, self.piece.name, inner)))
        name += f"/run {run}" if run > 1 else ""
        finite = sorted(v for v in sight.losses if math.isfinite(v))
        group = "tuning" if tuning else "loss"
        if finite:
            self.writer.add_scalar(f"{group}/{name}/best", finite[0], self.step)
            if len(sight.losses) > 1:
                self.writer.add_scalar(f"{group}/{name}/median", finite[len(finite) // 2], self.step)
        now = time.monotonic()
        if self.pictures and not tuning and sight.images is not None and now - self.pictured >= PICTURES_EVERY:
            self.pictured = now
            self.writer.add_images(f"victims/{name}", plane(sight.images, self.depth), self.step)

    def kept(self, result: AuditResult) -> None:
        """Write what was measured since the last time."""
        for row in result.defenses:
            for attack in row.attacks:
                if (row.spec, attack.name) not in self.told:
                    self.told.add((row.spec, attack.name))
                    self._measured(tag(row.spec, attack.name), attack)
            if row.accuracy.value is not None and (row.spec, "") not in self.told:
                self.told.add((row.spec, ""))
                self.writer.add_scalar(f"{tag(result.measure)}/{tag(row.spec)}", row.accuracy.value, 0)
        self.writer.flush()

    def _measured(self, name: str, attack: AttackResult) -> None:
        measured = {
            "identification": attack.identification,
            "psnr": attack.psnr,
            "ssim": attack.ssim,
            "labels": attack.label_accuracy,
        }
        for group, estimate in measured.items():
            if estimate.value is not None:
                self.writer.add_scalar(f"{group}/{name}", estimate.value, 0)
        drawn = [p.reconstruction for p in attack.gallery if p.reconstruction is not None]
        if self.pictures and drawn:
            self.writer.add_images(f"reconstructions/{name}", torch.stack([_decoded(png) for png in drawn[:8]]), 0)


def tag(*parts: str) -> str:
    """Return words as a tag of as many parts; a slash within a word would begin another.

    They name a defense as it was typed, its path as others may read it, and what a plug-in calls its work.
    """
    return "/".join(visible(in_place(part, "none"), 100).replace("/", "_") for part in parts)


def _decoded(png: str) -> Tensor:
    import numpy as np

    pixels = np.array(embedded(png, "a reconstruction").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255
