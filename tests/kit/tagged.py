"""Sentences whose words are labelled by what stands around them: only a model that reads context finds entities."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from kit.tiny import WORDS, save_tiny
from kit.toy import toy_config

GROUPS = ("team", "party", "bank", "market")
TITLES = ("minister", "actor")
LABELS = ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")


def tags_of(words: Sequence[str]) -> list[str]:
    """A group after "the" is an organisation, together with it; what follows a title is a person, together with it."""
    tags = ["O"] * len(words)
    for i, (word, following) in enumerate(pairwise(words)):
        kind = "ORG" if word == "the" and following in GROUPS else "PER" if word in TITLES else None
        if kind and tags[i] == "O":
            tags[i : i + 2] = [f"B-{kind}", f"I-{kind}"]
    return tags


def tagged_rows(num_rows: int, seed: int = 0, longest: int = 18) -> list[dict[str, Any]]:
    """Different sentences of 4 to ``longest`` words, with columns tokens and ner_tags."""
    draw, rows = random.Random(seed), {}
    while len(rows) < num_rows:
        words: list[str] = []
        for _ in range(draw.randint(4, longest)):
            words += ["the", draw.choice(GROUPS)] if draw.random() < 0.1 else [draw.choice(WORDS)]
        rows[" ".join(words)] = {"tokens": words, "ner_tags": tags_of(words)}
    return list(rows.values())


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tagged_config(folder: Path, num_rows: int = 240, **changes: Any) -> dict[str, Any]:
    """As ``toy_config``, on tagged sentences."""
    path = folder / "toy.csv"
    if not (folder / "tagged.jsonl").exists():
        path.write_text("")  # there already, says the toy
        write_jsonl(folder / "tagged.jsonl", tagged_rows(num_rows))
        save_tiny(folder / "encoder", "bert", classifier=False)
    return toy_config(
        folder, **{"data__path": str(folder / "tagged.jsonl"), "task__type": "token_classification", **changes}
    )
