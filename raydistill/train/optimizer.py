"""AdamW, which parameters it trains, and at which rates."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from raydistill.config.section import known
from raydistill.config.training import Optimization
from raydistill.errors import ConfigError


def freeze(model: nn.Module, patterns: Iterable[str], setting: str) -> None:
    """Train all parameters of ``model`` but those whose name matches a glob pattern of ``setting``.

    A pattern that begins with ``!`` trains what an earlier one froze. Raises ConfigError where a pattern matches
    nothing, or nothing is left to train.
    """
    patterns = tuple(patterns)
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
            raise ConfigError(
                f"{setting}: {pattern!r} matches no parameter of the model. Parameters are named like "
                f"{names[0]!r} and {names[-1]!r}; '*' matches any part of a name."
            )
    for name, parameter in model.named_parameters():
        matching = [pattern for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))]
        parameter.requires_grad_(not matching or matching[-1].startswith("!"))
    if names and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{setting}: the patterns freeze every parameter; nothing is left to train.")


def trainable(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def build_optimizer(parameters: list[nn.Parameter], settings: Optimization) -> torch.optim.AdamW:
    """AdamW; vectors (biases, norms) are not decayed. Fused: the foreach kind is 7 % slower a step on a CPU. Parameters
    with a ``rate_factor`` learn so many times as fast, and are not decayed either."""
    factors = {p: getattr(p, "rate_factor", None) for p in parameters}
    usual = [p for p, factor in factors.items() if factor is None]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in usual if p.ndim >= 2], "weight_decay": settings.weight_decay, "decays": True},
        {"params": [p for p in usual if p.ndim < 2], "weight_decay": 0.0, "decays": False},
    ]
    groups += [{"params": [p], "weight_decay": 0.0, "factor": factor} for p, factor in factors.items() if factor]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=known(settings.learning_rate), fused=True)


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Let these hold for the next step; a restored optimizer has the weight decay of its checkpoint."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("factor", 1.0)
        if group.get("decays"):
            group["weight_decay"] = weight_decay
