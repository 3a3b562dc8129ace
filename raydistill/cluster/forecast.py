"""Where a run's parts would go on a cluster as it is now, what only an autoscaler can bring, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raydistill.cluster.placement import TEACHER, TRAINER, State, least_workers, teacher_resources
from raydistill.cluster.resources import SETTING_OF_WORKERS, TRIALS_AT_ONCE, described, summary, wanted_by_workers
from raydistill.cluster.room import KIND, Node, Resources, marked, place, room
from raydistill.config.teacher import Pool
from raydistill.config.tree import Config

WORKERS, TEACHERS, TRIALS = "training workers", "teachers", "trials"
SETTINGS = {
    WORKERS: SETTING_OF_WORKERS,
    TEACHERS: "teacher.pool.min or teacher.pool.resources",
    TRIALS: SETTING_OF_WORKERS,
}
Views = tuple[Sequence[Node], Sequence[Node]]
"""What is free now, and the same nodes empty; both with the nodes that may come."""


@dataclass(frozen=True)
class Role:
    """So many that ask for the same, and where they would go."""

    name: str
    phase: str
    """``training``, ``recording`` or ``search``: those of one phase are there at the same time."""
    count: int
    """As many as there may be at a time; of trials with several workers, these workers."""
    least: int
    """Work does not begin with fewer."""
    resources: dict[str, float]
    """What each asks for."""
    now: dict[str, int]
    """How many on which node that has room for them."""
    new: dict[str, int]
    """How many on nodes of which group, which an autoscaler has to bring first."""
    waiting: int
    """Those that find room only when something else on the cluster has ended."""
    missing: int
    """Those that the cluster can never hold."""


def forecast(config: Config, mode: str, state: State, num_trials: int | None = None) -> dict[str, Any]:
    """Return the cluster's nodes, the roles and what to know about them, as plain data.

    ``mode``: how the teacher's signals are got. ``num_trials``: of a sweep.
    """
    roles = _roles(config, mode, state, num_trials)
    nodes = [*state.nodes, *state.coming]
    return {
        "address": state.address,
        "nodes": [
            {"name": node.name, "there": node.is_there, "count": node.count, "resources": dict(node.total)}
            for node in nodes
        ],
        "roles": [asdict(role) for role in roles],
        "findings": list(_findings(roles, nodes)),
    }


def _roles(config: Config, mode: str, state: State, num_trials: int | None) -> list[Role]:
    """Workers, teachers and trials; those that run at the same time find room beside each other."""
    train, nodes = config.train, [*state.nodes, *state.coming]
    views: Views = ([*state.free, *state.coming], nodes)
    if train.num_workers == 0:
        return []
    pool = config.teacher.pool or (Pool() if mode == "pool" else None)
    beside = pool if mode == "pool" else None
    wanted = wanted_by_workers(train, nodes, pool=beside)
    workers, left = _role(WORKERS, "training", (least_workers(train), train.num_workers), wanted, views)
    roles = [workers]
    if pool is not None and mode in ("pool", "cached"):
        wanted = teacher_resources(pool, train if beside else None, nodes)
        phase = "training" if beside else "recording"
        roles.append(_role(TEACHERS, phase, (pool.min, pool.max), wanted, left if beside else views)[0])
    if config.sweep is not None and num_trials is not None:
        wanted = wanted_by_workers(train, nodes, groups=TRIALS_AT_ONCE, is_trial=True)
        limit = min(num_trials, config.sweep.max_concurrent_trials or num_trials)
        count = train.num_workers * max(
            1, int(min(float(limit * train.num_workers), room(wanted, nodes)) // train.num_workers)
        )
        roles.append(_role(TRIALS, "search", (train.num_workers, count), wanted, views)[0])
    return roles


def _role(name: str, phase: str, counts: tuple[int, int], wanted: Resources, views: Views) -> tuple[Role, Views]:
    """The role, and what it leaves. ``counts``: the least and the most."""
    least, count = counts
    free, whole = (place(wanted, count, nodes) for nodes in views)
    missing = count - max(free.num, whole.num)
    now: dict[str, int] = {}
    new: dict[str, int] = {}
    for node, num in free.on:
        side = now if node.is_there else new
        side[node.name] = side.get(node.name, 0) + num
    waiting = count - free.num - missing
    return Role(name, phase, count, least, dict(wanted), now, new, waiting, missing), (free.rest, whole.rest)


def _findings(roles: Sequence[Role], nodes: Sequence[Node]) -> Iterator[str]:
    """What the cluster can never hold, with the ways out, and what else to know of where things go; a sentence each."""
    if not roles:
        yield "train.num_workers: 0 runs everything in the calling process; nothing goes to a cluster."
    for role in roles:
        if role.missing:
            then = "the run waits for them, up to train.max_wait_minutes"
            if role.count - role.missing >= role.least:
                then = "the others begin without them"
            yield (
                f"{role.missing} of {role.count} {role.name} with {described(role.resources)} each find no place on "
                f"{summary(nodes)}; {then}. Add nodes, or lower {SETTINGS[role.name]}."
            )
        mark = {WORKERS: TRAINER, TEACHERS: TEACHER}.get(role.name)
        if mark and marked(mark, nodes) and mark not in role.resources:
            why = "are kept for what needs a GPU, or too small"
            if role.resources.get("GPU"):
                why = f"hold {room(role.resources, marked(mark, nodes)):g} of {role.least}"
            yield f"The {mark} nodes {why}: {role.name} go to any nodes."
        for kind in role.resources:
            if kind.startswith(KIND) and not any(node.total.get(kind) for node in nodes):
                kind = kind.removeprefix(KIND)
                yield f"No node that is there has a GPU of the kind {kind}; see that new nodes have one."
        if role.waiting:
            yield f"{role.waiting} of {role.count} {role.name} wait until others on the cluster make room."
