"""What differs between kinds of problems, in one interface. Nobody else knows a class, a label or a span.

A task is bound to what its data told (``outputs``, the names of a model's outputs in their order) and, where a model's
answers depend on more than its outputs, to that (``fitted``: thresholds). It is rebuilt from ``facts`` anywhere.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raydistill.config.losses import Kind
from raydistill.config.tasks import TaskSection
from raydistill.models.head import SEQUENCE, Head
from raydistill.models.signals import LOGITS, Signal
from raydistill.tasks.linear import Linear
from raydistill.tasks.rewriting import Rewrite, first_half, unit_by_unit
from raydistill.tasks.scores import Scores
from raydistill.tasks.targets import Array, Ragged, Targets, Values, units_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from raydistill.models.detection import Problem
    from raydistill.tasks.masked_language_modeling.masks import Masks


CASES = "all letters lower-cased or upper-cased"
TYPOS = "one word in ten with a typo (two letters swapped, one dropped, doubled, or its neighbour on the keyboard)"


@dataclass(frozen=True)
class Read:
    """What the label columns of a source hold: the task that they describe, and targets by split."""

    task: Task
    targets: dict[str, Targets]
    notes: list[str] = field(default_factory=list)
    """Sentences for the user."""
    doubts: list[str] = field(default_factory=list)
    """Those of the sentences that doubt the labels; they are not among ``notes``."""


class Task(ABC):
    """A kind of problem, bound to data: see the module."""

    type: ClassVar[str]
    kind: ClassVar[Kind]
    Settings: ClassVar[builtins.type[TaskSection]]
    """Its section of the config."""
    problem_type: ClassVar[str | None]
    """What Hugging Face's configs call it: a model's folder says by it, or by its head, which task it is for."""
    head_kind: ClassVar[str] = SEQUENCE
    """What a prediction is of, see ``models.head``."""
    text_columns: ClassVar[tuple[str, ...]] = ()
    """Usual names of the column with the text, before those that any task knows."""
    pair_columns: ClassVar[tuple[str, ...]] = ()
    """Usual names of the column with the second text, where rows have to be pairs."""
    split_by: ClassVar[tuple[str, ...]] = ("rows",)
    """What ``data.split.by`` is where splits of pairs are cut and nothing is set: of several the first one by which a
    split of the wanted size can be cut. Rows about one text are not independent."""
    label_columns: ClassVar[tuple[str, ...]] = ("label", "labels", "class", "category", "target")
    """Usual names of the column with the target."""
    pipeline_tag: ClassVar[str] = "text-classification"
    """Of a model on the hub, and of ``transformers.pipeline``."""
    pipeline_options: ClassVar[str] = ""
    """More arguments of that function, as they are written."""
    disagreeing: ClassVar[str] = "test rows on which they contradict each other most plainly"
    """What a page shows of two models, in the plural."""
    library: ClassVar[str] = "transformers"
    """Of which a model's folder is, as the hub names it."""
    pipeline_note: ClassVar[str] = ""
    """What else there is to know of its answers, a sentence."""
    about: ClassVar[str]
    """What a model of the task is, for a card; {count}: the number of its outputs."""
    new_head: ClassVar[str] = ""
    """What there is to know of a teacher that had no head, a sentence."""
    limit: ClassVar[str]
    """To what its answers are restricted, a sentence for a card; {names}: of its outputs."""
    guessing: ClassVar[str]
    """What a model at the floor is called: ``no better than guessing the most frequent class``."""
    strata_words: ClassVar[str]
    """What ``strata`` are called, in the plural."""
    joined_words: ClassVar[str] = ""
    """What ``joined`` makes of several rows' targets, a clause; empty where different ones contradict each other."""
    linear: ClassVar[str] = ""
    """What ``fit_linear`` fits, in words; empty where no linear model on words is a rival."""
    counted: ClassVar[str] = "rows"
    """What ``per_class`` of the details has the number of."""
    is_fitted: ClassVar[bool] = False
    """Whether ``fitted`` chooses anything."""
    has_units: ClassVar[bool] = False
    """Whether rows have any number of predictions: outputs and targets are then Ragged, and a long text is not cut."""
    has_plain_outputs: ClassVar[bool] = True
    """Whether the outputs of a row are its answer as they stand: a constant and a temperature can be fitted to them."""
    needs_labels: ClassVar[bool] = True
    """Whether nothing can be learned from texts alone."""
    reads_documents: ClassVar[bool] = False
    """Whether a folder of text files is a folder of examples, whatever its folders are called."""
    usual_length: ClassVar[int | None] = None
    """Tokens of a row at most, where ``data.max_length`` is chosen and longer texts lose nothing."""
    answer_signal: ClassVar[Signal] = LOGITS
    """What is kept of a model's predictions, to measure it and to tell of them."""
    copies: int = 1
    """Rows that a piece of a training text becomes."""
    reads_apart: ClassVar[bool] = False
    """Whether a model reads the two texts of a pair one by one: its outputs are then (N, 2 C), the first text's
    first."""
    perturbed: ClassVar[str] = f"{CASES}; {TYPOS}; the first half of the tokens alone"
    """What is done to test rows to see how much of an answer hangs on how they are written."""
    unperturbed: ClassVar[Mapping[str, str]] = {}
    """By perturbation (``data.perturbations``) that says nothing of such rows, why."""
    is_taught: ClassVar[bool] = False
    """Whether a student is measured by what its teacher says of held-out rows."""
    picture_size: tuple[int, int] | None = None
    """Height and width to which pictures are brought; None: as the teacher's image processor says."""
    focal: bool = False
    """Whether detectors say of each class by itself if it is there, see ``models.detection``."""
    top_k: int | None = None
    """How many of a teacher's outputs, the likeliest ones, soft targets are made of; None: all."""
    outputs: tuple[str, ...]
    """Names of a model's outputs, in their order; none of vectors, whose numbers have no names."""
    output_scale: tuple[float, float] = (0.0, 1.0)
    """Mean and deviation of the targets: a model is trained in units in which they are 0 and 1, and saved in theirs."""

    @property
    def reads_pictures(self) -> bool:
        """Whether a row is a picture."""
        return self.Settings.reads_pictures

    @property
    def head(self) -> Head:
        """What a model of the task ends with."""
        return Head(self.outputs, self.problem_type, self.output_scale, self.head_kind)

    @property
    def problem(self) -> Problem | None:
        """What losses on boxes know of the training pictures, where predictions are such."""
        return None

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        """Metrics that tables show, the main one first: those of the section that such data defines."""
        return self.Settings.metrics

    # reading

    @classmethod
    def more_columns(cls, settings: Any, names: Sequence[str]) -> dict[str, str]:
        """Columns by role that ``aligned`` wants beside texts and label, of those with these names."""
        return {}

    @classmethod
    def aligned(
        cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], where: str, names: Sequence[str] | None
    ) -> Mapping[str, pa.ChunkedArray]:
        """Raw columns by role, where texts and labels have to be read together: texts, and what ``column`` takes.

        ``names``: of a ClassLabel; ``where``: where they stand. Raises DataError for what does not fit together.
        """
        return columns

    @classmethod
    @abstractmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        """A raw label column in the task's one form, null where there is no label; ``names``: of a ClassLabel.

        ``settings``: the config's section; ``what`` names the column. Raises DataError for what cannot be a target.
        """

    @classmethod
    def placed(cls, table: pa.Table, where: str) -> pa.Table:
        """Rows of pictures, as ``data.pictures`` reads them, with labels that ``column`` gave, where these mean nothing
        without their picture; ``where``: where they stand. Raises DataError for what does not fit together."""
        return table

    @classmethod
    @abstractmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Whether the first cells of a column without a usual name look like targets."""

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        """Whether columns that were ``chosen`` for it by role, with their first cells, can hardly be for another task;
        classes of texts are what rows are of where no task says so."""
        return False

    @classmethod
    @abstractmethod
    def read(cls, settings: Any, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None) -> Read:
        """The targets of ``columns``, by split as ``column`` gave them. Raises DataError, ConfigError."""

    @abstractmethod
    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        """The targets of any data for a finished model, in the order of its outputs, and what had to be assumed.

        ``column``: as the method of that name gave it; ``names``: of a ClassLabel. Raises ModelError for what the model
        does not know.
        """

    def translate(self, targets: Targets, other: Self) -> tuple[Targets, list[str]]:
        """The same of targets that are there for ``other`` outputs already."""
        return targets, []

    @classmethod
    @abstractmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        """The task of a finished model: its outputs' names and what ``model_settings`` left in its config."""

    def answered_by(self, config: PreTrainedConfig) -> Self:
        """The task as models of a kind answer it, where kinds have outputs of their own; ``config``: of one of them."""
        return self

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """All that rebuilds the task, in JSON types: see ``tasks.task_of``."""

    @abstractmethod
    def reordered(self, order: Sequence[int]) -> Self:
        """The task for outputs in another order: output i is what ``order[i]`` is here."""

    def strata(self, targets: Targets) -> NDArray[np.int64]:
        """A group for each row, by which splits are cut; -1 for a row without a label."""
        return np.where(targets.labeled, 0, -1)

    def joined(self, targets: Targets, groups: NDArray[np.int64]) -> Targets:
        """Targets in which each labelled row has what all those of its group (N,), rows with one text, say together;
        what differs within a group then still is a contradiction."""
        return targets

    def plain_name(self, output: str) -> str:
        """What a reader calls an output; several may be parts of one thing."""
        return output

    @property
    def plain_names(self) -> list[str]:
        """The same of all outputs, in their order, each once."""
        return [*dict.fromkeys(map(self.plain_name, self.outputs))]

    def names_in(self, targets: Targets) -> set[str]:
        """The outputs of which labelled rows have an example; empty where that has no meaning."""
        return {name for name, count in self.counts(targets).items() if count}

    def check(self, train: Targets, notes: Sequence[str]) -> None:  # noqa: B027, most need no check
        """Refuse training rows from which nothing can be learned; ``notes`` say what became of the rows. DataError."""

    def scaled(self, train: Targets) -> Self:
        """The task with what it takes from the targets of the training rows: units, ranges, means."""
        return self

    def counts(self, targets: Targets) -> dict[str, int]:
        """Labelled rows by output; empty where that has no meaning."""
        return {}

    def units(self, texts: Sequence[Any], values: Values = None) -> Ragged:
        """The units of rows, where the task ``has_units``: begin and end in the text and label (-1: none), (M, 3).

        ``values``: of the rows' targets, which have them but for rows that came without labels.
        """
        raise NotImplementedError(f"{type(self).__name__} has one prediction a row")

    def overlap(self, max_length: int) -> int:
        """Tokens by which neighbouring windows of ``max_length`` tokens of a long text overlap, where rows have
        ``units``."""
        return 0

    def encoded(
        self, tokenizer: Any, texts: Sequence[Sequence[str]], values: Values, max_length: int, pad: int
    ) -> dict[str, pa.Array] | None:
        """Columns of a tokens artefact, where the task makes rows in its own way; None: windows of ``units``.

        ``texts``: one column or two; ``values``: of the examples' targets, None where they have none. The column
        ``example_target`` has them again, with the first row of each example; ``target`` begins with each unit's begin
        and end in the text, which go along with the outputs; ``is_cut`` is no column of the artefact.
        """
        return None

    def masks(self, tokenizer: Any) -> Masks | None:
        """How tokens of rows are hidden anew at each epoch, where they are. ConfigError where they cannot be."""
        return None

    def encoded_in_parts(
        self, tokenizer: Any, texts: pa.Array, max_length: int, is_train: bool
    ) -> Iterator[dict[str, Values]]:
        """The rows of ``encoded`` some at a time, as numbers, where ``masks`` hide tokens of them; with ``copies`` of
        training rows, which stand beside each other."""
        raise NotImplementedError(f"{self.type} hides no tokens")

    def rewritten(
        self, perturbation: str, texts: Sequence[Sequence[str]], values: Values, rewrites: Sequence[Rewrite]
    ) -> tuple[list[list[str]], Ragged]:
        """The texts of rows, one column or two, under a perturbation, and their targets' values for them, where rows
        have ``units``. ``rewrites``: what becomes of a piece of each row's text."""
        units = self.units(texts[0], values)
        half = perturbation == "half"
        written, units = first_half(texts[0], units) if half else unit_by_unit(texts[0], units, rewrites)
        return [written], units

    def seen(self, targets: Targets, parts: Array, is_mirrored: Array) -> Targets:
        """Targets of pictures of which only ``parts`` are seen, left, top, width and height as shares of the picture
        (N, 4), turned left to right where ``is_mirrored`` (N,): see ``data.views``."""
        return targets

    @abstractmethod
    def blank(self, num_rows: int) -> Targets:
        """Targets of made-up rows, all labelled, to time a model on."""

    @abstractmethod
    def summary(self, train: Targets) -> str:
        """The targets of the training rows in a line."""

    def advised_metric(self, counts: Mapping[str, int]) -> tuple[str, str] | None:
        """What should pick the best epoch where the first metric says little of such data, and why."""
        return None

    # learning

    def check_loss(self) -> None:  # noqa: B027, most tasks always have one
        """Refuse the task's own loss where the data has no labels for it. Raises ConfigError."""

    @property
    def has_loss(self) -> bool:
        """Whether labels say anything, without a teacher."""
        return True

    def taught(self, targets: Targets, outputs: Values) -> Targets:
        """Targets of held-out rows with what the teacher says of them, its ``outputs``, where the task
        ``is_taught``."""
        return targets

    def batch_loss(self, outputs: Tensor, targets: Targets, **more: Any) -> Tensor:
        """The task's own loss of a batch's outputs, (``count``,): ``loss_values`` of those that have a target."""
        import torch

        labeled = torch.as_tensor(targets.labeled_units(), device=outputs.device)
        values = torch.as_tensor(units_of(targets.values), device=outputs.device)[labeled]
        return self.loss_values(outputs[labeled], values, **more)

    @abstractmethod
    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The task's own loss of labelled rows, outputs (B, C) against targets (B, …): (B,), float32."""

    def count(self, targets: Targets) -> int:
        """How many values ``loss_values`` gives for the labelled ones of these rows."""
        return int(targets.labeled_units().sum())

    def values_of(self, outputs: Values, targets: Values) -> Array:
        """Targets (M, …) of each of the outputs (M, C) of labelled examples, as ``loss_values`` takes them."""
        return units_of(targets)

    def balanced_weights(self, targets: Targets) -> Array:
        """A weight for each output (C,), so that all classes of these rows count as much."""
        raise NotImplementedError(f"{self.type} has no classes")

    def fit_linear(self, features: Any, targets: Array, strength: float) -> Linear:
        """A linear model of sparse features (N, F), fitted to targets (N, …): see ``tasks.linear``."""
        raise NotImplementedError(f"{self.type} has no linear model")

    # scoring

    def restored(self, outputs: Values) -> Values:
        """Outputs of a model in training, in the units of the targets."""
        center, scale = self.output_scale
        return outputs if (center, scale) == (0.0, 1.0) else (center + scale * outputs).astype(outputs.dtype)

    def averaged(self, outputs: Sequence[Array], weights: Sequence[float] | None = None) -> Array:
        """Outputs (N, C) that say what several ones (K, N, C) say in the mean, by ``weights`` (K,) of any sum where
        given: of numbers it is their mean."""
        if len(outputs) == 1:
            return outputs[0]
        return np.average(outputs, axis=0, weights=weights).astype(outputs[0].dtype)

    def reordered_outputs(self, outputs: Values, order: Sequence[int]) -> Values:
        """Outputs (N, C) of this task as they are of the ``reordered`` one."""
        return outputs[:, list(order)] if order else outputs

    @abstractmethod
    def scores(self, outputs: Values, targets: Values) -> Scores:
        """A model's outputs (N, C) on rows with these targets (N, …). Raises DataError, ModelError for what no metric
        can be computed from."""

    def undefined(self, targets: Targets, wanted: Collection[str] | None = None) -> frozenset[str]:
        """Metrics, of those ``wanted``, that the labelled ones of these rows do not define, whatever a model says."""
        if not targets.labeled.any():
            return frozenset()
        found = self.undefined_by(targets.values[targets.labeled], wanted)
        return found if wanted is None else found & frozenset(wanted)

    def undefined_by(self, values: Values, wanted: Collection[str] | None) -> frozenset[str]:
        """The same of the values of one target or more; others than those wanted may be among them."""
        if self.has_units or not self.has_plain_outputs or not self.outputs:
            return frozenset()
        return self.undefined_for(np.zeros((len(values), len(self.outputs)), np.float32), values, wanted)

    def undefined_for(self, outputs: Values, values: Values, wanted: Collection[str] | None) -> frozenset[str]:
        """The same, known by outputs that say nothing."""
        found = self.scores(outputs, values).weighted(np.ones((len(values), 1)), wanted)
        return frozenset(name for name, value in found.items() if np.isnan(value[0]))

    def for_model(self, settings: Mapping[str, Any]) -> Self:
        """The task with what answers need of a model beside its outputs, from its config.json."""
        return self

    def fitted(self, outputs: Values, targets: Values) -> Self:
        """The task with what a model's answers need beside its outputs, chosen on validation rows."""
        return self

    def model_settings(self) -> dict[str, Any]:
        """What ``fitted`` has chosen, to be kept in the model's config.json."""
        return {}

    def unit(self, outputs: Values) -> float:
        """What a difference of two outputs is large or small in comparison to; 1 for logits."""
        return 1.0

    @abstractmethod
    def agreement(self, a: Values, b: Values, other: Task | None = None) -> float:
        """How far two models' outputs (N, C) say the same, 1 where they always do; ``other``: the second one's task."""

    @abstractmethod
    def disagreements(self, a: Values, b: Values, other: Task | None = None) -> Array:
        """How plainly two models' outputs contradict each other, (N,); 0 where they do not."""

    def counterparts(self, a: Values, b: Values, rows: Array) -> Array | None:
        """The row that each of ``rows`` is compared with where what is said of one speaks of another, too: ``spoken``
        is then given the outputs of both beside each other. None: of a row alone."""
        return None

    @abstractmethod
    def errors(self, outputs: Values, targets: Values) -> Array:
        """How plainly outputs contradict the targets, (N,); 0 where they do not."""

    # answering

    def pipeline_arguments(self, max_length: int) -> list[str]:
        """Of ``transformers.pipeline``, as they are written, to read texts as in training."""
        return [*("truncation=True", f"max_length={max_length}"), *filter(None, [self.pipeline_options])]

    def loading_code(self, model: str, max_length: int) -> str | None:
        """Lines of Python by which a model's folder answers; None where ``transformers.pipeline`` loads it."""
        return None

    def kept(self, logits: Array, targets: Array) -> Array:
        """What a finished model keeps of its logits (M, C), for units with these targets (M, K)."""
        return logits

    def measured(self, outputs: Values) -> Array:
        """The numbers in outputs by which two models are compared, a row or unit each."""
        return units_of(outputs)

    def with_words(self, tokenizer: Any) -> Self:
        """The task where it speaks of tokens, in the words of their tokenizer."""
        return self

    def of_rows(self, texts: Sequence[Any], values: Values) -> Self:
        """The task for these very rows, where what is said of outputs needs them: texts, and targets or ``units``."""
        return self

    @abstractmethod
    def answers(self, outputs: Values) -> list[dict[str, Any]]:
        """What ``predict`` says of outputs (N, C), a dict of ``answer_columns`` each."""

    @property
    @abstractmethod
    def answer_columns(self) -> tuple[str, ...]:
        """Names of the columns that a prediction adds to a table."""

    @abstractmethod
    def spoken(self, outputs: Values) -> list[tuple[str, float | None]]:
        """The answer to each of the outputs (N, C) in words, and how sure it is, 0 to 1; None where that has no
        meaning."""

    def marked(self, outputs: Values) -> list[list[dict[str, Any]]] | None:
        """What each of the outputs points at in its picture: a list of {label, score, box}, a box being left, top,
        right and bottom as shares of the picture; None where answers point at nothing."""
        return None

    def marked_target(self, target: Any) -> list[dict[str, Any]]:
        """The same of a target, without scores."""
        return []

    @abstractmethod
    def spoken_target(self, target: Any) -> str:
        """A target in words."""
