"""A Flower app whose updates are captured as they leave its clients, and then audited. Needs `leakaudit[flower]`.

    python examples/flower_app.py updates/                      # no defense
    python examples/flower_app.py updates/ dp                   # Flower's LocalDpMod
    leakaudit obscure fit examples/minimal.py -o generator.safetensors
    python examples/flower_app.py updates/ generator.safetensors  # clients that train on drawn pictures
    leakaudit capture updates/round-0001-node-….safetensors --model examples/minimal.py
    leakaudit scan examples/minimal.py --update updates/round-0001-node-….safetensors

In a project of Flower's, `[tool.flwr.app.components]` of its pyproject.toml names `make_server` and `make_client`'s
results, and `flwr run` takes the place of the last lines.
"""

import sys
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn import functional as F
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))  # the actors of a simulation find `minimal` as this file does
import minimal

from leakaudit import Obscurer
from leakaudit.flower import capture

CLIENTS, RECORDS, BATCH, RATE = 2, 8, 4, 0.05
DP = LocalDpMod(clipping_norm=1.0, sensitivity=1.0, epsilon=1.0, delta=1e-5)


def train(message: Message, context: Context) -> Message:
    """Train for one pass over a client's own records, or over what is drawn in their place."""
    part = int(context.node_config["partition-id"])
    rows = [k * 100 + part * RECORDS // 2 + i for k in range(2) for i in range(RECORDS // 2)]  # of both classes
    drawn = message.content["config"].get("generator")
    obscurer = Obscurer.load(str(drawn)) if drawn else None
    model = minimal.model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=float(message.content["config"]["lr"]))
    for x, y in DataLoader(torch.utils.data.Subset(minimal.train_data, rows), batch_size=BATCH, shuffle=True):
        pictures, labels = obscurer(x) if obscurer else (x, y)
        optimiser.zero_grad()
        F.cross_entropy(model(pictures), labels).backward()
        optimiser.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(rows)})}
    return Message(content=RecordDict(content), reply_to=message)


def make_client(folder: str, defense: str = "") -> ClientApp:
    """Return the client app: the capture stands first, and so sees what leaves after every other mod."""
    mods = [DP] if defense == "dp" else []
    said = {"local_epochs": 1, "batch_size": BATCH, "optimizer": "sgd", "momentum": 0.0, "mode": "eval"}
    if defense != "dp":  # what LocalDpMod is here follows from its settings
        said["defense"] = "obscure" if defense else "none"
    app = ClientApp(mods=[capture(folder, defenses=mods, **said), *mods])
    app.train()(train)
    return app


def make_server(generator: str = "", rounds: int = 1) -> ServerApp:
    """Return the server app: FedAvg over all clients."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        config = {"lr": RATE} | ({"generator": generator} if generator else {})
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        arrays = ArrayRecord(minimal.model().state_dict())
        strategy.start(grid, arrays, num_rounds=rounds, train_config=ConfigRecord(config))

    return app


if __name__ == "__main__":
    from flwr.simulation import run_simulation

    where, chosen = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    drawn_by = "" if chosen == "dp" else str(Path(chosen).resolve()) if chosen else ""
    run_simulation(make_server(drawn_by), make_client(str(Path(where).resolve()), chosen), num_supernodes=CLIENTS)
