"""Questions about texts: forms in which answers come, windows, spans, the official metrics, what is said of answers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from kit.asked import as_squad, asked_rows
from kit.rows_on_disk import make_config
from kit.scores import assert_interval_is_scipy_s, assert_values_are, assert_weights_count_rows
from kit.tagged import write_jsonl
from kit.tiny import tiny_tokenizer
from torchmetrics.functional.text import squad

from raydistill.cli.main import execute
from raydistill.config.data import Columns
from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.data.draft import make_draft
from raydistill.data.rows import Rows
from raydistill.errors import ConfigError, DataError
from raydistill.tasks.question_answering import QuestionAnswering
from raydistill.tasks.question_answering.encoding import BEGINS, ENDS, encode, labels_of
from raydistill.tasks.question_answering.scoring import SpanScores
from raydistill.tasks.question_answering.spans import Spans
from raydistill.tasks.targets import Ragged, Targets, as_column, of_column

ROWS = asked_rows(40)


def config_of(path: Path, **task: Any) -> Config:
    return make_config(path, task={"type": "question_answering", **task})


def read(path: Path, **task: Any) -> dict[str, list[str] | None]:
    """Question and context -> the texts of its answers, as the splits have them; None without a label."""
    found: dict[str, list[str] | None] = {}
    for part in make_draft(config_of(path, **task)).parts.values():
        values = part.targets.values
        for row, texts in enumerate(part.texts.to_pylist()):
            assert not part.targets.labeled[row] or values.texts[row].as_py() == texts["text_pair"]
            answers = [texts["text_pair"][start:end] for start, end, is_there in values[row] if is_there == 1]
            found[texts["text"] + "|" + texts["text_pair"]] = answers if part.targets.labeled[row] else None
    return found


def expected(rows: list[dict[str, Any]]) -> dict[str, list[str] | None]:
    return {f"{row['question']}|{row['context']}": row["answers"]["text"] for row in rows}


def test_answers_are_read_in_every_form_in_which_they_come(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "squad.json").write_text(json.dumps(as_squad(ROWS)))
    (tmp_path / "pretty.json").write_text(json.dumps(as_squad(ROWS), indent=2))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    lists = [{**row, "answers": row["answers"]["text"]} for row in ROWS]
    write_jsonl(tmp_path / "lists.jsonl", lists)
    for name in ("rows.jsonl", "squad.json", "pretty.json", "rows.parquet", "saved", "lists.jsonl"):
        assert read(tmp_path / name) == expected(ROWS), name


def test_a_table_has_the_answer_and_its_place_in_columns(tmp_path: Path) -> None:
    """An empty answer is no label; with -1 for its place there is no answer."""
    answers = [row["answers"] for row in ROWS]
    table = {
        "query": [row["question"] for row in ROWS],
        "passage": [row["context"] for row in ROWS],
        "answer": ["".join(a["text"]) for a in answers],
        "answer_start": [a["answer_start"][0] if a["text"] else -1 for a in answers],
    }
    pd.DataFrame(table).to_csv(tmp_path / "placed.csv", index=False)
    assert read(tmp_path / "placed.csv") == expected(ROWS)
    pd.DataFrame(table).rename(columns={"answer_start": "at"}).to_csv(tmp_path / "named.csv", index=False)
    assert read(tmp_path / "named.csv", answer_start="at") == expected(ROWS)
    found = read(tmp_path / "named.csv")
    assert {key: answer for key, answer in found.items() if answer} == {k: a for k, a in expected(ROWS).items() if a}
    assert [key for key, answer in found.items() if answer is None] == [k for k, a in expected(ROWS).items() if not a]
    with pytest.raises(ConfigError, match=r"task\.answer_start is .where."):
        read(tmp_path / "named.csv", answer_start="where")


def test_several_answers_of_a_row_all_stay_and_spaces_around_them_go(tmp_path: Path) -> None:
    row = {"question": "who", "context": "Denver Broncos won", "answers": ["Broncos", " Broncos ", "Denver Broncos"]}
    others = [{"question": "who", "context": f"Ann won {i}", "answers": ["Ann"]} for i in range(30)]
    write_jsonl(tmp_path / "rows.jsonl", [row, *others])
    assert read(tmp_path / "rows.jsonl")["who|Denver Broncos won"] == ["Broncos", "Broncos", "Denver Broncos"]


def test_answers_that_stand_more_than_once_are_said_to_be_unsure(tmp_path: Path) -> None:
    twice = [{"question": "who", "context": f"Ann and Ann {i}", "answer": "Ann"} for i in range(30)]
    draft = make_draft(config_of(write_jsonl(tmp_path / "rows.jsonl", twice)))
    assert any("In 30 training rows the answer stands more than once in its context" in note for note in draft.notes)


WRONG = {
    "the answer 'green' is not in its context": {"answers": {"text": ["green"]}},
    "at 4 its context has 'blue is', not the answer 'is blue', which stands at 9": {
        "context": "sky blue is blue",
        "answers": {"text": ["is blue"], "answer_start": [4]},
    },
    "at 99 its context has nothing, not the answer 'blue', which stands at 11": {
        "answers": {"text": ["blue"], "answer_start": [99]}
    },
    "its context is empty, but it has an answer": {"context": " "},
    "its question is empty, but it has an answer": {"question": ""},
    "2 answers have 1 places": {"answers": {"text": ["blue", "sky"], "answer_start": [3]}},
    "an answer has no text": {"answers": [{"text": "", "answer_start": 0}]},
    "which is no number of characters": {"answers": [{"text": "blue", "answer_start": "x"}]},
    "its answer is int '3', not a text": {"answers": 3},
}


@pytest.mark.parametrize("message", WRONG)
def test_rows_whose_answers_do_not_fit_are_named(tmp_path: Path, message: str) -> None:
    good = {"question": "what colour", "context": "the sky is blue", "answers": {"text": ["blue"]}}
    form = WRONG[message].get("answers")
    rows = [good, {**good, **WRONG[message]}] if isinstance(form, dict | None) else [{**good, **WRONG[message]}]
    with pytest.raises(DataError) as error:
        make_draft(config_of(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert str(error.value).startswith(f"1 row of rows.jsonl cannot be used; row {len(rows)}: ")
    assert message in str(error.value)


def test_data_without_contexts_or_without_any_answer_is_refused(tmp_path: Path) -> None:
    alone = [{"question": "what", "answers": ["x"]}]
    with pytest.raises(DataError, match="no column that is recognised as the context"):
        make_draft(config_of(write_jsonl(tmp_path / "alone.jsonl", alone)))
    none = [{"question": "what", "context": f"text {i}", "answers": []} for i in range(30)]
    with pytest.raises(DataError, match="No training row has an answer"):
        make_draft(config_of(write_jsonl(tmp_path / "none.jsonl", none)))
    broken = {"data": [{"paragraphs": [{"qas": [{"question": "what"}]}]}]}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match="question 1 of paragraph 1 of article 1 has no context"):
        make_draft(config_of(tmp_path / "broken.json"))


def test_all_questions_about_a_context_are_in_one_split(tmp_path: Path) -> None:
    several = [{**row, "question": f"{row['question']} {i}"} for row in asked_rows(60) for i in range(3)]
    draft = make_draft(config_of(write_jsonl(tmp_path / "rows.jsonl", several)))
    contexts = {split: set(part.texts["text_pair"].to_pylist()) for split, part in draft.parts.items()}
    assert {split: len(found) for split, found in contexts.items()} == {"train": 48, "validation": 6, "test": 6}
    assert len(set().union(*contexts.values())) == 60
    alone = [{**several[0], "question": f"the {i}"} for i in range(20)]
    draft = make_draft(config_of(write_jsonl(tmp_path / "alone.jsonl", alone)))
    assert {split: part.num_rows for split, part in draft.parts.items()} == {"train": 16, "validation": 2, "test": 2}


def test_init_writes_a_config_for_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [row for row in asked_rows(160) if row["answers"]["text"]]
    table = {
        "question": [row["question"] for row in rows],
        "context": [row["context"] for row in rows],
        "answer": [row["answers"]["text"][0] for row in rows],
        "answer_start": [row["answers"]["answer_start"][0] for row in rows],
    }
    pd.DataFrame(table).to_csv("rows.csv", index=False)
    assert execute(["init", "--data", "rows.csv", "--set", "task.type=question_answering"]) == 0
    config = load_config("rows.yaml")
    assert config.data.columns == Columns(text="question", text_pair="context", label="answer")
    assert config.task.type == "question_answering"
    written = Path("rows.yaml").read_text()
    assert f"{len(rows)} answers, " in written
    assert sum(part.num_rows for part in make_draft(config).parts.values()) == len(rows)


def encoded(rows: list[dict[str, Any]], max_length: int, overlap: int, family: str = "bert") -> Rows:
    questions, contexts = ([row[name] for row in rows] for name in ("question", "context"))
    answers = []
    for row in rows:
        pairs = zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True)
        answers.append(np.array([(at, at + len(text), 1) for at, text in pairs] or [(-1, -1, 0)], np.int32))
    known = Ragged.of(answers, np.zeros((0, 3), np.int32))
    options = {"max_length": max_length, "overlap": overlap, "pad": 0}
    return Rows.of(encode(tiny_tokenizer(family), questions, contexts, known, **options), 0)


@pytest.mark.parametrize(("max_length", "overlap"), [(12, 3), (20, 0), (64, 16)])
def test_every_token_of_a_context_is_in_a_window_and_answers_lie_where_they_are(max_length: int, overlap: int) -> None:
    rows = encoded(ROWS, max_length, overlap)
    tokenizer = tiny_tokenizer("bert")
    seen: list[set[tuple[int, int]]] = [set() for _ in ROWS]
    answered = [False] * len(ROWS)
    assert rows.units is not None
    for row in range(rows.num_rows):
        example = int(rows.example_ids[row])
        question, context = ROWS[example]["question"], ROWS[example]["context"]
        ids = rows.values["input_ids"][rows.starts[row] :][: rows.lengths[row]]
        assert len(ids) <= max_length
        assert tokenizer.decode(ids).startswith(f"[CLS] {question} [SEP] ")
        places, units = rows.targets.values[row], rows.units[row]
        assert units[0] == 0
        for (start, end, _), unit in zip(places[1:], units[1:], strict=True):
            assert tokenizer.convert_ids_to_tokens(int(ids[unit])) == context[start:end]
            seen[example].add((int(start), int(end)))
        begins, ends = (np.flatnonzero(places[:, 2] & bit) for bit in (BEGINS, ENDS))
        assert len(begins) == len(ends) == 1
        truth = ROWS[example]["answers"]["text"]
        if begins[0]:
            assert [context[places[begins[0], 0] : places[ends[0], 1]]] == truth
            answered[example] = True
        else:
            assert ends[0] == 0
    assert [len(places) for places in seen] == [len(row["context"].split()) for row in ROWS]
    assert [bool(row["answers"]["text"]) for row in ROWS] == answered or max_length == 12
    targets, ids = rows.examples
    assert ids.tolist() == list(range(len(ROWS)))
    assert targets.values.texts.to_pylist() == [row["context"] for row in ROWS]
    outputs = rows.by_example(np.zeros((len(rows.units.flat), 2), np.float32))
    assert np.array_equal(labels_of(outputs, targets.values), rows.targets.values.flat)


def test_a_question_that_would_leave_no_room_is_cut_and_no_context_ever_is() -> None:
    long = [
        {"question": " ".join(["film"] * 40), "context": "a good film", "answers": {"text": [], "answer_start": []}}
    ]
    rows = encoded(long, 16, 2)
    assert rows.lengths.tolist() == [6 + 3 + 3]
    columns = encode(tiny_tokenizer(), ["film " * 40, "film"], ["a"] * 2, None, max_length=16, overlap=2, pad=0)
    assert columns["is_cut"].to_pylist() == [True, False]
    with pytest.raises(ConfigError, match="leaves no room beside a question of 6 tokens"):
        encoded(ROWS, 16, 8)
    with pytest.raises(ConfigError, match="windows overlap by 7 tokens"):
        encoded(ROWS, 16, 7)  # of 13 tokens a question may take 6: no window would go on
    assert encoded(ROWS, 16, 6).num_rows


def made(num_rows: int, seed: int, scale: float = 3.0) -> tuple[Ragged, Ragged]:
    """Random outputs, better than chance, of real windows of made-up rows, and the rows' answers."""
    rows = encoded(asked_rows(num_rows, seed), 16, 4)
    assert rows.units is not None
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(len(rows.units.flat), 2)) * scale
    bits = rows.targets.values.flat[:, 2]
    logits += 6 * np.stack([bits & BEGINS > 0, bits & ENDS > 0], axis=1)
    return rows.by_example(logits.astype(np.float32)), rows.examples[0].values


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([None, -1.0, 0.0, 2.0]))
def test_spans_are_those_of_loops_over_all_of_them(seed: int, longest: int, threshold: float | None) -> None:
    outputs, _ = made(4, seed)
    spans = Spans(outputs, longest)
    places, scores = spans.chosen(threshold)
    for row in range(4):
        logits, where = outputs[row].astype(float), outputs.places[outputs.starts[row] :][: outputs.lengths[row]]
        first = [*np.flatnonzero(where[:, 0] < 0), len(where)]
        found, none = [], []
        for begin, end in pairwise(first):
            probs = np.exp(logits[begin:end]) / np.exp(logits[begin:end]).sum(axis=0)
            none.append((logits[begin].sum(), probs[0].prod()))
            for i in range(begin + 1, end):
                for j in range(i, min(end, i + longest)):
                    probability = probs[i - begin, 0] * probs[j - begin, 1]
                    found.append((logits[i, 0] + logits[j, 1], where[i, 0], where[j, 1], probability))
        found.sort(reverse=True)
        is_none = threshold is not None and min(none)[0] - found[0][0] > threshold
        assert places[row].tolist() == ([-1, -1] if is_none else [found[0][1], found[0][2]])
        assert scores[row] == pytest.approx(min(none)[1] if is_none else found[0][3], rel=1e-6)
        several = dict.fromkeys((start, end) for _, start, end, _ in found)
        assert [(start, end) for start, end, _ in spans.most_likely(row, 3)] == list(several)[:3]


