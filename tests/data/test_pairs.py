"""Pairs of texts: token ids and types by every family's own tokenizer, and pairs whose order means nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kit.rows_on_disk import make_config, splits_of
from kit.tiny import WORDS, save_tiny, tiny_tokenizer
from tokenizers import pre_tokenizers
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    DistilBertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from raydistill.config.data import Data
from raydistill.config.loading import load_config
from raydistill.data.draft import Draft, make_draft, row_hashes
from raydistill.data.encoding import encode_texts, load_tokenizer
from raydistill.data.prepare import prepare_data
from raydistill.data.rows import SWAPPED, Rows
from raydistill.data.size import measured_size
from raydistill.data.tokens import tokenize_data
from raydistill.deploy.opening import open_folder
from raydistill.errors import ConfigError, DataError
from raydistill.models.scorer import Scorer
from raydistill.pipeline.plan import make_plan
from raydistill.storage.storage import Storage
from raydistill.tasks import SYMMETRIC

FIRST = ["good film", "the plot was very bad and poor at the net", "a", "song", "bank money share price tax"]
SECOND = ["bad", "great music and song", "the team was in the match and lose", "story", "vote party law or minister"]


def vocabulary(special: tuple[str, ...]) -> dict[str, int]:
    return {token: i for i, token in enumerate((*special, *WORDS))}


def pieces(special: tuple[str, ...]) -> list[tuple[str, float]]:
    """A unigram vocabulary: whole words after the mark of a space."""
    return [*((token, 0.0) for token in special), *(("▁" + word, -1.0) for word in WORDS)]


BERT, ROBERTA = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LETTERS = {letter: i for i, letter in enumerate((*ROBERTA, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
MAKERS: dict[str, Any] = {
    "bert": lambda: BertTokenizer(vocab=vocabulary(BERT)),  # and electra
    "distilbert": lambda: DistilBertTokenizer(vocab=vocabulary(BERT)),
    "roberta": lambda: RobertaTokenizer(vocab=LETTERS, merges=[]),
    "deberta-v2": lambda: DebertaV2Tokenizer(vocab=pieces(BERT)),
    "mpnet": lambda: MPNetTokenizer(vocab=vocabulary((*ROBERTA, "[UNK]"))),
    "xlm-roberta": lambda: XLMRobertaTokenizer(vocab=pieces(ROBERTA)),
    "albert": lambda: AlbertTokenizer(vocab=pieces(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))),
    "modernbert": lambda: tiny_tokenizer("modernbert"),
}
WITH_TYPES = {"bert", "deberta-v2"}
"""Families that tell the second text by token types 1; of ALBERT's transformers 5 gives none, so that a pipeline has
none, either."""
SEPARATORS = {"roberta": 2, "mpnet": 2, "xlm-roberta": 2}
"""Tokens between two texts, where it is not one."""


@pytest.mark.parametrize("family", MAKERS)
def test_pairs_are_what_each_family_s_tokenizer_gives(family: str, tmp_path: Path) -> None:
    made: PreTrainedTokenizerFast = MAKERS[family]()
    made.model_max_length = 64
    made.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path, 64)
    for length in (64, 9):
        columns, is_cut = encode_texts(tokenizer, [pa.array(FIRST), pa.array(SECOND)], length, made.pad_token_id)
        for row, (text, pair) in enumerate(zip(FIRST, SECOND, strict=True)):
            own = made(text, pair, truncation=True, max_length=length)
            assert {name: column[row].as_py() for name, column in columns.items()} == {n: own[n] for n in columns}
            assert is_cut[row] == (len(made(text, pair)["input_ids"]) > length)
        assert set(columns) == set(made.model_input_names) - {"attention_mask"}
    ids, two = made(FIRST[0], SECOND[0])["input_ids"], (made(text)["input_ids"] for text in (FIRST[0], SECOND[0]))
    alone, other = two
    assert len(ids) == len(alone) + len(other) - 2 + SEPARATORS.get(family, 1)
    types = made(FIRST[0], SECOND[0]).get("token_type_ids")
    if family in WITH_TYPES:
        assert types == [0] * len(alone) + [1] * (len(ids) - len(alone))
    else:
        assert types is None or set(types) == {0}


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "deberta-v2"])
def test_models_read_pairs_as_the_rows_have_them(family: str, tmp_path: Path) -> None:
    """Predictor and scorer, which tokenise for themselves, and a batch of prepared rows: the same logits."""
    folder = save_tiny(tmp_path / "model", family, num_layers=2, labels=("a", "b"))
    predictor = open_folder(folder, 16, "cpu")
    columns, _ = encode_texts(predictor.tokenizer, [pa.array(FIRST), pa.array(SECOND)], 16, 0)
    outputs = predictor.outputs(list(zip(FIRST, SECOND, strict=True)))
    for row, wanted in enumerate(outputs):
        inputs = {name: torch.tensor([column[row].as_py()]) for name, column in columns.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.inference_mode():
            logits = predictor.model(**inputs).logits[0].numpy()  # type: ignore[attr-defined]
        np.testing.assert_allclose(logits, wanted, atol=1e-4)
    scored = Scorer(str(folder), 16)._score(FIRST, SECOND)
    best = [max(answer["scores"].values()) for answer in predictor.task.answers(outputs)]
    assert [one["score"] for one in scored] == pytest.approx(best, abs=1e-4)


def write_pairs(path: Path, num_rows: int = 80, label: Any = lambda i: "ab"[i % 2]) -> Path:
    rows = [
        {
            "text": f"{WORDS[i % 40]} {WORDS[i // 40]} film",
            "text_pair": f"{WORDS[(7 * i) % 40]} was {i % 9}",
            "label": label(i),
        }
        for i in range(num_rows)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_rows_of_symmetric_pairs(tmp_path: Path, local: Storage) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl")
    tiny_tokenizer("bert").save_pretrained(tmp_path / "tokenizer")
    data = prepare_data(make_config(path, symmetric=True), local)
    plain = prepare_data(make_config(path), local)
    assert data.key != plain.key
    tokens = tokenize_data(data, tmp_path / "tokenizer", 12, local, symmetric=True)
    single = tokenize_data(data, tmp_path / "tokenizer", 12, local)
    assert tokens.key != single.key
    tokenizer, folder = load_tokenizer(tmp_path / "tokenizer", 12), tokens.local()
    for split, table in splits_of(data).items():
        first, second = table["text"].to_pylist(), table["text_pair"].to_pylist()
        own, before = Rows.open(folder, split), Rows.open(single.local(), split)
        other = own if split == "train" else Rows.open(folder, split + SWAPPED)
        place = len(first) if split == "train" else 0
        for rows, start, texts in ((own, 0, (first, second)), (other, place, (second, first))):
            ids = np.arange(len(first)) + start
            expected = tokenizer(*texts, truncation=True, max_length=12, padding=True, return_tensors="pt")
            found = rows.inputs(ids)
            assert all((found[name] == expected[name]).all() for name in expected)
            assert rows.example_ids[ids].tolist() == before.example_ids.tolist()
            assert rows.targets.take(ids).to_arrow().equals(before.targets.to_arrow())
        assert own.num_rows == len(first) * (2 if split == "train" else 1)
    size = measured_size(data, tokens, Data(path="x", symmetric=True))
    assert size.num_inputs["train"] == 2 * size.num_rows["train"] == Rows.open(folder, "train").num_rows
    assert size.num_tokens["train"] == int(Rows.open(folder, "train").lengths.sum())


def test_the_same_pair_the_other_way_round_is_the_same_row(tmp_path: Path, local: Storage) -> None:
    texts = pa.table(
        {name: pa.array(rows, pa.large_string()) for name, rows in (("text", FIRST), ("text_pair", SECOND))}
    )
    swapped = pa.table({"text": texts["text_pair"], "text_pair": texts["text"]})
    assert not (row_hashes(texts) == row_hashes(swapped)).any()
    assert (row_hashes(texts, symmetric=True) == row_hashes(swapped, symmetric=True)).all()
    assert len(set(row_hashes(texts, symmetric=True).tolist())) == len(FIRST)
    path = write_pairs(tmp_path / "pairs.jsonl", 40)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    again = [row | {"text": row["text_pair"], "text_pair": row["text"]} for row in rows]
    path.write_text("\n".join(map(json.dumps, [*rows, *again])) + "\n")
    kept = {}
    for symmetric in (True, False):
        data = prepare_data(make_config(path, symmetric=symmetric, split={"test": 0.3}), local)
        kept[symmetric] = sum(table.num_rows for table in splits_of(data).values())
    assert kept == {True: 40, False: 80}


def test_symmetric_rows_have_two_texts(tmp_path: Path, local: Storage) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"a {i}", "label": "ab"[i % 2]}) for i in range(40)))
    with pytest.raises(ConfigError, match=r"the rows have one text each.*data\.columns\.text_pair"):
        prepare_data(make_config(path, symmetric=True), local)


def test_a_plan_counts_both_orders(tmp_path: Path) -> None:
    save_tiny(tmp_path / "encoder", classifier=False)
    plain = {
        "storage": str(tmp_path / "storage"),
        "data": {"path": str(write_pairs(tmp_path / "pairs.jsonl", 200)), "max_length": 12},
        "teacher": {"model": str(tmp_path / "encoder")},
        "train": {"num_workers": 0, "global_batch_size": 8},
    }
    one = make_plan(load_config(plain, ["stages.distill.num_epochs=2"]))
    both = make_plan(load_config(plain, ["stages.distill.num_epochs=2", "data.symmetric=true"]))
    assert both["data"]["rows"] == one["data"]["rows"]
    assert both["data"]["tokens"]["train"] == pytest.approx(2 * one["data"]["tokens"]["train"], rel=0.05)
    assert both["steps"]["student.distill"] == 2 * one["steps"]["student.distill"]
    checked = make_plan(load_config(plain, ["stages.distill.num_epochs=2", "data.symmetric=true"]), check=True)
    assert checked["data"]["rows"] == both["data"]["rows"]
    assert not checked["estimate"]


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_finished_models_answer_with_the_mean_of_both_orders(problem: str, tmp_path: Path) -> None:
    """Probabilities are averaged, and numbers; predictor and scorer say the same, whatever the order."""
    labels = ("value",) if problem == "regression" else ("a", "b", "c")
    folder = save_tiny(tmp_path / "model", num_layers=2, labels=labels)
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | {"problem_type": problem}
    path.write_text(json.dumps(settings))
    pairs = list(zip(FIRST, SECOND, strict=True))
    swapped = [(second, first) for first, second in pairs]
    single = open_folder(folder, 16, "cpu")
    parts = [torch.tensor(single.outputs(texts)).double() for texts in (pairs, swapped)]
    path.write_text(json.dumps(settings | {SYMMETRIC: True}))
    both = open_folder(folder, 16, "cpu")
    found = torch.tensor(both.outputs(pairs)).double()
    if problem == "regression":
        torch.testing.assert_close(found, (parts[0] + parts[1]) / 2, atol=1e-5, rtol=0)
    else:
        probs = torch.sigmoid if problem.startswith("multi") else lambda logits: logits.softmax(-1)
        torch.testing.assert_close(probs(found), (probs(parts[0]) + probs(parts[1])) / 2, atol=1e-6, rtol=0)
    np.testing.assert_allclose(both.outputs(swapped), found.numpy(), atol=1e-6)
    assert float((parts[0] - parts[1]).abs().max()) > 0.01
    np.testing.assert_array_equal(both.outputs(FIRST), single.outputs(FIRST))  # texts alone have no order
    scored, told = Scorer(str(folder), 16)._score(FIRST, SECOND), both.task.answers(found.numpy())
    for own, answer in zip(scored, told, strict=True):
        for name, value in own.items():
            if name != "label" and name != "labels":
                assert value == pytest.approx(answer[name], abs=1e-5)
            else:
                assert value == answer[name]


def drafted(path: Path, rows: list[tuple[Any, ...]], task: str, by: str | None = None) -> Draft:
    """Rows of first text, second text and label, with the splits that are cut off."""
    found = [dict(zip(("text", "text_pair", "label"), row, strict=False)) for row in rows]
    path.write_text("\n".join(map(json.dumps, found)))
    split = {"split": {"by": by}} if by else {}
    return make_draft(make_config(path, task={"type": task}, **split))


def common(draft: Draft, column: str) -> set[str]:
    """Texts of a column that stand in two splits."""
    found = [text for part in draft.parts.values() for text in set(part.texts[column].to_pylist())]
    return {text for text in found if found.count(text) > 1}


QUERIES = [(f"query {i // 4}", f"document {i}") for i in range(400)]
PREMISES = [(f"premise {i // 3}", f"it is so {i % 3} {i}", "ab"[i % 2]) for i in range(300)]


@pytest.mark.parametrize(
    ("rows", "task", "by", "shared"),
    [
        (QUERIES, "embeddings", None, False),
        ([(b, a) for a, b in QUERIES], "embeddings", None, False),
        ([(a, f"document {i // 8} {i % 4}") for i, (a, _) in enumerate(QUERIES)], "embeddings", None, False),
        (QUERIES, "embeddings", "rows", True),
        (PREMISES, "text_classification", None, True),
        (PREMISES, "text_classification", "text", False),
        ([(b, a, c) for a, b, c in PREMISES], "text_classification", "texts", False),
        ([(b, a, c) for a, b, c in PREMISES], "text_classification", "text", True),
    ],
)
def test_rows_with_one_text_are_in_one_split(
    rows: list[tuple[Any, ...]], task: str, by: str | None, shared: bool, tmp_path: Path
) -> None:
    draft = drafted(tmp_path / "x.jsonl", rows, task, by)
    sizes = {split: part.num_rows for split, part in draft.parts.items()}
    assert sum(sizes.values()) == len(rows)
    assert all(0.08 * len(rows) <= sizes[split] <= 0.1 * len(rows) for split in ("validation", "test"))
    assert bool(common(draft, "text") | common(draft, "text_pair")) == shared
    told = [note for note in draft.notes if "have a text that is in training, too" in note]
    assert len(told) == (2 if shared and by != "text" else 0)
    backwards = drafted(tmp_path / "y.jsonl", rows[::-1], task, by)
    assert set(backwards.parts["test"].hashes) == set(draft.parts["test"].hashes)


def test_where_one_text_leads_to_all_others_first_texts_stay_together(tmp_path: Path) -> None:
    rows = [*QUERIES, *((f"query {i}", "a document of all") for i in range(100))]
    draft = drafted(tmp_path / "x.jsonl", rows, "embeddings")
    assert not common(draft, "text")
    assert any("10 of 50 test rows have a text that is in training" in note for note in draft.notes)
    with pytest.raises(DataError, match=r"No test split can be cut off.*data\.split\.by: texts.*rows"):
        drafted(tmp_path / "x.jsonl", rows, "embeddings", "texts")
    with pytest.raises(ConfigError, match=r"data\.split\.by is text, but the rows have one text"):
        drafted(tmp_path / "y.jsonl", [(f"text {i}",) for i in range(40)], "embeddings", "text")


def test_rows_without_a_label_do_not_stay_beside_held_out_ones(tmp_path: Path) -> None:
    rows = [*PREMISES, *((f"premise {i}", f"it may be {i}", None) for i in range(100))]
    draft = drafted(tmp_path / "x.jsonl", rows, "text_classification", "text")
    assert not common(draft, "text")
    assert draft.removed["unlabeled_beside_test"] == draft.parts["test"].num_rows / 3
