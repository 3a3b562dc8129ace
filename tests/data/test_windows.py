"""Windows of long texts: every unit once, at its own token, with as much around it as there is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from kit.tiny import WORDS, tiny_tokenizer

from raydistill.data.rows import Rows
from raydistill.data.windows import encode_windows
from raydistill.errors import ConfigError
from raydistill.tasks.targets import Ragged

SPECIAL = 2


def made(num_words: list[int], seed: int = 0) -> tuple[list[str], Ragged]:
    """Texts of so many words, and the place of each with its number among all as label."""
    draw, texts, rows, label = random.Random(seed), [], [], 0
    for size in num_words:
        words = [draw.choice(WORDS) for _ in range(size)]
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        begins = ends - [len(word) for word in words]
        rows.append(np.stack([begins, ends, np.arange(label, label + size)], axis=1).astype(np.int32))
        label += size
        texts.append(" ".join(words))
    return texts, Ragged.of(rows, np.zeros((0, 3), np.int32))


@pytest.mark.parametrize(("length", "overlap"), [(64, 16), (12, 3), (12, 0), (8, 5)])
def test_each_word_is_in_one_row_at_its_first_token_and_rows_join_without_a_seam(length: int, overlap: int) -> None:
    texts, units = made([1, 9, 10, 11, 47, 200])
    tokenizer = tiny_tokenizer("bert")
    rows = Rows.of(encode_windows(tokenizer, texts, units, length, overlap, 0), 0)
    assert rows.units is not None
    targets, ids = rows.examples
    assert ids.tolist() == list(range(len(texts)))
    assert np.array_equal(targets.values.flat, units.flat)
    assert np.array_equal(targets.values.lengths, units.lengths)
    assert rows.lengths.max() == (length if max(units.lengths) + SPECIAL > length else max(units.lengths) + SPECIAL)
    whole = tokenizer(texts, verbose=False)["input_ids"]
    for row in range(rows.num_rows):
        tokens = rows.values["input_ids"][rows.starts[row] : rows.starts[row] + rows.lengths[row]]
        example = int(rows.example_ids[row])
        first = int(units[example][0, 2])
        for place, (_, _, label) in zip(rows.units[row], rows.targets.values[row], strict=True):
            assert tokens[place] == whole[example][1 + label - first]
            beyond = min(label - first, units.lengths[example] - 1 - (label - first))
            around = min(place - 1, rows.lengths[row] - SPECIAL - place)
            assert around >= min(beyond, overlap // 2)  # as much as the overlap leaves, but for the text's own ends


def test_outputs_of_windows_are_those_of_texts_again() -> None:
    texts, units = made([30, 4])
    rows = Rows.of(encode_windows(tiny_tokenizer("bert"), texts, units, 12, 4, 0), 0)
    assert rows.num_rows > 2
    outputs = rows.by_example(np.arange(34, dtype=np.float32)[:, None])
    assert [row[:, 0].tolist() for row in outputs] == [list(range(30)), list(range(30, 34))]


def test_a_word_that_the_tokenizer_makes_nothing_of_has_a_neighbours_token() -> None:
    tokenizer, text = tiny_tokenizer("bert"), "film \u200b bank"
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("\u200b", "")
    places = np.array([[0, 4, 0], [5, 6, 1], [7, 11, 2]], np.int32)
    rows = Rows.of(encode_windows(tokenizer, [text], Ragged(places, np.array([3])), 12, 4, 0), 0)
    assert rows.units is not None
    assert rows.units.flat.tolist() == [1, 2, 2]


def test_an_overlap_that_leaves_no_room_is_refused() -> None:
    texts, units = made([3])
    with pytest.raises(ConfigError, match=r"task.stride is 10, but of data.max_length \(12\) only 10 tokens"):
        encode_windows(tiny_tokenizer("bert"), texts, units, 12, 10, 0)
