"""Participants as tasks on a Ray cluster. The shelf stays on this machine; an actor here lets them in to it."""

from __future__ import annotations

import importlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from leakaudit.errors import Setting, Untouched, UserError, first_line
from leakaudit.protocol.usercode import folder_of, is_file, named
from leakaudit.spread.door import Door, participate
from leakaudit.spread.job import Job, Request
from leakaudit.units import desk
from leakaudit.units.desk import Desk
from leakaudit.units.shelf import Shelf, host

LOOK = 1.0  # seconds between two looks at the tasks
PATIENCE = 10.0  # seconds that the actor is given to close
MOST = 64  # participants where nobody says how many
CARRIED = 100 << 20  # bytes of a target's folder that are sent to the nodes
LEFT = (".git", ".venv", "venv", "__pycache__", "leakaudit-out*")  # of it, what is not
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by `ray job submit`, which sends a folder of its own


@dataclass(frozen=True)
class Room:
    """How many participants there are to be on a cluster, and what each takes of it."""

    workers: int
    cpus: int
    gpus: float
    beside: int  # how many may share a machine's memory, or a GPU's


@contextmanager
def started(shelf: Shelf, job: Job, workers: int) -> Iterator[bool]:
    """Start all participants on the cluster there is, else on one of this machine; yield that the main one is none.

    One worker means as many as fit. Raises UserError where there is no Ray, or the cluster cannot be used.
    """
    ray = _imported()
    own = desk.current() or Desk(shelf)
    cuda = job.request.device.startswith("cuda") or (job.request.device == "auto" and torch.cuda.is_available())
    with _joined(ray, job, own.say) as sent:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fits = room(nodes, job.threads, workers, cuda)
        own.say(f"{fits.workers} participants on a Ray cluster of {len(nodes)} nodes")
        door = _door(ray, shelf, job)
        sent = replace(sent, beside=fits.beside, lanes=fits.workers)
        task = ray.remote(
            num_cpus=fits.cpus,
            num_gpus=fits.gpus,
            max_retries=-1,
            max_calls=1,  # what users' code leaves in a process ends with it
            scheduling_strategy="SPREAD",
        )(participate)
        tasks = {task.remote(door, sent, place, cuda): place for place in range(fits.workers)}
        stop = threading.Event()
        watch = threading.Thread(target=_watch, args=(ray, door, dict(tasks), own, stop), daemon=True)
        watch.start()
        try:
            yield False
        finally:
            stop.set()
            watch.join(PATIENCE)
            with suppress(Exception):
                ray.get(door.close.remote(), timeout=PATIENCE)
            for each in tasks:
                with suppress(Exception):
                    ray.cancel(each, force=True)
            with suppress(Exception):
                ray.kill(door)


def waiting(shelf: Shelf, job: Job) -> str:
    """Say what is waited for while nobody is at work."""
    return "waiting for room on the Ray cluster"


def room(nodes: Sequence[Mapping[str, float]], threads: int, workers: int, cuda: bool) -> Room:
    """Return how many participants there are to be on nodes with these resources, and what each takes.

    With one worker it is as many as there are GPUs where they compute on those, else as there are processors for their
    threads. More than there are GPUs have an even part of one each. Raises UserError where none has room.
    """
    able = [node for node in nodes if node.get("GPU", 0) >= 1] if cuda else list(nodes)
    if not able:
        raise UserError(
            "the Ray cluster has no GPU, and this scan computes on one: give ",
            Setting("device", "cpu"),
            ", or start its nodes with ray start --num-gpus.",
        )
    lanes = [int(node.get("CPU", 0)) // threads for node in able]
    if not any(lanes):
        raise UserError(
            f"no node of the Ray cluster has {threads} processors {'beside a GPU ' if cuda else ''}for a participant's "
            "threads: set OMP_NUM_THREADS lower, or start nodes with ray start --num-cpus."
        )
    if not cuda:
        count = workers if workers > 1 else min(sum(lanes), MOST)
        return Room(count, threads, 0.0, min(count, max(lanes)))
    gpus = int(sum(node["GPU"] for node in able))
    count = workers if workers > 1 else min(gpus, MOST)
    on_one = math.ceil(count / gpus)
    return Room(count, threads, math.floor(10_000 / on_one) / 10_000, on_one)  # Ray counts ten-thousandths


def carried(job: Job, say: Callable[[str], None]) -> tuple[Job, dict[str, Any]]:
    """Return a job as other machines understand it, and what Ray is to send them: the folder of the target's file.

    Paths in that folder are from it, all others absolute. Nothing is sent of a module, nor of a folder that is too
    large: then the nodes must see the same paths.
    """
    place, factory = named(job.request.target)
    if not is_file(place) or SUBMITTED in os.environ:
        return job, {}
    folder = folder_of(job.request.target).resolve()
    if too_large := _size(folder) > CARRIED:
        say(f"{folder} is not sent to the nodes, for it is larger than {CARRIED >> 20} MB: they must see it themselves")
    base = None if too_large else folder

    def there(path: str | None) -> str | None:
        if not path:
            return path
        whole = Path(path).absolute()
        inside = base is not None and whole.resolve().is_relative_to(base)
        return str(whole.resolve().relative_to(base)) if base is not None and inside else str(whole)

    asked: Request = job.request
    target = f"{there(place)}:{factory}" if factory else str(there(place))
    request = replace(
        asked,
        target=target,
        data=there(asked.data),
        update=there(asked.update),
        checkpoint=there(asked.checkpoint),
        lpips_weights=there(asked.lpips_weights),
    )
    if too_large:
        return replace(job, request=request), {}
    return replace(job, request=request, cwd="."), {"working_dir": str(folder), "excludes": list(LEFT)}


def _size(folder: Path) -> int:
    """Return the bytes in a folder, without what is not sent; a number above `CARRIED` may be any such."""
    total = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not any(Path(name).match(left) for left in LEFT)]
        for name in files:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
        if total > CARRIED:
            break
    return total