def scores_of(rows: np.ndarray, outputs: Ragged, targets: Ragged, threshold: float | None = 0.0) -> SpanScores:
    return SpanScores(outputs[rows], targets[rows], threshold, 30)


def test_metrics_are_those_of_the_official_script() -> None:
    outputs, targets = made(60, 1)
    scores = scores_of(np.arange(60), outputs, targets)
    given_answers = [
        text[start:end] if start >= 0 else "" for text, (start, end) in zip(scores.texts, scores.places, strict=True)
    ]
    truth = [[text[a:b] for a, b, there in targets[row] if there] or [""] for row, text in enumerate(scores.texts)]
    kinds = {
        "": np.arange(60),
        "has": np.flatnonzero([t != [""] for t in truth]),
        "no": np.flatnonzero([t == [""] for t in truth]),
    }
    found = {}
    for kind, rows in kinds.items():
        preds = [{"prediction_text": given_answers[row], "id": str(row)} for row in rows]
        gold = [{"answers": {"text": truth[row], "answer_start": [0]}, "id": str(row)} for row in rows]
        found[kind] = {name: float(value) / 100 for name, value in squad(preds, gold).items()}
    assert 0.2 < found[""]["exact_match"] < found[""]["f1"] < 0.9
    nats = []
    for row in range(60):
        logits, where = outputs[row].astype(float), outputs.places[outputs.starts[row] :][: outputs.lengths[row]]
        bits = labels_of(outputs[[row]], targets[[row]])[:, 2]
        windows = np.split(np.arange(len(where)), np.flatnonzero(where[:, 0] < 0)[1:])
        log_probs = [logits[w] - np.log(np.exp(logits[w]).sum(axis=0)) for w in windows]
        own = [
            -(p[bits[w] & 1 > 0, 0].sum() + p[bits[w] & 2 > 0, 1].sum()) / 2
            for p, w in zip(log_probs, windows, strict=True)
        ]
        nats.append(np.mean(own))
    assert_values_are(
        scores,
        {
            "answer_f1": found[""]["f1"],
            "answer_exact_match": found[""]["exact_match"],
            "has_answer_f1": found["has"]["f1"],
            "no_answer_accuracy": found["no"]["exact_match"],
            "log_loss": float(np.mean(nats)),
        },
    )
    errors = scores.details()["answer_errors"]
    assert sum(errors.values()) == 60
    assert errors["right"] == round(60 * found[""]["exact_match"])
    assert errors["invented"] == round((1 - found["no"]["exact_match"]) * len(kinds["no"]))
    wrong = [given_answers[row] == "" for row in kinds["has"] if not scores.match[row]]
    assert errors["not_answered"] == sum(wrong)


