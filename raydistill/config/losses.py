"""The settings of every loss, and their union on ``type``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag

from raydistill.config.section import Mistake, Section, form_of

LayerChoice = Literal["auto", "uniform", "last", "first"]
Layers = Annotated[
    Annotated[LayerChoice, Tag("value")] | Annotated[tuple[tuple[int, int], ...], Tag("list")], Discriminator(form_of)
]

Heads = Annotated[
    Annotated[Literal["auto", "mean"], Tag("value")] | Annotated[tuple[tuple[int, int], ...], Tag("list")],
    Discriminator(form_of),
]
RelationHeads = Literal["auto"] | Annotated[int, Field(ge=1)]

Role = Literal["task", "distillation", "representation"]
"""What a loss learns from: labels, the teacher's predictions, or what the teacher computes on the way to them."""


Kind = Literal["categorical", "bernoulli", "value", "span", "vector", "boxes"]
"""What a prediction is: a distribution over classes, one for each label, a number, two distributions over the tokens of
a row, where an answer begins and where it ends, a vector to compare texts by, or boxes, each with a distribution over
classes and none."""


SequenceHead = Literal["softmax", "crf", "constrained_crf"]
"""What makes labels of the logits of a row's words: each word for itself, a CRF, or one that knows which label may not
follow which."""


class Schedule(Section):
    """A number that changes over the optimizer steps of a stage."""

    type: Literal["linear", "cosine"] = "linear"
    """How it gets from one to the other."""
    start: float = Field(ge=0)
    """Value at the first step."""
    end: float = Field(ge=0)
    """Value at the last one."""
    over: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps after which ``end`` is reached."""

    def at(self, share: float) -> float:
        """The value when this share of the steps, 0 to 1, lies behind."""
        done = min(share / self.over, 1.0)
        if self.type == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


_Scheduled = Annotated[Schedule, Tag("section")]
Weight = Annotated[Annotated[float, Field(ge=0), Tag("value")] | _Scheduled, Discriminator(form_of)]
Temperature = Annotated[Annotated[float, Field(gt=0), Tag("value")] | _Scheduled, Discriminator(form_of)]


ClassWeights = Annotated[
    Annotated[Literal["balanced"] | None, Tag("value")]
    | Annotated[dict[str, Annotated[float, Field(gt=0)]], Tag("section")],
    Discriminator(form_of),
]


def largest(value: float | Schedule) -> float:
    """The most that a setting ever is."""
    return max(value.start, value.end) if isinstance(value, Schedule) else value


class LossSection(Section):
    """One term of the student's loss."""

    role: ClassVar[Role] = "distillation"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "bernoulli", "value", "span", "vector", "boxes")
    """Kinds of predictions that it can learn from."""
    compares: ClassVar[str] = "logits"
    """What it looks at in student and teacher."""
    compares_rows: ClassVar[bool] = False
    """Whether it compares rows with each other, of which each has one prediction then."""
    compares_sequences: ClassVar[bool] = False
    """Whether it compares labels of whole rows, of which a CRF teacher has several."""
    not_over_vocabulary: ClassVar[str] = ""
    """Why it cannot learn from guesses of tokens out of a vocabulary, where it cannot."""
    fewest_classes: ClassVar[int] = 2
    """Classes of a categorical prediction below which it says nothing."""
    takes_maps: ClassVar[bool] = False
    """Whether it can compare states of models that see other parts of a picture: feature maps of other sizes."""

    @classmethod
    def takes(cls, kind: Kind, has_units: bool, over_vocabulary: bool = False) -> bool:
        """Whether it can learn from predictions of this kind; ``has_units``: of which rows have any number;
        ``over_vocabulary``: of tokens."""
        refuses = cls.compares_rows if has_units else cls.compares_sequences
        return kind in cls.kinds and not refuses and not (over_vocabulary and cls.not_over_vocabulary)

    weight: Weight = 1.0
    """Factor of this term in the sum of all losses; 0 switches its gradient off. A number, or a schedule."""


class LayerLossSection(LossSection):
    """A term that compares mapped layers of student and teacher."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "hidden states"
    first_layer: ClassVar[int] = 0
    """0 where embeddings count as a layer."""

    layers: Layers = "uniform"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i. ``auto`` takes
    the layers that are most alike before any training."""


class TaskLoss(LossSection):
    """The task's own loss on labelled rows."""

    role: ClassVar[Role] = "task"
    compares: ClassVar[str] = "logits, labels"

    type: Literal["task"] = "task"
    class_weights: ClassWeights = None
    """Factor of the loss of each class's rows, by its name, 1 for one that is not named; of several labels a row, of
    the rows that have the label. ``balanced``: so that all classes count as much; their mean over the rows is 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label that is spread over all classes; of several labels a row, over yes and no."""

    def mistakes(self) -> list[Mistake]:
        return [(("class_weights",), "names no class.")] if self.class_weights == {} else []


