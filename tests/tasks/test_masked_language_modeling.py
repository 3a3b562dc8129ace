"""Hidden tokens: which, how many and by what, as a pure function; documents as rows; perplexity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from kit.masked import VOCABULARY, documents, wordpiece
from kit.tiny import tiny_masked_model
from transformers import PreTrainedTokenizerFast

from raydistill.data.rows import Rows
from raydistill.data.size import estimated_size, token_counts
from raydistill.errors import ConfigError, DataError, ModelError
from raydistill.evaluate.intervals import intervals
from raydistill.models.capture import capture
from raydistill.models.signals import ANSWERS
from raydistill.tasks import task_of
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling, encoding
from raydistill.tasks.masked_language_modeling.encoding import cut_evenly, pieces_of
from raydistill.tasks.masked_language_modeling.masks import Masks, fingerprints
from raydistill.tasks.targets import Ragged, Targets

TASK, TOKENIZER = MaskedLanguageModeling(), wordpiece()
MASKS = TASK.masks(TOKENIZER)


def rows_of(texts: list[str], task: MaskedLanguageModeling = TASK, max_length: int = 32) -> Rows:
    return Rows.of(task.encoded(TOKENIZER, [texts], None, max_length, 0), 0, task.masks(TOKENIZER))


def many(num_rows: int, length: int = 102) -> Ragged:
    """Rows of random ordinary tokens between two special ones."""
    flat = np.random.default_rng(0).integers(5, len(VOCABULARY), num_rows * length).astype(np.int32)
    flat[::length], flat[length - 1 :: length] = 2, 3
    return Ragged(flat, np.full(num_rows, length))


def test_tokens_of_a_sample_are_counted_some_texts_at_a_time(monkeypatch: Any) -> None:
    """So that memory does not grow with the length of documents; one that is long by itself is a call of its own."""
    monkeypatch.setattr(encoding, "CHARACTERS_PER_CALL", 1500)
    texts, calls = [*documents(40), "film " * 2000, "film"], []

    def counted(*columns: list[str]) -> Any:
        calls.append([len(text) for text in columns[0]])
        return TOKENIZER(*columns)

    whole = [len(ids) for ids in TOKENIZER(texts)["input_ids"]]
    assert token_counts([pa.array(texts, pa.large_string())], counted) == whole
    assert len(calls) > 5
    assert max(sum(sizes[:-1]) for sizes in calls) < 1500
    pairs = [pa.array(texts, pa.large_string()), pa.array(texts[::-1], pa.large_string())]
    assert token_counts(pairs, TOKENIZER) == [len(ids) for ids in TOKENIZER(texts, texts[::-1])["input_ids"]]


@pytest.mark.parametrize("max_length", [8, 12, 32, 400])
def test_nothing_of_a_document_is_dropped_and_no_rest_is_tiny(max_length: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(encoding, "CHARACTERS_PER_CALL", 1500)  # several calls of the tokenizer
    texts = [*documents(40), "", "film", "unknown words are tokens, too"]
    whole = TOKENIZER(texts, add_special_tokens=False)["input_ids"]
    seen: dict[int, list[list[int]]] = {}
    places: dict[int, list[Any]] = {}
    for pieces in pieces_of(TOKENIZER, texts, max_length):
        for row, document in enumerate(pieces.documents.tolist()):
            ids = pieces.ids[row].tolist()
            assert ids[0] == 2
            assert ids[-1] == 3
            assert len(ids) <= max_length
            seen.setdefault(document, []).append(ids[1:-1])
            start = pieces.ids.starts[row]
            assert (pieces.places[[start, start + len(ids) - 1]] == -1).all()
            places.setdefault(document, []).append(pieces.places[start + 1 : start + len(ids) - 1])
    for document, text in enumerate(texts):
        rows = seen[document]
        assert [token for row in rows for token in row] == whole[document]
        assert len(rows) == max(1, -(-len(whole[document]) // (max_length - 2)))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
        for token, (begin, end) in zip(whole[document], np.concatenate(places[document]), strict=True):
            if token != TOKENIZER.unk_token_id:
                assert TOKENIZER.convert_ids_to_tokens(token).removeprefix("##") == text[begin:end]


def test_lengths_are_cut_evenly() -> None:
    text, sizes = cut_evenly(np.array([0, 1, 10, 11, 25]), 10)
    assert text.tolist() == [0, 1, 2, 3, 3, 4, 4, 4]
    assert sizes.tolist() == [0, 1, 10, 5, 6, 8, 8, 9]


def test_masks_go_by_seed_epoch_and_row_alone() -> None:
    rows, numbers = many(50), np.arange(100, 150)
    units, hidden = MASKS.draw(rows, numbers, (7, 3))
    alone, own = MASKS.draw(rows[20:21], numbers[20:21], (7, 3))
    assert np.array_equal(units[20], alone[0])
    assert np.array_equal(Ragged(hidden, rows.lengths)[20], own)
    turned, _ = MASKS.draw(rows[::-1], numbers[::-1], (7, 3))
    assert all(np.array_equal(turned[49 - row], units[row]) for row in range(50))
    others = [MASKS.draw(rows, *other)[0] for other in ((numbers, (7, 4)), (numbers, (8, 3)), (numbers + 1, (7, 3)))]
    for other in (*others, MASKS.draw(rows, numbers)[0]):
        same = [len(np.intersect1d(units[row], other[row])) for row in range(50)]
        assert np.mean(same) == pytest.approx(15 * 0.15, abs=0.8)  # as many as by chance


def test_counts_kinds_and_special_tokens() -> None:
    rows = many(4000)
    units, hidden = MASKS.draw(rows, np.arange(4000), (0, 0))
    assert (units.lengths == 15).all()
    assert (np.diff(units.flat.reshape(-1, 15)) > 0).all()
    at = rows.starts[units.rows] + units.flat
    assert not MASKS.is_special[rows.flat[at]].any()
    same = np.delete(rows.flat, at) == np.delete(hidden, at)
    assert same.all()
    before, after = rows.flat[at], hidden[at]
    num = len(at)
    noise = 3 * np.sqrt(0.1 * 0.9 / num)
    ordinary = len(VOCABULARY) - 5
    assert np.mean(after == MASKS.mask) == pytest.approx(0.8, abs=2 * noise)
    assert np.mean(after == before) == pytest.approx(0.1 + 0.1 / ordinary, abs=noise)
    replaced = after[(after != before) & (after != MASKS.mask)]
    assert not MASKS.is_special[replaced].any()
    counts = np.bincount(replaced, minlength=len(VOCABULARY))[5:]
    assert counts.min() > 0.7 * counts.mean()
    where = np.bincount(units.flat, minlength=102)
    assert where[[0, 101]].sum() == 0
    assert where[1:101].min() > 0.75 * where.sum() / 100  # no place is preferred


@pytest.mark.parametrize(("length", "count"), [(2, 0), (3, 1), (5, 1), (9, 1), (12, 2), (102, 15)])
def test_how_many_are_hidden_is_known_without_drawing(length: int, count: int) -> None:
    rows = many(3, length)
    assert MASKS.counts(rows).tolist() == [count] * 3
    assert MASKS.draw(rows, np.arange(3), (0, 0))[0].lengths.tolist() == [count] * 3


def test_unknown_tokens_and_mask_tokens_of_a_text_are_never_hidden() -> None:
    rows = rows_of(["xylophone film [MASK] xylophone plays"] * 2, MaskedLanguageModeling(0.9))
    ids = rows.restored(np.arange(2))[0].tolist()
    assert [VOCABULARY[i] for i in ids] == ["[CLS]", "[UNK]", "film", "[MASK]", "[UNK]", "play", "##s", "[SEP]"]
    assert rows.units is not None
    assert rows.units[0].tolist() == [2, 5, 6]


def test_masks_of_a_text_are_the_same_in_any_data() -> None:
    texts = documents(30)
    alone, among = rows_of(texts[17:18]), rows_of(texts)
    rows = np.flatnonzero(among.example_ids == 17)
    assert np.array_equal(among.inputs(rows)["input_ids"], alone.inputs(np.arange(len(rows)))["input_ids"])
    prints = fingerprints(many(500))
    assert len(np.unique(prints)) == 500


def test_rows_restore_what_was_hidden_and_hide_anew() -> None:
    texts = documents(30)
    rows = rows_of(texts)
    whole = TOKENIZER(texts[3], max_length=400)["input_ids"][1:-1]
    ids = np.flatnonzero(rows.example_ids == 3)
    assert [token for row in range(len(ids)) for token in rows.restored(ids)[row][1:-1]] == whole
    some = np.array([5, 2, 40])
    fixed, first, again, other = (rows.batch(some, epoch) for epoch in (None, (0, 0), (0, 0), (0, 1)))
    assert torch.equal(first.inputs["input_ids"], again.inputs["input_ids"])
    assert not torch.equal(first.inputs["unit_positions"], other.inputs["unit_positions"])
    assert not torch.equal(first.inputs["unit_positions"], fixed.inputs["unit_positions"])
    original = rows.restored(some)
    for batch in (fixed, first, other):
        assert batch.targets.num_units == fixed.targets.num_units == len(batch.inputs["unit_positions"])
        assert torch.equal(batch.inputs["unit_labels"], torch.from_numpy(batch.targets.labels()))
        flat, width = batch.inputs["input_ids"].flatten().clone(), batch.inputs["input_ids"].shape[1]
        assert (flat[batch.inputs["unit_positions"]] != batch.inputs["unit_labels"]).any()
        flat[batch.inputs["unit_positions"]] = batch.inputs["unit_labels"]
        for row in range(3):
            assert np.array_equal(flat.view(3, width)[row, : original.lengths[row]], original[row])
    alone = rows.batch(some[1:2], (0, 1))
    assert torch.equal(alone.inputs["input_ids"][0], other.inputs["input_ids"][1, : alone.lengths[0]])


def test_copies_stand_beside_each_other_with_other_tokens_hidden() -> None:
    task = MaskedLanguageModeling(copies=3)
    parts = [*task.encoded_in_parts(TOKENIZER, pa.array(documents(20), pa.large_string()), 32, True)]
    assert len(parts) == 1
    part = parts[0]
    single = next(task.encoded_in_parts(TOKENIZER, pa.array(documents(20), pa.large_string()), 32, False))
    assert len(part["input_ids"]) == 3 * len(single["input_ids"])
    assert np.array_equal(part["example_id"], np.repeat(single["example_id"], 3))
    first = [part["unit"][row].tolist() for row in range(0, len(part["unit"]), 3)]
    second = [part["unit"][row].tolist() for row in range(1, len(part["unit"]), 3)]
    assert first == [single["unit"][row].tolist() for row in range(len(single["unit"]))]
    assert sum(a != b for a, b in zip(first, second, strict=True)) > 0.8 * len(first)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token="[PAD]")
    with pytest.raises(ConfigError, match="no mask token, so its model was not made to guess"):
        Masks.of(plain, 0.15)


def test_perplexity_is_that_of_transformers_own_loss() -> None:
    """By documents of several rows; intervals resample documents, and a metric is a ratio of sums."""
    model = tiny_masked_model("bert")
    model.resize_token_embeddings(len(VOCABULARY))
    rows = rows_of(documents(12))
    every = np.arange(rows.num_rows)
    inputs = rows.inputs(every)
    with torch.inference_mode():
        answers = capture(model, inputs, {ANSWERS})[ANSWERS].numpy()
        labels = torch.full_like(inputs["input_ids"], -100).flatten()
        labels[inputs["unit_positions"]] = inputs["unit_labels"]
        labels = labels.view_as(inputs["input_ids"])
        told = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=labels)
    targets, _ = rows.examples
    outputs = rows.by_example(answers)
    scores = TASK.scores(outputs, targets.values)
    assert scores.values["perplexity"] == pytest.approx(float(told.loss.exp()), rel=1e-5)
    right = (told.logits.argmax(-1) == labels)[labels >= 0].float().mean()
    assert scores.values["masked_accuracy"] == pytest.approx(float(right))
    each = torch.nn.functional.cross_entropy(told.logits.flatten(0, 1), labels.flatten(), reduction="none")
    of_row = each.view_as(labels).sum(1).numpy()
    nats = np.bincount(rows.example_ids, of_row, 12)
    counts = np.bincount(rows.example_ids, (labels >= 0).sum(1).numpy(), 12)
    weights = np.random.default_rng(0).integers(0, 3, (12, 5))
    wanted = np.exp(nats @ weights / (counts @ weights))
    assert scores.weighted(weights)["perplexity"] == pytest.approx(wanted, rel=1e-5)
    bounds = intervals(scores)["perplexity"]
    assert bounds["low"] < bounds["value"] < bounds["high"]
    logits = told.logits.flatten(0, 1)[inputs["unit_positions"]]
    loss = TASK.loss_values(logits, torch.tensor(rows.targets.values.flat))
    assert float(loss.mean().exp()) == pytest.approx(scores.values["perplexity"], rel=1e-5)


def test_the_floor_knows_how_frequent_tokens_are() -> None:
    ids = np.array([7, 7, 7, 8], np.int32)
    targets = Ragged(np.column_stack([ids, ids, ids]), np.array([3, 1]))
    outputs = Ragged(np.array([[-1.0, 7, -1.0]] * 3 + [[-2.0, 9, -1.0]], np.float32), targets.lengths)
    floor = TASK.scores(outputs, targets).floor()
    assert (floor.metric, floor.value, floor.constant) == ("masked_accuracy", 0.75, None)
    name, perplexity = floor.evidence
    assert name == "perplexity"
    assert perplexity == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_what_is_said_of_hidden_tokens() -> None:
    ids = np.array([VOCABULARY.index(word) for word in ("film", "good", "web", "##s")], np.int32)
    targets = Ragged(np.column_stack([ids, ids, ids]), np.array([3, 1]))
    log = np.log(np.array([0.5, 0.25, 0.8, 0.9]))
    one = Ragged(np.column_stack([log, ids, log]).astype(np.float32), targets.lengths)
    flat = one.flat.copy()
    flat[1] = (-5, VOCABULARY.index("bad"), np.log(0.6))
    other = Ragged(flat, targets.lengths)
    task = TASK.with_words(TOKENIZER)
    assert task.agreement(one, other) == 0.75
    assert task.disagreements(one, other) == pytest.approx([0.25, 0.0])
    assert task.errors(other, targets) == pytest.approx([0.6, 0.0])
    assert [text for text, _ in task.spoken(other)] == ["film, bad, web", "##s"]
    assert [sure for _, sure in task.spoken(one)] == pytest.approx([(0.5 + 0.25 + 0.8) / 3, 0.9])
    assert task.spoken_target(targets[0]) == "film, good, web"
    assert TASK.spoken_target(targets[1]) == "token 5"
    assert task_of(TASK.facts()).facts() == TASK.facts()


def test_few_documents_are_refused() -> None:
    with pytest.raises(DataError, match="Fewer than 3 different documents are left in training"):
        TASK.check(Targets(np.zeros(2, np.int8), np.ones(2, bool)), ())


def test_what_is_kept_of_logits_is_what_capture_gives() -> None:
    model = tiny_masked_model("bert")
    model.resize_token_embeddings(len(VOCABULARY))
    rows = rows_of(documents(3))
    inputs = rows.inputs(np.arange(rows.num_rows))
    with torch.inference_mode():
        answers = capture(model, inputs, {ANSWERS})[ANSWERS].numpy()
        logits = model(inputs["input_ids"], inputs["attention_mask"]).logits.flatten(0, 1)[inputs["unit_positions"]]
    kept = TASK.kept(logits.numpy(), rows.targets.values.flat)
    assert kept[:, :3] == pytest.approx(answers, abs=1e-5)
    assert np.array_equal(kept[:, -1], rows.targets.labels())
    assert kept[:, 1:11:2].astype(int).tolist() == logits.topk(5).indices.tolist()


def test_the_estimate_of_a_plan_counts_pieces_and_copies(tmp_path: Any) -> None:
    from raydistill.config.data import Data
    from raydistill.data.prepare import DataInfo, SplitCounts

    TOKENIZER.save_pretrained(tmp_path)
    texts = documents(300)
    task = MaskedLanguageModeling(copies=2)
    counts = dict.fromkeys(("train", "validation", "test"), SplitCounts(300, 300, {}))
    info = DataInfo(task.facts(), "", counts, False, {}, {}, ())
    size = estimated_size(info, lambda split: [pa.array(texts)], 32, tmp_path, Data(path="x"))
    rows = rows_of(texts)
    assert size.num_windows == {"train": 2 * rows.num_rows, "validation": rows.num_rows, "test": rows.num_rows}
    assert size.num_tokens["train"] == 2 * rows.lengths.sum()
    assert size.num_units is not None
    assert size.num_units["train"] == 2 * rows.targets.num_units


def test_outputs_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    targets = Ragged(np.zeros((3, 3)), np.array([2, 1]))
    broken = np.zeros((3, 3))
    broken[1, 0] = np.nan
    with pytest.raises(ModelError, match=r"1 of 3 rows.*learning_rate"):
        TASK.scores(Ragged(broken, targets.lengths), targets)
    with pytest.raises(ModelError, match="do not fit 3 labelled rows"):
        TASK.scores(Ragged(broken[:2], np.array([1, 1])), targets)
