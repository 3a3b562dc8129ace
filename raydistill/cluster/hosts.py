"""What the workers talk over: nccl where their own torch has it, and between hosts the interface that Ray knows."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import psutil
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.util import get_node_ip_address

VARIABLE = "GLOO_SOCKET_IFNAME"


class HostsConfig(TorchConfig):
    """TorchConfig whose gloo finds other hosts, and which asks the workers, not the driver, whether they have nccl.

    By itself gloo takes the address that the host's own name resolves to, which /etc/hosts often gives as 127.0.0.1;
    the other hosts then knock at their own doors.
    """

    @property
    def backend_cls(self) -> type[Any]:
        return Backend


class Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Ray's own, which first names the interface on every worker, where there are several hosts."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        if len(set(worker_group.execute(get_node_ip_address))) > 1:
            worker_group.execute(name_interface)
        if backend_config.backend == "nccl" and not all(worker_group.execute(dist.is_nccl_available)):
            backend_config = replace(backend_config, backend="gloo")  # a torch that was built for CPUs
        super().on_start(worker_group, backend_config)


def name_interface() -> None:
    """Tell gloo in this process the interface of Ray's address; what the user has set stays."""
    if (interface := interface_of(get_node_ip_address())) is not None:
        os.environ.setdefault(VARIABLE, interface)


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface that has the IP address; None behind a translated address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in entries):
            return name
    return None