ANSWERS = st.text(alphabet="aAn .,-the§é3", max_size=12)


@given(st.lists(st.tuples(ANSWERS, ANSWERS, ANSWERS), min_size=1, max_size=4))
def test_answers_are_compared_as_the_official_script_does(rows: list[tuple[str, str, str]]) -> None:
    """Articles, punctuation, case; of several right answers the one that fits best; nothing against nothing."""
    contexts = [" | ".join(row) for row in rows]
    targets, places = [], []
    for first, second, answer in rows:
        ends = np.cumsum([len(first), 3, len(second), 3, len(answer)])
        targets.append(np.array([(0, ends[0], 1), (ends[1], ends[2], 1)], np.int32))
        places.append((ends[3], ends[4]))
    known = Ragged.of(targets, np.zeros((0, 3), np.int32))
    known = Ragged(known.flat, known.lengths, texts=pa.array(contexts, pa.large_string()))
    units = np.array([place for own in places for place in ((-1, -1), own)], np.int32)
    logits = np.zeros((len(units), 2), np.float32)
    scores = SpanScores(Ragged(logits, np.full(len(rows), 2), units), known, None, 30)
    for row, (first, second, answer) in enumerate(rows):
        right = [text for text in (first, second) if text.strip(" .,-").lower() not in ("", "a", "an", "the")] or [""]
        if any(not squad_words(text) for text in right if text):
            continue  # the library, other than the script, counts a right answer of nothing but articles
        preds = [{"prediction_text": answer, "id": "0"}]
        found = squad(preds, [{"answers": {"text": right, "answer_start": [0]}, "id": "0"}])
        assert scores.f1[row] == pytest.approx(float(found["f1"]) / 100, abs=1e-6)
        assert scores.match[row] == (float(found["exact_match"]) == 100)


