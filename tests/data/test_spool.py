"""Columns and texts that grow in files are what they would be in memory, and a corpus leaves little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from kit import TESTS
from kit.toy import toy_config

from raydistill.config.loading import load_config
from raydistill.data import draft, spool
from raydistill.data.draft import make_draft
from raydistill.data.spool import picked, spooled, spooled_texts
from raydistill.tasks.targets import Ragged, of_column

TEXTS = ["", "a", "Größe 漢字 🙂", "x" * 1000, "", "the end"]


def test_texts_in_a_file_are_those_in_memory() -> None:
    whole = pa.array(TEXTS * 50, pa.large_string())
    parts = [whole[:0], whole[:7], pa.chunked_array([whole[7:100], whole[100:101]]), whole[101:]]
    found = spooled_texts(parts)
    assert found.equals(whole)
    assert found[7:20].to_pylist() == whole[7:20].to_pylist()
    assert spooled_texts([]).equals(whole[:0])
    assert spooled_texts([pa.array(["", ""], pa.large_string())]).to_pylist() == ["", ""]


def test_picked_rows_are_those_of_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"text": TEXTS * 50, "text_pair": TEXTS[::-1] * 50}
    table = pa.table({name: pa.array(texts, pa.large_string()) for name, texts in columns.items()})
    mask = np.random.default_rng(0).random(300) < 0.3
    wanted = picked(table, mask)
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    monkeypatch.setattr(spool, "BATCH_BYTES", 2000)
    assert picked(table, mask).equals(wanted)
    assert picked(table, mask & False).num_rows == 0


def test_any_data_may_be_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Splits, duplicates and counts are the same."""
    config = load_config(toy_config(tmp_path))
    small = make_draft(config)
    for module in (spool, draft):
        monkeypatch.setattr(module, "LARGE_BYTES", 0)
    large = make_draft(config)
    for split, part in small.parts.items():
        assert large.parts[split].texts.equals(part.texts)
        assert np.array_equal(large.parts[split].hashes, part.hashes)
    assert large.notes == small.notes


def test_columns_in_files_are_those_in_memory(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    parts: list[dict[str, Any]] = []
    for rows in (3, 0, 5):
        lengths = draw.integers(0, 4, rows)
        flat = draw.integers(0, 99, (int(lengths.sum()), 3)).astype(np.int32)
        parts.append({"target": Ragged(flat, lengths), "example_id": np.arange(rows)})
    found = spooled(parts, tmp_path)
    target = of_column(found["target"])
    assert np.array_equal(target.flat, np.concatenate([part["target"].flat for part in parts]))
    assert target.lengths.tolist() == [n for part in parts for n in part["target"].lengths]
    assert found["example_id"].to_pylist() == [0, 1, 2, 0, 1, 2, 3, 4]


SCRIPT = """
import random, sys
from pathlib import Path
from kit.masked import documents, masked_config
from raydistill.config.loading import load_config
from raydistill.data.prepare import prepare_data
from raydistill.data.rows import Rows
from raydistill.data.tokens import tokenize_data
from raydistill.storage.storage import Storage

folder, copies = Path(sys.argv[1]), int(sys.argv[2])
plain = masked_config(folder, data__path=str(folder / "text.txt"), data__max_length=32)
words = " ".join(documents(100)).split()
with (folder / "text.txt").open("w") as file:
    draw = random.Random(0)
    for _ in range(copies):
        file.write(" ".join(draw.choices(words, k=2000)) + "\\n")
config = load_config(plain)

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

import threading, time
peak = before = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
storage = Storage(config.storage)
tokens = tokenize_data(prepare_data(config, storage), folder / "bert", 32, storage)
print(len(Rows.open(tokens.local(), "train").values["input_ids"]), peak - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Of 1 and 10 million tokens, in MB beyond what imports take; mapped files are not counted."""
    found = []
    for copies in (450, 4500):
        (folder := tmp_path / str(copies)).mkdir()
        command = [sys.executable, "-c", SCRIPT, str(folder), str(copies)]
        done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=600, check=True)
        found.append([float(word) for word in done.stdout.split()])
    (few, small), (many, large) = found
    assert many > 9 * few > 8e6
    assert large < small + 100
