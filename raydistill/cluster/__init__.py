"""Ray itself: joining or starting a cluster, and what it has to offer."""

from raydistill.cluster.connection import DEFAULTS, OBJECT_STORE_BYTES, connected, has_gpu, set_environment
from raydistill.cluster.resources import (
    TRIALS_AT_ONCE,
    groups_at_once,
    object_store_bytes,
    worker_resources,
)

__all__ = [
    "DEFAULTS",
    "OBJECT_STORE_BYTES",
    "TRIALS_AT_ONCE",
    "connected",
    "groups_at_once",
    "has_gpu",
    "object_store_bytes",
    "set_environment",
    "worker_resources",
]
