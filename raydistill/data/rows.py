"""Token ids of the prepared rows, or pixels of pictures: made once, then memory-mapped by all processes of a node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.data.augmentation import Augmentation
from raydistill.data.batches import Batch
from raydistill.data.paths import SPLITS
from raydistill.data.pictures import PICTURES_PER_CALL, Processor
from raydistill.data.prepare import read_info, write_batch
from raydistill.data.spool import spooled
from raydistill.data.windows import encode_windows
from raydistill.errors import ConfigError, ModelError
from raydistill.models.signals import BEGINS, LABELS, SECOND, UNITS
from raydistill.storage.artifacts import Artifact
from raydistill.storage.locks import lock
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, Task, task_of
from raydistill.tasks.masked_language_modeling.masks import Masks
from raydistill.tasks.targets import Ragged, Values, of_column, units_of

if TYPE_CHECKING:
    import torch

ROWS_PER_CALL = 1000  # of the tokenizer: bounds its memory, and costs 2 % against one call
SAMPLE_ROWS, SAMPLE_TOKENS, SAMPLE_BATCH = 512, 8192, 32
_WORD_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}
_MAX_INT32 = 2**31 - 1
COUNTS = ["num_tokens", "num_cut"]
"""What a tokens artefact's info.json counts by split; in its key, so that a later version never misses one."""


SWAPPED = "-swapped"
"""Ends the name of a split whose pairs are in the other order."""


def tokens_recipe(
    data_digest: str,
    tokenizer_digest: str,
    max_length: int,
    symmetric: bool = False,
    augmentation: Augmentation | None = None,
) -> dict[str, Any]:
    """What a data set's token ids depend on."""
    recipe = {"data": data_digest, "tokenizer": tokenizer_digest, "max_length": max_length, "has": COUNTS}
    copies = {"augmented": augmentation.recipe()} if augmentation is not None else {}
    return recipe | ({"symmetric": True} if symmetric else {}) | copies


def tokenize_data(
    data: Artifact,
    tokenizer_folder: Path,
    max_length: int,
    storage: Storage,
    *,
    symmetric: bool = False,
    augmentation: Augmentation | None = None,
) -> Artifact:
    """The tokens artefact of a data artefact; made if it is not there.

    {split}.arrow: input_ids list<int32>[, token_type_ids list<int32>], target, example_id int64[, second int64: where
    the second text of a row begins that is read apart from the first]; info.json has
    pad_token_id, max_length, by split num_tokens and num_cut (rows with more than ``max_length`` tokens), and the
    task's facts: targets mean nothing without them, so the digest, by which all that is made from the rows is known,
    covers both. Of pictures, {split}.arrow has target and example_id, {split}.npy the pixels, uint8 (N, C, H, W), and
    info.json what the image processor makes of these; ``max_length`` is the number of patches then. Of ``symmetric``
    pairs the training split has all rows in their own order and then in the other one, the same example in both;
    validation and test have a second split each, ``<split>-swapped``. Copies of ``augmentation`` follow the
    training rows, the same examples without their targets. Raises ModelError for a folder without a fast tokenizer or
    an image processor, ConfigError when ``max_length`` is more than the model takes.
    """
    from raydistill.models.folder import tokenizer_digest

    parents = {"data": data.digest, "tokenizer": tokenizer_digest(tokenizer_folder)}
    recipe = tokens_recipe(parents["data"], parents["tokenizer"], max_length, symmetric, augmentation)
    artifact = Artifact(storage, "tokens", recipe_key(recipe))
    if artifact.exists():
        return artifact
    with lock(storage, "tokens", artifact.key + ".lock"):
        if not artifact.exists():
            if task_of(read_info(data).task).reads_pictures:
                processor = Processor.open(tokenizer_folder)
                with artifact.write(recipe, parents) as folder:
                    _write_pixels(processor, data, folder, max_length)
                return artifact
            tokenizer = load_tokenizer(tokenizer_folder, max_length)
            with artifact.write(recipe, parents) as folder:
                _write_tokens(tokenizer, data, folder, max_length, symmetric, augmentation)
    return artifact


