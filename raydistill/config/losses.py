"""The settings of every loss, and their union on ``type``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydistill.config.section import Section

LayerChoice = Literal["auto", "uniform", "last", "first"]


class LossSection(Section):
    """One term of the student's loss."""

    weight: float = Field(default=1.0, ge=0)
    """Factor of this term in the sum of all losses; 0 switches its gradient off."""


class TaskLoss(LossSection):
    """The task's own loss on labelled rows."""

    type: Literal["task"] = "task"


class ForwardKl(LossSection):
    """Soft targets: T² · KL(teacher ‖ student)."""

    type: Literal["forward_kl"] = "forward_kl"
    temperature: float = Field(default=2.0, gt=0)
    """T, by which the logits of both are divided: the higher, the more the less likely classes count."""


class LogitMse(LossSection):
    """Mean squared difference of the logits."""

    type: Literal["logit_mse"] = "logit_mse"


class HiddenMse(LossSection):
    """Mean squared difference of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_mse"] = "hidden_mse"
    layers: LayerChoice | tuple[tuple[int, int], ...] = "auto"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


class HiddenCosine(LossSection):
    """1 - cosine of hidden states of mapped layers, over real tokens."""

    type: Literal["hidden_cosine"] = "hidden_cosine"
    layers: LayerChoice | tuple[tuple[int, int], ...] = "last"
    """Layer map, or pairs [student layer, teacher layer]; 0 is the embeddings, i the output of layer i."""


Loss = Annotated[TaskLoss | ForwardKl | LogitMse | HiddenMse | HiddenCosine, Field(discriminator="type")]
