"""The test rows written otherwise, to see how much of an answer hangs on how a text is written (evaluate.robustness).

``lower``  all letters lower-cased
``upper``  all letters upper-cased
``typos``  each word of two letters or more has, with probability ``TYPO_SHARE``, one typo of a kind that is drawn: two
           neighbouring letters swapped, a letter dropped, doubled, or replaced by its neighbour on a US keyboard. What
           is drawn depends on the seed and the row alone.
``half``   the first half of its tokens, rounded up, of each text; counted after the cut to ``data.max_length``, so
           that it is half of what a model reads

A perturbed row is a row like any other: a split of an artefact of tokens, with the targets of the row that it was. Of
rows with any number of predictions the task says what is rewritten, and where its targets are then
(``Task.rewritten``): of words each by itself, ``half`` of them; of questions and contexts only what leaves the answers.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.data.encoding import ROWS_PER_CALL, encode_task, encode_texts, load_tokenizer
from raydistill.data.prepare import read_info, write_batch
from raydistill.data.rows import SWAPPED, map_batch, read_texts
from raydistill.data.typos import with_typos
from raydistill.storage.artifacts import Artifact
from raydistill.storage.locks import lock
from raydistill.storage.storage import Storage
from raydistill.tasks import Task, task_of
from raydistill.tasks.rewriting import Rewrite
from raydistill.tasks.targets import Ragged, Values, of_column

PERTURBATIONS = ("lower", "upper", "typos", "half")
RULES = 1
"""Raised when rows are perturbed otherwise: they are then written, and predicted, anew."""


def split_of(perturbation: str) -> str:
    """The name of the split with the test rows so perturbed."""
    return f"test-{perturbation}"


def perturb_rows(data: Artifact, tokens: Artifact, tokenizer_folder: Path, seed: int, storage: Storage) -> Artifact:
    """The artefact of the perturbed test rows, of kind ``tokens``; made if it is not there.

    A split each, as ``tokenize_data`` writes them, but for perturbations that change no row. info.json has
    ``pad_token_id`` and ``perturbed``: by name the numbers of test rows whose text and whose tokens are changed.
    """
    recipe = {**tokens.manifest().recipe, "perturbed": {"rules": RULES, "seed": seed}}
    artifact = Artifact.of(storage, "tokens", recipe, {"data": data.digest, "tokens": tokens.digest})
    if artifact.exists():
        return artifact
    with lock(storage, "tokens", artifact.key + ".lock"):
        if not artifact.exists():
            with artifact.write() as folder:
                _write(data, tokens, tokenizer_folder, seed, folder)
    return artifact


def perturbed_counts(artifact: Artifact) -> dict[str, dict[str, int]]:
    """By perturbation ``texts`` and ``tokens``: test rows of which these are changed."""
    found: dict[str, dict[str, int]] = artifact.storage.read_json(artifact.kind, artifact.key, "info.json")["perturbed"]
    return found


def perturbed_splits(artifact: Artifact) -> list[str]:
    """The splits that there are: of perturbations that change a row."""
    return [split_of(name) for name, changed in perturbed_counts(artifact).items() if changed["tokens"]]


def _write(data: Artifact, tokens: Artifact, tokenizer_folder: Path, seed: int, folder: Path) -> None:
    source = tokens.local()
    info, before = json.loads((source / "info.json").read_text()), map_batch(source / "test.arrow")
    length, pad, texts = info["max_length"], info["pad_token_id"], read_texts(data, "test")
    tokenizer, symmetric = load_tokenizer(tokenizer_folder, length), (source / f"test{SWAPPED}.arrow").exists()
    task, counts = task_of(read_info(data).task), {}
    values: Values = of_column(map_batch(data.local() / "test.arrow").column("target")) if task.has_units else None
    known = {column: before.column(column) for column in ("target", "example_id")}

    def tokens_of(name: str, texts: Sequence[pa.Array]) -> dict[str, pa.Array]:
        found = (
            halve(tokenizer, texts, length, pad) if name == "half" else encode_texts(tokenizer, texts, length, pad)[0]
        )
        return found | known

    for name in PERTURBATIONS:
        if name in task.unperturbed:
            continue
        if task.has_units:
            written, units = rewrite_units(task, texts, values, name, seed)
            columns = encode_task(tokenizer, task, written, units, length, pad)
            columns.pop("is_cut", None)
        else:
            written = texts if name == "half" else rewrite(texts, name, seed)
            columns = tokens_of(name, written)
        other = [pc.not_equal(old, new).to_numpy(zero_copy_only=False) for old, new in zip(texts, written, strict=True)]
        pairs = zip(by_example(before), by_example(columns), strict=True)
        changed = sum(old != new for old, new in pairs)
        counts[name] = {"texts": int(np.any(other, axis=0).sum()), "tokens": changed}
        if changed:
            write_batch(folder / f"{split_of(name)}.arrow", columns)
            if symmetric:
                write_batch(folder / f"{split_of(name)}{SWAPPED}.arrow", tokens_of(name, written[::-1]))
    info = {"pad_token_id": pad, "max_length": length, "perturbed": counts, "sources": info["sources"]}
    (folder / "info.json").write_text(json.dumps(info))


def by_example(columns: Mapping[str, pa.Array] | pa.RecordBatch) -> Iterator[list[list[int]]]:
    """The token ids of all rows of each example, one example after another."""
    rows = zip(columns["example_id"], columns["input_ids"], strict=True)
    for _, own in groupby(rows, lambda row: row[0].as_py()):
        yield [ids.as_py() for _, ids in own]


def rewrites(perturbation: str, seed: int, num_rows: int) -> Iterator[Rewrite]:
    """Of each row what becomes of a piece of its text: ``lower``, ``upper``, or ``typos`` in one piece after another;
    nothing under ``half``."""
    for number in range(num_rows):
        match perturbation:
            case "typos":
                yield partial(with_typos, draw=random.Random(f"{seed} {number}"))
            case "half":
                yield str
            case _:
                yield getattr(str, perturbation)


def rewrite(texts: Sequence[pa.Array], perturbation: str, seed: int) -> list[pa.Array]:
    """The texts of all rows, one column or two, ``lower``, ``upper`` or with ``typos``."""
    rows = zip(*(column.to_pylist() for column in texts), strict=True)
    made = [
        [change(text) for text in row]
        for change, row in zip(rewrites(perturbation, seed, len(texts[0])), rows, strict=True)
    ]
    return [pa.array([row[i] for row in made], old.type) for i, old in enumerate(texts)]


def rewrite_units(
    task: Task, texts: Sequence[pa.Array], values: Ragged, perturbation: str, seed: int
) -> tuple[list[pa.Array], Ragged]:
    """The same of a task whose rows have any number of predictions, by ``Task.rewritten``, with the ``values`` of their
    targets."""
    changes = list(rewrites(perturbation, seed, len(values)))
    written, units = task.rewritten(perturbation, [column.to_pylist() for column in texts], values, changes)
    return [pa.array(column, old.type) for column, old in zip(written, texts, strict=True)], units


def halve(tokenizer: Any, texts: Sequence[pa.Array], max_length: int, pad: int) -> dict[str, pa.Array]:
    """Token ids as ``encode_texts`` gives them, of each text the first half alone; special tokens stay."""
    found: dict[str, list[list[int]]] = {}
    for start in range(0, len(texts[0]), ROWS_PER_CALL):
        columns = [column.slice(start, ROWS_PER_CALL).to_pylist() for column in texts]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
        kept = [first_half(row.sequence_ids) for row in encoded.encodings]
        for name, empty in (("input_ids", [pad]), ("token_type_ids", [0])):
            rows = zip(encoded.get(name, ()), kept, strict=False)
            found.setdefault(name, []).extend([values[i] for i in places] or empty for values, places in rows)
    return {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in found.items() if rows}


def first_half(sequence_ids: Sequence[int | None]) -> list[int]:
    """Which tokens of a row to keep. ``sequence_ids``: of which text each is, 0 or 1; None for special tokens."""
    count = Counter(sequence_ids)
    left = {text: (number + 1) // 2 for text, number in count.items() if text is not None}
    kept = []
    for i, text in enumerate(sequence_ids):
        if text is not None:
            left[text] -= 1
        if text is None or left[text] >= 0:
            kept.append(i)
    return kept