def _imported() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise Untouched(Setting("executor", "ray"), " needs Ray: pip install 'leakaudit[ray]'.") from error


@contextmanager
def _joined(ray: Any, job: Job, say: Callable[[str], None]) -> Iterator[Job]:
    """Join the cluster there is, else start one on this machine; yield the job as its nodes understand it."""
    if ray.is_initialized():
        yield job
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with suppress(Exception):  # what becomes of nodes is printed whatever `log_to_driver` says, and on stdout
        vars(importlib.import_module("ray._private.worker"))["_worker_logs_enabled"] = False
    before = signal.getsignal(signal.SIGTERM)
    try:
        sent = _connect(ray, job, say, quiet)
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray takes it
    try:
        yield sent
    finally:
        ray.shutdown()


def _connect(ray: Any, job: Job, say: Callable[[str], None], quiet: dict[str, Any]) -> Job:
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise UserError(
            f"RAY_ADDRESS={address} leads to a cluster from outside, which only scans on one of its nodes can use: "
            "send this command there with ray job submit."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a scan tells nobody outside of itself
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # data may lie in a folder that git ignores
    if address != "local":
        if ":" in address and not _answers(address):  # Ray itself would try for minutes
            raise UserError(_nobody(address))
        sent, env = carried(job, say)
        try:
            ray.init(address="auto", runtime_env=env or None, **quiet)
        except ConnectionError as error:
            if address:
                raise UserError(_nobody(address)) from error
        except Exception as error:  # Ray raises what it likes
            raise UserError(
                f"cannot join the Ray cluster{' at ' * bool(address)}{address}: {first_line(error)}."
            ) from error
        else:
            say(f"joined the Ray cluster at {ray.get_runtime_context().gcs_address}")
            return sent
    try:
        ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:
        raise UserError(f"cannot start Ray on this machine: {first_line(error)}.") from error
    say("found no Ray cluster: started one on this machine")
    return job


def _answers(address: str) -> bool:
    """Return whether anybody listens at an address, host:port."""
    name, _, port = address.rpartition(":")
    try:
        socket.create_connection((name.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _nobody(address: str) -> str:
    return f"no Ray cluster answers at RAY_ADDRESS={address}: start it with ray start, on this machine, too."


def _door(ray: Any, shelf: Shelf, job: Job) -> Any:
    """Return the handle of the actor, on this machine; raises UserError where it does not see the shelf."""
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Door).options(
        num_cpus=0, max_restarts=-1, max_task_retries=-1, max_concurrency=8, scheduling_strategy=here
    )
    door = actor.remote(str(shelf.folder.absolute()), job.id, host(), os.getpid())
    try:
        sees = ray.get(door.again.remote()) is not None
    except Exception as error:
        raise UserError(f"Ray's nodes cannot import leakaudit ({first_line(error)}): install it on each.") from error
    if not sees:
        raise UserError(
            "Ray's processes on this machine cannot read ",
            Setting("cache", str(shelf.folder)),
            ": start Ray as the same user.",
        )
    return door


def _watch(ray: Any, door: Any, tasks: dict[Any, int], own: Desk, stop: threading.Event) -> None:
    """Free what dead participants were at, and say what becomes of them; where none is left, let the main one know."""
    troubles: set[str] = set()
    well = False
    while tasks and not stop.wait(LOOK):
        with suppress(Exception):
            for work in ray.get(door.sweep.remote(), timeout=PATIENCE):
                own.say(f"a participant died, others take over what it was at: {work}")
        for each in ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0]:
            del tasks[each]
            trouble = _trouble(ray, each)
            well = well or not trouble
            if trouble and trouble not in troubles and not stop.is_set():
                troubles.add(trouble)
                own.say(f"a participant gave up: {trouble}")
    if tasks or stop.is_set():
        return
    if well:
        own.idle = False  # whatever is left is done here
    else:
        own.lost = f"no participant on the Ray cluster could take part: {sorted(troubles)[0]}"


def _trouble(ray: Any, task: Any) -> str:
    try:
        return str(ray.get(task)).rstrip(".")
    except Exception as error:
        return first_line(error)