def load_tokenizer(folder: Path, max_length: int | None = None) -> Any:
    """The fast tokenizer of a folder. Raises ModelError, and ConfigError where it cannot cut rows to ``max_length``."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged tokenizer.json
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{folder} has no tokenizer that can be loaded: {said}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder} has only a slow tokenizer. Save it as a fast one, with a tokenizer.json.")
    if max_length is None:
        return tokenizer
    if max_length > tokenizer.model_max_length:
        raise ConfigError(
            f"data.max_length is {max_length}, but the model takes {tokenizer.model_max_length} tokens. Lower it."
        )
    special = tokenizer.num_special_tokens_to_add()
    if max_length <= special:
        raise ConfigError(
            f"data.max_length is {max_length}, but the tokenizer adds {special} tokens to a row. Raise it."
        )
    return tokenizer


def _write_tokens(
    tokenizer: Any,
    data: Artifact,
    folder: Path,
    max_length: int,
    symmetric: bool,
    augmentation: Augmentation | None,
) -> None:
    source = data.local()
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    facts = read_info(data).task
    task = task_of(facts)
    masks = task.masks(tokenizer)
    num_tokens, num_cut, num_windows, num_units = {}, {}, {}, {}
    for split in SPLITS:
        batch, texts = map_batch(source / f"{split}.arrow"), read_texts(data, split)
        if masks is not None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                pieces = task.encoded_in_parts(tokenizer, texts[0], max_length, split == "train")
                columns = spooled(pieces, Path(scratch))
                num_tokens[split], num_cut[split] = len(columns["input_ids"].values), 0
                num_windows[split], num_units[split] = len(columns["input_ids"]), len(columns["unit"].values)
                write_batch(folder / f"{split}.arrow", columns)
            continue
        if task.has_units:
            answers = of_column(batch.column("target"))
            columns = encode_task(tokenizer, task, texts, answers, max_length, pad)
            num_cut[split], num_windows[split] = num_cut_in(columns), len(columns["input_ids"])
            num_units[split] = len(columns["unit"].values)
            columns.pop("is_cut", None)
        else:
            encode = encode_apart if task.reads_apart and len(texts) > 1 else encode_texts
            known = {name: batch.column(name) for name in ("target", "example_id")}
            own, is_cut = encode(tokenizer, texts, max_length, pad)
            parts = [(own | known, is_cut)]
            if symmetric:
                swapped, _ = encode_texts(tokenizer, texts[::-1], max_length, pad)
                if split == "train":
                    parts.append((swapped | known, is_cut))
                else:
                    write_batch(folder / f"{split}{SWAPPED}.arrow", swapped | known)
            if augmentation is not None and split == "train":
                unlabeled = known | {"target": pa.nulls(len(batch), known["target"].type)}
                masking = load_tokenizer(augmentation.masked) if augmentation.masked is not None else None
                for written in augmentation.copies_of(texts, tokenizer, masking):
                    for order in (written, written[::-1]) if symmetric else (written,):
                        copy, is_cut = encode(tokenizer, order, max_length, pad)
                        parts.append((copy | unlabeled, is_cut))
            columns = {name: _joined([part[name] for part, _ in parts]) for name in parts[0][0]}
            num_cut[split] = sum(int(is_cut.sum()) for _, is_cut in parts)
        num_tokens[split] = len(columns["input_ids"].values)
        write_batch(folder / f"{split}.arrow", columns)
    several = {"num_windows": num_windows, "num_units": num_units} if num_windows else {}
    counts = {"num_tokens": num_tokens, "num_cut": num_cut, **several}
    hidden = {} if masks is None else {"masks": asdict(masks)}
    info = {"pad_token_id": pad, "max_length": max_length, **counts, **hidden, "task": facts}
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def _write_pixels(processor: Processor, data: Artifact, folder: Path, num_patches: int) -> None:
    num_rows = {}
    for split in SPLITS:
        batch = map_batch(data.local() / f"{split}.arrow")
        num_rows[split] = len(batch)
        shape = (len(batch), *processor.shape)
        pixels = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.uint8, shape)
        for start in range(0, len(batch), PICTURES_PER_CALL):
            pictures = batch.column("image").slice(start, PICTURES_PER_CALL).to_pylist()
            pixels[start : start + len(pictures)] = processor.pixels(pictures)
        pixels.flush()
        write_batch(folder / f"{split}.arrow", {name: batch.column(name) for name in ("target", "example_id")})
    counts = {"num_tokens": {s: n * num_patches for s, n in num_rows.items()}, "num_cut": dict.fromkeys(num_rows, 0)}
    info = {"pixels": processor.facts(), "max_length": num_patches, **counts, "task": read_info(data).task}
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    """Columns one after the other, also where they have more tokens together than a list column can count."""
    is_list = any(pa.types.is_list(part.type) or pa.types.is_large_list(part.type) for part in parts)
    if is_list and sum(len(part.values) for part in parts) > _MAX_INT32:
        parts = [part.cast(pa.large_list(pa.int32())) for part in parts]
    return pa.concat_arrays(parts)


def read_texts(data: Artifact, split: str) -> list[pa.Array]:
    """The texts of a prepared split, one column or two; or its pictures."""
    batch = map_batch(data.local() / f"{split}.arrow")
    return [batch.column(name) for name in ("text", "text_pair", "image") if name in batch.schema.names]


def map_batch(path: Path) -> pa.RecordBatch:
    """The one record batch of an Arrow IPC file, as views of the mapped file."""
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def encode_task(
    tokenizer: Any, task: Task, texts: Sequence[pa.Array], values: Values, max_length: int, pad: int
) -> dict[str, pa.Array]:
    """Rows of examples that have several predictions: as the task makes them, or else windows of texts whose units it
    knows, see ``encode_windows``. ``texts``: one column or two; ``values``: of the examples' targets."""
    whole = [column.to_pylist() for column in texts]
    if (columns := task.encoded(tokenizer, whole, values, max_length, pad)) is not None:
        return columns
    units, overlap = task.units(whole[0], values), task.overlap(max_length)
    return encode_windows(tokenizer, whole[0], units, max_length, overlap, pad)


