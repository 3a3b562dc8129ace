"""Finished models in the formats of other runtimes: written, read back, checked against torch.

An exported folder stands alone: weights, config.json, tokenizer files, and ``export.json``, which says what it is, how
it was checked, and how to load it without raydistill. This module is light; ``export.export`` does the work.
"""

from __future__ import annotations

FORMATS = {
    "onnx": "onnxruntime, float32",
    "onnx-int8": "onnxruntime, int8 weights and activations",
    "torch-int8": "torch with torchao, int8 weights and activations of linear layers",
    "safetensors-bf16": "torch, bfloat16",
}
EXACT = ("onnx",)
"""Formats that compute in the same precision as torch: they must give the same outputs, not only the same metric."""
EXPORT_FILE = "export.json"
SCHEMA = 2
