"""Whether this process can become a driver of a cluster, found out in milliseconds.

Ray itself tries for 20 s where the token is wrong, without telling it, and ends the process with a stack trace of C++
where this machine is not a node of the cluster.
"""

from __future__ import annotations

import os
import socket

from raydistill.errors import ConfigError, RaydistillError

CONNECT_SECONDS = 5.0
SETTINGS = 4
"""Type of the first frame of a connection in HTTP/2."""


def check_entry(address: str) -> None:
    """Pass where a driver here can join the cluster at ``address``: HOST:PORT, or auto, which Ray looks up itself.

    Raises ConfigError for another kind of address; RaydistillError where nothing answers, for a wrong or missing token,
    and where no node of the cluster is on this machine.
    """
    if address == "auto":
        return
    check_port(address)
    sockets = _raylets(address)
    if sockets and not any(map(os.path.exists, sockets)):
        raise RaydistillError(
            f"This machine is not a node of the Ray cluster at {address}, and only a node can be its driver. Run the "
            "command on the head node, let raydistill submit run it there (--address http://HEAD:8265), or make this "
            f"machine a node (ray start --address={address} --num-cpus=0)."
        )


def check_port(address: str) -> None:
    """ConfigError for what is not HOST:PORT; RaydistillError where nothing answers there."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise ConfigError(
            f"{address!r} is not the address of a Ray cluster: expected HOST:PORT of the head, for example "
            "10.0.0.5:6379, or auto for the cluster that this machine is a node of."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            is_grpc = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise RaydistillError(
            f"Nothing answers at {address} ({error}). Check that the head runs (ray status there), the port (6379 "
            "unless ray start was told another), and that a firewall lets this machine through."
        ) from error
    if not is_grpc:
        raise RaydistillError(
            f"What listens at {address} is not the head of a Ray cluster. Give the port of ray start --head (6379 "
            "unless it was told another), not the dashboard's 8265 nor the client's 10001."
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other side answers the opening of HTTP/2 with its settings, as gRPC does.

    Ray's own client tries for minutes at a port where something else answers.
    """
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]))
    try:
        head = connection.recv(9)
    except TimeoutError:
        return False
    return len(head) == 9 and head[3] == SETTINGS


def _raylets(address: str) -> list[str]:
    """Where the living nodes have the sockets that a driver beside them connects to; empty where that is not told."""
    import ray

    try:
        from ray._raylet import GcsClient  # type: ignore[attr-defined]  # the public way connects first

        nodes = GcsClient(address=address).get_all_node_info(timeout=CONNECT_SECONDS).values()
        return [node.raylet_socket_name for node in nodes if node.state == 0]
    except ray.exceptions.AuthenticationError as error:
        mode = os.environ.get("RAY_AUTH_MODE") or "not set"
        raise RaydistillError(
            f"The Ray cluster at {address} only lets in who has its token, and this process has none or a wrong one "
            f"(RAY_AUTH_MODE is {mode}). Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the "
            "head node."
        ) from error
    except (AttributeError, ImportError, ray.exceptions.RayError):
        return []  # connecting will tell
