"""Compute dtype and attention kernel: a fixed table by device, dtype and length, never a timing at run time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

EAGER_TOKENS_BFLOAT16 = 192
"""CPU, bf16: explicit attention takes 17.6 ms a row at 128 tokens (SDPA 19.5), 53.8 at 256 (SDPA 38.5)."""
EAGER_TOKENS_FLOAT32 = 64
"""CPU, fp32: explicit attention takes 6.7 ms a row at 28 tokens (SDPA 7.2), 32.5 at 128 (SDPA 30.7)."""


def attention_implementation(device_type: str, dtype: str, length: int) -> str:
    """Return ``eager`` or ``sdpa``, whichever trains faster on this device for rows of ``length`` tokens.

    On a CPU the backward pass of SDPA is the trap: 38.6 ms against 6.1 ms written out (32 x 51 tokens, bf16).
    A family without SDPA falls back to eager when the model is loaded.
    """
    if device_type != "cpu":
        return "sdpa"
    limit = EAGER_TOKENS_BFLOAT16 if dtype == "bfloat16" else EAGER_TOKENS_FLOAT32
    return "eager" if length < limit else "sdpa"


def compute_dtype(setting: Literal["auto", "float32", "bfloat16"], device_type: str) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` takes bfloat16 where the device multiplies it natively."""
    if setting != "auto":
        return setting
    if device_type == "cuda":
        if not torch.cuda.is_available():  # a driver without a GPU plans for workers that have one, Ampere or later
            return "bfloat16"
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    if device_type == "cpu" and _cpu_multiplies_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_multiplies_bfloat16() -> bool:
    """True with avx512_bf16 or amx_bf16 (torch's own look first, which knows about disabled instruction sets)."""
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX2"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags
