"""The rows that models read, memory-mapped by all processes of a node: token ids, or pixels of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.data.batches import Batch
from raydistill.data.pictures import Pixels, Processor
from raydistill.data.views import Views
from raydistill.models.signals import BEGINS, LABELS, SECOND, UNITS, State
from raydistill.storage.artifacts import Artifact
from raydistill.tasks import Targets, Task, task_of
from raydistill.tasks.masked_language_modeling.masks import Masks
from raydistill.tasks.targets import Ragged, Values, of_column, units_of

if TYPE_CHECKING:
    import torch

SAMPLE_ROWS, SAMPLE_TOKENS, SAMPLE_BATCH = 512, 8192, 32
SWAPPED = "-swapped"
"""Ends the name of a split whose pairs are in the other order."""


def read_texts(data: Artifact, split: str) -> list[pa.Array]:
    """The texts of a prepared split, one column or two; or its pictures."""
    batch = map_batch(data.local() / f"{split}.arrow")
    return [batch.column(name) for name in ("text", "text_pair", "image") if name in batch.schema.names]


def map_batch(path: Path) -> pa.RecordBatch:
    """The one record batch of an Arrow IPC file, as views of the mapped file."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


@dataclass(frozen=True, eq=False)
class Rows:
    """One tokenised split, memory-mapped: nothing is copied until a batch is asked for. Row ids: 0 … num_rows - 1."""

    lengths: npt.NDArray[np.int32]
    """Tokens of each row, (num_rows,)."""
    targets: Targets
    example_ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    """Where each row begins in ``values``, (num_rows,)."""
    values: dict[str, npt.NDArray[Any]]
    """All tokens of all rows one after another: input_ids[, token_type_ids], int32."""
    pad_token_id: int
    units: Ragged | None = None
    """Where rows have several predictions, the position in its row of each one's token, (M,)."""
    example_targets: Targets | None = None
    """Those of examples, with the first row of each, where they are not those of their rows one after another."""
    second: npt.NDArray[np.int64] | None = None
    """Where rows are two texts that are read apart, the position of the second one's first token, (num_rows,)."""
    masks: Masks | None = None
    """Where tokens of rows are hidden, how others are at each epoch."""

    @classmethod
    def open(cls, folder: Path, split: str) -> Rows:
        """Map ``split`` of a tokens artefact's local folder."""
        batch, info = map_batch(folder / f"{split}.arrow"), json.loads((folder / "info.json").read_text())
        if "pixels" in info:
            pixels = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
            known = (Targets.of_arrow(batch.column("target")), batch.column("example_id").to_numpy())
            processor, views = Processor.of(info["pixels"]), Views.read(info.get("views"))
            return PictureRows.of_pixels(pixels, *known, info["max_length"], processor, views, task_of(info["task"]))
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        return cls.of(columns, info["pad_token_id"], Masks.read(info.get("masks")))

    @classmethod
    def of(cls, columns: Mapping[str, pa.Array], pad: int, masks: Masks | None = None) -> Rows:
        """Rows of the columns of a tokens artefact."""
        names = [name for name in ("input_ids", "token_type_ids") if name in columns]
        offsets = columns["input_ids"].offsets.to_numpy()
        return cls(
            lengths=np.diff(offsets).astype(np.int32),
            targets=Targets.of_arrow(columns["target"]),
            example_ids=columns["example_id"].to_numpy(),
            starts=offsets[:-1].astype(np.int64),
            values={name: columns[name].values.to_numpy() for name in names},
            pad_token_id=pad,
            units=of_column(columns["unit"]) if "unit" in columns else None,
            example_targets=Targets.of_arrow(columns["example_target"]) if "example_target" in columns else None,
            second=columns["second"].to_numpy() if "second" in columns else None,
            masks=masks,
        )

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def num_predictions(self) -> int:
        """How many predictions a model makes of all rows: one a row, or a unit."""
        return self.num_rows if self.units is None else len(self.units.flat)

    def sample(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yield inputs of some rows, always the same, spread evenly over all: 512, fewer where rows are long."""
        wanted = SAMPLE_TOKENS / max(1.0, float(self.lengths.mean()))
        count = int(min(self.num_rows, max(SAMPLE_BATCH, min(SAMPLE_ROWS, wanted))))
        ids = np.arange(count) * self.num_rows // count
        for start in range(0, count, SAMPLE_BATCH):
            yield self.inputs(ids[start : start + SAMPLE_BATCH])

    @property
    def examples(self) -> tuple[Targets, npt.NDArray[np.int64]]:
        """Targets and ids of the examples that the rows were made from, in their order."""
        if self.units is None:
            return self.targets, self.example_ids
        ids, first = np.unique(self.example_ids, return_index=True)
        targets = self.example_targets or self.targets
        return Targets(targets.values.joined(self.example_ids), targets.labeled[first]), ids

    def by_example(self, outputs: Values) -> Values:
        """Outputs of all rows, (num_rows, C), or those of their units, (M, C) or Ragged, as outputs of the examples;
        with the units' places where examples have targets of their own."""
        if self.units is None:
            return outputs
        places = None if self.example_targets is None else self.targets.values.flat[:, :2]
        return Ragged(units_of(outputs), self.units.lengths, places).joined(self.example_ids)

    def batch(self, row_ids: npt.NDArray[np.integer[Any]], epoch: tuple[int, int] | None = None) -> Batch:
        """Some rows with their model inputs, as one forward pass takes them; ``epoch``: seed and number of one that
        hides other tokens than those that are hidden in storage."""
        if epoch is None or self.masks is None:
            return Batch(row_ids, self.lengths[row_ids], self.targets.take(row_ids), self.inputs(row_ids))
        rows = self.hidden_anew(row_ids, self.masks, epoch)
        return Batch(row_ids, rows.lengths, rows.targets, rows.inputs(np.arange(len(row_ids))))

    def restored(self, row_ids: npt.NDArray[np.integer[Any]]) -> Ragged:
        """Token ids of some rows with nothing hidden."""
        assert self.units is not None
        places = np.repeat(self.starts[row_ids], self.lengths[row_ids])
        rows = Ragged(places, self.lengths[row_ids].astype(np.int64))
        rows.flat[:] += np.arange(len(rows.flat)) - np.repeat(rows.starts, rows.lengths)
        rows.flat[:] = self.values["input_ids"][rows.flat]
        units = self.units[row_ids]
        rows.flat[rows.starts[units.rows] + units.flat] = self.targets.values[row_ids].flat[:, -1]
        return rows

    def hidden_anew(self, row_ids: npt.NDArray[np.integer[Any]], masks: Masks, epoch: tuple[int, int]) -> Rows:
        """Some rows, by themselves, with as many but other tokens hidden; where these stand in a text is not known."""
        rows = self.restored(row_ids)
        units, flat = masks.draw(rows, row_ids, epoch)
        targets = np.full((len(units.flat), 3), -1, np.int32)
        targets[:, -1] = rows.flat[rows.starts[units.rows] + units.flat]
        return replace(
            self,
            lengths=self.lengths[row_ids],
            targets=Targets(Ragged(targets, units.lengths), self.targets.labeled[row_ids]),
            example_ids=self.example_ids[row_ids],
            starts=rows.starts,
            values={"input_ids": flat.astype(np.int32)},
            units=units,
        )

    def inputs(self, row_ids: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask[, token_type_ids] of some rows: (B, L) int64, right-padded to the longest."""
        import torch

        lengths = self.lengths[row_ids]
        place = np.arange(lengths.max(initial=1))
        real = place < lengths[:, None]
        source = (self.starts[row_ids][:, None] + place)[real]
        out = {}
        for name, values in self.values.items():
            padded = np.full(real.shape, self.pad_token_id if name == "input_ids" else 0, np.int64)
            padded[real] = values[source]
            out[name] = torch.from_numpy(padded)
        out["attention_mask"] = torch.from_numpy(real.astype(np.int64))
        if self.units is not None:
            units = self.units[row_ids]
            out[UNITS] = torch.from_numpy(units.rows * real.shape[1] + units.flat)
            own, before = (self.example_ids[ids] for ids in (row_ids, np.maximum(row_ids - 1, 0)))
            out[BEGINS] = torch.from_numpy((row_ids == 0) | (own != before))
            if self.masks is not None:
                out[LABELS] = torch.from_numpy(self.targets.values[row_ids].flat[:, -1].astype(np.int64))
        if self.second is not None:
            out[SECOND] = torch.from_numpy(self.second[row_ids])
        return out

    def states_of(self, config: Any) -> tuple[State, ...]:
        """The hidden states of a model of this config, where rows are pictures."""
        return ()

    def block(self, batch_size: int, length: int) -> dict[str, torch.Tensor]:
        """Inputs (B, L) without padding, one row's tokens after another's, in a shape of one's own, to time models on:
        their order does not change the time."""
        import torch

        shape = (batch_size, length)
        inputs = {
            name: torch.from_numpy(np.resize(values[: batch_size * length], shape).astype(np.int64))
            for name, values in self.values.items()
        }
        return {**inputs, "attention_mask": torch.ones(shape, dtype=torch.int64)}


@dataclass(frozen=True, eq=False)
class PictureRows(Rows):
    """One split of pictures, memory-mapped: ``values`` has their pixels, uint8 (num_rows, C, H, W)."""

    processor: Processor | None = None
    views: Views | None = None
    """Where pictures are seen otherwise at each epoch, how."""
    task: Task | None = None
    """Which knows what becomes of targets then."""

    @classmethod
    def of_pixels(
        cls,
        pixels: npt.NDArray[np.uint8],
        targets: Targets,
        example_ids: npt.NDArray[np.int64],
        num_patches: int,
        processor: Processor,
        views: Views | None = None,
        task: Task | None = None,
    ) -> PictureRows:
        """Pictures that models see as so many patches."""
        lengths, starts = np.full(len(pixels), num_patches, np.int32), np.arange(len(pixels)) * num_patches
        known = (lengths, targets, example_ids, starts, {"pixels": pixels})
        return cls(*known, pad_token_id=0, processor=processor, views=views, task=task)

    def batch(self, row_ids: npt.NDArray[np.integer[Any]], epoch: tuple[int, int] | None = None) -> Batch:
        """As of texts; ``epoch``: seed and number of one that may show pictures otherwise than they are stored."""
        if epoch is None or self.views is None:
            return super().batch(row_ids)
        assert self.task is not None
        pixels = self.values["pixels"][row_ids]
        parts = self.views.parts(row_ids, epoch, pixels.shape[2:])
        targets = self.task.seen(self.targets.take(row_ids), *parts)
        return Batch(row_ids, self.lengths[row_ids], targets, self.normalized(self.views.seen(pixels, row_ids, epoch)))

    def inputs(self, row_ids: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """pixel_values of some rows, (B, C, H, W) float32, as the model's image processor gives them."""
        return self.normalized(self.values["pixels"][row_ids])

    def normalized(self, pixels: Pixels) -> dict[str, torch.Tensor]:
        """The same of pixels (B, C, H, W)."""
        import torch

        assert self.processor is not None
        return {"pixel_values": torch.from_numpy(self.processor.values(pixels))}

    def states_of(self, config: Any) -> tuple[State, ...]:
        from raydistill.models.pictures import look

        assert self.processor is not None
        return look(config, self.processor.shape).states

    def block(self, batch_size: int, length: int) -> dict[str, torch.Tensor]:
        """As many pictures; they have one size."""
        return self.inputs(np.arange(batch_size) % self.num_rows)
