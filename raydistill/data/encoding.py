"""Texts as token ids: of one column or two, read together or apart, or windows of long ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistill.data.windows import encode_windows
from raydistill.errors import ConfigError, ModelError
from raydistill.tasks import Task
from raydistill.tasks.targets import Ragged, Values

ROWS_PER_CALL = 1000  # of the tokenizer: bounds its memory, and costs 2 % against one call
MAX_INT32 = 2**31 - 1
"""Tokens that a list column can count; a large list more."""
_WORD_PRE_TOKENIZERS = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}


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
    if sum(len(part.values) for part in parts["input_ids"]) > MAX_INT32:
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
