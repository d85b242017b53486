"""The filter for NVFlare: what leaves is what is written, and nothing changes. Needs NVFlare itself."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("nvflare", reason="NVFlare is not installed: pip install '.[nvflare]'", exc_type=ImportError)

from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy

from leakaudit.captured.reading import read_capture
from leakaudit.errors import UserError
from leakaudit.nvflare import CaptureFilter

RECIPES = find_spec("nvflare.recipe") and find_spec("nvflare.app_common.np.recipes")
ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
CHANGE = {"weight": np.full((2, 3), 0.5, np.float32), "bias": np.full(2, -1.0, np.float32)}


def context() -> FLContext:
    found = FLContext()
    found.set_prop(ReservedKey.IDENTITY_NAME, "site-1", private=False, sticky=False)
    found.set_prop("current_round", 4, private=True, sticky=False)
    found.set_prop(FLContextKey.TASK_DATA, DXO(DataKind.WEIGHTS, WEIGHTS).to_shareable(), private=True, sticky=False)
    return found


@pytest.mark.parametrize("kind", [DataKind.WEIGHT_DIFF, DataKind.WEIGHTS])
def test_an_update_is_written_and_passes_as_it_is(kind: str, tmp_path: Path) -> None:
    kept = CaptureFilter(str(tmp_path), "", records=12)
    there = context()
    kept.handle_event(EventType.BEFORE_TASK_EXECUTION, there)
    sent = DXO(kind, CHANGE, {MetaKey.NUM_STEPS_CURRENT_ROUND: 6})
    left = from_shareable(kept.process(sent.to_shareable(), there))
    assert all(np.array_equal(left.data[name], CHANGE[name]) for name in CHANGE)
    found = read_capture(tmp_path / "round-0004-site-1.safetensors")
    assert found.sends == ("difference" if kind == DataKind.WEIGHT_DIFF else "after")
    assert np.array_equal(found.before["weight"].numpy(), WEIGHTS["weight"])
    assert np.array_equal(found.updates[0]["bias"].numpy(), CHANGE["bias"])
    assert (found.claims.local_steps, found.claims.records) == (6, 12)
    assert found.claims.framework.startswith("nvflare ")


def test_the_client_as_scan_takes_it(tmp_path: Path) -> None:
    kept = CaptureFilter(str(tmp_path), "fedavg:epochs=2:batch=4:lr=0.1:momentum=0.9")
    kept.process(DXO(DataKind.WEIGHT_DIFF, CHANGE, {MetaKey.NUM_STEPS_CURRENT_ROUND: 6}).to_shareable(), context())
    said = read_capture(next(tmp_path.iterdir())).claims
    assert (said.local_epochs, said.local_steps, said.batch_size, said.local_lr) == (2, None, 4, 0.1)
    with pytest.raises(UserError, match="unknown client"):
        CaptureFilter(str(tmp_path), "fedprox")


@pytest.mark.parametrize("bad", [{"weight": "no number"}, {}])
def test_no_failure_leaves_the_filter(bad: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path):
        sent = DXO(DataKind.WEIGHT_DIFF, bad or CHANGE).to_shareable()
        assert (
            from_shareable(CaptureFilter(str(place)).process(sent, FLContext())).data.keys() == (bad or CHANGE).keys()
        )


TRAIN = """
import nvflare.client as flare
flare.init()
while flare.is_running():
    model = flare.receive()
    change = {name: 0.0 * value + 0.01 for name, value in model.params.items()}
    flare.send(flare.FLModel(params=change, params_type="DIFF", meta={"NUM_STEPS_CURRENT_ROUND": 3}))
"""
JOB = """
import sys
from nvflare.app_common.filters.percentile_privacy import PercentilePrivacy
from nvflare.app_common.np.recipes.fedavg import NumpyFedAvgRecipe
from nvflare.recipe import SimEnv
from leakaudit.nvflare import CaptureFilter
place = sys.argv[1]
recipe = NumpyFedAvgRecipe(name="job", model=[[1.0, 2.0], [3.0, 4.0]], min_clients=2, num_rounds=1,
                           train_script=place + "/train.py", aggregator_data_kind="WEIGHT_DIFF")
said = [{"name": "PercentilePrivacy", "percentile": 10, "gamma": 0.001}]
recipe.add_client_output_filter(PercentilePrivacy(percentile=10, gamma=0.001), tasks=["train"])
recipe.add_client_output_filter(CaptureFilter(place + "/updates", "fedavg:batch=8", defenses=said), tasks=["train"])
recipe.execute(SimEnv(num_clients=2, workspace_root=place + "/work"))
"""


@pytest.mark.skipif(not RECIPES, reason="its simulator is run by a recipe, which NVFlare has since 2.7")
def test_a_real_run_of_the_simulator(tmp_path: Path) -> None:
    """What is written is what left after the privacy filter: 3 steps of at most γ each."""
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, str(tmp_path / "job.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=250)
    files = sorted((tmp_path / "updates").iterdir()) if (tmp_path / "updates").exists() else []
    assert [f.name for f in files] == [f"round-0000-site-{k}.safetensors" for k in (1, 2)], done.stdout[-2000:]
    found = read_capture(files[0])
    assert found.updates[0]["numpy_key"].numpy() == pytest.approx(np.full((2, 2), 0.003))
    assert found.before["numpy_key"].numpy() == pytest.approx(np.array([[1.0, 2.0], [3.0, 4.0]]))
    assert found.claims.settings == ({"name": "PercentilePrivacy", "percentile": 10, "gamma": 0.001},)


def test_it_stands_after_the_filter_in_a_chain(tmp_path: Path) -> None:
    sent = DXO(DataKind.WEIGHT_DIFF, {"weight": np.arange(8.0)}).to_shareable()
    for each in (PercentilePrivacy(percentile=50, gamma=5.0), CaptureFilter(str(tmp_path))):
        sent = each.process(sent, context())
    assert read_capture(next(tmp_path.iterdir())).updates[0]["weight"].tolist() == [0, 0, 0, 0, 4, 5, 5, 5]