class SoftLossSection(LossSection):
    """A term on the two models' probabilities at a temperature."""

    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "bernoulli", "span", "boxes")

    temperature: Temperature = 2.0
    """T, by which the logits of both are divided: the higher, the more the less likely classes count. A number, or a
    schedule."""
    standardize: bool = False
    """First bring the logits of each row to mean 0 and deviation 1, in both models: the student then learns how the
    classes lie to each other, not how sure the teacher is. Says nothing of two classes."""
    confidence: float = Field(default=0.0, ge=0)
    """Power of the teacher's largest probability by which a row's value is multiplied: 0 counts all alike, at 2 a row
    of which it is half sure counts a quarter."""

    def mistakes(self) -> list[Mistake]:
        if isinstance(self.temperature, Schedule) and not min(self.temperature.start, self.temperature.end) > 0:
            return [(("temperature",), "has to stay above 0; the logits are divided by it.")]
        return []


class ForwardKl(SoftLossSection):
    """Soft targets: T² · KL(teacher ‖ student), over classes, for each label, over begin and end of an answer, or for
    each query of a detector."""

    type: Literal["forward_kl"] = "forward_kl"


class ReverseKl(SoftLossSection):
    """T² · KL(student ‖ teacher): the student leaves out what it cannot follow, where forward_kl spreads over it."""

    type: Literal["reverse_kl"] = "reverse_kl"


class Jsd(SoftLossSection):
    """T² · Jensen-Shannon divergence: bounded, so that rows of which the teacher is wildly sure pull less."""

    type: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Share of the teacher in the mixture that both are compared with."""


class SoftCrossEntropy(SoftLossSection):
    """T² · cross entropy of the student under the teacher's probabilities: forward_kl and a constant, with the same
    gradient."""

    type: Literal["soft_cross_entropy"] = "soft_cross_entropy"


class Dkd(SoftLossSection):
    """Decoupled soft targets: T² · (alpha · KL of right against other + beta · KL among the other classes)."""

    not_over_vocabulary: ClassVar[str] = "tells one right class from the others, and several tokens may be right"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical",)
    compares: ClassVar[str] = "logits, labels"
    fewest_classes: ClassVar[int] = 3

    type: Literal["dkd"] = "dkd"
    alpha: float = Field(default=1.0, ge=0)
    """Weight of how sure the teacher is of the right class."""
    beta: float = Field(default=2.0, ge=0)
    """Weight of how it shares the rest among the other classes."""


class Dist(SoftLossSection):
    """T² · (inter · (1 - correlation of a row's probabilities) + intra · (1 - correlation of a class's over rows))."""

    kinds: ClassVar[tuple[Kind, ...]] = ("categorical",)
    compares_rows: ClassVar[bool] = True
    fewest_classes: ClassVar[int] = 3

    type: Literal["dist"] = "dist"
    inter: float = Field(default=1.0, ge=0)
    """Weight of the correlation over the classes of each row."""
    intra: float = Field(default=1.0, ge=0)
    """Weight of the correlation over the rows of a group, for each class."""
    group_size: int = Field(default=16, ge=2)
    """So many rows of a batch are correlated; ``train.global_batch_size`` is a multiple of it."""


class KBest(LossSection):
    """Cross entropy of the student under the k most likely sequences of labels of a CRF teacher, by their
    probability."""

    not_over_vocabulary: ClassVar[str] = "compares sequences of labels"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical",)
    compares: ClassVar[str] = "sequences of labels"
    compares_sequences: ClassVar[bool] = True

    type: Literal["k_best"] = "k_best"
    k: int = Field(default=5, ge=1, le=100)
    """Sequences of each row."""


class Boxes(LossSection):
    """Differences of the boxes that student and teacher find, as far as the teacher is sure of them: 5 · L1 and 2 ·
    (1 - GIoU)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("boxes",)

    type: Literal["boxes"] = "boxes"


class LogitMse(LossSection):
    """Mean squared difference of the logits, or of a regression's outputs."""

    not_over_vocabulary: ClassVar[str] = "counts a token that nobody would guess as much as one that all would"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "bernoulli", "value", "span")

    type: Literal["logit_mse"] = "logit_mse"


