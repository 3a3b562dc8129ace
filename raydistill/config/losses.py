"""The settings of every loss, and their union on ``type``."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.section import Mistake, Section, form_of

LayerChoice = Literal["auto", "uniform", "last", "first"]
Layers = Annotated[
    Annotated[LayerChoice, Tag("value")] | Annotated[tuple[tuple[int, int], ...], Tag("list")], Discriminator(form_of)
]

Role = Literal["task", "distillation", "representation"]
"""What a loss learns from: labels, the teacher's predictions, or what the teacher computes on the way to them."""


Kind = Literal["categorical", "bernoulli", "value"]
"""What a prediction is: a distribution over classes, one for each label, or a number."""


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
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "bernoulli", "value")
    """Kinds of predictions that it can learn from."""

    weight: Weight = 1.0
    """Factor of this term in the sum of all losses; 0 switches its gradient off. A number, or a schedule."""


class LayerLossSection(LossSection):
    """A term that compares mapped layers of student and teacher."""

    role: ClassVar[Role] = "representation"

    layers: Layers = "auto"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class TaskLoss(LossSection):
    """The task's own loss on labelled rows."""

    role: ClassVar[Role] = "task"

    type: Literal["task"] = "task"
    class_weights: ClassWeights = None
    """Factor of the loss of each class's rows, by its name, 1 for one that is not named; of several labels a row, of
    the rows that have the label. ``balanced``: so that all classes count as much; their mean over the rows is 1."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of a label that is spread over all classes; of several labels a row, over yes and no."""

    def mistakes(self) -> list[Mistake]:
        return [(("class_weights",), "names no class.")] if self.class_weights == {} else []


class ForwardKl(LossSection):
    """Soft targets: T² · KL(teacher ‖ student), over the classes, or for each label."""

    kinds: ClassVar[tuple[Kind, ...]] = ("categorical", "bernoulli")

    type: Literal["forward_kl"] = "forward_kl"
    temperature: Temperature = 2.0
    """T, by which the logits of both are divided: the higher, the more the less likely classes count. A number, or a
    schedule."""

    def mistakes(self) -> list[Mistake]:
        if isinstance(self.temperature, Schedule) and not min(self.temperature.start, self.temperature.end) > 0:
            return [(("temperature",), "has to stay above 0; the logits are divided by it.")]
        return []


class LogitMse(LossSection):
    """Mean squared difference of the logits, or of a regression's outputs."""

    type: Literal["logit_mse"] = "logit_mse"


class HiddenMse(LayerLossSection):
    """Mean squared difference of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_mse"] = "hidden_mse"


class HiddenCosine(LayerLossSection):
    """1 - cosine of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_cosine"] = "hidden_cosine"
    layers: Layers = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class CosinePairs(LossSection):
    """Rows with the same label are to have similar mean hidden states, rows with different ones dissimilar ones."""

    role: ClassVar[Role] = "task"
    kinds: ClassVar[tuple[Kind, ...]] = ("categorical",)

    type: Literal["cosine_pairs"] = "cosine_pairs"
    group_size: int = Field(default=16, ge=2)
    """So many rows of a batch are compared with each other; ``train.global_batch_size`` is a multiple of it."""


Loss = Annotated[TaskLoss | ForwardKl | LogitMse | HiddenMse | HiddenCosine | CosinePairs, Field(discriminator="type")]

SECTIONS: dict[str, type[LossSection]] = {
    kind.model_fields["type"].default: kind
    for kind in (TaskLoss, ForwardKl, LogitMse, HiddenMse, HiddenCosine, CosinePairs)
}
"""Every loss by its ``type``."""

TASK_ALONE: dict[str, Loss] = {"task": TaskLoss()}
"""Of a stage in which no teacher speaks."""
