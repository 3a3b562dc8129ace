"""A finished model in one process: its tokenizer or image processor, its task, and outputs for rows. No Ray.

Folders of ``save_pretrained`` run on torch, exported ones on the runtime that they are made for; ``open_folder`` tells
them apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
import yaml
from transformers import AutoTokenizer, PreTrainedModel

from raydistill.data.encoding import encode_task
from raydistill.data.pictures import Picture, Processor
from raydistill.data.rows import Rows
from raydistill.deploy.export import EXPORT_FILE
from raydistill.errors import ConfigError, ModelError
from raydistill.models.checks import first_line
from raydistill.models.embedding import recognise
from raydistill.models.folder import TOKENIZER_FILES, model_bytes, read_json
from raydistill.models.head import OBJECTS, UNNAMED, logits_of
from raydistill.models.load import auto_class, load_model, quiet, read_config
from raydistill.models.scorer import NO_LIMIT, num_positions
from raydistill.models.signals import BEGINS, LOGITS, UNITS
from raydistill.tasks import SYMMETRIC, Task, task_of_model
from raydistill.tasks.targets import Ragged, Values

Text = str | tuple[str, str] | Picture
"""A row: a text, two of them, or a picture."""
Inputs = Mapping[str, torch.Tensor]
BATCH_ROWS = 32
MAX_LOGITS = 2**26
"""Of a call that has some for each token: 256 MB, 17 rows of 128 tokens with BERT's vocabulary."""


