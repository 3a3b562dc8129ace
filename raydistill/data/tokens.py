"""The tokens artefact: token ids of the prepared rows, or pixels of pictures, made once for all that read them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raydistill.data.augmentation import Augmentation
from raydistill.data.encoding import MAX_INT32, encode_apart, encode_task, encode_texts, load_tokenizer, num_cut_in
from raydistill.data.paths import SPLITS
from raydistill.data.pictures import PICTURES_PER_CALL, Processor
from raydistill.data.prepare import read_info, write_batch
from raydistill.data.rows import SWAPPED, map_batch, read_texts
from raydistill.data.spool import spooled
from raydistill.data.views import Views
from raydistill.storage.artifacts import Artifact
from raydistill.storage.locks import lock
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets, task_of
from raydistill.tasks.targets import of_column

COUNTS = ["num_tokens", "num_cut"]
"""What a tokens artefact's info.json counts by split; in its key, so that a later version never misses one."""


def tokens_recipe(
    data_digest: str,
    tokenizer_digest: str,
    max_length: int,
    symmetric: bool = False,
    augmentation: Augmentation | None = None,
) -> dict[str, Any]:
    """What a data set's token ids depend on."""
    copies = None if augmentation is None else augmentation.recipe()
    recipe = {"data": data_digest, "tokenizer": tokenizer_digest, "max_length": max_length, "has": COUNTS}
    return recipe | {"symmetric": symmetric, "augmented": copies}


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
    training rows, the same examples without their targets, or where it ``keeps_labels`` with what is seen of them;
    where pictures are seen otherwise at each epoch instead, info.json has how, as ``views``. Raises ModelError for a
    folder without a fast tokenizer or an image processor, ConfigError when ``max_length`` is more than the model takes.
    """
    from raydistill.models.folder import tokenizer_digest

    parents = {"data": data.digest, "tokenizer": tokenizer_digest(tokenizer_folder)}
    recipe = tokens_recipe(parents["data"], parents["tokenizer"], max_length, symmetric, augmentation)
    artifact = Artifact.of(storage, "tokens", recipe, parents)
    if artifact.exists():
        return artifact
    with lock(storage, "tokens", artifact.key + ".lock"):
        if not artifact.exists():
            if (task := task_of(read_info(data).task)).reads_pictures:
                processor = Processor.open(tokenizer_folder, task.picture_size)
                with artifact.write() as folder:
                    _write_pixels(processor, data, folder, max_length, augmentation)
                return artifact
            tokenizer = load_tokenizer(tokenizer_folder, max_length)
            with artifact.write() as folder:
                _write_tokens(tokenizer, data, folder, max_length, symmetric, augmentation)
    return artifact


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
    facts = facts_of(data)
    task = task_of(facts["task"])
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
    info = {"pad_token_id": pad, "max_length": max_length, **counts, **hidden, **facts}
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def facts_of(data: Artifact) -> dict[str, Any]:
    """What tokens carry of their data: the task's facts and, of one of the user's own, the version of its source."""
    info = read_info(data)
    return {"task": info.task, "sources": info.sources}


def _write_pixels(
    processor: Processor, data: Artifact, folder: Path, num_patches: int, augmentation: Augmentation | None
) -> None:
    facts = facts_of(data)
    copies, views, seed, keeps_labels = 0, None, 0, False
    if augmentation is not None:
        copies, views, seed = augmentation.settings.num_copies, Views.of(augmentation.settings), augmentation.seed
        keeps_labels = augmentation.keeps_labels
    num_rows = {}
    for split in SPLITS:
        batch, more = map_batch(data.local() / f"{split}.arrow"), copies if split == "train" else 0
        num_rows[split] = (1 + more) * len(batch)
        pixels = np.lib.format.open_memmap(folder / f"{split}.npy", "w+", np.uint8, (num_rows[split], *processor.shape))
        by_copy = pixels.reshape(1 + more, len(batch), *processor.shape)
        for start in range(0, len(batch), PICTURES_PER_CALL):
            pictures = batch.column("image").slice(start, PICTURES_PER_CALL).to_pylist()
            part = slice(start, start + len(pictures))
            by_copy[0, part] = own = processor.pixels(pictures)
            for copy in range(more):
                assert views is not None
                by_copy[1 + copy, part] = views.seen(own, np.arange(part.start, part.stop), (seed, copy))
        pixels.flush()
        target, ids = (batch.column(name) for name in ("target", "example_id"))
        targets = [target] + [pa.nulls(len(batch), target.type)] * more
        if keeps_labels and views is not None:
            rows, known = np.arange(len(batch)), Targets.of_arrow(target)
            shown = (views.parts(rows, (seed, copy), processor.shape[1:]) for copy in range(more))
            targets[1:] = [task_of(facts["task"]).seen(known, *parts).to_arrow() for parts in shown]
        columns = {"target": pa.concat_arrays(targets), "example_id": pa.concat_arrays([ids] * (1 + more))}
        write_batch(folder / f"{split}.arrow", columns)
    counts = {"num_tokens": {s: n * num_patches for s, n in num_rows.items()}, "num_cut": dict.fromkeys(num_rows, 0)}
    anew = {"views": asdict(views)} if views is not None and not copies else {}
    info = {"pixels": processor.facts(), "max_length": num_patches, **counts, **anew, **facts}
    (folder / "info.json").write_text(json.dumps(info, indent=1))


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    """Columns one after the other, also where they have more tokens together than a list column can count."""
    is_list = any(pa.types.is_list(part.type) or pa.types.is_large_list(part.type) for part in parts)
    if is_list and sum(len(part.values) for part in parts) > MAX_INT32:
        parts = [part.cast(pa.large_list(pa.int32())) for part in parts]
    return pa.concat_arrays(parts)
