"""The mod for Flower: what leaves is what is written, and the message passes on as it is. Needs Flower itself."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from leakaudit.captured.reading import read_capture
from leakaudit.errors import UserError
from leakaudit.flower import capture

ROOT = Path(__file__).resolve().parents[2]
flower = pytest.mark.skipif(find_spec("flwr") is None, reason="Flower is not installed: pip install '.[flower]'")
simulation = pytest.mark.skipif(find_spec("ray") is None, reason="Flower's simulation needs Ray: flwr[simulation]")
STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


@pytest.mark.skipif(find_spec("flwr") is not None, reason="Flower is installed")
def test_without_flower_a_sentence_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"pip install 'leakaudit\[flower\]'"):
        capture("updates")


def within_a_run() -> None:
    """Be in a run of Flower's, as a message asks since 1.40: its runtime says which."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def run(mods: list[Any], kind: str = "train", config: dict[str, Any] | None = None, failing: bool = False) -> Any:
    """Send one message through a real client app, which adds one to the weights; return the reply."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp(mods=mods)

    def answer(message: Message, context: Context) -> Message:
        if failing:
            raise RuntimeError("out of memory")
        state = {name: value + 1 for name, value in message.content["arrays"].to_torch_state_dict().items()}
        content = {"arrays": ArrayRecord(state), "metrics": MetricRecord({"num-examples": 12, "loss": 0.5})}
        return Message(content=RecordDict(content), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    content = {"arrays": ArrayRecord(STATE), "config": ConfigRecord(config or {"server-round": 3, "lr": 0.1})}
    within_a_run()
    message = Message(content=RecordDict(content), dst_node_id=5, message_type=kind)
    message.metadata._src_node_id = 1  # as the server's transport does
    return app(message, Context(1, 5, {}, RecordDict(), {"local-epochs": 2}))


@flower
def test_an_update_is_written_with_what_the_message_says(tmp_path: Path) -> None:
    reply = run([capture(tmp_path, batch_size=4)])
    assert [f.name for f in tmp_path.iterdir()] == ["round-0003-node-5.safetensors"]
    found = read_capture(tmp_path / "round-0003-node-5.safetensors")
    assert {name: value.tolist() for name, value in found.before.items()} == {n: v.tolist() for n, v in STATE.items()}
    assert torch.equal(found.updates[0]["weight"], STATE["weight"] + 1)
    said = found.claims
    assert (said.local_epochs, said.batch_size, said.local_lr, said.records) == (2, 4, 0.1, 12)
    assert said.framework.startswith("flwr ")
    assert reply.content["metrics"]["loss"] == 0.5


@flower
def test_the_first_mod_sees_what_leaves_after_the_others(tmp_path: Path) -> None:
    from flwr.clientapp.mod import LocalDpMod

    private = LocalDpMod(clipping_norm=0.5, sensitivity=0.5, epsilon=1.0, delta=1e-5)
    reply = run([capture(tmp_path / "outer", defenses=[private]), private, capture(tmp_path / "inner")])
    left = reply.content["arrays"].to_torch_state_dict()
    outer, inner = (read_capture(next((tmp_path / name).iterdir())) for name in ("outer", "inner"))
    assert all(torch.equal(outer.updates[0][name], left[name].float()) for name in STATE)
    assert torch.equal(inner.updates[0]["weight"], STATE["weight"] + 1)
    assert outer.claims.settings == (
        {"name": "LocalDpMod", "clipping_norm": 0.5, "sensitivity": 0.5, "epsilon": 1.0, "delta": 1e-5},
    )


@flower
def test_the_message_passes_on_whatever_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no folder")
    mod, other = capture(tmp_path / "file"), capture(tmp_path / "good")
    with caplog.at_level(logging.WARNING, "leakaudit"):
        replies = [run([mod]), run([mod]), run([other]), run([])]
    bare = replies.pop().content["arrays"]
    assert all(r.content["arrays"] == bare for r in replies)
    assert len([r for r in caplog.records if r.name == "leakaudit"]) == 1
    with pytest.raises(RuntimeError, match="out of memory"):  # the app's own failure is not ours to swallow
        run([capture(tmp_path / "none")], failing=True)
    run([capture(tmp_path / "none")], kind="evaluate")
    assert not (tmp_path / "none").exists()


@flower
def test_a_strategy_that_does_not_count_rounds(tmp_path: Path) -> None:
    mod = capture(tmp_path)
    for _ in range(2):
        run([mod], config={"lr": 0.1})
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"round-000{k}-node-5.safetensors" for k in (1, 2)]


@flower
def test_masked_numbers_are_no_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Under SecAgg+ a reply has no arrays, but masked numbers beside them."""

    def masking(message: Any, context: Any, call_next: Any) -> Any:
        reply = call_next(message, context)
        for record in reply.content.array_records.values():
            record.clear()
        return reply

    with caplog.at_level(logging.WARNING, "leakaudit"):
        run([capture(tmp_path), masking])
    assert "secure aggregation" in caplog.text
    assert list(tmp_path.iterdir()) == []


@flower
def test_a_captured_update_is_what_the_same_client_sends_in_process(tmp_path: Path) -> None:
    """Real training in a real client app, and `sent` on the same records: as near as float32 is."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from torch import nn
    from torch.nn import functional as F

    from leakaudit.captured.fitting import fitted
    from leakaudit.captured.reading import client_of
    from leakaudit.protocol.client import sent
    from leakaudit.protocol.defense import Defense
    from leakaudit.protocol.target import PixelModel

    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)), torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    app = ClientApp(mods=[capture(tmp_path, steps=3, lr=0.1, momentum=0.9, records=4)])

    def train(message: Message, context: Context) -> Message:
        own = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        own.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimiser = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(own(x), y).backward()
            optimiser.step()
        return Message(content=RecordDict({"arrays": ArrayRecord(own.state_dict())}), reply_to=message)

    app.train()(train)
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "config": ConfigRecord({"server-round": 1})})
    within_a_run()
    message = Message(content=content, dst_node_id=5, message_type="train")
    message.metadata._src_node_id = 1
    app(message, Context(1, 5, {}, RecordDict(), {}))
    found = read_capture(next(tmp_path.iterdir()))
    client = client_of(found.claims, "it")
    generator = torch.Generator().manual_seed(0)
    here, _ = sent(PixelModel(net), F.cross_entropy, x, y, Defense(), "eval", generator, client)
    names = [name for name, _ in net.named_parameters()]
    for there, own in zip(fitted(found, net, "it").lost(0, names), here, strict=True):
        torch.testing.assert_close(there / client.moved(4), own.double(), atol=1e-6, rtol=1e-4)


@flower
@simulation
def test_a_real_run_of_two_supernodes(tmp_path: Path) -> None:
    """The example as it stands, with Flower's own differential privacy."""
    command = [sys.executable, str(ROOT / "examples" / "flower_app.py"), str(tmp_path / "updates"), "dp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "captured no update" not in done.stdout + done.stderr
    files = sorted((tmp_path / "updates").iterdir())
    assert [f.name for f in files] == [f"round-0001-node-{k}.safetensors" for k in (0, 1)]
    first, second = map(read_capture, files)
    assert all(torch.equal(first.before[name], value) for name, value in second.before.items())
    for found in (first, second):
        lost = torch.cat([(found.updates[0][name] - value).flatten() for name, value in found.before.items()])
        implied = 1.0 * (2 * torch.tensor(1.25e5).log()).sqrt()
        assert lost.std() == pytest.approx(float(implied), rel=0.1)
        assert (found.claims.records, found.claims.local_epochs, found.claims.batch_size) == (8, 1, 4)
