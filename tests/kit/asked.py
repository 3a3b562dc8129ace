"""Questions about made-up reports, whose answers are told by what stands around them, and some that have none."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.tagged import write_jsonl
from kit.tiny import WORDS, save_tiny
from kit.toy import toy_config

NAMES = ("actor", "minister", "team", "party", "bank")
VERBS = {"win": "market", "lose": "price", "play": "music", "vote": "law"}
"""What is asked for, and the word that stands before the answer."""
FILLER = [word for word in WORDS if word not in (*NAMES, *VERBS, *VERBS.values())]


def asked_rows(num_rows: int, seed: int = 0, longest: int = 24, impossible: float = 0.25) -> list[dict[str, Any]]:
    """Different rows with columns question, context, answers: "the VERB", answered by the one or two words behind
    VERB's word; where the context lacks that word there is no answer."""
    draw, rows = random.Random(seed), {}
    while len(rows) < num_rows:
        asked = draw.choice(list(VERBS))
        words = [draw.choice(FILLER) for _ in range(draw.randint(4, longest))]
        answer = " ".join(draw.choice(NAMES) for _ in range(draw.randint(1, 2)))
        if is_there := draw.random() >= impossible:
            words.insert(draw.randint(0, len(words)), f"{VERBS[asked]} {answer} was")
        context = " ".join(words)
        start = context.find(f"{VERBS[asked]} {answer}") + len(VERBS[asked]) + 1
        found = {"text": [answer], "answer_start": [start]} if is_there else {"text": [], "answer_start": []}
        rows[context] = {"question": f"the {asked}", "context": context, "answers": found}
    return list(rows.values())


def asked_config(folder: Path, num_rows: int = 240, **changes: Any) -> dict[str, Any]:
    """As ``toy_config``, on questions."""
    path = folder / "toy.csv"
    if not (folder / "asked.jsonl").exists():
        path.write_text("")  # there already, says the toy
        write_jsonl(folder / "asked.jsonl", asked_rows(num_rows))
        save_tiny(folder / "encoder", "bert", classifier=False)
    return toy_config(
        folder,
        **{
            "data__path": str(folder / "asked.jsonl"),
            "data__max_length": 24,
            "task__type": "question_answering",
            **changes,
        },
    )


def as_squad(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows as SQuAD 2.0's JSON, a paragraph each."""
    paragraphs = []
    for number, row in enumerate(rows):
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        qa = {"id": str(number), "question": row["question"], "answers": answers, "is_impossible": not answers}
        paragraphs.append({"context": row["context"], "qas": [qa]})
    return {"version": "v2.0", "data": [{"title": "reports", "paragraphs": paragraphs}]}
