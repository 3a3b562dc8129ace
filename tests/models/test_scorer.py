"""The scorer that is stored beside a student: what it cuts a text to, and two releases of it in one process."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from kit.finished import NUMBERS, TAGS, finish, predict_texts, write_numbers_csv, write_tags_csv
from kit.tiny import VOCABULARY, save_tiny, tiny_tokenizer, without_tokenizer_limit
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
)

from raydistill.models.scorer import Scorer
from raydistill.tracking.registry import students
from raydistill.tracking.registry.students import write_model

LONG = "good film " * 100


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return without_tokenizer_limit(folder)


def score(scorer: Scorer, *texts: str) -> list[dict]:
    return scorer.predict(pd.DataFrame({"text": texts}))


@pytest.mark.parametrize(
    ("family", "positions"),
    [("bert", 66), ("roberta", 65), ("distilbert", 66), ("electra", 66), ("modernbert", 66), ("deberta-v2", 66)],
)
def test_texts_are_cut_to_the_positions_that_a_model_has(family: str, positions: int, tmp_path: Path) -> None:
    scorer = Scorer(str(without_tokenizer_limit(save_tiny(tmp_path, family, num_layers=1))))
    assert scorer.max_length == positions  # the tiny RoBERTa's padding index is 0, so it counts from 1
    assert score(scorer, LONG)[0]["score"] == pytest.approx(score(scorer, LONG[:-10])[0]["score"], abs=1e-6)


def test_positions_behind_a_padding_index_of_one(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = MPNetConfig(vocab_size=len(VOCABULARY), max_position_embeddings=66, pad_token_id=1, **sizes)
    scorer = Scorer(str(save(MPNetForSequenceClassification(config), tmp_path)))
    assert scorer.max_length == 64
    assert score(scorer, LONG)[0]["label"] in ("LABEL_0", "LABEL_1")


def test_a_model_without_limits_is_not_cut(tmp_path: Path) -> None:
    config = BloomConfig(vocab_size=len(VOCABULARY), hidden_size=32, n_layer=1, n_head=4, pad_token_id=0)
    scorer = Scorer(str(save(BloomForSequenceClassification(config), tmp_path)))
    assert scorer.max_length is None
    short, long = score(scorer, "a film", LONG)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    inputs = tiny_tokenizer()([LONG], return_tensors="pt", truncation=False)
    assert inputs["input_ids"].shape == (1, 202)
    with torch.inference_mode():
        expected = model(**inputs).logits.softmax(-1).max()
    assert long["score"] == pytest.approx(float(expected), abs=1e-5)
    assert short["label"] in AutoConfig.from_pretrained(tmp_path).id2label.values()


def test_the_stored_length_holds_where_it_is_the_shortest(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path, num_layers=1))
    assert (Scorer(folder, 8).max_length, Scorer(folder).max_length, Scorer(folder, 500).max_length) == (8, 64, 64)


def test_versions_of_two_releases_keep_their_own_scorer_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    student = save_tiny(tmp_path / "student", num_layers=1)
    write_model(student, tmp_path / "old")
    newer = tmp_path / "scorer.py"
    newer.write_text(
        students.SCORER.read_text().replace('"label": self.names[label]', '"label": self.names[label].lower()')
    )
    monkeypatch.setattr(students, "SCORER", newer)
    write_model(student, tmp_path / "new")
    old, new = (mlflow.pyfunc.load_model(str(tmp_path / name)).predict(["a film"])[0] for name in ("old", "new"))
    assert (old["label"].lower(), old["score"]) == (new["label"], new["score"])
    assert old["label"] != new["label"]


def test_numbers_come_in_their_own_unit(tmp_path: Path) -> None:
    student = finish(tmp_path / "student", write_numbers_csv(tmp_path / "rows.csv"), NUMBERS, num_steps=3)
    texts = ["a good film", "bad " * 5, "law"]
    found = loaded(student, tmp_path / "model", texts, {"value"})
    expected = [answer["value"] for answer in predict_texts(str(student), texts)]
    assert [row["value"] for row in found] == pytest.approx(expected, abs=1e-3)
    assert all(50 < row["value"] < 150 for row in found)


def test_labels_are_given_by_the_thresholds_of_the_config(tmp_path: Path) -> None:
    student = finish(tmp_path / "student", write_tags_csv(tmp_path / "rows.csv"), TAGS, num_steps=3)
    texts = ["a film for the team", "market " * 5, "law"]
    found = loaded(student, tmp_path / "model", texts, {"labels", "scores"})
    for row, answer in zip(found, predict_texts(str(student), texts), strict=True):
        assert row["scores"] == pytest.approx(answer["scores"], abs=1e-5)
        assert row["labels"] == answer["labels"]
    config = json.loads((student / "config.json").read_text())
    probs = [row["scores"]["film"] for row in found]
    for threshold, expected in ((max(probs) + 1e-3, 0), (min(probs) - 1e-3, 3), (None, sum(p >= 0.5 for p in probs))):
        settings = {**config, "thresholds": [threshold, 0.5, 0.5] if threshold is not None else None}
        (student / "config.json").write_text(json.dumps(settings))
        assert sum("film" in row["labels"] for row in score(Scorer(str(student)), *texts)) == expected


def loaded(student: Path, folder: Path, texts: list[str], columns: set[str]) -> list[dict]:
    """What the stored model answers; its signature has these columns, and so has each answer."""
    import mlflow

    write_model(student, folder)
    model = mlflow.pyfunc.load_model(str(folder))
    assert set(model.metadata.get_output_schema().input_names()) == columns
    found = model.predict(texts)
    assert all(row.keys() == columns for row in found)
    json.dumps(found, allow_nan=False)  # as a server answers
    return found
