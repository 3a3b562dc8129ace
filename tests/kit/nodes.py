"""Nodes as Ray describes them, and settings that ask for them."""

from __future__ import annotations

from typing import Any

from raydistill.cluster.room import Node
from raydistill.config.training import Train


def node(cpu: float = 0, gpu: float = 0, name: str = "10.0.0.1", **others: float) -> Node:
    total = {"CPU": cpu, "GPU": gpu, **others}
    return Node(name, {kind: float(amount) for kind, amount in total.items() if amount})


def head(**groups: tuple[float, ...]) -> Node:
    """A head without CPUs that announces groups: (nodes, CPUs of one, GPUs of one), the last two as may be."""
    told = {}
    for name, amounts in groups.items():
        told |= dict(zip((f"{name}_group", f"{name}_group_cpus", f"{name}_group_gpus"), amounts, strict=False))
    return node(name="10.0.0.9", **told)


def train(**settings: Any) -> Train:
    return Train.model_validate(settings)