def num_cut_in(columns: Mapping[str, pa.Array]) -> int:
    """Rows of ``encode_task`` that lack a part of what they are about; windows lack nothing."""
    return int(columns["is_cut"].true_count) if "is_cut" in columns else 0


def encode_texts(
    tokenizer: Any, texts: Sequence[pa.Array], max_length: int, pad: int
) -> tuple[dict[str, pa.Array], npt.NDArray[np.bool_]]:
    """Token ids as list<int32> columns input_ids[, token_type_ids] of one or two columns of texts; which rows were cut.

    A row without a single token gets one padding token, as no model takes an empty row.
    """
    parts: dict[str, list[pa.Array]] = {"input_ids": [], "token_type_ids": []}
    cut: list[npt.NDArray[np.bool_]] = [np.zeros(0, bool)]
    for ids, types, is_cut in _encoded(tokenizer, texts, max_length):
        for row in [i for i, row_ids in enumerate(ids) if not row_ids]:
            ids[row], types[row : row + 1] = [pad], [[0]] if types else []
        parts["input_ids"].append(pa.array(ids, pa.list_(pa.int32())))
        if types:
            parts["token_type_ids"].append(pa.array(types, pa.list_(pa.int32())))
        cut.append(is_cut)
    if sum(len(part.values) for part in parts["input_ids"]) > _MAX_INT32:
        parts = {name: [part.cast(pa.large_list(pa.int32())) for part in several] for name, several in parts.items()}
    return {name: pa.concat_arrays(several) for name, several in parts.items() if several}, np.concatenate(cut)


def encode_apart(
    tokenizer: Any, texts: Sequence[pa.Array], max_length: int, pad: int
) -> tuple[dict[str, pa.Array], npt.NDArray[np.bool_]]:
    """As ``encode_texts``, two columns of texts that a model reads one by one: a row holds the tokens of both, one
    after the other, each cut to ``max_length``; ``second``, where the second one begins."""
    (first, first_cut), (other, other_cut) = (encode_texts(tokenizer, [column], max_length, pad) for column in texts)
    joined: dict[str, pa.Array] = {}
    for name in first:
        rows, more = (Ragged(side[name].values.to_numpy(), np.diff(side[name].offsets)) for side in (first, other))
        both = Ragged(np.empty(len(rows.flat) + len(more.flat), np.int32), rows.lengths + more.lengths)
        is_first = np.arange(len(both.flat)) - np.repeat(both.starts, both.lengths) < np.repeat(
            rows.lengths, both.lengths
        )
        both.flat[is_first], both.flat[~is_first] = rows.flat, more.flat
        offsets = np.concatenate(([0], np.cumsum(both.lengths)))
        joined[name] = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(both.flat))
    return {**joined, "second": pa.array(np.diff(first["input_ids"].offsets))}, first_cut | other_cut


