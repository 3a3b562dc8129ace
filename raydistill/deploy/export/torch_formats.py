"""Folders that ``AutoModelFor….from_pretrained`` loads: bfloat16, and int8 by torchao.

int8 is torchao's dynamic quantisation of linear layers, one scale a row of activations and one a channel of weights,
without a pickle: safetensors, with the tensor's kind in the file's metadata. On a CPU with VNNI, without compiling, one
thread, MiniLM of two and of six layers: batches of 32 go 2.3 and 2.7x as fast as in float32, a single row takes 1.6 and
1.4x as long; logit error 1 and 2 % of their spread. Measured and left out: bfloat16 around it (slower than float32),
weights alone in int8 (no faster than float32), and int8 embeddings, whose whole table torchao turns back into floats
for each call (67 ms a row instead of 4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from raydistill.deploy.export.packages import need, release
from raydistill.deploy.export.silence import silent
from raydistill.deploy.predictor import Predictor, TorchPredictor
from raydistill.errors import ModelError
from raydistill.models.checks import first_line
from raydistill.models.load import auto_class, read_config, save_model


def write_bfloat16(source: Predictor, folder: Path) -> None:
    """Write the model's weights in bfloat16. Raises ModelError."""
    save_model(load_as_is(source.folder, dtype=torch.bfloat16), source.folder, folder)


def write_int8(source: Predictor, folder: Path) -> None:
    """Write the model with int8 linear layers. Raises ModelError."""
    with silent():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig
        from transformers import TorchAoConfig

        # set_inductor_config would change torch.compile's settings of the whole process
        settings = TorchAoConfig(Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
        model = load_as_is(source.folder, dtype=torch.float32, quantization_config=settings)
        save_model(model, source.folder, folder)


def load_as_is(folder: Path, **settings: Any) -> PreTrainedModel:
    """What a user's own ``from_pretrained`` gives, silently, in eval mode. Raises ModelError."""
    with silent():
        try:
            model = auto_class(read_config(folder)).from_pretrained(
                folder, local_files_only=True, use_safetensors=True, **settings
            )
        except Exception as error:  # transformers has no error class of its own: ValueError to AssertionError
            raise ModelError(f"Cannot load the model in {folder}: {first_line(error)}") from error
    return cast(PreTrainedModel, model.eval())


def open_torch(folder: Path, max_length: int | None, device: str | None, form: str) -> TorchPredictor:
    """An exported folder on torch, in the number format of the export; int8 stays on the CPU.

    torch's int8 product on a GPU refuses fewer than 17 rows, and a single short text has fewer tokens.
    """
    need(form)
    if form == "torch-int8":
        device, runtime = "cpu", f"torch int8 (torchao {release('torchao')})"
    else:
        runtime = "torch bfloat16"
    return TorchPredictor(folder, max_length, device, load=load_as_is, runtime=runtime)
