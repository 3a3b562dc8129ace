"""ONNX: one model.onnx with dynamic batch and length, in float32 or with int8 weights and activations.

Measured on a quick start's MiniLM students and teachers (2 and 6 layers, 638 rows), logit error as a share of the
logits' spread: int8 with one scale a tensor 10 %; with one a channel 2.5 and 5 %; with weights of 7 bits, one scale a
channel, 2.7 and 5 %. Seven bits it is: CPUs without VNNI add two products in 16 bits and saturate with eight, so that a
check on one machine would not hold on another. Embeddings are quantised too: 16 MB instead of 52, error 2.5 % not 2.2.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from raydistill.deploy.export.packages import need, release
from raydistill.deploy.export.silence import silent
from raydistill.deploy.predictor import Inputs, Predictor, TorchPredictor
from raydistill.errors import ModelError
from raydistill.models.checks import first_line
from raydistill.models.head import logit_names, logits_of

FILE = "model.onnx"
EXTERNAL_BYTES = 1_500_000_000
"""Protobuf takes 2 GB; from here on the weights lie in model.onnx.data (torch.onnx splits at the same size)."""
EXAMPLE_LENGTH = 11
QUANTIZER = {"per_channel": True, "reduce_range": True}


def write_onnx(source: TorchPredictor, folder: Path) -> dict[str, Any]:
    """Write model.onnx of a model on the CPU; its opset. Raises ModelError."""
    example = example_inputs(source)
    with silent():
        try:
            program = torch.onnx.export(
                source.model,
                kwargs=example,
                dynamo=True,
                output_names=logit_names(source.task.head_kind),
                dynamic_shapes={name: axes_of(tensor) for name, tensor in example.items()},
                verbose=False,
            )
            assert program is not None
            program.save(folder / FILE)
        except Exception as error:  # torch.onnx hands on whatever a model's code raises while it is traced
            raise ModelError(
                f"torch.onnx cannot export a {source.model.config.model_type} model: {first_line(error)}. The formats "
                "safetensors-bf16 and torch-int8 do not need it."
            ) from error
    return {"opset": opset(folder / FILE)}


def axes_of(tensor: torch.Tensor) -> dict[int, str]:
    """What may be another size: rows, and tokens of a row; pictures have one size."""
    return {0: "batch", 1: "length"} if tensor.dim() == 2 else {0: "batch"}


def example_inputs(source: Predictor) -> dict[str, torch.Tensor]:
    """Two rows, the second padded: what tracing sees must need the mask, and no size may be 0 or 1."""
    if source.processor is not None:
        return {"pixel_values": torch.rand(2, *source.processor.shape, generator=torch.Generator().manual_seed(0))}
    length = min(EXAMPLE_LENGTH, source.max_length)
    texts: Any = ["one two three four five six seven eight nine ten eleven twelve", "one"]
    return dict(
        source.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").items()
    )


def write_int8(exact: Path, folder: Path, operators: list[str] | None = None) -> dict[str, Any]:
    """Quantise an exported model.onnx in ``exact`` into ``folder``, these ``operators`` or all that can be; its opset
    and settings. Raises ModelError.

    Activations get one scale a tensor when it is computed: a row's logits depend a little on its batch.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    size = sum(path.stat().st_size for path in exact.glob(f"{FILE}*"))
    large = size > EXTERNAL_BYTES
    with silent(), tempfile.TemporaryDirectory(dir=folder) as scratch:
        prepared = Path(scratch) / FILE
        try:
            # The symbolic shape inference gives up on these graphs, and the quantiser does not need it.
            quant_pre_process(
                exact / FILE,
                prepared,
                skip_symbolic_shape=True,
                save_as_external_data=large,
                all_tensors_to_one_file=large,
                external_data_location=f"{FILE}.data" if large else None,
            )
            quantize_dynamic(
                prepared,
                folder / FILE,
                weight_type=QuantType.QInt8,
                use_external_data_format=size / 4 > EXTERNAL_BYTES,
                op_types_to_quantize=operators,
                **QUANTIZER,
            )
        except Exception as error:  # the quantiser raises bare Exception, onnx its own kinds
            raise ModelError(
                f"onnxruntime cannot quantise this model: {first_line(error)}. Export it as onnx or torch-int8."
            ) from error
    settings = {"weights": "int8", "activations": "uint8", **QUANTIZER}
    return {"opset": opset(folder / FILE), "settings": settings}


def opset(path: Path) -> int:
    """Version of the operators that a graph is made of."""
    import onnx

    versions = {entry.domain: entry.version for entry in onnx.load(path, load_external_data=False).opset_import}
    return int(versions.get("") or versions["ai.onnx"])


class OnnxPredictor(Predictor):
    """An exported folder on onnxruntime, on the CPU with as many threads as torch."""

    def __init__(self, folder: Path, max_length: int | None = None, *, form: str = "onnx") -> None:
        need(form, "onnxruntime")
        import onnxruntime

        super().__init__(folder, max_length)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors; a warning is for whoever made the graph
        # By default its threads go on spinning after a call, on cores that others in the process need: on two cores a
        # torch model beside it took 54 ms instead of 2.6. This way they spin while a call runs: 0.5 ms a row, against
        # 0.7 ms where they never spin.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's kinds derive from Exception or RuntimeError
            raise ModelError(
                f"onnxruntime cannot load {folder / FILE}: {first_line(error)}. Export the model again."
            ) from error
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.names = [value.name for value in self.session.get_outputs()]
        self.runtime = f"onnxruntime {release('onnxruntime')} {'int8' if form == 'onnx-int8' else 'float32'}"

    def forward(self, inputs: Inputs) -> torch.Tensor:
        feeds = {name: inputs[name].numpy() for name in self.inputs}
        try:
            found = [torch.from_numpy(values) for values in self.session.run(self.names, feeds)]
            return logits_of(dict(zip(self.names, found, strict=True)))
        except Exception as error:  # onnxruntime's kinds derive from Exception or RuntimeError
            shape = " x ".join(map(str, feeds[self.inputs[0]].shape))
            raise ModelError(
                f"onnxruntime cannot compute {self.folder / FILE} for a batch of {shape} tokens: {first_line(error)}. "
                "Export the model in another format."
            ) from error
