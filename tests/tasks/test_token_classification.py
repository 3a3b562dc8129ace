"""Words with labels: forms in which they come, entities, metrics, and what a finished tagger says of texts."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nervaluate
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from kit.rows_on_disk import make_config
from kit.scores import assert_interval_is_scipy_s, assert_values_are, assert_weights_count_rows
from kit.tagged import LABELS, tagged_rows, write_jsonl
from sklearn.metrics import accuracy_score, log_loss

from raydistill.config.loading import data_config
from raydistill.config.tasks import TokenClassification as Settings
from raydistill.config.tree import Config
from raydistill.data.draft import make_draft
from raydistill.data.paths import DataFile
from raydistill.data.recognition import recognised
from raydistill.data.sources import read_source
from raydistill.data.tables import rows_of
from raydistill.errors import ConfigError, DataError
from raydistill.tasks.targets import Ragged
from raydistill.tasks.text_classification.scoring import probabilities
from raydistill.tasks.token_classification import TokenClassification, reading
from raydistill.tasks.token_classification.scoring import EntityScores
from raydistill.tasks.token_classification.words import FINE, WHOLE, Scheme, split, stray, to_iob2

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def config_of(path: Path, **task: Any) -> Config:
    return make_config(path, task={"type": "token_classification", **task})


def sequences(num_rows: int, seed: int, outputs: tuple[str, ...] = TAGS, valid: bool = True) -> list[list[str]]:
    """Random labels of rows of 1 to 12 words; ``valid``: an I- continues an entity of its type."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_rows):
        row: list[str] = []
        for _ in range(rng.integers(1, 13)):
            allowed = [tag for tag in outputs if not valid or stray([*row, tag]) is None]
            row.append(str(rng.choice(allowed)))
        rows.append(row)
    return rows


def entities_by_hand(tags: list[str], scheme: str) -> set[tuple[int, int, str]]:
    """First word, the one after the last, type: word by word."""
    found, start = set(), None
    for i, tag in enumerate([*tags, "O"]):
        kind = tag[2:] if scheme == "iob2" else tag
        before = None if start is None else tags[start][2:] if scheme == "iob2" else tags[start]
        goes_on = start is not None and kind == before and tag != "O" and scheme != "words"
        if scheme == "iob2":
            goes_on = goes_on and tag.startswith("I-")
        if start is not None and not goes_on:
            found.add((start, i, before))
            start = None
        if start is None and tag != "O" and (scheme != "iob2" or tag.startswith("B-")):
            start = i
    return found


@pytest.mark.parametrize(
    ("scheme", "outputs"), [("iob2", TAGS), ("io", ("O", "PER", "LOC")), ("words", ("NOUN", "VERB", "O"))]
)
def test_entities_are_those_found_word_by_word(scheme: str, outputs: tuple[str, ...]) -> None:
    rows = sequences(200, 3, outputs, valid=False)  # of a model, which may give an I- that continues nothing
    known = Scheme(scheme, outputs)
    tags = np.array([outputs.index(tag) for row in rows for tag in row])
    number = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    first = np.searchsorted(number, np.arange(len(rows)))
    found: list[set[tuple[int, int, str]]] = [set() for _ in rows]
    for start, end, kind in zip(*known.entities(tags, number), strict=True):
        row = number[start]
        found[row].add((int(start - first[row]), int(end - first[row]), known.types[kind]))
    assert found == [entities_by_hand(row, scheme) for row in rows]
    assert Scheme.of(outputs) == ("io" if scheme == "words" else scheme)


def made_scores(rows: np.ndarray, given: list[list[str]], truth: list[list[str]], seed: int = 0) -> EntityScores:
    rng = np.random.default_rng(seed)
    noise = [rng.normal(size=(len(row), len(TAGS))) for row in truth]
    sure = [4 * np.eye(len(TAGS))[[TAGS.index(tag) for tag in row]] for row in given]
    outputs = [a + np.clip(b, -1.9, 1.9) for a, b in zip(sure, noise, strict=True)]
    values = [np.array([[0, 1, TAGS.index(tag)] for tag in row], np.int32) for row in truth]
    like = np.zeros((0, len(TAGS))), np.zeros((0, 3), np.int32)
    told, asked = Ragged.of([outputs[i] for i in rows], like[0]), Ragged.of([values[i] for i in rows], like[1])
    return EntityScores(told, asked, TAGS, Scheme("iob2", TAGS))


