from pathlib import Path

import torch

from raydistill.models.precision import attention_implementation, compute_dtype


def test_attention_comes_from_the_fixed_table() -> None:
    assert attention_implementation("cpu", "bfloat16", 128) == "eager"
    assert attention_implementation("cpu", "bfloat16", 192) == "sdpa"
    assert attention_implementation("cpu", "float32", 28) == "eager"
    assert attention_implementation("cpu", "float32", 128) == "sdpa"
    assert attention_implementation("cuda", "bfloat16", 16) == "sdpa"


def test_compute_dtype() -> None:
    assert compute_dtype("float32", "cuda") == "float32"
    assert compute_dtype("bfloat16", "cpu") == "bfloat16"
    assert compute_dtype("auto", "mps") == "float32"
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    native = bool(flags & {"avx512_bf16", "amx_bf16"}) and torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert compute_dtype("auto", "cpu") == ("bfloat16" if native else "float32")