class HiddenMse(LayerLossSection):
    """Mean squared difference of hidden states of mapped layers, over real tokens, or the positions of feature maps. At
    weight 1 it cost students of few labels 2 points of texts, 3 of words."""

    takes_maps: ClassVar[bool] = True

    type: Literal["hidden_mse"] = "hidden_mse"


class HiddenCosine(LayerLossSection):
    """1 - cosine of hidden states of mapped layers, over real tokens, or the positions of feature maps."""

    takes_maps: ClassVar[bool] = True

    type: Literal["hidden_cosine"] = "hidden_cosine"
    layers: Layers = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class HiddenKl(LayerLossSection):
    """T² · KL between hidden states of mapped layers, each a distribution over its width, over real tokens. At weight 1
    it cost students of few labels 3 points of texts, 4 of words."""

    takes_maps: ClassVar[bool] = True

    type: Literal["hidden_kl"] = "hidden_kl"
    temperature: float = Field(default=1.0, gt=0)
    """T, by which the states of both are divided before the softmax."""


class EmbeddingMse(LossSection):
    """Mean squared difference of what goes into the first layers, over real tokens. At weight 1 it cost students of few
    labels 3 points of texts, 5 of words."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "hidden states"

    type: Literal["embedding_mse"] = "embedding_mse"


class Pkd(LayerLossSection):
    """Squared difference of the first tokens' hidden states of mapped layers, each of length 1, a row each. At weight
    1 it cost students of few labels 3 points of texts, 5 of words."""

    type: Literal["pkd"] = "pkd"
    layers: Layers = "uniform"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class PooledCosine(LayerLossSection):
    """1 - cosine of the mean hidden states of a row, of mapped layers."""

    takes_maps: ClassVar[bool] = True

    type: Literal["pooled_cosine"] = "pooled_cosine"
    layers: Layers = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class BoxFeatures(LayerLossSection):
    """1 - cosine of hidden states of mapped layers inside the teacher's boxes, as far as it is sure of them: each box
    counts as much, whatever its size, and the ground not at all."""

    kinds: ClassVar[tuple[Kind, ...]] = ("boxes",)
    compares: ClassVar[str] = "hidden states, boxes"
    takes_maps: ClassVar[bool] = True

    type: Literal["box_features"] = "box_features"


class AttentionLossSection(LayerLossSection):
    """A term on how the tokens of a row attend to each other in mapped layers."""

    compares: ClassVar[str] = "queries, keys"
    first_layer: ClassVar[int] = 1

    layers: Layers = "uniform"
    """Layer map, or pairs [student layer, teacher layer], from 1."""
    heads: Heads = "auto"
    """Which heads are compared. ``auto``: each of the student's with the teacher's of the same number, where there are
    as many, or the student's are the teacher's first ones; their means otherwise. ``mean``: the means of all. Or pairs
    [student head, teacher head], from 0."""


class AttentionMse(AttentionLossSection):
    """Mean squared difference of attention scores before the softmax, over a row's tokens and the heads. At weight 1 it
    cost students of few labels 2 points of texts, 4 of words."""

    type: Literal["attention_mse"] = "attention_mse"


class AttentionKl(AttentionLossSection):
    """KL(teacher ‖ student) of where each token attends to, averaged over the heads. At weight 1 it cost students of
    few labels 3 points of texts, 8 of words."""

    type: Literal["attention_kl"] = "attention_kl"


class Minilm(AttentionLossSection):
    """attention_kl, and the same for relations between values: needs as many heads in student and teacher."""

    compares: ClassVar[str] = "queries, keys, values"

    type: Literal["minilm"] = "minilm"
    layers: Layers = "last"
    """Layer map, or pairs [student layer, teacher layer], from 1."""


class MinilmV2(LayerLossSection):
    """KL of the relations between a row's queries, its keys and its values: width, heads and depth are free."""

    compares: ClassVar[str] = "queries, keys, values"
    first_layer: ClassVar[int] = 1

    type: Literal["minilm_v2"] = "minilm_v2"
    layers: Layers = "last"
    """Layer map, or pairs [student layer, teacher layer], from 1; of a deep teacher often one below the last."""
    relation_heads: RelationHeads = "auto"
    """Parts that queries, keys and values are cut into; divides the widths of both models. ``auto``: of 16
    numbers of the teacher each, or the next fewer that divide both."""


class RelationLossSection(LossSection):
    """A term on how rows lie to each other, by their mean last hidden states."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "hidden states"
    takes_maps: ClassVar[bool] = True

    group_size: int = Field(default=16, ge=3)
    """So many rows of a batch are compared with each other; ``train.global_batch_size`` is a multiple of it."""


class RkdDistance(RelationLossSection):
    """Distances between rows, in units of their mean: the student's width is free."""

    type: Literal["rkd_distance"] = "rkd_distance"


