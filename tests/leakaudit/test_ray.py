"""Scans on a Ray cluster: how many take part, who is let in to the shelf, and a node that is killed."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from leakaudit.errors import UserError
from leakaudit.scene.plan import Plan
from leakaudit.spread import door, ray
from leakaudit.spread.door import SILENCE, STARTS, Door
from leakaudit.spread.job import Request, job_of, write
from leakaudit.spread.ray import Room, carried, room, started
from leakaudit.units.shelf import Claim, Shelf, host, opened
from tests.leakaudit.test_cli import MODEL

ROOT = Path(__file__).resolve().parents[2]
KEY = "ab" * 32
needed = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'")

# An attack that waits for a file: as long as the test wants it to.
SLOW = """
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from leakaudit.attacks.labels import Labels
from leakaudit.protocol.registry import register_attack

@register_attack
@dataclass(frozen=True, kw_only=True)
class Slow(Labels):
    name: ClassVar[str] = "slow"
    summary: ClassVar[str] = "the labels, later"

    def __call__(self, *given, **named):
        while not Path("{go}").exists():
            time.sleep(0.05)
        return super().__call__(*given, **named)
"""


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'leakaudit\[ray\]'"), _started(tmp_path):
        pass


@needed
@pytest.mark.parametrize(
    ("address", "word"),
    [("ray://head:10001", "ray job submit"), ("127.0.0.1:1", "no Ray cluster answers"), ("127.0.0.1:x", "answers")],
)
def test_an_address_that_leads_nowhere_is_refused(
    address: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=word), _started(tmp_path):
        pass


def _started(folder: Path) -> Any:
    return started(opened(folder), job_of(Request("model.py", Plan(), device="cpu")), 1)


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}, {}], (2, 1, False), Room(3, 2, 0.0, 2)),  # as many as fit, by their threads
        ([{"CPU": 4.0}], (1, 9, False), Room(9, 1, 0.0, 4)),  # the others wait for room
        ([{"CPU": 500.0}], (1, 1, False), Room(64, 1, 0.0, 64)),
        ([{"CPU": 9.0, "GPU": 2.0}, {"CPU": 9.0}], (1, 1, True), Room(2, 1, 1.0, 1)),
        ([{"CPU": 9.0, "GPU": 2.0}], (1, 4, True), Room(4, 1, 0.5, 2)),
        ([{"CPU": 9.0, "GPU": 2.0}], (1, 5, True), Room(5, 1, 0.3333, 3)),
    ],
)
def test_participants_fill_a_cluster(
    nodes: list[dict[str, float]], asked: tuple[int, int, bool], expected: Room
) -> None:
    assert room(nodes, *asked) == expected


@pytest.mark.parametrize(
    ("nodes", "asked", "word"),
    [([{"CPU": 9.0}], (1, 1, True), "has no GPU"), ([{"CPU": 2.0}, {}], (4, 1, False), "has 4 processors")],
)
def test_a_cluster_without_room_is_refused(
    nodes: list[dict[str, float]], asked: tuple[int, int, bool], word: str
) -> None:
    with pytest.raises(UserError, match=word):
        room(nodes, *asked)


def test_the_folder_of_the_target_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/data").mkdir(parents=True)
    (tmp_path / "models/model.py").write_text("")
    monkeypatch.chdir(tmp_path)
    request = Request("models/model.py:build", Plan(), data="models/data", checkpoint="weights.pt")
    sent, env = carried(job_of(request), pytest.fail)
    assert env["working_dir"] == str(tmp_path / "models")
    assert (sent.request.target, sent.request.data, sent.cwd) == ("model.py:build", "data", ".")
    assert sent.request.checkpoint == str(tmp_path / "weights.pt")
    module = job_of(Request("leakaudit.scene.demo", Plan()))
    assert carried(module, pytest.fail) == (module, {})


def test_a_large_folder_does_not_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.py").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/large").write_bytes(bytes(200))
    monkeypatch.setattr(ray, "CARRIED", 100)
    monkeypatch.chdir(tmp_path)
    request, told = Request("model.py", Plan(), data="faces.npz"), list[str]()
    assert carried(job_of(request), told.append)[1]  # what is not sent does not count
    assert told == []
    (tmp_path / "faces.npz").write_bytes(bytes(200))
    sent, env = carried(job_of(request), told.append)
    assert env == {}
    assert (sent.request.target, sent.request.data) == (str(tmp_path / "model.py"), str(tmp_path / "faces.npz"))
    assert len(told) == 1


@pytest.fixture
def let(tmp_path: Path) -> Door:
    """Return a door to a shelf in an empty folder, with a scan on it, in this process's name."""
    job = job_of(Request("model.py", Plan()))
    write(opened(tmp_path), job)
    return Door(str(tmp_path), job.id, host(), os.getpid())


