"""Token ids on disk are what the tokenizer gives, and reuse follows data, tokenizer and length."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kit.rows_on_disk import make_config, splits_of, write_rows

from raydistill.data.encoding import encode_texts, load_tokenizer
from raydistill.data.prepare import prepare_data
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data, tokens_recipe
from raydistill.errors import ConfigError, ModelError
from raydistill.storage.artifacts import Artifact
from raydistill.storage.manifest import recipe_key
from raydistill.storage.storage import Storage


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a word tokenizer with and one without token types, and a byte-level one with another pad id."""
    from kit.tiny import tiny_tokenizer
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizers")
    for family in ("bert", "roberta"):
        tiny_tokenizer(family).save_pretrained(folder / family)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(spread_texts(16, 100), trainer)
    backend.decoder = decoders.ByteLevel()
    bytes_only = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", model_max_length=64)
    bytes_only.save_pretrained(folder / "bytes")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def sentences(tmp_path: Path, local: Storage) -> Artifact:
    words = ["the", "film", "was", "good", "bad", "and", "very", "poor", "great", "music"]
    rows = [(" ".join(words[j % 10] for j in range(i, i + 1 + i % 30)) + f" {i}", "ab"[i % 2]) for i in range(100)]
    return prepare_data(make_config(write_rows(tmp_path / "x.jsonl", rows)), local)


def test_a_sample_is_spread_over_all_rows_and_bounded_in_tokens(
    tokenizers: dict[str, Path], sentences: Artifact, local: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows.open(tokenize_data(sentences, tokenizers["bert"], 12, local).local(), "train")

    def taken() -> list[list[int]]:
        batches = [batch["input_ids"] for batch in rows.sample()]
        assert all(len(batch) <= 32 for batch in batches)
        return [[i for i in row.tolist() if i] for batch in batches for row in batch]

    every = [rows.inputs(np.array([i]))["input_ids"][0].tolist() for i in range(rows.num_rows)]
    assert taken() == every
    monkeypatch.setattr("raydistill.data.rows.SAMPLE_TOKENS", 40 * float(rows.lengths.mean()))
    assert taken() == [every[i * rows.num_rows // 40] for i in range(40)]


@pytest.mark.parametrize("name", ["bert", "roberta", "bytes"])
def test_rows_are_what_the_tokenizer_gives(
    name: str, tokenizers: dict[str, Path], sentences: Artifact, local: Storage
) -> None:
    artifact = tokenize_data(sentences, tokenizers[name], 12, local)
    assert set(artifact.manifest().parents) == {"data", "tokenizer"}
    assert artifact.manifest().parents["data"] == sentences.digest
    tokenizer = load_tokenizer(tokenizers[name], 12)
    for split, table in splits_of(sentences).items():
        rows = Rows.open(artifact.local(), split)
        assert rows.num_rows == table.num_rows
        assert rows.targets.to_arrow().to_pylist() == table["target"].to_pylist()
        assert rows.example_ids.tolist() == table["example_id"].to_pylist()
        row_ids = np.arange(rows.num_rows)[::-3]
        texts = [table["text"][int(i)].as_py() for i in row_ids]
        expected = tokenizer(texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
        got = rows.inputs(row_ids)
        assert got.keys() == expected.keys()
        assert all((got[key] == expected[key]).all() and got[key].dtype == expected[key].dtype for key in got)
        assert rows.lengths[row_ids].tolist() == expected["attention_mask"].sum(1).tolist()
        assert rows.lengths.dtype == np.int32


def test_pairs_are_tokenised_as_pairs(tokenizers: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizers["bert"], 8)
    texts, pairs = ["good film", "the plot was very bad and poor"], ["bad", "great music and song"]
    columns, is_cut = encode_texts(tokenizer, [pa.array(texts), pa.array(pairs)], 8, 0)
    expected = tokenizer(texts, pairs, truncation=True, max_length=8)
    assert {key: column.to_pylist() for key, column in columns.items()} == {key: expected[key] for key in columns}
    assert columns["token_type_ids"].to_pylist()[0] == [0, 0, 0, 0, 1, 1]
    assert is_cut.tolist() == [False, True]


def spread_texts(max_length: int, num_texts: int) -> list[str]:
    """Texts with about as many words in the part that is read first as fit into ``max_length``, wide gaps between."""
    random = np.random.default_rng(max_length)
    size, words = 8 * max_length + 64, ["good", "film", "bad.", "it's", "é", "music,", "goodbad"]
    texts = []
    for _ in range(num_texts):
        gap = size / max_length * random.uniform(0.2, 1.6)
        pieces = []
        for _ in range(3 * max_length):
            pieces += [
                str(random.choice(words)),
                str(random.choice([" ", "\n", " ", "\u00a0"])) * int(random.poisson(gap)),
            ]
        texts.append("".join(pieces))
    return texts


@pytest.mark.parametrize("name", ["bert", "bytes"])
@pytest.mark.parametrize("max_length", [4, 9, 16])
def test_reading_only_the_beginning_of_a_long_text_changes_no_token(
    name: str, max_length: int, tokenizers: dict[str, Path]
) -> None:
    texts = [*spread_texts(max_length, 400), "x" * 500 + " good", " " * 500, ""]
    tokenizer = load_tokenizer(tokenizers[name], max_length)
    columns, is_cut = encode_texts(tokenizer, [pa.array(texts, pa.large_string())], max_length, 0)
    whole = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    assert columns["input_ids"].to_pylist() == [row or [0] for row in whole]
    assert is_cut.tolist() == [len(row) > max_length for row in tokenizer(texts)["input_ids"]]
    assert 0 < is_cut.sum() < len(texts)


def test_tokens_key_and_reuse(tokenizers: dict[str, Path], sentences: Artifact, local: Storage) -> None:
    first = tokenize_data(sentences, tokenizers["bert"], 12, local)
    parents = first.manifest().parents
    assert first.key == recipe_key(tokens_recipe(parents["data"], parents["tokenizer"], 12))
    written = (first.local() / "train.arrow").stat().st_mtime_ns
    assert tokenize_data(sentences, tokenizers["bert"], 12, local).key == first.key
    assert (first.local() / "train.arrow").stat().st_mtime_ns == written
    assert tokenize_data(sentences, tokenizers["bert"], 13, local).key != first.key
    assert tokenize_data(sentences, tokenizers["roberta"], 12, local).key != first.key


def test_tokenizers_that_cannot_be_used(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_length is 65, but the model takes 64"):
        load_tokenizer(tokenizers["bert"], 65)
    shutil.copytree(tokenizers["bert"], tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    for folder in (tmp_path / "broken", tmp_path):
        with pytest.raises(ModelError, match="tokenizer"):
            load_tokenizer(folder, 16)
