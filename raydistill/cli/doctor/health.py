"""What this machine and the nodes of a cluster say amounts to: one line a check, each with the nodes it is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raydistill.cli.doctor.checks import Check, check_gpu, check_ray, check_threads
from raydistill.cli.doctor.nodes import NodeReport, ask
from raydistill.errors import RaydistillError
from raydistill.storage.redaction import redact
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri

GIGABYTE = 10**9
FREE_BYTES = (GIGABYTE // 5, 5 * GIGABYTE)  # a small run needs 0.1 GB, one with recorded hidden states some GB
SHM_BYTES = GIGABYTE // 4  # Ray's object store of a local cluster takes 128 MiB of it

CLOCK_SECONDS = (1.0, 60.0)
"""Offsets to warn of and to fail for: leases in storage are renewed every few seconds, S3 refuses signatures that are
minutes off, and a token of another minute helps nobody to read a log."""
NAMED = 3
"""Nodes that a line names before it only counts."""
EQUAL = ("python", "ray", "raydistill")
"""Versions without which nodes do not understand each other."""


def examine(storage_url: str, address: str | None = None) -> tuple[list[Check], list[dict[str, Any]]]:
    """Check this machine, or every node of the Ray cluster at ``address``, this process included; and what they said.

    Raises RaydistillError where the cluster cannot be reached, ConfigError for an address that is none.
    """
    url, tracking, unknown = storage_url, None, []
    try:
        storage = Storage(storage_url)
        url = storage.url  # absolute: nodes have another working directory
        tracking = tracking_uri(storage)
    except RaydistillError as error:
        unknown.append(Check("tracking", "fail", redact(str(error)), "see the message"))
    reports = ask(address, url, tracking)
    alone = [check_shared_memory(reports), check_threads(), check_gpu(), check_ray()] if address is None else []
    return [*judge(reports, url, tracking), *unknown, *alone], [dict(vars(report)) for report in reports]


def judge(reports: Sequence[NodeReport], url: str, tracking: str | None) -> list[Check]:
    """Every check of what the asking process, ``reports[0]``, and the nodes say."""
    answered = [report for report in reports if not report.problem]
    nodes = answered[1:]
    checks = [check_nodes(reports[1:])] if reports[1:] else []
    checks += [check_versions(answered), check_packages(answered), check_storage(answered, url)]
    checks += [check_tracking(answered, tracking)] if tracking is not None else []
    checks.append(check_disk(answered))
    if nodes:
        checks += [check_token(nodes), check_gpus(nodes), check_clocks(nodes), check_shared_memory(nodes)]
    return checks


def check_nodes(nodes: Sequence[NodeReport]) -> Check:
    """Who answers."""
    silent = [node for node in nodes if node.problem]
    if silent:
        detail = f"{len(silent)} of {len(nodes)} do not answer: " + "; ".join(
            f"{node.name}: {redact(node.problem)}" for node in silent
        )
        hint = "look at ray status and at the node's raylet log (/tmp/ray/session_latest/logs); start the node again"
        return Check("nodes", "fail", detail, hint)
    return Check("nodes", "ok", f"{len(nodes)} answer: {listed(node.name for node in nodes)}")


def check_versions(reports: Sequence[NodeReport]) -> Check:
    """The same versions everywhere: a pickled job or a model of another version may not load."""
    found: dict[str, dict[str, list[str]]] = {}
    for report in reports:
        facts, packages = report.facts, report.facts["packages"]
        for name, version in {"python": facts["python"], "platform": facts["platform"], **packages}.items():
            found.setdefault(name, {}).setdefault(version, []).append(report.name)
        if packages["raydistill"] != "missing":
            found.setdefault("raydistill's code", {}).setdefault(facts["code"], []).append(report.name)
    apart = {name: versions for name, versions in found.items() if is_apart(name, versions)}
    if not apart:
        same = ", ".join(f"{name} {next(iter(versions))}" for name, versions in found.items() if name[-4:] != "code")
        return Check("versions", "ok", f"the same everywhere: {same}" if len(reports) > 1 else same)
    detail = "; ".join(
        f"{name} is {', '.join(f'{version} on {listed(where)}' for version, where in versions.items())}"
        for name, versions in apart.items()
    )
    hard = any(name in EQUAL or "missing" in versions for name, versions in apart.items())
    hint = "use one image, or one pip freeze, for all nodes and for the process that starts runs"
    return Check("versions", "fail" if hard else "warn", detail, hint)


def is_apart(name: str, versions: dict[str, list[str]]) -> bool:
    """Whether the versions differ, or are missing; micro versions of Python understand each other."""
    if name == "python":
        return len({version.rsplit(".", 1)[0] for version in versions}) > 1
    return len(versions) > 1 or "missing" in versions


def check_packages(reports: Sequence[NodeReport]) -> Check:
    """What raydistill needs is there on every node."""
    bad = [f"{report.name}: {report.facts['missing']}" for report in reports if report.facts["missing"]]
    if bad:
        return Check("packages", "fail", "; ".join(bad), "pip install --upgrade raydistill there")
    return Check("packages", "ok", "complete")


def check_token(nodes: Sequence[NodeReport]) -> Check:
    """Whoever reaches a cluster without a token can run code on it."""
    open_ones = [node.name for node in nodes if not node.facts["auth"]]
    if open_ones:
        hint = "start every node with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        return Check("token", "warn", f"not asked for on {listed(open_ones)}", hint)
    return Check("token", "ok", "asked for on every node")


def check_storage(reports: Sequence[NodeReport], url: str) -> Check:
    """Writable everywhere, and one and the same place."""
    shown = redact(url)
    bad = [f"{report.name}: {redact(report.write_problem)}" for report in reports if report.write_problem]
    if bad:
        hint = "give it the network, the credentials and the packages for it there, or name another --storage"
        return Check("storage", "fail", f"{shown} cannot be used on {'; '.join(bad)}", hint)
    apart: dict[tuple[str, ...], list[str]] = {}
    for report in reports:
        if report.unseen:
            apart.setdefault(report.unseen, []).append(report.name)
    if apart:
        detail = "; ".join(f"from {listed(by)} nothing of {listed(of)} is seen" for of, by in apart.items())
        hint = "use a URL (s3://, gs://), or a shared folder that every node mounts at the same path"
        return Check("storage", "fail", f"{shown} is not the same place everywhere: {detail}", hint)
    return Check("storage", "ok", f"{shown} can be written and read{', the same everywhere' * (len(reports) > 1)}")


def check_tracking(reports: Sequence[NodeReport], uri: str) -> Check:
    """The first worker sends the metrics, from whatever node it is on."""
    shown = redact(uri)
    bad = [f"{report.name}: {redact(report.facts['tracking'])}" for report in reports if report.facts["tracking"]]
    if bad:
        hint = "set MLFLOW_TRACKING_URI to a server that every node reaches, by an address that is not 127.0.0.1"
        return Check("tracking", "fail", f"{shown} cannot be used on {'; '.join(bad)}", hint)
    if uri.startswith("sqlite") and len({address_of(report) for report in reports[1:]}) > 1:
        hint = "set MLFLOW_TRACKING_URI to an MLflow server; sqlite on a network file system may lose metrics or hang"
        return Check("tracking", "warn", f"{shown} is used from several machines", hint)
    return Check("tracking", "ok", f"{shown} can be used")


def check_gpus(nodes: Sequence[NodeReport]) -> Check:
    """What Ray hands out has to be there for torch."""
    bad, idle, seen = [], [], 0.0
    for node in nodes:
        claimed, found = node.resources.get("GPU", 0.0), node.facts["gpus"]
        seen += found or 0
        if found is None:
            bad.append(f"{node.name}: torch could not be asked")
        elif found < claimed:
            bad.append(f"{node.name}: Ray has {claimed:g}, torch sees {found}")
        elif not claimed and (found or node.facts["nvidia"]):
            idle.append(node.name)
    if bad:
        hint = "install a CUDA build of torch that fits the driver there, run the container with --gpus all, or start "
        return Check("gpus", "fail", "; ".join(bad), f"{hint}the node with the right --num-gpus")
    if idle:
        hint = "start these nodes without --num-gpus=0, or with the number that Ray may use"
        return Check("gpus", "warn", f"not offered to Ray on {listed(idle)}", hint)
    return Check("gpus", "ok", f"{seen:g}, all seen by torch" if seen else "none; everything runs on CPUs")


def check_clocks(nodes: Sequence[NodeReport]) -> Check:
    """Offsets of the nodes' clocks against this machine's, less what the round trip leaves open."""
    off = {node.name: node.offset_s for node in nodes if surely_off(node) > CLOCK_SECONDS[0]}
    if off:
        detail = ", ".join(f"{name} is {abs(by):,.1f} s {'ahead' if by > 0 else 'behind'}" for name, by in off.items())
        is_bad = any(surely_off(node) > CLOCK_SECONDS[1] for node in nodes)
        hint = "let chrony or ntpd set the clocks: locks in storage and S3 signatures go by them"
        return Check("clocks", "fail" if is_bad else "warn", detail, hint)
    largest = max(abs(node.offset_s) for node in nodes)
    return Check("clocks", "ok", f"within {largest:.3f} s of this machine's")


def surely_off(node: NodeReport) -> float:
    return abs(node.offset_s) - node.round_trip_s / 2


def check_disk(reports: Sequence[NodeReport]) -> Check:
    """Room for storage that is a folder, for a node's copies of artefacts, and for Ray's temporary folder."""
    free = {(report.name, folder): size for report in reports for folder, size in report.facts["disk"].items()}
    short = {where: size for where, size in free.items() if size < FREE_BYTES[1]}
    if short:
        detail = "; ".join(
            f"{size / GIGABYTE:.1f} GB free for {folder} on {name}" for (name, folder), size in short.items()
        )
        hint = (
            "free some (raydistill cache gc), use bigger disks, or point --storage, RAYDISTILL_CACHE and TMPDIR at "
            "one; RAYDISTILL_CACHE_BYTES bounds the cache"
        )
        return Check("disk", "fail" if min(short.values()) < FREE_BYTES[0] else "warn", detail, hint)
    (name, folder), least = min(free.items(), key=lambda item: item[1])
    return Check("disk", "ok", f"at least {least / GIGABYTE:.1f} GB free ({folder} on {name})")


def check_shared_memory(nodes: Sequence[NodeReport]) -> Check:
    """Ray's object store has to fit into /dev/shm, otherwise it lies in slow files."""

    def short(node: NodeReport) -> bool:
        size = node.facts["shared_memory"]
        return size is not None and size < max(SHM_BYTES, node.resources.get("object_store_memory", 0.0))

    bad = [f"{node.facts['shared_memory'] / GIGABYTE:.2f} GB on {node.name}" for node in nodes if short(node)]
    if bad:
        hint = "start the containers with a larger --shm-size, or ray start with a smaller --object-store-memory"
        return Check("shared memory", "warn", f"/dev/shm is too small for Ray's object store: {', '.join(bad)}", hint)
    return Check("shared memory", "ok", "enough for Ray's object store")


def address_of(report: NodeReport) -> str:
    return report.name.split("/")[0].split(" ")[0]


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    known = list(names)
    more = len(known) - NAMED
    return ", ".join(known[:NAMED]) + (f" and {more} more" if more > 0 else "")
