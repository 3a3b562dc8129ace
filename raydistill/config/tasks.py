"""The ``task`` section: what is to be predicted."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.losses import Kind
from raydistill.config.section import Mistake, Section, type_of

PictureSide = Annotated[int, Field(ge=16, le=4096)]


class TaskSection(Section):
    """A kind of problem. See ``config.metrics`` for the facts of its metrics."""

    kind: ClassVar[Kind]
    """What its predictions are."""
    metrics: ClassVar[tuple[str, ...]]
    """Those that tables show, the one that everything is judged by first."""
    tuning_metrics: ClassVar[tuple[str, ...]]
    """Those that may pick an epoch, or be what a sweep looks for."""
    has_units: ClassVar[bool] = False
    """Whether rows have any number of predictions."""
    over_vocabulary: ClassVar[bool] = False
    """Whether a prediction is of a token of the vocabulary."""
    teacher_metric: ClassVar[str]
    """Picks a teacher's best epoch: its soft targets have to be good, not only its answers."""

    reads_pictures: ClassVar[bool] = False
    """Whether a row is a picture, not a text."""

    sees_whole_pictures: ClassVar[bool] = False
    """Whether it speaks of places in pictures, of which a model has to see all."""

    has_classes: ClassVar[bool] = False
    """Whether the task's loss takes class weights and label smoothing."""

    @property
    def main_metric(self) -> str:
        return self.metrics[0]

    @property
    def wanted_size(self) -> tuple[int, int] | None:
        """Height and width to which pictures are brought; None: as the teacher's image processor says."""
        return None

    @property
    def num_components(self) -> int | None:
        """Numbers to which the teacher's predictions are brought; None where they stay as they are."""
        return None


def repeated(labels: tuple[str, ...] | None, fewest: int = 2) -> list[Mistake]:
    """What is wrong with a list of names."""
    if labels is None:
        return []
    if len(labels) < fewest:
        least = "two classes or more" if fewest == 2 else "a class"
        return [(("labels",), f"needs {least}, got {len(labels)}.")]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    return [(("labels",), f"names {', '.join(map(repr, twice))} twice.")] if twice else []


class TextClassification(TaskSection):
    """One class a row."""

    kind = "categorical"
    metrics = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "auc", "mcc", "log_loss", "calibration_error")
    tuning_metrics = ("accuracy", "macro_f1", "mcc", "log_loss")
    teacher_metric = "log_loss"
    has_classes = True

    type: Literal["text_classification"] = "text_classification"
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; by default taken from the data, sorted."""

    def mistakes(self) -> list[Mistake]:
        return repeated(self.labels)


class ImageClassification(TaskSection):
    """One class a picture."""

    kind = "categorical"
    metrics = TextClassification.metrics
    tuning_metrics = TextClassification.tuning_metrics
    teacher_metric = "log_loss"
    has_classes = True
    reads_pictures = True

    type: Literal["image_classification"] = "image_classification"
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; by default taken from the data, sorted."""

    def mistakes(self) -> list[Mistake]:
        return repeated(self.labels)


class ObjectDetection(TaskSection):
    """Objects in a picture: the class of each, and the box around it."""

    kind = "boxes"
    metrics = ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar")
    tuning_metrics = ("map", "map_50", "map_75")
    teacher_metric = "map"
    reads_pictures = True
    sees_whole_pictures = True

    type: Literal["object_detection"] = "object_detection"
    labels: tuple[str, ...] | None = None
    """Class names in the order of the logits; by default taken from the data, sorted."""
    picture_size: tuple[PictureSide, PictureSide] | None = None
    """Height and width, in pixels, to which all pictures are brought, whatever their proportions. By default what the
    teacher's image processor says, where that is one size: those of most detectors keep proportions."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Score from which on something that is found is given as an answer; by default each model has the one with the
    best F1 on validation pictures, at IoU 0.5. Average precision looks at all that is found."""

    def mistakes(self) -> list[Mistake]:
        return repeated(self.labels, fewest=1)

    @property
    def wanted_size(self) -> tuple[int, int] | None:
        return self.picture_size


class TextRegression(TaskSection):
    """A number a row: a rating, a similarity, a price."""

    kind = "value"
    metrics = ("pearson", "spearman", "r2", "rmse", "mae")
    tuning_metrics = metrics
    teacher_metric = "rmse"

    type: Literal["text_regression"] = "text_regression"


class MultiLabelClassification(TaskSection):
    """Any number of labels a row, also none."""

    kind = "bernoulli"
    metrics = ("micro_f1", "micro_precision", "micro_recall", "macro_f1", "exact_match", "auc", "log_loss")
    tuning_metrics = ("micro_f1", "macro_f1", "exact_match", "auc", "log_loss")
    teacher_metric = "log_loss"
    has_classes = True

    type: Literal["multi_label_classification"] = "multi_label_classification"
    labels: tuple[str, ...] | None = None
    """Label names in the order of the logits; by default taken from the data, sorted."""
    separator: str = Field(default=",", min_length=1)
    """Between the labels of a row, where a table has them in one cell of text."""

    def mistakes(self) -> list[Mistake]:
        return repeated(self.labels)


