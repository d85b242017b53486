"""Live logging to TensorBoard: what is written, and what never is."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from leakaudit.audit.audit import audit
from leakaudit.errors import UserError
from leakaudit.result.schema import Images
from leakaudit.scene.plan import Plan
from leakaudit.watch.tensorboard import Log, tag, tensorboard_monitor
from leakaudit.work.progress import Sight, Work, monitored
from tests.leakaudit.audited import target


class Written:
    """Stands for a SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.pictures: list[tuple[str, tuple[int, ...], int]] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_images(self, name: str, images: torch.Tensor, step: int) -> None:
        self.pictures.append((name, tuple(images.shape), step))
        self.last = images

    def flush(self) -> None: ...


def sight(*losses: float) -> Sight:
    return Sight(losses, len(losses), len(losses), tuple(range(len(losses))), torch.rand(len(losses), 1, 8, 8))


def test_losses_are_curves_of_their_own_for_every_run() -> None:
    written = Written()
    log = Log(written, pictures=True)
    log.show(Work("dlg", "dp-sgd:noise_multiplier=1"), 0, 0)
    for step in (0, 5):
        log.show(Work("dlg"), step, 10)
        log.look(sight(3.0, 1.0, 2.0))
    log.show(Work("dlg"), 0, 10)
    log.look(sight(4.0))
    log.show(Work("dlg", tuning=True), 2, 10)
    log.look(sight(float("nan"), 5.0))
    log.show(Work("training, seed 1 of 2"), 3, 10)
    log.look(Sight((0.5,), 0, 0))
    name = "dp-sgd:noise_multiplier=1/dlg"
    assert written.scalars == [
        (f"loss/{name}/best", 1.0, 0),
        (f"loss/{name}/median", 2.0, 0),
        (f"loss/{name}/best", 1.0, 5),
        (f"loss/{name}/median", 2.0, 5),
        (f"loss/{name}/run 2/best", 4.0, 0),
        (f"tuning/{name}/best", 5.0, 2),
        (f"tuning/{name}/median", 5.0, 2),
        (f"loss/{name}/training, seed 1 of 2/best", 0.5, 3),
    ]
    assert [(n, step) for n, _, step in written.pictures] == [(f"victims/{name}", 0), (f"victims/{name}/run 2", 0)]


def test_names_may_hold_what_stands_between_them() -> None:
    written = Written()
    log = Log(written, pictures=False)
    log.show(Work("tuning: odd", "mine.py:Own:how=a: b"), 0, 0)
    for loop in (Work("tuning: odd"), Work("tuning: odd", tuning=True), Work("odd")):
        log.show(loop, 1, 2)
        log.look(sight(0.5))
    name = "mine.py:Own:how=a: b/tuning: odd"
    tags = [f"loss/{name}/best", f"tuning/{name}/best", f"loss/{name}/odd/best"]
    assert written.scalars == [(name, 0.5, 1) for name in tags]


def test_a_tag_has_as_many_parts_as_it_was_given() -> None:
    assert tag("../a/b", "c\x1b") == ".._a_b/c\\x1b"


def test_of_volumes_the_middle_slice_is_written() -> None:
    """How deep they are is told by the records beside them, which are not written themselves."""
    written = Written()
    log = Log(written, pictures=True)
    log.show(Work("gan"), 0, 0)
    log.show(Work("gan"), 1, 2)
    log.beside(lambda victim: torch.zeros(1, 3, 4, 6, 6))
    log.look(replace(sight(0.5), images=torch.arange(12.0).view(1, 12, 1, 1).expand(1, 12, 6, 6)))
    assert written.last[0, :, 0, 0].tolist() == [2, 6, 10]


def read(folder: Path) -> Any:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra leakaudit[tensorboard]"
    )
    found = accumulator.EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


@pytest.mark.parametrize("images", ["full", "redacted", "none"])
def test_an_audit_is_logged_and_pictures_only_in_full(tmp_path: Path, short_battery: None, images: Images) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra leakaudit[tensorboard]")
    plan = Plan(attacks=("inverting-gradients:steps=3",), battery="quick", records=4, seeds=1, epochs=1, images=images)
    with tensorboard_monitor(tmp_path / "runs", images) as monitor, monitored(monitor):
        result = audit(target(), plan, keep=monitor.kept)
    found = read(tmp_path / "runs")
    scalars = found.Tags()["scalars"]
    assert any(name.startswith("loss/none/inverting-gradients") for name in scalars)
    attack = result.defenses[0].attacks[0]
    for group, estimate in (("identification", attack.identification), ("psnr", attack.psnr)):
        (event,) = found.Scalars(f"{group}/none/inverting-gradients")
        assert event.value == pytest.approx(estimate.value)
    (event,) = found.Scalars("accuracy/none")
    assert event.value == pytest.approx(result.defenses[0].accuracy.value)
    pictures = found.Tags()["images"]
    if images == "full":
        assert any(name.startswith("victims/none/inverting-gradients") for name in pictures)
        assert any(name.startswith("reconstructions/none/inverting-gradients") for name in pictures)
    else:
        assert pictures == []


def test_its_absence_and_a_bad_folder_are_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    if "tensorboard" in sys.modules or _installed():
        with pytest.raises(UserError, match=r"--tensorboard .*file"), tensorboard_monitor(tmp_path / "file", "full"):
            pass
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(UserError, match=r"pip install 'leakaudit\[tensorboard\]'"),
        tensorboard_monitor(tmp_path / "runs", "full"),
    ):
        pass
    assert not (tmp_path / "runs").exists()


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None
