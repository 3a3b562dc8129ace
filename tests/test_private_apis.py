"""What raydistill uses of its libraries that they do not promise to keep: where, that it is still there, and what to
take instead once it is not."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator

import pytest
import ray
from kit import ROOT

SOURCE = ROOT / "raydistill"
LIBRARIES = ("ray", "torch", "mlflow", "transformers", "datasets", "huggingface_hub")
PRIVATE = ("generated", "v2")
"""Parts of a module's name, beside those with an underscore, that no library documents."""

USED = {
    ("cluster/entry.py", "ray._raylet.GcsClient"),
    ("cluster/placement.py", "ray._private.services.canonicalize_bootstrap_address_or_die"),
    ("cluster/placement.py", "_actor_id"),
    ("cluster/placement.py", "ray._private.state.state"),
    ("cluster/placement.py", "ray._private.worker"),
    ("cluster/placement.py", "_global_node"),
    ("cluster/placement.py", "ray._raylet.GcsClient"),
    ("cluster/placement.py", "ray.core.generated.autoscaler_pb2.GetClusterStatusReply"),
    ("cluster/placement.py", "ray.core.generated.autoscaler_pb2.NodeStatus"),
    ("cli/doctor/probe.py", "ray._private.authentication.authentication_utils.is_token_auth_enabled"),
    ("cli/submit/jobs.py", "_do_request"),
    ("models/student.py", "_attn_implementation"),
    ("search/schedulers.py", "_get_new_config"),
    ("cluster/group.py", "_get_default_store"),
    ("pipeline/worker.py", "ray.train.v2._internal.execution.context.get_train_context"),
}


def private_uses() -> Iterator[tuple[str, str]]:
    """(file, name) of imports from modules that are not public, and of attributes with an underscore not of our own."""
    trees = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    nodes = [(name, node) for name, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef)} - {"_get_new_config", "_do_request"}
    own |= {"_Hash"}  # a type of the standard library, named in an annotation
    own |= {node.attr for _, node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for name, node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            parts = (node.module or "").split(".")
            for alias in node.names:
                if any(part.startswith("_") or part in PRIVATE for part in (*parts, alias.name)):
                    yield name, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Attribute) and node.attr not in own and re.match("_[^_]", node.attr):
            yield name, node.attr


def test_nothing_else_is_used_that_is_not_promised():
    """Look for a public way first; what has none gets a line above and a canary below."""
    assert set(private_uses()) == USED


def gcs_client(method: str) -> bool:
    from ray import _raylet

    return hasattr(_raylet.GcsClient, method) or hasattr(_raylet.InnerGcsClient, method)


def bootstrap() -> bool:
    from ray._private.services import canonicalize_bootstrap_address_or_die as found

    return found("10.0.0.5:6379") == "10.0.0.5:6379"


def cluster_status() -> bool:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus

    state = GetClusterStatusReply().cluster_resource_state.node_states.add()
    fields = {field.name for field in state.DESCRIPTOR.fields}
    return {"node_ip_address", "status", "total_resources", "available_resources"} <= fields and NodeStatus.RUNNING > 0


def actor_place() -> bool:
    from ray._private.state import state
    from ray.actor import ActorHandle

    return callable(state.actor_table) and hasattr(ActorHandle, "_actor_id")


def who_started() -> bool:
    from ray._private import worker
    from ray._private.node import Node

    return hasattr(worker, "_global_node") and callable(Node.is_head)


def token_mode() -> bool:
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return isinstance(is_token_auth_enabled(), bool)


def request_with_timeout() -> bool:
    from ray.job_submission import JobSubmissionClient

    return "data" in inspect.signature(JobSubmissionClient._do_request).parameters


def attention() -> bool:
    from transformers import BertConfig

    return BertConfig(attn_implementation="sdpa")._attn_implementation == "sdpa"


def new_config() -> bool:
    from ray.tune.schedulers import PopulationBasedTraining

    parameters = list(inspect.signature(PopulationBasedTraining._get_new_config).parameters)
    return parameters == ["self", "trial", "trial_to_clone"]


def default_store() -> bool:
    import torch.distributed as dist

    return callable(dist.distributed_c10d._get_default_store)


def preemption() -> bool:
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    return callable(get_train_context) and PreemptionContext().preemption_info is None


CANARIES: list[tuple[Callable[[], bool], str]] = [
    (
        lambda: gcs_client("get_all_node_info"),
        "cluster/entry.py: no check, ray.init then waits for a minute",
    ),
    (lambda: gcs_client("get_cluster_status"), "cluster/placement.py: ray.init, ray.nodes and ray.available_resources"),
    (bootstrap, "cluster/placement.py: ray.init(address='auto') and get_runtime_context().gcs_address"),
    (cluster_status, "cluster/placement.py: ray.nodes() of a driver that has joined"),
    (actor_place, "cluster/placement.py: a first question to the actor, which begins to load with the second one"),
    (who_started, "cluster/placement.py: a note of connected(), where nobody else has called ray.init"),
    (token_mode, "cli/doctor/probe.py: RAY_AUTH_MODE of the node, which it falls back to"),
    (request_with_timeout, "cli/submit/jobs.py: a session of requests with time-outs, or none at all"),
    (attention, "models/student.py: attn_implementation, as from_pretrained takes it"),
    (new_config, "search/schedulers.py: custom_explore_fn, if it is told the trial by then"),
    (default_store, "cluster/group.py: dist.monitored_barrier where the group talks over gloo"),
    (preemption, "pipeline/worker.py: ray.train.get_preemption_info, a collective that every step would pay for"),
]


@pytest.mark.parametrize(("is_there", "instead"), CANARIES, ids=[instead.split(":")[0] for _, instead in CANARIES])
def test_it_is_still_there(is_there, instead):
    try:
        found = is_there()
    except (ImportError, AttributeError, TypeError) as error:
        found = error
    assert found is True, f"ray {ray.__version__} or another library has changed ({found}); take instead: {instead}"