class TokenClassification(TaskSection):
    """A label for each word: named entities, parts of speech."""

    kind = "categorical"
    has_classes = True
    has_units = True
    metrics = ("entity_f1", "entity_precision", "entity_recall", "token_accuracy", "log_loss")
    tuning_metrics = ("entity_f1", "macro_f1", "token_accuracy", "log_loss")
    teacher_metric = "log_loss"

    type: Literal["token_classification"] = "token_classification"
    labels: tuple[str, ...] | None = None
    """Labels of words in the order of the logits; by default taken from the data, sorted."""
    scheme: Literal["auto", "iob2", "iob1", "io", "words"] = "auto"
    """What labels say. ``iob2``: an entity begins with B- and goes on with I- (BILOU and BIOES are read as that);
    ``iob1``: it needs no B- after another label; ``io``: neighbours with one label are one entity; ``words``: each word
    is one, as parts of speech are. ``auto``: by the labels."""
    stride: int | None = Field(default=None, ge=0)
    """Tokens by which windows of a text longer than ``data.max_length`` overlap; by default a quarter of it."""

    def mistakes(self) -> list[Mistake]:
        return repeated(self.labels)


class QuestionAnswering(TaskSection):
    """The part of a text that answers a question about it, or that there is none."""

    kind = "span"
    has_units = True
    metrics = ("answer_f1", "answer_exact_match", "has_answer_f1", "no_answer_accuracy", "log_loss")
    tuning_metrics = ("answer_f1", "answer_exact_match", "log_loss")
    teacher_metric = "log_loss"

    type: Literal["question_answering"] = "question_answering"
    answer_start: str | None = None
    """Column of the place in the context where the answer begins, in characters; recognised name: answer_start. Without
    one, and without places in the column of the answers, an answer is looked for in its context."""
    stride: int | None = Field(default=None, ge=0)
    """Tokens by which windows of a context overlap where question and context are longer than ``data.max_length``; by
    default a quarter of it."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens that an answer has at most."""
    num_answers: int = Field(default=3, ge=1)
    """Answers that ``predict`` names for a question, the best first."""


class Embeddings(TaskSection):
    """A vector for a text, by which texts are compared: sentence embeddings."""

    kind = "vector"
    metrics = (
        "similarity_spearman",
        "neighbor_recall_1",
        "neighbor_recall_10",
        "cosine",
        "spearman",
        "pearson",
        "ndcg_10",
        "recall_1",
        "recall_10",
        "teacher_ndcg_10",
        "teacher_recall_10",
    )
    tuning_metrics = metrics
    teacher_metric = "spearman"

    type: Literal["embeddings"] = "embeddings"
    pooling: Literal["auto", "mean", "cls"] = "auto"
    """How a text's states become one vector: their mean, or the first token's. ``auto``: as the modules of the
    teacher's folder say, and the mean where it has none."""
    width: int | None = Field(default=None, ge=2)
    """Numbers of a vector, fewer than the teacher's has: it gets a projection to the principal components of its
    vectors of the training texts, and the student learns those. By default as many as the teacher's."""

    @property
    def num_components(self) -> int | None:
        return self.width


class MaskedLanguageModeling(TaskSection):
    """The hidden tokens of a text: raw text is enough, and what comes out is a smaller encoder for any use."""

    kind = "categorical"
    has_units = True
    over_vocabulary = True
    metrics = ("masked_accuracy", "perplexity", "log_loss")
    tuning_metrics = metrics
    teacher_metric = "perplexity"

    type: Literal["masked_language_modeling"] = "masked_language_modeling"
    masked_share: float = Field(default=0.15, gt=0, lt=1)
    """Of the tokens of a row that are hidden: at each epoch others, where the teacher runs beside the student."""
    copies: int = Field(default=1, ge=1, le=100)
    """Of each training row, each with other tokens hidden. More than one: the teacher is recorded (``teacher.mode``
    cached), and these are all that a student sees."""
    top_k: int | None = Field(default=None, ge=1, le=1000)
    """Of the likeliest tokens, of which a record of the teacher keeps the probabilities, and that of all others
    together. By default 64 where the teacher is recorded."""


SECTIONS: dict[str, type[TaskSection]] = {
    kind.model_fields["type"].default: kind
    for kind in (
        TextClassification,
        TextRegression,
        MultiLabelClassification,
        TokenClassification,
        QuestionAnswering,
        Embeddings,
        MaskedLanguageModeling,
        ImageClassification,
        ObjectDetection,
    )
}
"""Every kind of problem by its ``type``."""


def task_type(given: Any) -> Any:
    """The type that a task's section names; classification is what one without a type means."""
    return type_of(given, "text_classification")


Task = Annotated[
    Annotated[TextClassification, Tag("text_classification")]
    | Annotated[TextRegression, Tag("text_regression")]
    | Annotated[MultiLabelClassification, Tag("multi_label_classification")]
    | Annotated[TokenClassification, Tag("token_classification")]
    | Annotated[QuestionAnswering, Tag("question_answering")]
    | Annotated[Embeddings, Tag("embeddings")]
    | Annotated[MaskedLanguageModeling, Tag("masked_language_modeling")]
    | Annotated[ImageClassification, Tag("image_classification")]
    | Annotated[ObjectDetection, Tag("object_detection")],
    Discriminator(task_type),
]