def mixed(num_rows: int) -> tuple[list[list[str]], list[list[str]]]:
    """Labels, and answers that are right for two rows of three."""
    truth, other = sequences(num_rows, 1), sequences(4 * num_rows, 2)
    given = []
    for i, row in enumerate(truth):
        same = [tags for tags in other if len(tags) == len(row)]
        given.append(row if i % 3 else same[i % len(same)])
    return given, truth


def apart(own: set[tuple[int, int, str]], other: set[tuple[int, int, str]]) -> int:
    """Entities that share no word with any of the others."""
    return sum(not any(a < end and start < b for a, b, _ in other) for start, end, _ in own)


def test_metrics_are_those_of_the_libraries() -> None:
    given, truth = mixed(120)
    scores = made_scores(np.arange(120), given, truth)
    judged = nervaluate.Evaluator(truth, given, tags=["PER", "LOC"], loader="list").evaluate()
    strict, types = judged["overall"]["strict"], {name: one["strict"] for name, one in judged["entities"].items()}
    flat = [TAGS.index(tag) for row in truth for tag in row]
    expected = {
        "entity_precision": strict.precision,
        "entity_recall": strict.recall,
        "entity_f1": strict.f1,
        "macro_f1": np.mean([one.f1 for one in types.values()]),
        "token_accuracy": accuracy_score(flat, scores.given),
        "log_loss": log_loss(flat, probabilities(scores.logits), labels=range(len(TAGS))),
    }
    assert 0.4 < strict.f1 < 0.9
    assert_values_are(scores, expected)
    for entry in scores.details()["per_class"]:
        one = types[entry["name"]]
        assert (entry["precision"], entry["recall"], entry["f1"]) == pytest.approx((one.precision, one.recall, one.f1))
        assert (entry["support"], entry["predicted"]) == (one.possible, one.actual)
    errors = scores.details()["entity_errors"]
    assert errors["exact"] == strict.correct
    assert sum(errors.values()) - errors["invented"] == strict.possible
    hand = [[entities_by_hand(row, "iob2") for row in rows] for rows in (truth, given)]
    assert errors["missed"] == sum(map(apart, *hand))
    assert errors["invented"] == sum(map(apart, *hand[::-1]))
    same_place = [[{one[:2] for one in row} for row in rows] for rows in hand]
    found = sum(len(a & b) for a, b in zip(*same_place, strict=True))
    assert errors["exact"] + errors["wrong_type"] == found


def test_resampled_metrics_are_those_of_the_rows_drawn() -> None:
    given, truth = mixed(40)
    assert_weights_count_rows(lambda rows: made_scores(rows, given, truth), 40)
    assert_interval_is_scipy_s(lambda rows: made_scores(rows, given, truth), 40, "entity_f1")


def test_averages_of_rows_drawn_without_any_entity_are_zero() -> None:
    scores = made_scores(np.arange(2), [["O"], ["B-PER"]], [["O"], ["B-PER"]])
    with np.errstate(all="raise"):
        found = scores.weighted(np.float32([[2, 1], [0, 1]]))
    assert found["macro_f1"].tolist() == found["entity_f1"].tolist() == [0.0, 1.0]


def test_a_tagger_that_finds_nothing_is_at_the_floor() -> None:
    truth = sequences(30, 1)
    scores = made_scores(np.arange(30), [["O"] * len(row) for row in truth], truth)
    floor = scores.floor()
    assert (floor.metric, floor.value) == ("entity_f1", 0.0)
    assert floor.constant == '"O"'
    assert scores.values["entity_f1"] == 0.0
    counts = Counter(label for row in truth for label in row)
    assert floor.evidence == ("token_accuracy", pytest.approx(max(counts.values()) / counts.total()))
    found = made_scores(np.arange(30), truth, truth)
    assert found.floor().constant is None
    assert (found.values["entity_f1"], found.values["token_accuracy"]) == (1.0, 1.0)
    last = [["O", "B-PER"]]
    assert {name: num for name, num in made_scores(np.arange(1), last, last).errors().items() if num} == {"exact": 1}


