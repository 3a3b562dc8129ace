"""What worker groups ask of a cluster, and how many of them it holds."""

from __future__ import annotations

import os

from raydistill.config import Train
from raydistill.errors import ConfigError

TRIALS_AT_ONCE = 4
"""Trials that share a machine without GPUs, where it has as many cores: a search learns little from more at a time."""


def worker_resources(train: Train, *, groups: int = 1) -> dict[str, float]:
    """Return what each worker asks for: a GPU where the cluster has them, and an even share of the CPUs.

    ``groups``: worker groups that should find room side by side without GPUs. Raises ConfigError where the cluster can
    never hold one.
    """
    import ray

    total = ray.cluster_resources()
    if train.resources_per_worker is not None:
        wanted = dict(train.resources_per_worker)
    elif total.get("GPU", 0) >= train.num_workers:
        wanted = {"CPU": max(1.0, total.get("CPU", 1) // total["GPU"]), "GPU": 1.0}
    else:
        wanted = {"CPU": max(1.0, total.get("CPU", 1) // (train.num_workers * groups))}
    can_grow = bool(os.environ.get("RAY_ADDRESS"))  # an autoscaler may bring nodes; a cluster of this machine cannot
    for name, amount in wanted.items():
        if amount * train.num_workers > total.get(name, 0) and not can_grow:
            raise ConfigError(
                f"train.num_workers: {train.num_workers} workers with {amount:g} {name} each need "
                f"{amount * train.num_workers:g}, but the cluster has {total.get(name, 0):g}. "
                "Lower train.num_workers or train.resources_per_worker."
            )
    return wanted


def groups_at_once(train: Train, resources: dict[str, float]) -> int | None:
    """Worker groups that the cluster can hold side by side; None where an autoscaler may bring more nodes.

    Groups of several workers are counted on the nodes that are there: more than fit would wait for each other.
    """
    import ray

    if os.environ.get("RAY_ADDRESS") and train.num_workers == 1:
        return None
    total = ray.cluster_resources()
    rooms = [total.get(name, 0) // (amount * train.num_workers) for name, amount in resources.items() if amount > 0]
    return max(1, int(min(rooms, default=1)))
