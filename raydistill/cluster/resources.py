"""What worker groups ask of a cluster, how many of them it holds, and what it can never hold."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace

from raydistill.cluster.connection import OBJECT_STORE_BYTES
from raydistill.cluster.placement import (
    TRAINER,
    State,
    can_grow,
    has_joined,
    known_nodes,
    least_workers,
    living_nodes,
    read_cluster,
    takes_gpus,
    teacher_resources,
)
from raydistill.cluster.room import KIND, Node, Resources, even_share, kind_of_gpu, mark, marked, place, room
from raydistill.config.teacher import Pool
from raydistill.config.training import Train
from raydistill.config.tree import Config
from raydistill.errors import ConfigError

SETTING_OF_WORKERS = "train.num_workers or train.resources_per_worker"
TRIALS_AT_ONCE = 4
"""Trials that share a machine without GPUs, where it has as many cores: a search learns little from more at a time."""


def worker_resources(
    train: Train, *, groups: int = 1, pool: Pool | None = None, is_trial: bool = False
) -> dict[str, float]:
    """Return what each worker asks for: a GPU where the cluster has them, and an even share of the CPUs.

    ``groups``: worker groups that should find room side by side on a machine without GPUs. ``pool``: teachers that run
    at the same time. ``is_trial``: workers of a trial go anywhere, others to nodes for training where there are some.
    Raises ConfigError where the cluster can never hold them.
    """
    nodes = known_nodes()
    wanted = wanted_by_workers(train, nodes, groups=groups, pool=pool, is_trial=is_trial)
    if not can_grow():
        check_room(train, wanted, pool, nodes)
    return wanted


def wanted_by_workers(
    train: Train, nodes: Sequence[Node], *, groups: int = 1, pool: Pool | None = None, is_trial: bool = False
) -> dict[str, float]:
    """As ``worker_resources``, on any nodes, whether or not they find room there."""
    if train.resources_per_worker is not None:
        wanted = dict(train.resources_per_worker) | kind_of_gpu(train.accelerator_type)
    else:
        left = beside_teachers(train, pool, nodes)
        preferred = [] if is_trial else marked(TRAINER, left)
        on_gpus = takes_gpus(train, nodes)
        wanted = _gpu_share(train, preferred, left) if on_gpus else _cpu_share(train, groups, preferred or left)
    return wanted if is_trial else wanted | mark(TRAINER, wanted, least_workers(train), nodes)


def _gpu_share(train: Train, preferred: Sequence[Node], nodes: Sequence[Node]) -> dict[str, float]:
    """A GPU, and the CPUs that are there for each of as many workers as there is room for at once."""
    gpu = {"GPU": 1.0} | kind_of_gpu(train.accelerator_type)
    for some in (preferred, nodes):
        with_gpu = [node for node in some if node.total.get("GPU")]
        if (at_once := int(room(gpu, with_gpu))) >= least_workers(train):
            break
    return {"CPU": even_share(max(1, at_once), with_gpu, gpu)} | gpu


def _cpu_share(train: Train, groups: int, nodes: Sequence[Node]) -> dict[str, float]:
    if groups > 1:
        nodes = [replace(max(nodes, key=lambda node: node.total.get("CPU", 0.0)), count=1)]
    return {"CPU": even_share(train.num_workers * groups, nodes)}


def beside_teachers(train: Train, pool: Pool | None, nodes: Sequence[Node]) -> Sequence[Node]:
    """What nodes have left for workers beside the teachers of a pool."""
    if pool is None:
        return nodes
    return place(teacher_resources(pool, train, nodes), teachers_beside(train, pool, nodes), nodes).rest


def teachers_beside(train: Train, pool: Pool, nodes: Sequence[Node] | None = None) -> int:
    """How many teachers the nodes that are there, or announced, hold beside the least that each training worker gets;
    ``pool.min`` to ``pool.max``.

    Teachers are placed first, and again wherever one has died: more of them would take the workers' places.
    """
    nodes = known_nodes() if nodes is None else nodes
    teacher, worker = teacher_resources(pool, train, nodes), train.resources_per_worker
    if worker is None:
        worker = {"CPU": 1.0} | ({"GPU": 1.0} if takes_gpus(train, nodes) else {})
    worker = worker | kind_of_gpu(train.accelerator_type)
    for count in range(int(min(room(teacher, nodes), pool.max)), pool.min, -1):
        if room(worker, place(teacher, count, nodes).rest) >= train.num_workers:
            return count
    return pool.min


def check_room(train: Train, wanted: Resources, pool: Pool | None, nodes: Sequence[Node]) -> None:
    """Raise ConfigError where the least that a run needs at one time does not fit: its workers, beside its teachers."""
    least, way_out = least_workers(train), SETTING_OF_WORKERS
    if wanted.get("GPU") and train.resources_per_worker is None:
        way_out += " ({GPU: 0.5} shares GPUs, {CPU: 4} computes without)"
    _refuse("train.num_workers", "workers", wanted, least, nodes, way_out)
    if pool is None:
        return
    teacher = teacher_resources(pool, train, nodes)
    check_teachers(pool, nodes, train)
    if place(teacher, pool.min, place(wanted, least, nodes).rest).num >= pool.min:
        return
    if place(wanted, least, place(teacher, pool.min, nodes).rest).num >= least:
        return
    raise ConfigError(
        f"teacher.pool: no room for teachers, {pool.min} × ({described(teacher)}), beside training workers, {least} × "
        f"({described(wanted)}), on {summary(nodes)}. Lower teacher.pool.min, teacher.pool.resources or "
        "train.resources_per_worker (shares such as GPU: 0.5 will do), or set teacher.mode to cached or online."
    )


def check_teachers(pool: Pool, nodes: Sequence[Node] | None = None, train: Train | None = None) -> None:
    """Raise ConfigError where a cluster that cannot grow can never hold the least teachers of a pool."""
    if can_grow():
        return
    nodes = known_nodes() if nodes is None else nodes
    teacher = teacher_resources(pool, train, nodes)
    _refuse("teacher.pool", "teachers", teacher, pool.min, nodes, "teacher.pool.min or teacher.pool.resources")


def _refuse(setting: str, who: str, wanted: Resources, count: int, nodes: Sequence[Node], way_out: str) -> None:
    if (text := lack(who, wanted, count, nodes)) is not None:
        kind = ", or change accelerator_type" if any(name.startswith(KIND) for name in wanted) else ""
        raise ConfigError(f"{setting}: {text} Lower {way_out}{kind}.")


def lack(who: str, wanted: Resources, count: int, nodes: Sequence[Node]) -> str | None:
    """``workers need 2 × (8 CPU, 1 GPU); 1 node with 8 CPU, 1 GPU hold 1 of them.`` None where all find room."""
    if (found := place(wanted, count, nodes).num) >= count:
        return None
    return f"{who} need {count} × ({described(wanted)}); {summary(nodes)} hold {found} of them."


def described(wanted: Resources) -> str:
    """``2 CPU, 1 GPU, L4``: without shares of marks."""
    plain = [name for name in ("CPU", "GPU") if wanted.get(name)]
    plain += sorted(name for name, amount in wanted.items() if name not in ("CPU", "GPU", "memory") and amount >= 0.01)
    parts = [f"{wanted[name]:g} {name}" for name in plain if not name.startswith(KIND)]
    parts += [f"{wanted['memory'] / 2**30:.1f} GiB"] if wanted.get("memory") else []
    return ", ".join([*parts, *(name.removeprefix(KIND) for name in wanted if name.startswith(KIND))]) or "no CPU"


def summary(nodes: Sequence[Node]) -> str:
    """``2 nodes with 4 CPU, 1 GPU and 1 node with no CPU``."""
    counts: dict[str, int] = {}
    for node in nodes:
        text = described({name: node.total.get(name, 0.0) for name in ("CPU", "GPU")})
        counts[text] = counts.get(text, 0) + node.count
    return " and ".join(f"{n} {'node' if n == 1 else 'nodes'} with {text}" for text, n in counts.items()) or "no node"


def groups_at_once(train: Train, resources: dict[str, float]) -> int | None:
    """Worker groups that the cluster can hold side by side; None where an autoscaler may bring more nodes.

    Groups of several workers are counted on the nodes that are there, and on those of which is announced what they
    have: more than fit would wait for each other.
    """
    if can_grow() and train.num_workers == 1:
        return None
    workers = room(resources, known_nodes())
    if workers == math.inf:  # a group of nodes that says nothing of their size, or nothing is asked for
        workers = min(room(resources, living_nodes()), 10_000.0)
    return max(1, int(workers // train.num_workers))


def device_type(config: Config, state: State | None = None) -> str:
    """What workers will compute on, ``cuda`` or ``cpu``, which decides on the dtype: what the config asks for, what the
    cluster offers (that of ``state``, or else the one joined, or of RAY_ADDRESS), or this machine.

    Counted are all nodes that are there or announced, however busy: what comes and goes should not change a run's key.
    Raises RaydistillError where the cluster does not answer.
    """
    train, address = config.train, os.environ.get("RAY_ADDRESS", "")
    if train.num_workers and (train.accelerator_type or train.resources_per_worker is not None):
        return "cuda" if takes_gpus(train, ()) else "cpu"
    if train.num_workers and state is None and has_joined():
        return "cuda" if takes_gpus(train, known_nodes()) else "cpu"
    if train.num_workers and state is None and can_grow() and "://" not in address:
        state = read_cluster()
    if train.num_workers and state is not None:
        return "cuda" if takes_gpus(train, [*state.nodes, *state.coming]) else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def object_store_bytes(config: Config) -> int:
    """Bytes that a cluster of this machine sets aside: twice what teachers may have ready; a step has its own, too."""
    ahead = (config.teacher.pool or Pool()).max_ahead_bytes if config.teacher.has_actors else 0
    return OBJECT_STORE_BYTES + 2 * ahead * config.train.num_workers
