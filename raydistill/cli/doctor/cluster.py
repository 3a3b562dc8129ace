"""The checks of a cluster: every node by itself, then all together."""

from __future__ import annotations

from typing import Any

from raydistill.cli.doctor.checks import Check
from raydistill.errors import RaydistillError
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri


def examine_cluster(address: str, storage_url: str) -> tuple[list[Check], list[dict[str, Any]]]:
    """Check every node of the Ray cluster at ``address``, this process included; also what each node said.

    Raises RaydistillError where the cluster cannot be reached, ConfigError for an address that is none.
    """
    from raydistill.cli.doctor.health import facts_of, judge
    from raydistill.cli.doctor.nodes import ask_nodes

    storage = Storage(storage_url)
    checks, tracking = [], None
    try:
        tracking = tracking_uri(storage)
    except RaydistillError as error:
        checks.append(Check("tracking", "fail", redact(str(error)), "see the message"))
    reports = ask_nodes(address, storage.url, tracking)
    return [*judge(reports, storage.url, tracking), *checks], [facts_of(report) for report in reports]
