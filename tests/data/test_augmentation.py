"""Copies of training rows: what they say, that they have no label, and that they stay where they are."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kit.tiny import VOCABULARY, WORDS, save_tiny
from kit.toy import toy_config
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import raydistill
from raydistill.config.data import Augment
from raydistill.config.loading import load_config
from raydistill.data.augmentation import (
    NEAREST,
    WORD_SHARE,
    Augmentation,
    similar_words,
    token_embeddings,
    whole_words,
    written,
)
from raydistill.data.rows import Rows
from raydistill.errors import ConfigError, ModelError
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.prepare import prepare
from raydistill.storage.storage import Storage


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("encoder"), "bert", classifier=False)


def test_similar_words_are_the_nearest_of_all_by_hand(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    table = token_embeddings(encoder, False)
    used = {WORDS[3], WORDS[7], "neverseen"}
    found = similar_words(table, tokenizer, used)
    assert found.keys() == {WORDS[3], WORDS[7]}
    ids = whole_words(tokenizer)
    assert all(tokenizer.convert_ids_to_tokens(number).lower() == word for word, number in ids.items())
    for word, near in found.items():
        own = table[ids[word]]
        cosines = {
            other: float(own @ table[i] / np.linalg.norm(own) / np.linalg.norm(table[i]))
            for other, i in ids.items()
            if other != word
        }
        assert near == sorted(cosines, key=cosines.__getitem__, reverse=True)[:NEAREST]


@pytest.mark.parametrize(("mark", "rest"), [("Ġ", "x"), ("▁", "x"), ("", "##x")])
def test_words_of_any_vocabulary_are_found(mark: str, rest: str) -> None:
    class Vocabulary:
        def get_vocab(self) -> dict[str, int]:
            return {f"{mark}film": 0, f"{mark}Bank": 1, rest: 2, f"{mark}42": 3, "[CLS]": 4, f"{mark}a": 5}

    assert whole_words(Vocabulary()) == {"film": 0, "bank": 1}


def test_words_are_replaced_as_often_as_they_should_and_keep_their_case() -> None:
    others = {"film": ["movie", "scene"]}
    text = " ".join(["film Film FILM bank"] * 2000)
    found = written(text, "words", random.Random(0), others).split()
    assert found[3::4] == ["bank"] * 2000
    for start, kinds in enumerate(({"movie", "scene"}, {"Movie", "Scene"}, {"MOVIE", "SCENE"})):
        replaced = [word for word in found[start::4] if word.lower() != "film"]
        assert set(replaced) == kinds
        assert len(replaced) / 2000 == pytest.approx(WORD_SHARE, abs=0.03)


def test_a_crop_is_a_run_of_half_of_the_words_or_more() -> None:
    words = [f"w{i}" for i in range(9)]
    lengths = set()
    for seed in range(300):
        found = written(" ".join(words), "crop", random.Random(seed), {}).split()
        first = words.index(found[0])
        assert found == words[first : first + len(found)]
        lengths.add(len(found))
    assert lengths == set(range(5, 10))
    assert written("", "crop", random.Random(0), {}) == ""
    assert written("one", "crop", random.Random(0), {}) == "one"


def test_copies_hang_on_seed_row_and_copy_alone(encoder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    texts = [pa.array([" ".join(WORDS[i : i + 8]) for i in range(6)])]

    def copies(texts: list[pa.Array], **changes: Any) -> list[list[str]]:
        made = Augmentation(Augment(copies=3), changes.get("seed", 0), encoder)
        return [columns[0].to_pylist() for columns in made.copies_of(texts, tokenizer)]

    first = copies(texts)
    assert copies(texts) == first
    assert copies(texts, seed=1) != first
    assert [copy[:3] for copy in copies([texts[0].slice(0, 3)])] == [copy[:3] for copy in first]
    assert first[0] != first[2]  # both of words, in other draws
    recipes = [Augmentation(Augment(ways=ways), 0, encoder).recipe() for ways in (("words",), ("crop",))]
    assert ["model" in recipe for recipe in recipes] == [True, False]


@pytest.mark.parametrize("symmetric", [False, True])
def test_copies_follow_the_training_rows_without_labels(symmetric: bool, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data__augment": {"copies": 2}}
    config = toy_config(tmp_path, **changes)
    if symmetric:
        table = Path(config["data"]["path"])
        lines = table.read_text().splitlines()
        table.write_text("\n".join(["text,text_pair,label", *(f"{r.split(',')[0]},{r}" for r in lines[1:])]))
        config["data"]["symmetric"] = True
    plain = prepare(load_config({**config, "data": {**config["data"], "augment": None}}), Storage(config["storage"]))
    prepared = prepare(load_config(config), Storage(config["storage"]))
    assert prepared.tokens.key != plain.tokens.key
    assert prepared.data.key == plain.data.key
    rows, before = (Rows.open(one.tokens.local(), "train") for one in (prepared, plain))
    size = before.num_rows
    assert rows.num_rows == 3 * size
    assert np.array_equal(rows.example_ids, np.tile(before.example_ids, 3))
    assert np.array_equal(rows.targets.labeled[:size], before.targets.labeled)
    assert not rows.targets.labeled[size:].any()
    assert np.array_equal(rows.lengths[:size], before.lengths)
    for split in ("validation", "test"):
        assert Rows.open(prepared.tokens.local(), split).num_rows == Rows.open(plain.tokens.local(), split).num_rows
    plan = make_plan(load_config(config))
    assert plan["data"]["tokens"]["train"] == int(rows.lengths.sum())
    steps = {name: make_plan(load_config(c))["steps"] for name, c in (("copies", config), ("plain", plain.config))}
    assert steps["copies"]["student.distill"] == pytest.approx(3 * steps["plain"]["student.distill"], abs=4)
    assert steps["copies"]["teacher"] == steps["plain"]["teacher"]


@pytest.mark.slow
def test_a_run_with_copies_says_so_and_the_teacher_speaks_of_them(tmp_path: Path, mlflow_uri: str) -> None:
    config = load_config(toy_config(tmp_path, data__augment={"copies": 1, "ways": ["typos"]}))
    before = make_plan(config)
    results = raydistill.distill(config)
    after = make_plan(config)
    (note,) = [note for note in after["data"]["notes"] if "data.augment" in note]
    assert note.startswith("Each training row has a copy written otherwise (typos: data.augment), without a label")
    assert before["steps"] == after["steps"]
    assert results["curves"]["student"][-1]["step"] == after["steps"]["student.distill"]


def test_texts_whose_words_have_labels_have_no_copies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rewrites whole texts; token_classification has labels for parts of them"):
        load_config(toy_config(tmp_path, data__augment={}, task__type="token_classification"))


LIKELY = ("film", "movie", "plot", "actor", "scene", "music", "song", "story", "book")


@pytest.fixture(scope="module")
def guesser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model that finds nine words likely, the first most of all, and after "bank" the first alone."""
    folder = save_tiny(tmp_path_factory.mktemp("masked"), "bert", classifier=False)
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig.from_pretrained(folder))
    with torch.no_grad():
        model.cls.predictions.bias.fill_(-1e4)
        for place, word in enumerate(LIKELY):
            model.cls.predictions.bias[VOCABULARY[word]] = 1e4 - 100 * place
    model.save_pretrained(folder)
    return folder


