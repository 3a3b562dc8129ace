"""Extractive question answering: the part of a context that answers a question, or that there is none.

A row is a pair, question and context. A context that is too long is read in windows that overlap; of each a model says
with which of its tokens the answer begins and ends, the special token before everything standing for no answer.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import ConfigError, DataError
from raydistill.models.head import SPAN, SPAN_OUTPUTS
from raydistill.tasks.base import CASES, TYPOS, Read, Task
from raydistill.tasks.question_answering import reading
from raydistill.tasks.question_answering.encoding import BEGINS, ENDS, encode, labels_of
from raydistill.tasks.question_answering.reading import NONE, PLACE
from raydistill.tasks.question_answering.scoring import SpanScores
from raydistill.tasks.question_answering.spans import Spans
from raydistill.tasks.rewriting import Rewrite, moved
from raydistill.tasks.targets import Array, Ragged, Targets, are_objects

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["QuestionAnswering"]

OVERLAP = 4
"""Windows overlap by one of so many parts of their length, where nothing is set."""
SETTINGS = "question_answering"
"""Of a model's config.json: what its answers depend on beside its outputs."""


class QuestionAnswering(Task):
    """Targets of examples are begin, end and 1 of each answer, or ``reading.NONE``, Ragged (A, 3) with the contexts;
    outputs the logits of all units of their windows, Ragged (M, 2) with places.

    ``null_threshold``: how much more than the best span "no answer" has to count to be given, None where it never is;
    the other arguments as in ``config.tasks``.
    """

    type = "question_answering"
    kind = "span"
    Settings = config.QuestionAnswering
    problem_type = None
    head_kind = SPAN
    has_units = True
    perturbed = f"question and context with {CASES}; of the question {TYPOS}"
    unperturbed: ClassVar = {"half": "half of a context may lack the answer"}
    is_fitted = True
    counted = "questions"
    text_columns = ("question", "query")
    pair_columns = ("context", "paragraph", "passage", "document", "text")
    split_by = ("text_pair", "rows")
    label_columns = ("answers", "answer", "answer_text", "label", "labels")
    pipeline_tag = "question-answering"
    pipeline_note = (
        "transformers 5 has no pipeline for questions. These lines take the likeliest begin and end of one window; "
        "windows of long contexts, and when there is no answer, `raydistill predict` and MLflow's model know."
    )
    about = "model that finds answers in texts"
    limit = "It answers with a part of the given text, never with words of its own."
    guessing = "no better than an answer that does not look at the question"
    strata_words = "kinds of questions (with and without an answer)"
    joined_words = "their answers are one list, the most frequent first"

    def __init__(
        self,
        outputs: Sequence[str] = SPAN_OUTPUTS,
        stride: int | None = None,
        max_answer_length: int = 30,
        num_answers: int = 3,
        null_threshold: float | None = None,
    ) -> None:
        self.outputs = tuple(outputs)
        self.stride, self.max_answer_length, self.num_answers = stride, max_answer_length, num_answers
        self.null_threshold = null_threshold
        self._texts: list[str] | None = None

    @classmethod
    def more_columns(cls, settings: Any, names: Sequence[str]) -> dict[str, str]:
        """The column of places, where there is one."""
        wanted = settings.answer_start
        if wanted is not None and wanted not in names:
            raise ConfigError(f"task.answer_start is {wanted!r}; there are the columns {', '.join(names)}.")
        found = wanted or next((name for name in names if name.lower() == "answer_start"), None)
        return {} if found is None else {"start": found}

    @classmethod
    def aligned(
        cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], where: str, names: Sequence[str] | None
    ) -> dict[str, pa.ChunkedArray]:
        return reading.aligned(columns, where)

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        return column.cast(reading.FORM)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Objects, or lists of them, with the text of an answer."""
        return are_objects(cells, "text")

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        """Questions beside contexts, with answers by name or form."""
        label = chosen["label"]
        return "text_pair" in chosen and (label.lower().startswith("answer") or cls.is_target(cells[label]))

    @classmethod
    def read(
        cls, settings: config.QuestionAnswering, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None
    ) -> Read:
        targets = {split: reading.targets_of(column) for split, column in columns.items()}
        task = cls(SPAN_OUTPUTS, settings.stride, settings.max_answer_length, settings.num_answers)
        task.check(targets["train"], ())
        lists = reading.answers_in(columns["train"]).field("answers").drop_null().to_pylist()
        unsure = sum(any(answer["places"] > 1 for answer in found) for found in lists)
        notes = []
        if unsure:
            notes.append(
                f"In {unsure:,} training rows the answer stands more than once in its context; the first place was "
                "taken. A column of places says which (task.answer_start)."
            )
        return Read(task, targets, notes)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        return reading.targets_of(column), []

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs, **dict(settings.get(SETTINGS) or {}))

    def facts(self) -> dict[str, Any]:
        return {"type": self.type, "outputs": list(self.outputs), **self._more}

    @property
    def _more(self) -> dict[str, Any]:
        names = ("stride", "max_answer_length", "num_answers", "null_threshold")
        return {name: getattr(self, name) for name in names}

    def model_settings(self) -> dict[str, Any]:
        return {SETTINGS: self._more}

    def reordered(self, order: Sequence[int]) -> Self:
        return self

    # rows

    def units(self, texts: Sequence[Any], values: Any = None) -> Ragged:
        """Of pairs without answers: none, with their contexts. Raises ConfigError for single texts."""
        if values is not None:
            found: Ragged = values
            return found
        if not all(isinstance(text, tuple) for text in texts):
            raise ConfigError(
                "The model finds answers in texts: it needs a question and a context for each row. Give a table that "
                "has both, --file questions.csv --column question --column context."
            )
        contexts = pa.array([context for _, context in texts], pa.large_string())
        return Ragged(np.zeros((0, 3), PLACE), np.zeros(len(texts), np.int64), texts=contexts)

    def encoded(
        self, tokenizer: Any, texts: Sequence[Sequence[str]], values: Ragged | None, max_length: int, pad: int
    ) -> dict[str, pa.Array]:
        questions, contexts = texts
        overlap = self.overlap(max_length)
        return encode(tokenizer, questions, contexts, values, max_length=max_length, overlap=overlap, pad=pad)

    def rewritten(
        self, perturbation: str, texts: Sequence[Sequence[str]], values: Ragged, rewrites: Sequence[Rewrite]
    ) -> tuple[list[list[str]], Ragged]:
        """Typos in the question alone: in a context they would change the answers."""
        questions = [rewrite(text) for rewrite, text in zip(rewrites, texts[0], strict=True)]
        if perturbation == "typos":
            return [questions, list(texts[1])], values
        contexts = [rewrite(text) for rewrite, text in zip(rewrites, texts[1], strict=True)]
        flat = values.flat.copy()
        for answer, row in zip(flat, values.rows, strict=True):
            answer[:2] = [moved(texts[1][row], int(place), rewrites[row]) for place in answer[:2]]
        return [questions, contexts], Ragged(flat, values.lengths, texts=pa.array(contexts, pa.large_string()))

    def overlap(self, max_length: int) -> int:
        return max_length // OVERLAP if self.stride is None else self.stride

    def strata(self, targets: Targets) -> Array:
        """Questions with an answer, and those without."""
        found = np.full(len(targets), -1)
        first = targets.values.starts[targets.labeled]
        found[targets.labeled] = targets.values.flat[first, 2] != 1
        return found

    def joined(self, targets: Targets, groups: Array) -> Targets:
        """With all different answers of a group, the most frequent first; a row that says that there is none stays."""
        return reading.with_all_answers(targets, groups)

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if not (train.values.flat[train.labeled_units(), 2] == 1).any():
            raise DataError(
                "No training row has an answer, so there is nothing to learn. Name the column of the answers with "
                "data.columns.label. " + " ".join(notes)
            )

    def blank(self, num_rows: int) -> Targets:
        units = np.tile(np.array((*NONE[:2], BEGINS | ENDS), PLACE), (num_rows, 1))
        return Targets(Ragged(units, np.ones(num_rows, np.int64)), np.ones(num_rows, bool))

    def undefined_by(self, values: Ragged, wanted: Collection[str] | None) -> frozenset[str]:
        has_answer = set((values.flat[values.starts, 2] == 1).tolist())
        means = {"has_answer_f1": True, "no_answer_accuracy": False}
        return frozenset(name for name, is_there in means.items() if is_there not in has_answer)

    def summary(self, train: Targets) -> str:
        known = train.values[train.labeled]
        rows = [known[row][0] for row in range(len(known))]
        words = [
            len(known.texts[row].as_py()[start:end].split()) for row, (start, end, there) in enumerate(rows) if there
        ]
        none = len(rows) - len(words)
        middle = f", {statistics.median(words):g} words long (median)" if words else ""
        return f"{len(words):,} answers{middle}" + (f"; {none:,} questions without one" if none else "")

    # learning

    def count(self, targets: Targets) -> int:
        return int(targets.labeled.sum())

    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of begin and end among the units of a window, in the mean, a window each: outputs (M, 2) and
        targets (M, 3) of whole windows -> (W,)."""
        import torch

        from raydistill.models.ragged import padded

        first = torch.nonzero(targets[:, 0] < 0).squeeze(1).cpu().numpy()
        lengths = np.diff(np.append(first, len(targets)))
        log_probs = padded(outputs if outputs.dtype == torch.float64 else outputs.float(), lengths).log_softmax(-1)
        bits = padded(targets[:, 2:].float(), lengths).long()[:, 0]
        right = torch.stack([(bits > 0) & (bits & bit > 0) for bit in (BEGINS, ENDS)], dim=1)
        return -(log_probs * right).sum((1, 2)) / 2

    def values_of(self, outputs: Ragged, targets: Ragged) -> Array:
        return labels_of(outputs, targets)

    # scoring

    def scores(self, outputs: Ragged, targets: Ragged) -> SpanScores:
        return SpanScores(outputs, targets, self.null_threshold, self.max_answer_length)

    def fitted(self, outputs: Ragged, targets: Ragged) -> Self:
        """With the threshold for "no answer" that has the best F1 on these rows."""
        made = copy.copy(self)
        made.null_threshold = self.scores(outputs, targets).best_threshold() if len(targets) else None
        return made

    def agreement(self, a: Ragged, b: Ragged, other: Task | None = None) -> float:
        """Share of the questions to which two models give the same part of the context."""
        return float((self.disagreements(a, b, other) == 0).mean())

    def disagreements(self, a: Ragged, b: Ragged, other: Task | None = None) -> Array:
        """The smaller one of the two scores, where the answers are not the same part of the context."""
        (first, sure), (second, as_sure) = (
            self._chosen(a),
            (other if isinstance(other, type(self)) else self)._chosen(b),
        )
        return np.where((first != second).any(axis=1), np.maximum(np.minimum(sure, as_sure), 1e-12), 0.0)

    def errors(self, outputs: Ragged, targets: Ragged) -> Array:
        scores = self.scores(outputs, targets)
        return np.where(scores.match, 0.0, np.maximum(self._chosen(outputs)[1], 1e-12))

    def _chosen(self, outputs: Ragged) -> tuple[Array, Array]:
        return Spans(outputs, self.max_answer_length).chosen(self.null_threshold)

    # answering

    def loading_code(self, model: str, max_length: int) -> str:
        return (
            "from transformers import AutoModelForQuestionAnswering, AutoTokenizer\n"
            "kinds = (AutoTokenizer, AutoModelForQuestionAnswering)\n"
            f"tokenizer, model = (kind.from_pretrained({model}) for kind in kinds)\n"
            f'row = tokenizer("…", "…", truncation="only_second", max_length={max_length}, return_tensors="pt")\n'
            "output = model(**row)\n"
            "begin, end = output.start_logits.argmax(), output.end_logits.argmax()\n"
            'print(tokenizer.decode(row["input_ids"][0, begin : end + 1]))  # the first token alone: no answer'
        )

    def of_rows(self, texts: Sequence[Any], values: Ragged) -> Self:
        bound = copy.copy(self)
        bound._texts = None if values.texts is None else values.texts.to_pylist()
        return bound

    def answers(self, outputs: Ragged) -> list[dict[str, Any]]:
        """``answer``, its ``start`` and ``end`` (characters of the context; None where there is no answer) and
        ``score``, its probability; ``answers``: the best ones, {text, start, end, score} each."""
        spans, told = Spans(outputs, self.max_answer_length), []  # type: ignore[var-annotated]
        if not len(outputs):
            return told
        places, scores = spans.chosen(self.null_threshold)
        for row, ((start, end), score) in enumerate(zip(places.tolist(), scores.tolist(), strict=True)):
            best = [self._named(row, *found) for found in spans.most_likely(row, self.num_answers)]
            given = {"text": "", "start": None, "end": None} if start < 0 else self._named(row, start, end, score)
            answer = {"answer": given["text"], "start": given["start"], "end": given["end"], "score": score}
            told.append({**answer, "answers": best})
        return told

    def _named(self, row: int, start: int, end: int, score: float) -> dict[str, Any]:
        """A part of a row's context, without the spaces around it."""
        if self._texts is None:
            return {"text": f"characters {start} to {end}", "start": start, "end": end, "score": score}
        text = self._texts[row][start:end]
        start += len(text) - len(text.lstrip())
        return {"text": text.strip(), "start": start, "end": start + len(text.strip()), "score": score}

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("answer", "score", "start", "end", "answers")

    def spoken(self, outputs: Ragged) -> list[tuple[str, float | None]]:
        return [(answer["answer"] or NO_ANSWER, answer["score"]) for answer in self.answers(outputs)]

    def spoken_target(self, target: Any) -> str:
        named = [self._named(0, int(start), int(end), 1.0)["text"] for start, end, is_there in target if is_there]
        return " / ".join(dict.fromkeys(named)) or NO_ANSWER


NO_ANSWER = "no answer"
