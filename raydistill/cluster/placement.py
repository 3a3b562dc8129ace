"""Where things run: teachers on nodes for teachers, workers on nodes for training, anywhere where there are none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.cluster.entry import check_port
from raydistill.cluster.room import Node, announced_nodes, kind_of_gpu, mark, marked, room
from raydistill.config.teacher import Pool
from raydistill.config.training import Train
from raydistill.errors import ConfigError, RaydistillError
from raydistill.storage.redaction import redact

TEACHER, TRAINER = "teacher", "trainer"
"""Custom resources of the nodes for one of them."""


def living_nodes() -> list[Node]:
    """The nodes of the cluster that this process has joined, by address."""
    import ray

    nodes = [Node(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return sorted(nodes, key=lambda node: node.name)


def known_nodes() -> list[Node]:
    """Nodes that are there, and those that an autoscaler may bring."""
    living = living_nodes()
    return [*living, *announced_nodes(living)]


def has_place(actor: Any) -> bool:
    """Whether an actor has a process on a node, in which it may still be about to begin; until then it waits for room.

    Ray tells that in public only where it has a dashboard.
    """
    from ray._private.state import state

    return bool(state.actor_table(actor._actor_id.hex()).get("Address", {}).get("Port"))


def can_grow() -> bool:
    """Whether nodes may come: to a cluster that ``RAY_ADDRESS`` names or that this process has joined, as an actor has
    whose raylet knows no ``RAY_ADDRESS``; but not to one that this process has started, of this machine alone."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local") or has_joined()


def has_joined() -> bool:
    """Whether this process belongs to a cluster that another one has started. Ray tells who did nowhere in public."""
    ray: Any = sys.modules.get("ray")  # which reads the environment when it is first imported
    if ray is None or not ray.is_initialized():
        return False
    from ray._private import worker

    own = worker._global_node  # None for a client of another machine's
    return own is None or not own.is_head()


def least_workers(train: Train) -> int:
    """Workers without which training does not begin."""
    return train.min_workers or train.num_workers


def takes_gpus(train: Train, nodes: Sequence[Node]) -> bool:
    """Whether workers compute on GPUs: by the config, else where a node that is theirs has one, however few there are.

    Too few are waited for or refused: on CPUs it would be another run, of another dtype.
    """
    if train.accelerator_type or train.resources_per_worker is not None:
        return bool(train.accelerator_type or (train.resources_per_worker or {}).get("GPU"))
    others = [node for node in nodes if node.amount("CPU") and not node.total.get(TEACHER)]
    return any(node.total.get("GPU") for node in marked(TRAINER, nodes) or others or nodes)


def teacher_resources(pool: Pool, train: Train | None = None, nodes: Sequence[Node] | None = None) -> dict[str, float]:
    """What each teacher actor asks for, marks included.

    ``train``: workers that run at the same time (``teacher.mode: pool``). By default a whole GPU, where so many are
    left beside the workers that the pool can begin, else a CPU.
    """
    nodes = known_nodes() if nodes is None else nodes
    wanted = dict(pool.resources) if pool.resources is not None else _teacher_default(pool, train, nodes)
    wanted |= kind_of_gpu(pool.accelerator_type)
    return wanted | mark(TEACHER, wanted, pool.min, nodes)


def _teacher_default(pool: Pool, train: Train | None, nodes: Sequence[Node]) -> dict[str, float]:
    gpu = {"CPU": 1.0, "GPU": 1.0}
    kind = kind_of_gpu(pool.accelerator_type)
    if kind or room(gpu, marked(TEACHER, nodes)) >= pool.min or _gpus_left(train, nodes) >= pool.min:
        return gpu
    return {"CPU": 1.0}


def _gpus_left(train: Train | None, nodes: Sequence[Node]) -> float:
    """GPUs that training workers do not take."""
    total = room({"GPU": 1.0}, [node for node in nodes if "GPU" in node.total])
    if train is None:
        return total
    if train.resources_per_worker is not None:
        return total - train.resources_per_worker.get("GPU", 0.0) * train.num_workers
    return total - train.num_workers if takes_gpus(train, nodes) else total


def teacher_options(pool: Pool, train: Train | None = None) -> dict[str, Any]:
    """Ray's options of a teacher actor: ``num_cpus``, ``num_gpus``, ``resources``, ``memory``, ``scheduling_strategy``.

    ``train``: as for ``teacher_resources``. Teachers are spread over nodes: a node that is lost takes few with it.
    """
    wanted = teacher_resources(pool, train)
    options: dict[str, Any] = {
        "num_cpus": wanted.pop("CPU", 0.0),
        "num_gpus": wanted.pop("GPU", 0.0),
        "scheduling_strategy": "SPREAD",
    }
    if "memory" in wanted:
        options["memory"] = wanted.pop("memory")
    return options | {"resources": wanted}


@dataclass(frozen=True)
class State:
    """A cluster as it is now."""

    address: str
    nodes: tuple[Node, ...]
    free: tuple[Node, ...]
    """The same nodes with what is not taken."""

    @property
    def coming(self) -> list[Node]:
        """What its autoscaler may bring, as the head node announces it."""
        return announced_nodes(self.nodes)


CONNECT_SECONDS = 5.0


def read_cluster(address: str | None = None) -> State:
    """Ask the cluster at ``HOST:6379`` (``auto``: the one of this machine; None: ``RAY_ADDRESS``) without joining it.

    Raises ConfigError where none is named, RaydistillError where it does not answer, or not to this process.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise ConfigError(
            "No cluster is named: set RAY_ADDRESS or give --address HOST:6379, or auto for this machine's."
        )
    if "://" in address:
        raise ConfigError(
            f"{redact(address)} is no address of a cluster's nodes. Give HOST:6379 of the head "
            "node, on a machine of that cluster."
        )
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus  # type: ignore[attr-defined]

    try:
        address = canonicalize_bootstrap_address_or_die(address)
        check_port(address)  # Ray's own client waits for 40 s
        answer = GcsClient(address).get_cluster_status(timeout_s=CONNECT_SECONDS)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise RaydistillError(
            f"Could not reach the Ray cluster at {address}: {why}. "
            "Give HOST:6379 of its head node as --address or RAY_ADDRESS, and where it asks for a token set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
        ) from error
    reply = GetClusterStatusReply.FromString(answer)
    found = sorted(reply.cluster_resource_state.node_states, key=lambda state: state.node_ip_address)
    alive = [state for state in found if state.status in (NodeStatus.RUNNING, NodeStatus.IDLE)]
    return State(
        address,
        tuple(Node(state.node_ip_address, dict(state.total_resources)) for state in alive),
        tuple(Node(state.node_ip_address, dict(state.available_resources)) for state in alive),
    )