class Predictor(ABC):
    """A model folder with its tokenizer and its task; subclasses say what computes the outputs."""

    device = torch.device("cpu")
    runtime = ""
    """What computes, for people: library and number format."""
    num_parameters: int | None = None

    def __init__(self, folder: Path, max_length: int | None = None) -> None:
        self.folder = folder
        config = recognise(read_config(folder), folder)
        task = task_of_model(config)
        self.processor = Processor.open(folder) if task.reads_pictures else None
        self.tokenizer: Any = open_tokenizer(folder) if self.processor is None else None
        self.task = task if self.processor is not None else task.with_words(self.tokenizer)
        self.is_symmetric = bool(getattr(config, SYMMETRIC, False))
        self.width = output_width(config, self.task)
        """Numbers of an output."""
        self.max_length = self._length(config, max_length)
        """Tokens that a text is cut to; 0 of pictures."""

    def _length(self, config: Any, wanted: int | None) -> int:
        if self.tokenizer is None:
            if wanted is not None:
                raise ConfigError(f"--max-length {wanted}: this model reads pictures, which are not cut. Leave it out.")
            return 0
        limits = [self.tokenizer.model_max_length, position_limit(config)]
        longest = min(limit for limit in (*limits, NO_LIMIT) if limit)
        if wanted is not None and wanted > longest:
            raise ConfigError(f"--max-length {wanted} is more than this model can take ({longest}).")
        return wanted or min(stored_length(self.folder) or longest, longest)

    @property
    def num_bytes(self) -> int:
        """Size on disk of what is needed to compute: weights and config."""
        return model_bytes(self.folder)

    def encode(self, texts: Sequence[Text]) -> dict[str, torch.Tensor]:
        """Token ids of texts, cut to ``max_length`` and padded to the longest, (B, L) on the device; of pairs that are
        read apart two rows each. Pictures as their processor gives them, (B, C, H, W)."""
        batch: Any = list(texts)
        if self.processor is not None:
            pixels = self.processor.encode([picture.content for picture in batch])
            return {"pixel_values": torch.from_numpy(pixels).to(self.device)}
        if self.task.reads_apart:
            batch = [part for text in batch for part in ((text,) if isinstance(text, str) else text)]
        inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @abstractmethod
    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Outputs (B, C) of encoded texts, float32."""

    def outputs(self, texts: Sequence[Text], values: Values = None) -> Values:
        """Outputs (N, C) in the order of the texts; of a model of symmetric pairs those of both orders in the mean.

        ``values``: of the texts' targets, or their units, where a text has several predictions, see ``Task.units``.
        """
        if self.task.has_units:
            return self._unit_outputs(texts, self.task.units(texts, values))
        swapped = [(text[1], text[0]) for text in texts if isinstance(text, tuple)]
        if self.is_symmetric and swapped and len(swapped) == len(texts):
            return self.task.averaged([self._outputs(texts), self._outputs(swapped)])
        return self._outputs(texts)

    def _outputs(self, texts: Sequence[Text]) -> np.ndarray:
        """The forward passes go by length, which saves padding."""
        order = np.argsort([num_letters(text) for text in texts], kind="stable")
        parts = []
        for start in range(0, len(texts), BATCH_ROWS):
            rows = order[start : start + BATCH_ROWS]
            outputs = self.forward(self.encode([texts[row] for row in rows])).cpu().numpy()
            parts.append(outputs.reshape(len(rows), -1).astype(np.float32))
        return np.concatenate(parts)[np.argsort(order)] if parts else np.empty((0, self.width), np.float32)

    def _unit_outputs(self, texts: Sequence[Text], values: Ragged) -> Ragged:
        """Outputs of each text's units, (M, C), from windows where it is longer than a row."""
        pad = self.tokenizer.pad_token_id or 0
        none = self.task.kept(np.empty((0, self.width), np.float32), np.empty((0, 3), np.int32))
        if not len(texts):
            return Ragged(none, np.zeros(0, np.int64))
        pairs = [(text,) if isinstance(text, str) else text for text in texts]
        columns = [pa.array(column, pa.large_string()) for column in zip(*pairs, strict=True)]
        rows = Rows.of(encode_task(self.tokenizer, self.task, columns, values, self.max_length, pad), pad)
        assert rows.units is not None
        found = Ragged(np.empty((len(rows.units.flat), none.shape[1]), np.float32), rows.units.lengths)
        order = np.argsort(rows.lengths, kind="stable")
        size = max(1, min(BATCH_ROWS, MAX_LOGITS // (self.width * self.max_length)))
        for start in range(0, rows.num_rows, size):
            ids = order[start : start + size]
            inputs = {name: tensor.to(self.device) for name, tensor in rows.inputs(ids).items()}
            places, _ = inputs.pop(UNITS), inputs.pop(BEGINS)
            logits = self.forward(inputs).flatten(0, 1).index_select(0, places).cpu().numpy()
            found.put(ids, self.task.kept(logits, rows.targets.values[ids].flat))
        outputs: Ragged = rows.by_example(found)
        return outputs


def num_letters(text: Text) -> int:
    """By which rows of like length are found; pictures have one size."""
    return 0 if isinstance(text, Picture) else len("".join(text))


class TorchPredictor(Predictor):
    """A Hugging Face folder on torch, on ``device`` or else the GPU where there is one; float32 by default."""

    def __init__(
        self,
        folder: Path,
        max_length: int | None = None,
        device: str | None = None,
        *,
        load: Callable[[Path], PreTrainedModel] | None = None,
        runtime: str = "torch float32",
    ) -> None:
        super().__init__(folder, max_length)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = (load(folder) if load else load_model(folder, None)).to(self.device)  # type: ignore[arg-type]
        self.num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.runtime = runtime

    @torch.inference_mode()
    def forward(self, inputs: Inputs) -> torch.Tensor:
        given = {n: t.to(self.model.dtype) if t.is_floating_point() else t for n, t in inputs.items()}  # of pictures
        return cast(torch.Tensor, logits_of(self.model(**given)).float())


def output_width(config: Any, task: Task) -> int:
    """Numbers that a model of a task gives for a row, or for each of its tokens."""
    return LOGITS.width(config) if task.head_kind in (*UNNAMED, OBJECTS) else len(task.outputs)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises ModelError where there is none, or a damaged one."""
    way_out = f'Put its files there: `AutoTokenizer.from_pretrained(...).save_pretrained("{folder}")`.'
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):  # transformers would make up an empty one
        raise ModelError(f"The model folder {folder} has no tokenizer. {way_out}")
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged tokenizer.json
        said = first_line(error)[:300].rstrip(".:")
        raise ModelError(f"The tokenizer in {folder} cannot be loaded: {said}. {way_out}") from error


def stored_length(folder: Path) -> int | None:
    """The length that a registered student was trained with, or an export made for; None for any other folder."""
    if (folder / EXPORT_FILE).is_file():
        return cast("int | None", read_json(folder / EXPORT_FILE).get("max_length"))
    if not (folder / "MLmodel").is_file():
        return None
    flavors = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8")).get("flavors", {})
    stored = flavors.get("python_function", {}).get("config") or {}
    return cast("int | None", stored.get("max_length"))


def position_limit(config: Any) -> int | None:
    """Tokens that the model has positions for; None where it counts them in another way."""
    with quiet(), torch.device("meta"):  # built without weights, 0.03 s: families differ in where positions begin
        return num_positions(auto_class(config).from_config(config))
