"""Asking this machine, and every living node of a cluster, how it is: one small process a node, which takes no CPU.

The processes end with the connection.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from raydistill.cli.doctor import probe
from raydistill.cluster.connection import connected, set_environment
from raydistill.cluster.entry import check_entry
from raydistill.storage.storage import STAGING

ANSWER_SECONDS = 30.0
"""A node that is silent for so long counts as one that does not answer; a healthy one takes 2 s."""
CLOCK_SECONDS = 5.0
"""For an answer that needs no work."""
HERE, ALONE = "here", "this machine"
"""Names of the process that asks, beside nodes or without: it too writes to storage and needs the same versions."""


@dataclass
class NodeReport:
    """What one node, or the asking process itself, said. `name` is an IP address, with a part of the node's id where
    several share it."""

    name: str
    node_id: str
    resources: Mapping[str, float]
    problem: str = ""
    """Why there is no answer; all below is empty then."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """As `probe.Probe.facts` gives them."""
    offset_s: float = 0.0
    """Its clock less the driver's, cleared of half the round trip; the round trip bounds the error."""
    round_trip_s: float = 0.0
    write_problem: str = ""
    unseen: tuple[str, ...] = ()
    """Names of the nodes whose marker in storage this one does not find."""


def ask(address: str | None, url: str, tracking: str | None, seconds: float = ANSWER_SECONDS) -> list[NodeReport]:
    """Ask this process, and every living node of the cluster at ``address`` (HOST:PORT or auto), if one is named.

    ``url``: the storage that all should have in common; ``tracking``: address of MLflow, None where that is not known.
    Raises ConfigError for an address of another kind, RaydistillError where the cluster cannot be reached.
    """
    with joined(address) if address is not None else nullcontext():
        nodes, probes = _start_probes() if address is not None else ([], {})
        name = HERE if address is not None else ALONE
        here = NodeReport(name, HERE, {}, facts=probe.Probe().facts(url, tracking))
        asked = {one.node_id: probes[one.node_id].facts.remote(url, tracking, dict(one.resources)) for one in nodes}
        for node, answer in zip(nodes, _collect(asked, seconds).values(), strict=True):
            if isinstance(answer, Silence):
                node.problem = answer.reason
            else:
                node.facts = answer
                _ask_clock(node, probes[node.node_id])
        _try_storage([here, *nodes], probes, url, seconds)
        return [here, *nodes]


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be a driver of the cluster at ``address``; fails within seconds where that cannot be.

    auto: the one that RAY_ADDRESS names, as in a job, otherwise the one that this machine is a node of.
    """
    before = os.environ.get("RAY_ADDRESS")
    if address == "auto":
        address = before or address
    os.environ["RAY_ADDRESS"] = address
    set_environment()
    try:
        check_entry(address)
        with connected():
            yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update({"RAY_ADDRESS": before} if before is not None else {})


def _start_probes() -> tuple[list[NodeReport], dict[str, Any]]:
    """A report, still empty, and a probe for every living node, by node id."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    shared = Counter(node["NodeManagerAddress"] for node in alive)
    reports = []
    for node in alive:
        ip, node_id = node["NodeManagerAddress"], node["NodeID"]
        is_head = any(name == "node:__internal_head__" for name in node["Resources"])
        name = f"{ip}{f'/{node_id[:6]}' if shared[ip] > 1 else ''}{' (head)' if is_head else ''}"
        reports.append(NodeReport(name, node_id, dict(node["Resources"])))
    ray.cloudpickle.register_pickle_by_value(probe)  # a node need not have this module, nor the same
    try:
        probes = {
            report.node_id: ray.remote(probe.Probe)
            .options(
                num_cpus=0,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(report.node_id, soft=False),
            )
            .remote()
            for report in reports
        }
    finally:
        ray.cloudpickle.unregister_pickle_by_value(probe)
    return sorted(reports, key=lambda report: report.name), probes


def _ask_clock(node: NodeReport, asked: Any) -> None:
    """The clock was read within the round trip; the process is there already, so that takes milliseconds."""
    before = time.time()
    answer = _collect({"": asked.clock.remote()}, CLOCK_SECONDS)[""]
    after = time.time()
    if isinstance(answer, Silence):
        node.problem = answer.reason
    else:
        node.round_trip_s, node.offset_s = after - before, answer - (before + after) / 2


def _try_storage(reports: Sequence[NodeReport], probes: Mapping[str, Any], url: str, seconds: float) -> None:
    """All write a marker that all look for; the markers are removed again."""
    folder, own = f"{STAGING}/doctor-{uuid.uuid4().hex}", probe.Probe()
    asked = {report.node_id: probes[report.node_id] for report in reports[1:] if not report.problem}
    wrote = {HERE: own.write(url, folder, HERE)}
    wrote |= _collect({key: one.write.remote(url, folder, key) for key, one in asked.items()}, seconds)
    failed = {key: answer.reason if isinstance(answer, Silence) else answer for key, answer in wrote.items()}
    writers = [key for key, reason in failed.items() if not reason]
    there = [key for key in writers if key != HERE]
    saw = _collect({key: asked[key].read.remote(url, folder, writers) for key in there}, seconds)
    saw |= {HERE: own.read(url, folder, writers)} if HERE in writers else {}
    _collect({key: asked[key].clear.remote(url, folder) for key in there}, seconds)
    if HERE in writers:
        own.clear(url, folder)
    names = {report.node_id: report.name for report in reports}
    for report in reports:
        found = saw.get(report.node_id, writers)
        if isinstance(found, Silence):
            report.write_problem = found.reason
        else:
            report.write_problem = failed.get(report.node_id, "")
            report.unseen = tuple(names[key] for key in writers if key not in found)


@dataclass(frozen=True)
class Silence:
    """Stands for an answer that did not come."""

    reason: str


def _collect(asked: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Every answer that comes in time, and a Silence for each other."""
    if not asked:
        return {}
    import ray

    done, _ = ray.wait([*asked.values()], num_returns=len(asked), timeout=seconds)
    return {key: _answer(one, one in done, seconds) for key, one in asked.items()}


def _answer(one: Any, is_done: bool, seconds: float) -> Any:
    import ray

    if not is_done:
        return Silence(f"no answer within {seconds:g} s")
    try:
        return ray.get(one, timeout=CLOCK_SECONDS)
    except ray.exceptions.RayTaskError as error:
        return Silence(f"{type(error.cause).__name__}: {error.cause}")
    except ray.exceptions.RayError as error:
        return Silence(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