def test_where_every_word_has_a_label_always_the_same_one_is_right_for_some() -> None:
    names, labels = ("DET", "NOUN", "VERB"), np.array([1, 0, 1, 2])
    outputs = Ragged(np.tile([0.0, 0.0, 1.0], (4, 1)), np.array([3, 1]))
    places = np.column_stack([np.zeros(4), np.ones(4), labels]).astype(np.int32)
    floor = EntityScores(outputs, Ragged(places, outputs.lengths), names, Scheme("words", names)).floor()
    assert (floor.metric, floor.value, floor.constant) == ("entity_f1", 0.5, '"VERB"')
    assert floor.answer == 'always answering "NOUN"'


# forms

ROWS = [
    {"tokens": ["the", "bank", "of", "minister", "bank"], "ner_tags": ["B-ORG", "I-ORG", "O", "B-PER", "I-PER"]},
    {"tokens": ["no", "name", "here"], "ner_tags": ["O", "O", "O"]},
]


def targets_of(config: Config) -> tuple[TokenClassification, list[tuple[str, list[tuple[str, str]]]]]:
    """The task, and each row of all splits as its text and its words with labels."""
    draft = make_draft(config)
    task: Any = draft.task
    told = []
    for part in draft.parts.values():
        for text, words in zip(part.texts["text"].to_pylist(), part.targets.values, strict=True):
            told.append((text, [(text[a:b], task.outputs[tag]) for a, b, tag in words]))
    return task, sorted(told)