class RkdAngle(RelationLossSection):
    """Angles between the directions from a row to two others: the student's width is free."""

    type: Literal["rkd_angle"] = "rkd_angle"


class GradientLossSection(LossSection):
    """A term on the gradients of the predictions with respect to the token embeddings."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "gradients"
    not_over_vocabulary: ClassVar[str] = "needs the gradient of one prediction a row"


class GradientMatch(GradientLossSection):
    """Squared difference of the gradients with respect to the embeddings, as wide in both models; steps take longer."""

    type: Literal["gradient_match"] = "gradient_match"


class GradientAttention(GradientLossSection):
    """Squared difference of how much each token weighs, by the length of its gradient: the student's width is free.
    At weight 1 it may keep a student from learning its labels; begin with 0.1."""

    type: Literal["gradient_attention"] = "gradient_attention"


class GraphAttention(LossSection):
    """The graph that attention, learned on the teacher's states, draws between rows or tokens, and its messages."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "hidden states"
    takes_maps: ClassVar[bool] = True

    type: Literal["graph_attention"] = "graph_attention"
    nodes: Literal["rows", "tokens"] = "rows"
    """Between what: the rows of a group, or the tokens of each row."""
    heads: int = Field(default=4, ge=1)
    """Graphs that are drawn side by side."""
    group_size: int = Field(default=16, ge=2)
    """So many rows of a batch are a graph; ``train.global_batch_size`` is a multiple of it."""


class Crd(LossSection):
    """A row is to be told by its teacher's mean hidden state from the others of its group: the student's width is
    free. At weight 1 it cost students of few labels 2 points of texts, 10 of words."""

    role: ClassVar[Role] = "representation"
    compares: ClassVar[str] = "hidden states"
    takes_maps: ClassVar[bool] = True
    not_over_vocabulary: ClassVar[str] = "tells rows from each other, and here they may be pieces of one document"

    type: Literal["crd"] = "crd"
    temperature: float = Field(default=0.1, gt=0)
    """By which cosines are divided: the lower, the more the nearest of the others count."""
    group_size: int = Field(default=16, ge=2)
    """So many rows of a batch are told from each other; ``train.global_batch_size`` is a multiple of it."""


class CosinePairs(LossSection):
    """Rows with the same label are to have similar mean hidden states, rows with different ones dissimilar ones."""

    role: ClassVar[Role] = "task"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical",)
    compares: ClassVar[str] = "hidden states, labels"
    takes_maps: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    type: Literal["cosine_pairs"] = "cosine_pairs"
    group_size: int = Field(default=16, ge=2)
    """So many rows of a batch are compared with each other; ``train.global_batch_size`` is a multiple of it."""


class VectorLossSection(LossSection):
    """A term on the two models' vectors."""

    kinds: ClassVar[tuple[Kind, ...]] = ("vector",)
    compares: ClassVar[str] = "vectors"


class VectorMse(VectorLossSection):
    """Squared length of the difference of the vectors."""

    type: Literal["vector_mse"] = "vector_mse"


class VectorCosine(VectorLossSection):
    """1 - cosine of the vectors."""

    type: Literal["vector_cosine"] = "vector_cosine"


class SimilarityMatrix(VectorLossSection):
    """Squared difference of the cosines between the texts of a group: the student's width is free."""

    type: Literal["similarity_matrix"] = "similarity_matrix"
    group_size: int = Field(default=32, ge=2)
    """So many rows of a batch are compared with each other; ``train.global_batch_size`` is a multiple of it."""


Loss = Annotated[
    TaskLoss
    | ForwardKl
    | ReverseKl
    | Jsd
    | SoftCrossEntropy
    | Dkd
    | Dist
    | KBest
    | LogitMse
    | Boxes
    | HiddenMse
    | HiddenCosine
    | HiddenKl
    | EmbeddingMse
    | Pkd
    | PooledCosine
    | BoxFeatures
    | AttentionMse
    | AttentionKl
    | Minilm
    | MinilmV2
    | RkdDistance
    | RkdAngle
    | GradientMatch
    | GradientAttention
    | GraphAttention
    | Crd
    | CosinePairs
    | VectorMse
    | VectorCosine
    | SimilarityMatrix,
    Field(discriminator="type"),
]

SECTIONS: dict[str, type[LossSection]] = {
    kind.model_fields["type"].default: kind for kind in get_args(get_args(Loss)[0])
}
"""Every loss by its ``type``."""

TASK_ALONE: dict[str, Loss] = {"task": TaskLoss()}
"""Of a stage in which no teacher speaks."""