def copies(guesser: Path, texts: list[str], seed: int = 0) -> list[str]:
    settings = Augment(copies=1, ways=("masked",), masked_model=str(guesser))
    tokenizer = AutoTokenizer.from_pretrained(guesser)
    made = Augmentation(settings, seed, guesser, masked=guesser).copies_of([pa.array(texts)], None, tokenizer)
    return next(made)[0].to_pylist()


def test_words_are_guessed_among_the_likeliest_others(guesser: Path) -> None:
    texts = [f"{word} bank, Market {'price ' * 20}film." for word in WORDS[3:40]]
    made = copies(guesser, texts)
    assert made == copies(guesser, texts)
    assert made != copies(guesser, texts, seed=1)
    assert made[5:7] == [copies(guesser, texts[:7])[i] for i in (5, 6)]  # whatever shares a forward pass with it
    changed = [
        (old, new)
        for text, copy in zip(texts, made, strict=True)
        for old, new in zip(re.findall(r"\w+", text), re.findall(r"\w+", copy), strict=True)
        if old != new
    ]
    assert [re.sub(r"\w+", "", text) for text in made] == [re.sub(r"\w+", "", text) for text in texts]
    assert len(changed) / sum(len(text.split()) for text in texts) == pytest.approx(WORD_SHARE, abs=0.03)
    assert {new.lower() for _, new in changed} == set(
        LIKELY
    )  # the ninth where the word itself is one of the first eight
    assert all(old[0].isupper() == new[0].isupper() for old, new in changed)
    assert all(new != LIKELY[8] or old in LIKELY for old, new in changed)


def test_words_behind_the_models_last_position_stay(guesser: Path) -> None:
    text = "price " * 300
    words = copies(guesser, [text])[0].split()
    assert set(words[70:]) == {"price"}
    assert set(words[:50]) > {"price"}


def test_a_model_without_a_trained_head_is_refused(encoder: Path) -> None:
    with pytest.raises(ModelError, match="is not a masked language model: it has no trained head"):
        copies(encoder, ["a good film"])


@pytest.mark.parametrize(
    ("given", "message"), [({"ways": ["masked"]}, "name a model"), ({"masked_model": "x"}, "ways lacks masked")]
)
def test_a_masked_model_goes_with_its_way(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(toy_config(tmp_path, data__augment=given))


def test_guessed_texts_are_rows(guesser: Path, tmp_path: Path) -> None:
    augment = {"copies": 1, "ways": ["masked"], "masked_model": str(guesser)}
    config = load_config(toy_config(tmp_path, data__augment=augment))
    rows = Rows.open(prepare(config, Storage(config.storage)).tokens.local(), "train")
    size = rows.num_rows // 2
    assert np.array_equal(rows.example_ids[:size], rows.example_ids[size:])
    assert not rows.targets.labeled[size:].any()