def squad_words(text: str) -> bool:
    """Whether anything is left of a text, by torchmetrics."""
    target = [{"answers": {"text": [text], "answer_start": [0]}, "id": "0"}]
    return float(squad([{"prediction_text": "", "id": "0"}], target)["exact_match"]) == 0


def test_resampled_metrics_are_those_of_the_rows_drawn() -> None:
    outputs, targets = made(40, 2)
    assert_weights_count_rows(lambda rows: scores_of(rows, outputs, targets), 40)
    assert_interval_is_scipy_s(lambda rows: scores_of(rows, outputs, targets), 40, "answer_f1")


def test_questions_written_otherwise_keep_their_answers() -> None:
    contexts = ["Die Stra\u00dfe \u0130st lang", "the Bank", ""]
    answers = Ragged(
        np.array([(4, 10, 1), (11, 14, 1), (-1, -1, 0), (-1, -1, 0)]), np.array([2, 1, 1]), texts=pa.array(contexts)
    )
    asked = ["Was ist GROSS", "who", "x"]
    for name, rewrite in (("lower", str.lower), ("upper", str.upper)):
        written, found = QuestionAnswering().rewritten(name, [asked, contexts], answers, [rewrite] * 3)
        assert written == [[rewrite(text) for text in side] for side in (asked, contexts)]
        assert found.texts.to_pylist() == written[1]
        for row, context in enumerate(contexts):
            for old, new in zip(answers[row], found[row], strict=True):
                assert new[2] == old[2]
                assert (
                    new[0] < 0 if old[0] < 0 else written[1][row][new[0] : new[1]] == rewrite(context[old[0] : old[1]])
                )
    written, found = QuestionAnswering().rewritten("typos", [asked, contexts], answers, [str.swapcase] * 3)
    assert written == [[text.swapcase() for text in asked], contexts]  # typos are in questions alone
    assert found is answers
    assert "half" in QuestionAnswering.unperturbed