def _encoded(
    tokenizer: Any, texts: Sequence[pa.Array], max_length: int
) -> Iterator[tuple[list[list[int]], list[list[int]], npt.NDArray[np.bool_]]]:
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": False, "verbose": False}
    cut_early = len(texts) == 1 and _splits_at_spaces(tokenizer)
    for start in range(0, len(texts[0]), ROWS_PER_CALL):
        columns = [column.slice(start, ROWS_PER_CALL).to_pylist() for column in texts]
        heads = [_head(text, max_length) for text in columns[0]] if cut_early else columns[0]
        encoded = tokenizer(heads, *columns[1:], **options)
        ids, types = encoded["input_ids"], encoded.get("token_type_ids") or []
        is_cut = _overflowing(encoded, max_length)
        is_cut |= [bool(text[len(head) :].strip()) for text, head in zip(columns[0], heads, strict=True)]
        short = [i for i, row in enumerate(ids) if len(row) < max_length and len(heads[i]) < len(columns[0][i])]
        if short:
            again = tokenizer([columns[0][i] for i in short], **options)
            for name, rows in (("input_ids", ids), ("token_type_ids", types)):
                for i, row in zip(short, again.get(name) or [], strict=False):
                    rows[i] = row
            is_cut[short] = _overflowing(again, max_length)
        yield ids, types, is_cut


def _overflowing(encoded: Any, max_length: int) -> npt.NDArray[np.bool_]:
    """Which rows had more tokens than ``max_length``; only full ones are asked, as asking copies what was cut off."""
    rows = encoded.encodings
    return np.fromiter((len(row.ids) == max_length and bool(row.overflowing) for row in rows), bool, len(rows))


def _head(text: str, max_length: int) -> str:
    """The beginning of a long text, up to a space: enough for ``max_length`` tokens of prose nearly always.

    Long documents at max_length 16 are tokenised 5 times as fast; where it is not enough the caller takes the whole.
    """
    size = 8 * max_length + 64
    if len(text) <= size:
        return text
    end = text.rfind(" ", 0, size)
    return text[:end].rstrip(" \n\r\t") if end > 0 else text


def _splits_at_spaces(tokenizer: Any) -> bool:
    """True where the tokens before a space cannot depend on what comes after it, and truncation is at the end."""
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    known = type(splitter).__name__ in _WORD_PRE_TOKENIZERS
    splits = (
        known and getattr(splitter, "split", True) is not False and getattr(splitter, "use_regex", True) is not False
    )
    added = tokenizer.get_added_vocab()
    return bool(splits and tokenizer.truncation_side == "right" and not any(" " in token for token in added))


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
            return PictureRows.of_pixels(pixels, *known, info["max_length"], Processor.of(info["pixels"]))
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

    @classmethod
    def of_pixels(
        cls,
        pixels: npt.NDArray[np.uint8],
        targets: Targets,
        example_ids: npt.NDArray[np.int64],
        num_patches: int,
        processor: Processor,
    ) -> PictureRows:
        """Pictures that models see as so many patches."""
        lengths, starts = np.full(len(pixels), num_patches, np.int32), np.arange(len(pixels)) * num_patches
        return cls(lengths, targets, example_ids, starts, {"pixels": pixels}, pad_token_id=0, processor=processor)

    def inputs(self, row_ids: npt.NDArray[np.integer[Any]]) -> dict[str, torch.Tensor]:
        """pixel_values of some rows, (B, C, H, W) float32, as the model's image processor gives them."""
        import torch

        assert self.processor is not None
        return {"pixel_values": torch.from_numpy(self.processor.values(self.values["pixels"][row_ids]))}

    def block(self, batch_size: int, length: int) -> dict[str, torch.Tensor]:
        """As many pictures; they have one size."""
        return self.inputs(np.arange(batch_size) % self.num_rows)
