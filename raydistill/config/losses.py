"""The settings of every loss, and their union on ``type``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raydistill.config.section import Section

LayerChoice = Literal["auto", "uniform", "last", "first"]


Role = Literal["task", "distillation", "representation"]
"""What a loss learns from: labels, the teacher's predictions, or what the teacher computes on the way to them."""


class LossSection(Section):
    """One term of the student's loss."""

    role: ClassVar[Role] = "distillation"

    weight: float = Field(default=1.0, ge=0)
    """Factor of this term in the sum of all losses; 0 switches its gradient off."""


class LayerLossSection(LossSection):
    """A term that compares mapped layers of student and teacher."""

    role: ClassVar[Role] = "representation"

    layers: LayerChoice | tuple[tuple[int, int], ...] = "auto"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class TaskLoss(LossSection):
    """The task's own loss on labelled rows."""

    role: ClassVar[Role] = "task"

    type: Literal["task"] = "task"


class ForwardKl(LossSection):
    """Soft targets: T² · KL(teacher ‖ student)."""

    type: Literal["forward_kl"] = "forward_kl"
    temperature: float = Field(default=2.0, gt=0)
    """T, by which the logits of both are divided: the higher, the more the less likely classes count."""


class LogitMse(LossSection):
    """Mean squared difference of the logits."""

    type: Literal["logit_mse"] = "logit_mse"


class HiddenMse(LayerLossSection):
    """Mean squared difference of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_mse"] = "hidden_mse"


class HiddenCosine(LayerLossSection):
    """1 - cosine of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_cosine"] = "hidden_cosine"
    layers: LayerChoice | tuple[tuple[int, int], ...] = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


Loss = Annotated[TaskLoss | ForwardKl | LogitMse | HiddenMse | HiddenCosine, Field(discriminator="type")]

TASK_ALONE: dict[str, Loss] = {"task": TaskLoss()}
"""Of a stage in which no teacher speaks."""