def test_answers_in_another_case_are_worth_as_much() -> None:
    """A model that reads no case gives the same logits: its figures are the same to the last digit."""
    outputs, targets = made(40, 3)
    contexts = [text.title() for text in targets.texts.to_pylist()]
    titled = replace(targets, texts=pa.array(contexts))
    before = SpanScores(outputs, titled, 0.0, 30)
    assert 0.2 < before.values["answer_f1"] < 0.95
    for name, rewrite in (("lower", str.lower), ("upper", str.upper)):
        _, written = QuestionAnswering().rewritten(name, [contexts, contexts], titled, [rewrite] * 40)
        assert written.texts[0] != titled.texts[0]
        assert SpanScores(outputs, written, 0.0, 30).values == before.values


def test_the_threshold_for_no_answer_is_the_best_of_all() -> None:
    outputs, targets = made(80, 3)
    task = QuestionAnswering().fitted(outputs, targets)
    own = task.scores(outputs, targets)
    margins = np.sort(own.spans.margin)
    every = [margins[0] - 1, *((margins[1:] + margins[:-1]) / 2), margins[-1] + 1]
    reached = [scores_of(np.arange(80), outputs, targets, float(t)).values["answer_f1"] for t in every]
    assert own.values["answer_f1"] == pytest.approx(max(reached))
    assert max(reached) > max(reached[0], reached[-1])
    assert task.model_settings()["question_answering"]["null_threshold"] == pytest.approx(
        every[int(np.argmax(reached))]
    )
    answered = np.flatnonzero(own.has_answer)
    assert QuestionAnswering().fitted(outputs[answered], targets[answered]).null_threshold is None
    silent = np.flatnonzero(~own.has_answer)  # of these alone none is to be answered
    lowest = QuestionAnswering().fitted(outputs[silent], targets[silent]).null_threshold
    assert lowest == pytest.approx(own.spans.margin[silent].min() - 1)


