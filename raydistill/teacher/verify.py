"""Looking through recorded signals: every rank reads its share of the shards that have changed since they were read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raydistill.cluster.group import Group
from raydistill.errors import Interrupted
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import FileInfo
from raydistill.storage.verified import Verified, read_file

AT_ONCE = 32
"""Shards that each rank reads, 3 GB, before what they hold is noted: a kill costs no more than that."""
STOPPED = "The run was stopped while it looked through recorded signals; what it has seen is noted."


def verify(
    artifacts: Sequence[Artifact],
    group: Group,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, FileInfo]]:
    """What the files of each artefact hold, on every rank; which do, rank 0 lists.

    ``progress`` gets files read, and files to read in all. Raises Interrupted, on every rank, where one should stop.
    """
    looks = [Verified(one.storage, one.kind, one.key) for one in artifacts] if group.is_first else []
    todo: list[tuple[int, str]] = group.broadcast([(i, name) for i, look in enumerate(looks) for name in look.unread()])
    for start in range(0, len(todo), AT_ONCE * group.size):
        part = todo[start : start + AT_ONCE * group.size]
        read: list[tuple[int, str, FileInfo | None]] = []
        stopped = False
        for index, name in part[group.rank :: group.size]:
            if stopped := should_stop():
                break
            one = artifacts[index]
            read.append((index, name, read_file(one.storage, one.kind, one.key, name)))
            group.at_work()
        parts = group.gather(read)
        for index in {index for index, _ in part} if group.is_first else ():
            looks[index].note({name: info for ranks in parts for i, name, info in ranks if i == index})
        if group.any(stopped):
            raise Interrupted(STOPPED)
        progress(min(start + len(part), len(todo)), len(todo))
    return list(group.broadcast([look.known for look in looks]))