def many(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten of each, told apart by their first word."""
    return [
        {**row, "tokens": [f"w{i}", *row["tokens"]], "ner_tags": ["O", *row["ner_tags"]]}
        for i in range(10)
        for row in rows
    ]


def test_all_forms_of_labelled_words_are_read_alike(tmp_path: Path) -> None:
    rows = many(ROWS)
    task, expected = targets_of(config_of(write_jsonl(tmp_path / "lists.jsonl", rows)))
    assert task.outputs == ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert expected[0] == (
        "w0 no name here",
        [("w0", "O"), ("no", "O"), ("name", "O"), ("here", "O")],
    )
    assert ("bank", "I-ORG") in expected[1][1]
    texts = [{"text": " ".join(row["tokens"]), "labels": " ".join(row["ner_tags"])} for row in rows]
    pd.DataFrame(texts).to_csv(tmp_path / "rows.csv", index=False)
    bilou = [
        {**row, "ner_tags": [tag.replace("I-", "L-") for tag in row["ner_tags"]]} for row in rows
    ]  # all entities have two words
    numbered = [{**row, "ner_tags": [LABELS.index(tag) for tag in row["ner_tags"]]} for row in rows]
    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=list(LABELS)))})
    Dataset.from_list(numbered, features=features).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list(numbered, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    for path in (tmp_path / "rows.csv", write_jsonl(tmp_path / "bilou.jsonl", bilou), tmp_path / "rows.parquet"):
        assert targets_of(config_of(path))[1] == expected
    own, found = targets_of(config_of(tmp_path / "saved"))
    assert own.outputs == LABELS
    assert found == expected


def test_columns_of_conll_files(tmp_path: Path) -> None:
    rows = many(ROWS)
    _, expected = targets_of(config_of(write_jsonl(tmp_path / "lists.jsonl", rows)))
    lines = ["-DOCSTART- -X- O O", ""]
    for i, row in enumerate(rows):
        lines += [f"# id {i} domain=en"]
        lines += [
            f"{word} {'XY'[len(word) % 2]} {tag}" for word, tag in zip(row["tokens"], row["ner_tags"], strict=True)
        ] + ["", ""][: 1 + i % 2]
    path = tmp_path / "rows.conll"
    path.write_text("\n".join(lines))
    assert targets_of(config_of(path))[1] == expected
    other = make_draft(make_config(path, task={"type": "token_classification"}, columns={"label": "2"}))
    assert other.task.outputs == ("X", "Y")


def test_parts_of_speech_of_conllu_files(tmp_path: Path) -> None:
    sentence = "# text = Vamos al mar {0}\n1\tVamos\tir\tVERB" + "\t_" * 6 + "\n2-3\tal\t_\t_" + "\t_" * 6
    for number, word, kind in ((2, "a", "ADP"), (3, "el", "DET"), (4, "mar{0}", "NOUN")):
        sentence += f"\n{number}\t{word}\t_\t{kind}" + "\t_" * 6
    path = tmp_path / "rows.conllu"
    path.write_text("\n\n".join(sentence.format(i) for i in range(20)))
    task, found = targets_of(config_of(path))
    assert task.scheme.name == "words"
    assert found[0] == ("Vamos a el mar0", [("Vamos", "VERB"), ("a", "ADP"), ("el", "DET"), ("mar0", "NOUN")])
    path.write_text("1\tVamos\tVERB\n")
    with pytest.raises(DataError, match=r"rows.conllu, line 1: 3 columns, where 10 are expected"):
        targets_of(config_of(path))


@pytest.mark.parametrize(
    "form",
    [
        lambda spans: {"entities": [{"start": s, "end": e, "label": kind} for s, e, kind in spans]},
        lambda spans: {"spans": [{"id": 1, "start_offset": s, "end_offset": e, "label": kind} for s, e, kind in spans]},
        lambda spans: {"label": [list(span) for span in spans]},
    ],
)
def test_spans_of_characters_become_words_that_are_cut_at_their_borders(form: Any, tmp_path: Path) -> None:
    text = "New York-based IBM's iPhone5 {}."
    spans = [(0, 8, "LOC"), (15, 18, "ORG"), (21, 27, "PRODUCT")]
    rows = [{"text": text.format(i), **form(spans)} for i in range(20)]
    rows += [{"text": f"nothing {i} here", **form([])} for i in range(20)]
    task, found = targets_of(config_of(write_jsonl(tmp_path / "spans.jsonl", rows)))
    words = dict(found)[text.format(3)]
    assert words[:4] == [("New", "B-LOC"), ("York", "I-LOC"), ("-", "O"), ("based", "O")]
    assert words[4:7] == [("IBM", "B-ORG"), ("'", "O"), ("s", "O")]
    assert words[7:9] == [("iPhone", "B-PRODUCT"), ("5", "O")]
    assert {tag for _, tag in dict(found)["nothing 3 here"]} == {"O"}
    assert task.words == FINE


def test_what_prodigy_s_annotators_accepted_is_read(tmp_path: Path) -> None:
    def row(text: str, answer: str, *spans: tuple[int, int, str]) -> dict[str, Any]:
        words = [found.span() for found in re.finditer(r"\S+", text)]
        ends = {place: i for i, place in enumerate(words)}
        tokens = [{"text": text[a:b], "start": a, "end": b, "id": i, "ws": True} for i, (a, b) in enumerate(words)]
        found = [
            {"start": a, "end": b, "token_start": ends[a, b], "token_end": ends[a, b], "label": label}
            for a, b, label in spans
        ]
        hashes = {"_input_hash": hash(text), "_task_hash": -5, "_session_id": None, "_view_id": "ner_manual"}
        made = {"text": text, "meta": {"source": "mail"}, **hashes, "tokens": tokens, "answer": answer}
        return {**made, "spans": found} if found else made

    rows = [row("Paris is big", "accept", (0, 5, "LOC")), row("nothing is here", "accept")]
    rows += [row("Rome is no man", "reject", (0, 4, "PER")), *[row("unsure about it", "ignore")] * 2]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config, _ = recognised(data_config(str(path)))
    assert config.task.type == "token_classification"
    source = read_source(config.data, config.task)
    tags = [[word["tag"] for word in cell] for cell in source.tables["train"].column("label").to_pylist()]
    assert source.tables["train"].column("text").to_pylist() == ["Paris is big", "nothing is here"]
    assert tags == [["B-LOC", "O", "O"], ["O", "O", "O"]]
    assert source.skipped == {"answered reject in Prodigy": 1, "answered ignore in Prodigy": 2}
    assert any("2 rows of data.path skipped: answered ignore in Prodigy." in note for note in source.notes)
    assert len(list(rows_of(DataFile(str(path), str(path)), "jsonl"))) == 5  # as `predict` reads them: all


def test_words_written_otherwise_keep_their_places_and_labels(tmp_path: Path) -> None:
    """Also where words become longer, stand beside each other, or have several spaces between them."""
    text = "Die Stra\u00dfe von  New York-based Groß.\n"
    spans = [(4, 10, "LOC"), (16, 24, "LOC"), (31, 35, "PER")]
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"text": f"{text}{i} here", "spans": [list(s) for s in spans]} for i in range(20)]
    )
    part = make_draft(config_of(path)).parts["train"]
    texts, units = part.texts["text"].to_pylist(), part.targets.values
    task = TokenClassification(("O", "B-LOC", "I-LOC", "B-PER"))
    for name, rewrite in (("upper", str.upper), ("typos", lambda piece: piece[0] + piece), ("lower", str.lower)):
        (written,), places = task.rewritten(name, [texts], units, [rewrite] * len(texts))
        assert places.flat[:, 2].tolist() == units.flat[:, 2].tolist()
        for row, (old, new) in enumerate(zip(texts, written, strict=True)):
            pairs = zip(units[row], places[row], strict=True)
            assert all(new[a:b] == rewrite(old[c:d]) for (c, d, _), (a, b, _) in pairs)
            rest = [re.sub(r"[^\s]", "", side) for side in (old, new)]
            assert rest[0] == rest[1]
    assert (
        "STRASSE VON  NEW YORK-BASED GROSS.\n"
        in task.rewritten("upper", [texts], units, [str.upper] * len(texts))[0][0][0]
    )


def test_half_of_the_words_is_the_first_half_with_its_labels() -> None:
    task = TokenClassification(TAGS)
    texts = ["a bb c", "dd", "ee  f, "]
    units = Ragged.of(
        [
            np.array([(0, 1, 1), (2, 4, 2), (5, 6, 0)]),
            np.array([(0, 2, 3)]),
            np.array([(0, 2, 1), (4, 5, 0), (5, 6, 0)]),
        ],
        np.zeros((0, 3), int),
    )
    (written,), kept = task.rewritten("half", [texts], units, [str] * 3)
    assert written == ["a bb", "dd", "ee  f"]
    assert [kept[row].tolist() for row in range(3)] == [[[0, 1, 1], [2, 4, 2]], [[0, 2, 3]], [[0, 2, 1], [4, 5, 0]]]


@pytest.mark.parametrize("transitions", [None, np.random.default_rng(0).normal(size=(6, 5)).tolist()])
def test_of_rows_of_which_half_is_asked_only_that_half_counts(transitions: Any) -> None:
    """A model that has read all: of a CRF the likeliest labels of the whole rows, and of these the first half."""
    draw, truth = np.random.default_rng(1), sequences(40, 5)
    lengths = np.array([len(row) for row in truth])
    outputs = Ragged(draw.normal(size=(lengths.sum(), 5)) * 3, lengths)
    task = TokenClassification(TAGS, transitions=transitions)
    given = Ragged(task.read_outputs(outputs)[0], lengths)
    half = [row[: (len(row) + 1) // 2] for row in truth]
    targets = Ragged.of([np.array([[0, 1, TAGS.index(tag)] for tag in row]) for row in half], np.zeros((0, 3), int))
    told = [entities_by_hand([TAGS[tag] for tag in given[i][: len(row)]], "iob2") for i, row in enumerate(half)]
    true = [entities_by_hand(row, "iob2") for row in half]
    hits, sizes = (sum(map(len, pairs)) for pairs in ([a & b for a, b in zip(told, true, strict=True)], told + true))
    assert hits > 5
    assert task.scores(outputs, targets).values["entity_f1"] == pytest.approx(2 * hits / sizes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("मैं हिन्दी बोलता हूँ।", ["मैं", "हिन्दी", "बोलता", "हूँ", "।"]),
        ("আমি বাংলায় লিখি", ["আমি", "বাংলায়", "লিখি"]),
        ("நான் தமிழ் பேசுகிறேன்.", ["நான்", "தமிழ்", "பேசுகிறேன்", "."]),
        ("తెలుగు భాష", ["తెలుగు", "భాష"]),
        ("ನಾನು ಕನ್ನಡ", ["ನಾನು", "ಕನ್ನಡ"]),
        ("മലയാളം നല്ലത്", ["മലയാളം", "നല്ലത്"]),
        ("ગુજરાતી ભાષા", ["ગુજરાતી", "ભાષા"]),
        ("ਪੰਜਾਬੀ ਬੋਲੀ", ["ਪੰਜਾਬੀ", "ਬੋਲੀ"]),
        ("සිංහල භාෂාව", ["සිංහල", "භාෂාව"]),
        ("ශ්\u200dරී ලංකා", ["ශ්\u200dරී", "ලංකා"]),
        ("مُحَمَّدٌ رَسُولُ", ["مُحَمَّدٌ", "رَسُولُ"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("בְּרֵאשִׁית בָּרָא", ["בְּרֵאשִׁית", "בָּרָא"]),
        ("བོད་སྐད", ["བོད", "་", "སྐད"]),
        ("ภาษาที่นี่", ["ภ", "า", "ษ", "า", "ที่", "นี่"]),
        ("ខ្ញុំ", ["ខ្", "ញុំ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("か\u3099っこう", ["か\u3099", "っ", "こ", "う"]),
        ("Zu\u0308rich cafe\u0301s!", ["Zu\u0308rich", "cafe\u0301s", "!"]),
        ("Tiếng Vie\u0302\u0323t", ["Tiếng", "Vie\u0302\u0323t"]),
        ("Do\u00adnau I \u2764\ufe0f it", ["Do\u00adnau", "I", "\u2764\ufe0f", "it"]),
        ("\u0301a \u0301\u0302 b", ["\u0301", "a", "\u0301\u0302", "b"]),
    ],
)
@pytest.mark.parametrize("pattern", [FINE, WHOLE])
def test_marks_and_joiners_belong_to_the_word(text: str, words: list[str], pattern: str) -> None:
    assert [text[start:end] for start, end in split(text, pattern)] == words


def test_borders_cut_words_however_many_there_are() -> None:
    assert split("abcdef gh", borders=[4, 2, 2, 0, 6, 8, 99]).tolist() == [[0, 2], [2, 4], [4, 6], [7, 8], [8, 9]]
    text = "word " * 20_000
    begin = time.process_time()
    found = split(text, borders=range(2, 100_000, 100))
    assert time.process_time() - begin < 1.5  # 6 s if every word is looked at for every border
    assert len(found) == 21_000


def test_a_span_of_a_word_with_marks_is_one_word() -> None:
    row = reading.with_spans("मैं हिन्दी बोलता", [{"start": 4, "end": 10, "label": "LANG"}])
    assert row.tags == ["O", "B-LANG", "O"]


def test_words_of_a_plain_text_are_as_the_data_had_them(tmp_path: Path) -> None:
    task, _ = targets_of(config_of(write_jsonl(tmp_path / "x.jsonl", many(ROWS))))
    assert task.words == WHOLE
    text = "Mr. O'Brien's U.S.-based 3.5 m e-mail (東京)."

    def told(pattern: str) -> list[str]:
        return [text[start:end] for start, end in split(text, pattern)]

    assert told(WHOLE) == [
        "Mr",
        ".",
        "O'Brien's",
        "U.S",
        ".",
        "-",
        "based",
        "3.5",
        "m",
        "e-mail",
        "(",
        "東",
        "京",
        ")",
        ".",
    ]
    assert "".join(told(FINE)) == text.replace(" ", "")
    assert "O'Brien" not in told(FINE)


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"ner_tags": ["O", "O"]}, {}, r"row 3: there are 5 words and 2 labels. Each word needs one"),
        (
            {"ner_tags": ["I-ORG", "I-ORG", "O", "O", "O"]},
            {},
            r"row 3: I-ORG at its beginning \(word 1, 'the'\) lacks its",
        ),
        ({"ner_tags": ["B-ORG", "I-PER", "O", "O", "O"]}, {}, r"I-PER after B-ORG \(word 2, 'bank'\) lacks its B-"),
        ({"ner_tags": ["B-ORG", "ORG", "O", "O", "O"]}, {}, r"no prefix \(B-, I-\).*'ORG'"),
        ({"ner_tags": ["B-ORG", None, "O", "O", "O"]}, {}, r"row 3: a word has no label. Use O"),
        ({"tokens": ["the", " ", "of", "a", "b"]}, {}, r"row 3: a word is empty"),
        ({}, {"labels": ["O", "B-ORG", "I-ORG"]}, r"task.labels lacks 'B-PER', 'I-PER'"),
    ],
)
def test_labels_that_do_not_fit_are_named_by_row(row: Any, task: Any, message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [*ROWS, {**ROWS[0], **row}])
    with pytest.raises((DataError, ConfigError), match=message):
        make_draft(config_of(path, **task))


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([(0, 3, "A"), (2, 5, "B")], r"row 2: the spans 0–3 \(A\) and 2–5 \(B\) overlap"),
        ([(0, 40, "A")], r"row 2: the span 0–40 \(A\) lies outside the text of 10 characters"),
        ([(3, 3, "A")], r"row 2: the span 3–3 \(A\) lies outside the text of 10 characters, or is empty"),
        ([(3, 4, "A")], r"row 2: the span 3–4 \(A\) holds no word"),
        ([(0, 3, "")], r"row 2: a span lacks its start, end or label"),
    ],
)
def test_spans_that_do_not_fit_are_named_by_row(spans: Any, message: str, tmp_path: Path) -> None:
    rows = [{"text": "one two", "spans": [{"start": 0, "end": 3, "label": "A"}]}]
    rows += [{"text": "two threes", "spans": [{"start": s, "end": e, "label": kind} for s, e, kind in spans]}]
    with pytest.raises(DataError, match=message):
        make_draft(config_of(write_jsonl(tmp_path / "x.jsonl", rows)))


def test_iob1_is_read_where_the_config_says_so() -> None:
    tags = ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-PER"]
    assert to_iob2(tags, is_iob1=True) == ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-PER"]


def test_answers_say_where_entities_stand_in_their_text() -> None:
    task = TokenClassification(TAGS)
    texts = ["Ada Lovelace saw Paris.", "Nothing."]
    units = task.units(texts)
    given = ["B-PER", "I-PER", "O", "B-LOC", "O", "I-LOC", "O"]
    outputs = Ragged(3 * np.eye(len(TAGS))[[TAGS.index(tag) for tag in given]], units.lengths)
    first, second = task.of_rows(texts, units).answers(outputs)
    sure = np.exp(3) / (np.exp(3) + 4)
    assert first["entities"] == [
        {"label": "PER", "text": "Ada Lovelace", "start": 0, "end": 12, "score": pytest.approx(sure)},
        {"label": "LOC", "text": "Paris", "start": 17, "end": 22, "score": pytest.approx(sure)},
    ]
    assert second["entities"] == []  # an I- that continues nothing is no entity
    json.dumps([first, second])
    assert task.of_rows(texts, units).spoken(outputs)[0][0] == "Ada Lovelace (PER), Paris (LOC)"


def test_rows_are_grouped_by_their_rarest_entity(tmp_path: Path) -> None:
    draft = make_draft(config_of(write_jsonl(tmp_path / "x.jsonl", tagged_rows(200))))
    targets, task = draft.parts["train"].targets, draft.task
    kinds = [
        {kind for _, _, kind in entities_by_hand([LABELS[tag] for tag in row[:, 2]], "iob2")} for row in targets.values
    ]
    number = {"ORG": 1, "PER": 2}
    rare = min(("ORG", "PER"), key=lambda kind: sum(kind in found for found in kinds))
    expected = [number[rare] if rare in found else number[next(iter(found))] if found else 0 for found in kinds]
    assert task.strata(targets).tolist() == expected
    assert task.counts(targets)["B-ORG"] == sum(int((row[:, 2] == 1).sum()) for row in targets.values)


def test_a_type_too_rare_for_a_split_is_named_without_its_prefixes(tmp_path: Path) -> None:
    rows = [*tagged_rows(60), {"tokens": ["a", "very", "rare", "one"], "ner_tags": ["O", "O", "B-RARE", "I-RARE"]}]
    draft = make_draft(config_of(write_jsonl(tmp_path / "x.jsonl", rows)))
    assert "Too rare to be in the test split: 'RARE'." in draft.notes


def test_a_word_labelled_minus_100_and_an_empty_csv_cell_are_no_labels() -> None:
    names = ("O", "B-PER", "I-PER")
    row = reading.read_row(["my", "Ann", "Lee"], [-100, 1, 2], names)
    assert (row.text, row.places, row.tags) == ("my Ann Lee", [(3, 6), (7, 10)], ["B-PER", "I-PER"])
    assert reading.read_row("my Ann Lee", "O -100 O", None).tags == ["O", "O"]
    assert reading.read_row("my Ann Lee", " ", None).tags is None
    words, labels = (pa.chunked_array([rows]) for rows in ([["my", "Ann"], ["a", "b"]], [[-100, -100], [0, 1]]))
    form = reading.aligned(Settings(), words, labels, "It", names)[1]
    assert reading.targets_of(form, names).labeled.tolist() == [False, True]
