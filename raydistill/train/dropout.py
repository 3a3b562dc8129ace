"""Dropout whose masks belong to rows: drawn by (seed, step, row), whatever shares a forward pass with a row.

Each place where a model drops something hashes the row's key with the coordinates of every number. So a mask knows
nothing of micro-batch, rank or padding, and is the same on every device. Attention is written out where it is dropped,
as a fused kernel draws its own mask. On a CPU a step takes 5 % more than without dropout; with torch's masks 11 %
(6 layers of 384, 50 tokens).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from raydistill.cluster.device import Device
from raydistill.data.rows import Rows
from raydistill.models.capture import capture
from raydistill.models.fields import dropout_fields
from raydistill.models.signals import LOGITS

FACTORS = (-2048144789, -1028477387)
"""Those of MurmurHash3's last step."""
GOLDEN = 0x9E3779B9
"""2^32 by the golden ratio: keeps the keys of calls and axes apart."""


def has_dropout(model: PreTrainedModel) -> bool:
    """Whether anything is dropped in training, by a module or, where functions do it, as the config says."""
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return modules or any(value > 0 for value in dropout_fields(model.config).values())


class RowDropout(TorchFunctionMode):
    """In its body the dropout of a micro-batch with these ``row_ids`` (B,) goes by row.

    A tensor whose first dimension is not the batch (relative positions) has one mask for all rows of a step.
    """

    def __init__(self, seed: int, step: int, row_ids: np.ndarray, device: torch.device) -> None:
        super().__init__()
        keys = np.random.SeedSequence((seed, step)).generate_state(2).view(np.int32)
        self.step = torch.tensor(keys[0], device=device)
        self.rows = hashed(torch.from_numpy(row_ids.astype(np.int32) ^ keys[1]).to(device))
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.dropout:
            return self.drop(*args, **(kwargs or {}))
        if func is functional.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def drop(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """As ``torch.nn.functional.dropout``."""
        if not training or p == 0:
            return input
        return torch.where(self.kept(input.shape, p), input, 0.0) * (1 / (1 - p))

    def kept(self, shape: torch.Size, p: float) -> Tensor:
        """Which numbers of a tensor stay: each with probability 1 - ``p``."""
        self.calls += 1
        goes_by_row = shape[0] == len(self.rows)
        place = hashed((self.rows if goes_by_row else self.step) + wrapped(self.calls * GOLDEN))
        for axis in range(int(goes_by_row), len(shape)):
            place = place[..., None] ^ axis_keys(axis, shape[axis], place.device)
            place = hashed(place) if axis < len(shape) - 1 else place
        place = place.mul_(FACTORS[0])
        place = place.bitwise_xor_(place >> 15).mul_(FACTORS[1])
        return place >= wrapped(round(p * 2**32) - 2**31)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **more: Any,
    ) -> Tensor:
        """As ``torch.nn.functional.scaled_dot_product_attention``."""
        if dropout_p == 0:
            return functional.scaled_dot_product_attention(query, key, value, attn_mask, 0.0, is_causal, **more)
        if more.get("enable_gqa"):
            key, value = (t.repeat_interleave(query.size(-3) // t.size(-3), dim=-3) for t in (key, value))
        scores = query @ key.transpose(-2, -1) * (more.get("scale") or 1 / math.sqrt(query.size(-1)))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None:
            low = torch.finfo(scores.dtype).min / 2  # finite: a padded position that sees nothing must not become NaN
            is_bool = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, low) if is_bool else scores + attn_mask.clamp_min(low)
        return self.drop(scores.softmax(dim=-1).to(value.dtype), dropout_p) @ value


def hashed(keys: Tensor) -> Tensor:
    """MurmurHash3's last step, int32 to int32; the shifts carry the sign along, which takes one bit of 32."""
    for shift, factor in zip((16, 13), FACTORS, strict=True):
        keys = (keys ^ (keys >> shift)) * factor
    return keys ^ (keys >> 16)


def wrapped(number: int) -> int:
    """The number in 32 bits with a sign."""
    return (number + 2**31) % 2**32 - 2**31


@lru_cache(maxsize=256)
def axis_keys(axis: int, size: int, device: torch.device) -> Tensor:
    """Keys of the coordinates along one axis of a tensor, (size,)."""
    return hashed(torch.arange(size, dtype=torch.int32, device=device) + wrapped((axis + 1) * GOLDEN))


@torch.no_grad()
def check_dropout(stage: str, model: PreTrainedModel, rows: Rows, row_ids: np.ndarray, device: Device) -> list[str]:
    """A sentence where three rows of unlike length do not give with dropout what each of them gives alone.

    So it is where a family keeps its rows elsewhere than in the first dimension (xlnet).
    """
    if not has_dropout(model):
        return []
    nn.Module.to(model, device.torch_device).train()
    by_length = row_ids[np.argsort(rows.lengths[row_ids], kind="stable")]
    chosen = by_length[[0, len(by_length) // 2, -1]]

    def logits(ids: np.ndarray) -> Tensor:
        with RowDropout(0, 0, ids, device.torch_device):
            found = capture(model, device.move(rows.inputs(ids)), {LOGITS})[LOGITS]
        return found if isinstance(found, Tensor) else found.part(slice(None))

    alone = torch.cat([logits(chosen[i : i + 1]) for i in range(len(chosen))])
    if torch.allclose(logits(chosen), alone, rtol=1e-3, atol=1e-3):
        return []
    return [
        f"{stage}: what a {model.config.model_type} model drops does not go by row, so the result depends on "
        "train.num_workers and train.tokens_per_micro_batch. Without dropout it does not."
    ]