def test_who_falls_silent_loses_its_claims(let: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = [1000.0]
    monkeypatch.setattr(door.time, "monotonic", lambda: now[0])
    assert let.again() is not None
    assert let.begin(0, "ray-0-a")
    assert let.begin(1, "ray-1-b")
    assert let.claim(KEY, Claim("ray-0-a", "elsewhere", 1, "none: replay"))
    assert not let.claim(KEY, Claim("ray-1-b", "elsewhere", 2, "none: replay"))
    assert Shelf(tmp_path).claims()[KEY] == Claim("ray-0-a", host(), os.getpid(), "none: replay")
    now[0] += SILENCE - 1
    let.alive("ray-0-a")
    now[0] += SILENCE - 1
    assert let.sweep() == []
    now[0] += 2
    assert let.sweep() == ["none: replay"]
    assert let.sweep() == []
    assert let.claim(KEY, Claim("ray-1-b", "elsewhere", 2, "none: replay"))


def test_who_is_begun_anew_frees_the_one_before(let: Door) -> None:
    assert let.begin(0, "ray-0-a")
    assert let.claim(KEY, Claim("ray-0-a", "elsewhere", 1, "none: replay"))
    assert let.begin(0, "ray-0-b")
    assert let.claims() == {}
    assert let.sweep() == ["none: replay"]


def test_a_process_that_always_dies_is_given_up(let: Door) -> None:
    assert [let.begin(0, f"ray-0-{k}") for k in range(STARTS + 1)] == [True] * STARTS + [False]
    assert let.put(KEY, b"an outcome", False, f"ray-0-{STARTS}") == ""
    assert let.begin(0, "ray-0-again")


def test_nothing_is_written_once_the_scan_has_ended(let: Door) -> None:
    assert let.put(KEY, b"an outcome", True, "ray-0-a") == ""
    assert let.claim(KEY, Claim("ray-0-a", "elsewhere", 1, "none: replay"))
    let.close()
    assert let.claims() == {}
    assert let.put(KEY, b"another", True, "ray-0-a") != ""
    assert let.get(KEY, True) == b"an outcome"
    assert not let.claim(KEY, Claim("ray-0-a", "elsewhere", 1, "none: replay"))


# A head that computes nothing and two nodes of one processor, each in processes of its own, of which those are killed
# whose names are read. Ray reads its settings once, so it is not asked to do this in a process that had others.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
try:
    nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    print(made.address, flush=True)
    for line in sys.stdin:
        for node in [each for each in nodes if each.node_id.startswith(line.strip())]:
            made.remove_node(node, allow_graceful=False)
        print("killed", flush=True)
finally:
    made.shutdown()
"""
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Cluster:
    """A cluster in another process."""

    def __init__(self) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **SETTINGS}
        words = [sys.executable, "-c", CLUSTER]
        self.process = subprocess.Popen(words, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.address = self._line()

    def kill(self, node: str) -> None:
        """Kill a node by how its name begins."""
        assert self.process.stdin is not None
        self.process.stdin.write(node + "\n")
        self.process.stdin.flush()
        assert self._line() == "killed"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    assert made.address
    yield made
    made.process.communicate("")


def scan(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """Begin a scan of folder/model.py in a process of its own."""
    code = "import sys; sys.argv[0] = 'leakaudit'; from leakaudit.cli import main; main()"
    few = ("--quick", "--records", "4", "--no-utility", "--attack", "slow", "-d", "prune", "--device", "cpu")
    return subprocess.Popen(
        [sys.executable, "-c", code, "scan", "model.py", *few, *words],
        cwd=folder,
        env={**os.environ, "CI": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **SETTINGS, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(path: Path) -> str:
    """Return a result without how long it took, and when."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps({key: value for key, value in found.items() if key not in ("timings", "made")})


def at_work(process: subprocess.Popen[str], cache: Path, work: str) -> str:
    """Wait until somebody is at a piece of a scan's work on the cluster; return who."""
    while process.poll() is None:
        for path in (cache / "claims").glob("?" * 64):
            try:
                claim = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if claim["work"] == work and claim["who"].startswith("ray-"):
                return str(claim["who"])
        time.sleep(0.05)
    raise AssertionError(process.communicate())


@needed
def test_what_cannot_be_read_on_the_nodes_is_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL + SLOW.format(go=tmp_path) + "import os\nopen(os.environ['ONLY_HERE'])\n")
    there = {"RAY_ADDRESS": cluster.address, "ONLY_HERE": os.devnull}
    out, err = scan(tmp_path, "--cache", "cache", "--executor", "ray", **there).communicate()
    last = err.splitlines()[-1]
    assert last.startswith("leakaudit: no participant on the Ray cluster could take part: model.py, line"), err
    assert "KeyError" in last
    assert "Traceback" not in out + err


@needed
def test_a_node_that_is_killed_changes_no_byte(cluster: Cluster, tmp_path: Path) -> None:
    go = tmp_path / "go"
    (tmp_path / "model.py").write_text(MODEL + SLOW.format(go=go))
    spread = scan(tmp_path, "--cache", "one", "-o", "spread", "--executor", "ray", RAY_ADDRESS=cluster.address)
    who = at_work(spread, tmp_path / "one", "none: slow")
    cluster.kill(who.split("-")[2])
    go.touch()
    out, err = spread.communicate()
    assert "a participant died, others take over what it was at: none: slow" in err, out + err
    assert "raylet" not in out + err  # Ray speaks to itself
    assert list((tmp_path / "one/claims").iterdir()) == []
    alone = scan(tmp_path, "--cache", "two", "-o", "alone")
    alone.communicate()
    assert alone.returncode == spread.returncode
    assert told(tmp_path / "spread/result.json") == told(tmp_path / "alone/result.json")
