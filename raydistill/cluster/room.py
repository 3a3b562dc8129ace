"""How much finds room on which nodes: plain counting, without Ray.

Our clusters mark nodes by the custom resources ``teacher`` and ``trainer``. Groups of nodes grow from nothing, and Ray
does not tell what its autoscaler could bring; so the head node announces every group by resources of its own:
``teacher_group`` (how many nodes it may have), ``teacher_group_cpus`` and ``teacher_group_gpus`` (of one such node).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

SHARE = 0.001
"""Of a node's mark or kind of GPU, for each actor or worker: its other resources say how many a node holds."""
GROUP = "_group"
KIND = "accelerator_type:"
"""How Ray's resource for a kind of GPU begins."""

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Node:
    """A living node; or as many as may still come of a group that an autoscaler can bring."""

    name: str
    """Its address; of a group that is announced, the group."""
    total: Resources
    """Of a group only what is announced is known: its mark, and perhaps CPU and GPU."""
    count: int = 1
    is_there: bool = True

    def amount(self, name: str) -> float:
        """How much of a resource one such node has; without limit where that is not announced."""
        is_open = not self.is_there and (name in ("CPU", "GPU", "memory") or name.startswith(KIND))
        return self.total.get(name, math.inf if is_open else 0.0)

    def holds(self, wanted: Resources) -> float:
        """How many find room on one such node, all else away."""
        needs = {name: amount for name, amount in wanted.items() if amount > 0}
        return min(
            (
                math.floor(self.amount(name) / amount + 1e-6) if self.amount(name) < math.inf else math.inf
                for name, amount in needs.items()
            ),
            default=math.inf,
        )


def announced_nodes(living: Sequence[Node]) -> list[Node]:
    """The groups of which an autoscaler can bring more nodes than are there, as the head node announces them."""
    found = []
    for mark, count in sorted({name: n for node in living for name, n in node.total.items()}.items()):
        if not mark.endswith(GROUP):
            continue
        name = mark.removesuffix(GROUP)
        total = {name: 1.0}
        for kind in ("CPU", "GPU"):
            told = [node.total[f"{mark}_{kind.lower()}s"] for node in living if f"{mark}_{kind.lower()}s" in node.total]
            total |= {kind: max(told)} if told else {}
        if "CPU" in total:
            total.setdefault("GPU", 0.0)
        if (missing := int(count) - len(marked(name, living))) > 0:
            found.append(Node(name, total, missing, is_there=False))
    return found


def marked(name: str, nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.total.get(name, 0.0) > 0]


def mark(name: str, wanted: Resources, count: int, nodes: Sequence[Node]) -> dict[str, float]:
    """The share of the mark ``name`` to ask for beside ``wanted``; nothing where marked nodes can never hold ``count``.

    What needs no GPU takes no place on nodes that have some.
    """
    fitting = marked(name, nodes)
    if not wanted.get("GPU"):
        fitting = [node for node in fitting if not node.total.get("GPU")]
    return {name: SHARE} if room(wanted, fitting) >= count else {}


def kind_of_gpu(accelerator_type: str | None) -> dict[str, float]:
    """The resource by which Ray finds nodes with this kind of GPU."""
    return {f"{KIND}{accelerator_type}": SHARE} if accelerator_type else {}


def room(wanted: Resources, nodes: Sequence[Node]) -> float:
    """How many find room on all nodes together, one node holding each as a whole."""
    return sum(node.holds(wanted) * node.count for node in nodes)


@dataclass(frozen=True)
class Placed:
    """Where some of ``wanted`` would go: how many on each node, and what those nodes have left."""

    on: tuple[tuple[Node, int], ...]
    rest: tuple[Node, ...]

    @property
    def num(self) -> int:
        return sum(num for _, num in self.on)


def place(wanted: Resources, count: int, nodes: Sequence[Node]) -> Placed:
    """Lay up to ``count`` on nodes in their order, those that are there first.

    What needs no GPU goes to nodes with some last, as with Ray.
    """
    on: list[tuple[Node, int]] = []
    rest: list[Node] = []
    missing = count
    needs_none = not wanted.get("GPU")
    for node in sorted(nodes, key=lambda node: (not node.is_there, needs_none and node.total.get("GPU", 0.0) > 0)):
        each = min(node.holds(wanted), float(missing))
        num = int(min(each * node.count, missing))
        missing -= num
        if not num:
            rest.append(node)
            continue
        on.append((node, num))
        used = math.ceil(num / each)
        left = {name: amount - each * wanted.get(name, 0.0) for name, amount in node.total.items()}
        rest.append(replace(node, total=left, count=used))
        if used < node.count:
            rest.append(replace(node, count=node.count - used))
    return Placed(tuple(on), tuple(rest))


def even_share(count: int, nodes: Sequence[Node], beside: Resources | None = None) -> float:
    """The largest whole number of CPUs with which ``count`` still find room, each with ``beside`` too; at least 1."""
    known = [node for node in nodes if node.amount("CPU") < math.inf]
    for cpus in range(int(max((node.total["CPU"] for node in known if "CPU" in node.total), default=1)), 1, -1):
        if room({"CPU": float(cpus), **(beside or {})}, known) >= count:
            return float(cpus)
    return 1.0