def test_what_does_not_look_at_the_question_is_at_the_floor() -> None:
    outputs, targets = made(40, 4)
    nothing = scores_of(np.arange(40), outputs, targets, -1e12)
    assert nothing.floor().constant == "nothing"
    assert nothing.floor().value == pytest.approx(nothing.values["answer_f1"])
    assert nothing.floor().answer == "never answering"
    answered = np.flatnonzero(nothing.has_answer)
    whole = scores_of(answered, outputs, targets).floor()
    assert whole.answer == "answering with the whole context"
    assert 0 < whole.value < 0.5


def test_what_became_of_answers_is_counted() -> None:
    context = "the bank of the minister was great and good"
    texts = pa.array([context] * 6, pa.large_string())
    truth = np.array([(0, 24, 1)] * 5 + [(-1, -1, 0)], np.int32)
    given_places = [(0, 24), (0, 28), (9, 33), (24, 28), (-1, -1), (4, 8)]
    units = np.array([place for own in given_places for place in ((-1, -1), own)], np.int32)
    margins = np.array([[0.0, 0.0], [1.0, 1.0]] * 6, np.float32)
    margins[8] = 5.0
    outputs = Ragged(margins, np.full(6, 2), units)
    scores = SpanScores(outputs, Ragged(truth, np.ones(6, np.int64), texts=texts), 0.0, 30)
    kinds = ("right", "one_word_off", "overlapping", "elsewhere", "not_answered", "invented")
    assert scores.details()["answer_errors"] == dict.fromkeys(kinds, 1)


def test_targets_with_their_texts_are_kept_and_picked() -> None:
    outputs, targets = made(6, 5)
    both = Targets(targets, np.array([True, False, True, True, False, True]))
    again = Targets.of_arrow(both.to_arrow())
    assert again.labeled.tolist() == both.labeled.tolist()
    assert again.values.texts.equals(targets.texts)
    assert again.take(np.array([3, 0])).values.texts.to_pylist() == [targets.texts[3].as_py(), targets.texts[0].as_py()]
    joined = again.plus(Targets.none(2, again))
    assert joined.values.texts.to_pylist()[-3:] == [targets.texts[5].as_py(), "", ""]
    kept = of_column(as_column(outputs[[4, 1]]))
    assert np.array_equal(kept.places, outputs[[4, 1]].places)
    assert np.array_equal(kept.flat, outputs[[4, 1]].flat)


def test_agreement_is_of_parts_of_contexts_whatever_the_tokens_are() -> None:
    outputs, _ = made(10, 6)
    task = QuestionAnswering()
    changed = Ragged(outputs.flat.copy(), outputs.lengths, outputs.places)
    changed.flat[changed.starts[3] : changed.starts[4]] *= -1
    assert task.agreement(outputs, outputs) == 1
    assert task.agreement(outputs, changed) == 0.9
    assert np.flatnonzero(task.disagreements(outputs, changed)).tolist() == [3]
    never = QuestionAnswering(null_threshold=-1e12)
    assert task.agreement(outputs, outputs, never) == 0


def test_answers_are_said_with_their_characters() -> None:
    outputs, targets = made(20, 7)
    threshold = float(np.median(Spans(outputs, 30).margin))
    task = QuestionAnswering(num_answers=2, null_threshold=threshold).of_rows([], targets)
    places, scores = Spans(outputs, 30).chosen(threshold)
    for row, answer in enumerate(task.answers(outputs)):
        context = targets.texts[row].as_py()
        assert answer["score"] == pytest.approx(scores[row])
        assert answer["answer"] == (context[places[row, 0] : places[row, 1]] if places[row, 0] >= 0 else "")
        assert (answer["start"] is None) == (answer["answer"] == "")
        assert len(answer["answers"]) == 2
        assert all(context[one["start"] : one["end"]] == one["text"] for one in answer["answers"])
    assert {told for told, _ in task.spoken(outputs)} > {"no answer"}
    with pytest.raises(ConfigError, match="needs a question and a context for each row"):
        task.units(["only a question"])
