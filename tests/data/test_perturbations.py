"""The test rows written otherwise: what becomes of texts and tokens, against loops and the tokenizer's own calls."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from kit.asked import asked_rows
from kit.rows_on_disk import make_config, splits_of, write_rows
from kit.tagged import tagged_rows, write_jsonl
from kit.tiny import FAMILIES, WORDS, tiny_tokenizer
from tokenizers import normalizers

from raydistill.config.tree import Config
from raydistill.data import perturbations
from raydistill.data.perturbations import (
    PERTURBATIONS,
    halve,
    perturb_rows,
    perturbed_counts,
    perturbed_splits,
    rewrite,
    split_of,
)
from raydistill.data.prepare import prepare_data
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data
from raydistill.data.typos import NEIGHBOURS, TYPO_SHARE, typo, with_typos
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage


def typos_of(word: str) -> dict[str, set[str]]:
    """Every word that one typo of each kind makes of it, letter by letter."""
    letters = range(len(word))
    beside: dict[str, set[str]] = {}
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm"):
        for a, b in pairwise(row):
            beside.setdefault(a, set()).add(b)
            beside.setdefault(b, set()).add(a)
    for above, below in (("qwertyuio", "asdfghjkl"), ("sdfghjk", "zxcvbnm")):  # a key and the one below to its right
        for a, b in zip(above, below, strict=True):
            beside[a].add(b)
            beside[b].add(a)
    for above, below in (("wertyuiop", "asdfghjkl"), ("asdfghj", "zxcvbnm")):  # and the one below to its left
        for a, b in zip(above, below, strict=True):
            beside[a].add(b)
            beside[b].add(a)
    keys = {i: [k if word[i].islower() else k.upper() for k in beside.get(word[i].lower(), ())] for i in letters}
    swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in letters[:-1]}
    return {
        "swap": swapped - {word},
        "drop": {word[:i] + word[i + 1 :] for i in letters},
        "double": {word[:i] + word[i] + word[i:] for i in letters},
        "neighbour": {word[:i] + key + word[i + 1 :] for i in letters for key in keys[i]},
    }


@pytest.mark.parametrize("word", ["market", "ab", "BBC", "aa", "über", "слово", "ñññ"])
def test_a_typo_is_one_of_the_four_kinds(word: str) -> None:
    kinds = typos_of(word)
    made = Counter(typo(word, random.Random(i)) for i in range(2000))
    every = set().union(*kinds.values())
    assert word not in made
    assert set(made) == every  # each can be drawn, and no other
    possible = [kind for kind in kinds if kinds[kind]]
    for kind in possible:  # each kind as often, where words tell them apart
        alone = kinds[kind] - set().union(*(kinds[other] for other in possible if other != kind))
        if alone == kinds[kind]:
            assert sum(made[one] for one in alone) / 2000 == pytest.approx(1 / len(possible), abs=0.05)


def test_neighbours_are_mutual() -> None:
    assert len(NEIGHBOURS) == 26
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near)
    assert set(NEIGHBOURS["s"]) == set("wedazx")


def test_one_word_in_ten_has_a_typo() -> None:
    text = " ".join(WORDS * 400)
    words, made = text.split(), with_typos(text, random.Random(0)).split()
    assert len(words) == len(made)
    long = [(a, b) for a, b in zip(words, made, strict=True) if len(a) > 1]
    share = sum(a != b for a, b in long) / len(long)
    assert share == pytest.approx(TYPO_SHARE, abs=4 * (TYPO_SHARE * (1 - TYPO_SHARE) / len(long)) ** 0.5)
    assert all(b in set().union(*typos_of(a).values()) for a, b in long if a != b)
    assert with_typos("a 1 22 x_ - 3b", random.Random(0)) == "a 1 22 x_ - 3b"


def column(*texts: str) -> list[pa.Array]:
    return [pa.array(texts, pa.large_string())]


def test_what_is_drawn_depends_on_seed_and_row_alone() -> None:
    texts = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(30)]
    (first,) = rewrite(column(*texts), "typos", 0)
    (again,) = rewrite(column(*texts), "typos", 0)
    (other,) = rewrite(column(*texts), "typos", 1)
    (changed,) = rewrite(column(*texts[:10], "short", *texts[11:]), "typos", 0)
    assert first.equals(again)
    assert not first.equals(other)
    assert first.type == pa.large_string()
    assert [i for i in range(30) if first[i] != changed[i]] == [10]
    pair = rewrite([*column(*texts), *column(*texts)], "typos", 0)
    assert pair[0].equals(first)
    assert not pair[1].equals(first)  # the second text draws on


def test_cases() -> None:
    texts = column("The Film", "GOOD", "bad", "Straße")
    assert rewrite(texts, "lower", 0)[0].to_pylist() == ["the film", "good", "bad", "straße"]
    assert rewrite(texts, "upper", 0)[0].to_pylist() == ["THE FILM", "GOOD", "BAD", "STRASSE"]


TEXTS = ["good", "the film was bad", "a an the good bad", "very poor music and song or story of the team", "share", ""]
SECOND = ["bad", "great", "tax law party vote", "win", "the match was in the net with a goal", "film"]


@pytest.mark.parametrize("family", FAMILIES)
def test_half_of_the_tokens_is_half_of_the_words(family: str) -> None:
    """The tiny tokenizers make a token of a word, so that a text of half the words has to give the same row."""
    tokenizer = tiny_tokenizer(family)

    def half(text: str, limit: int = 100) -> str:
        words = text.split()[:limit]
        return " ".join(words[: (len(words) + 1) // 2])

    for length in (64, 7):
        found = halve(tokenizer, column(*TEXTS), length, 0)
        expected = tokenizer([half(text, length - 2) for text in TEXTS])
        assert {name: values.to_pylist() for name, values in found.items()} == {n: expected[n] for n in found}
        assert ("token_type_ids" in found) == (family in ("bert", "electra"))
    found = halve(tokenizer, column(*TEXTS) + column(*SECOND), 64, 0)
    expected = tokenizer([half(text) for text in TEXTS], [half(text) for text in SECOND])
    assert {name: values.to_pylist() for name, values in found.items()} == {n: expected[n] for n in found}


def test_half_without_special_tokens_and_of_an_empty_row() -> None:
    tokenizer = tiny_tokenizer("roberta")
    tokenizer.backend_tokenizer.post_processor = None
    found = halve(tokenizer, column("good film bad", ""), 64, 7)["input_ids"].to_pylist()
    assert found == [tokenizer("good film")["input_ids"], [7]]


def prepared(folder: Path, storage: Storage, texts: Sequence[str], *, uncased: bool, seed: int = 0):
    rows = [(f"{text} {WORDS[i % 40]} {WORDS[i // 40]}", "ab"[i % 2]) for i, text in enumerate(texts)]
    return perturbed_of(make_config(write_rows(folder / "x.jsonl", rows)), folder, storage, uncased=uncased, seed=seed)


def perturbed_of(
    config: Config, folder: Path, storage: Storage, *, uncased: bool, seed: int = 0, max_length: int = 8
) -> tuple[Artifact, Artifact, Artifact]:
    """Artefacts of the data, of its tokens, and of its perturbed rows."""
    tokenizer = tiny_tokenizer("bert")
    if uncased:
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save_pretrained(folder / "tokenizer")
    data = prepare_data(config, storage)
    tokens = tokenize_data(data, folder / "tokenizer", max_length, storage)
    return data, tokens, perturb_rows(data, tokens, folder / "tokenizer", seed, storage)


@pytest.mark.parametrize("uncased", [True, False])
def test_perturbed_rows_are_splits_like_any_other(tmp_path: Path, local: Storage, uncased: bool) -> None:
    texts = ["The film was good and the Music great"] * 60 + ["the plot was poor"] * 60
    data, tokens, artifact = prepared(tmp_path, local, texts, uncased=uncased)
    before, test = Rows.open(tokens.local(), "test"), splits_of(data)["test"]
    counts, tokenizer = perturbed_counts(artifact), perturbations.load_tokenizer(tmp_path / "tokenizer", 8)
    assert list(counts) == list(PERTURBATIONS)
    cased = sum(text != text.lower() for text in test["text"].to_pylist())
    assert counts["lower"] == {"texts": cased, "tokens": 0 if uncased else cased}
    assert counts["upper"] == {"texts": test.num_rows, "tokens": 0 if uncased else test.num_rows}
    assert counts["half"] == {"texts": 0, "tokens": test.num_rows}
    assert perturbed_splits(artifact) == [split_of(name) for name in PERTURBATIONS if counts[name]["tokens"]]
    for split in perturbed_splits(artifact):
        rows = Rows.open(artifact.local(), split)
        assert rows.targets.to_arrow().equals(before.targets.to_arrow())
        assert rows.example_ids.tolist() == before.example_ids.tolist()
        if split != split_of("half"):
            (written,) = rewrite([test["text"].combine_chunks()], split.removeprefix("test-"), 0)
            expected = tokenizer(written.to_pylist(), truncation=True, max_length=8, padding=True, return_tensors="pt")
            found = rows.inputs(range(rows.num_rows))
            assert all((found[name] == expected[name]).all() for name in found)
    assert not [name for name in artifact.names() if name.endswith(".arrow") and "lower" in name and uncased]


@pytest.mark.parametrize("uncased", [True, False])
def test_words_written_otherwise_are_rows_with_the_same_labels(tmp_path: Path, local: Storage, uncased: bool) -> None:
    """Texts of several windows; what a tokenizer without cases makes of them is the same to the last token."""
    rows = [{**row, "tokens": [row["tokens"][0].title(), *row["tokens"][1:]]} for row in tagged_rows(200)]
    config = make_config(write_jsonl(tmp_path / "x.jsonl", rows), task={"type": "token_classification"})
    data, tokens, artifact = perturbed_of(config, tmp_path, local, uncased=uncased)
    before, count = Rows.open(tokens.local(), "test"), splits_of(data)["test"].num_rows
    assert before.num_rows > count
    counts, (old, ids) = perturbed_counts(artifact), before.examples
    assert counts["lower"] == counts["upper"] == {"texts": count, "tokens": 0 if uncased else count}
    assert 0 < counts["typos"]["tokens"] == counts["typos"]["texts"] < count
    assert counts["half"] == {"texts": count, "tokens": count}
    by_text = {" ".join(row["tokens"]): row for row in rows}
    for split in perturbed_splits(artifact):
        found, same = Rows.open(artifact.local(), split).examples
        assert same.tolist() == ids.tolist()
        for row, text in enumerate(splits_of(data)["test"]["text"].to_pylist()):
            labels, own = old.values[row][:, 2].tolist(), found.values[row][:, 2].tolist()
            assert len(labels) == len(by_text[text]["tokens"])
            assert own == (labels[: (len(labels) + 1) // 2] if split == split_of("half") else labels)
    if not uncased:  # each word is rewritten, at its place
        outputs = Rows.open(artifact.local(), split_of("upper"))
        word = tiny_tokenizer("bert").convert_tokens_to_ids("[UNK]")
        assert (
            outputs.values["input_ids"][(outputs.units.flat + np.repeat(outputs.starts, outputs.units.lengths))] == word
        ).all()


def test_contexts_are_neither_cut_nor_misspelt(tmp_path: Path, local: Storage) -> None:
    rows = [{**row, "question": f"{row['question']} {i} {'market ' * 8}"} for i, row in enumerate(asked_rows(120))]
    config = make_config(write_jsonl(tmp_path / "x.jsonl", rows), task={"type": "question_answering"})
    data, _, artifact = perturbed_of(config, tmp_path, local, uncased=False, max_length=40)
    table = splits_of(data)["test"]
    assert list(perturbed_counts(artifact)) == ["lower", "upper", "typos"]
    assert perturbed_splits(artifact) == ["test-upper", "test-typos"]  # all words are in lower case
    assert perturbed_counts(artifact)["typos"]["texts"] > table.num_rows / 4
    for split, rewritten in (("test-upper", str.upper), ("test-typos", str)):
        targets, _ = Rows.open(artifact.local(), split).examples
        assert targets.values.texts.to_pylist() == [rewritten(text) for text in table["text_pair"].to_pylist()]


def test_other_seeds_and_other_rows_are_other_artefacts(tmp_path: Path, local: Storage) -> None:
    texts = ["The film was good"] * 60
    data, tokens, artifact = prepared(tmp_path, local, texts, uncased=False)
    again = perturb_rows(data, tokens, tmp_path / "tokenizer", 0, local)
    other = perturb_rows(data, tokens, tmp_path / "tokenizer", 1, local)
    assert again.key == artifact.key
    assert other.key != artifact.key
    assert artifact.manifest().parents == {"data": data.digest, "tokens": tokens.digest}
    longer = tokenize_data(data, tmp_path / "tokenizer", 9, local)
    assert perturb_rows(data, longer, tmp_path / "tokenizer", 0, local).key != artifact.key
