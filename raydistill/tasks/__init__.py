"""Tasks: a folder or file a kind of problem, which answers for all that differs between them; see ``base.Task``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raydistill.config.plugins import find
from raydistill.config.tasks import TaskSection
from raydistill.errors import ConfigError
from raydistill.models.head import SEQUENCE, kind_of_head, output_names
from raydistill.tasks.base import Task
from raydistill.tasks.embeddings import Embeddings
from raydistill.tasks.image_classification import ImageClassification
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.question_answering import QuestionAnswering
from raydistill.tasks.regression import TextRegression
from raydistill.tasks.targets import Targets
from raydistill.tasks.text_classification import TextClassification
from raydistill.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["SYMMETRIC", "TASKS", "TASK_TYPE", "Targets", "Task", "kind_of", "task_of", "task_of_model"]

TASK_TYPE = "task_type"
"""In a student's config.json: the task that it was trained for."""
SYMMETRIC = "symmetric_pairs"
"""In a student's config.json, where ``data.symmetric`` was on: it answers with the mean of a pair's two orders."""
TASKS: dict[str, type[Task]] = {
    kind.type: kind
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


def kind_of(settings: TaskSection) -> type[Task]:
    """The class of the task that a config section asks for, before its data is known."""
    return named(settings.type)  # type: ignore[attr-defined]


def task_of(facts: Mapping[str, Any]) -> Task:
    """The task that ``facts``, as it told them, describe."""
    told = dict(facts)
    return named(told.pop("type"))(**told)


def named(kind: str) -> type[Task]:
    """The task of a type, built in or one that joined. Raises ConfigError for a type that nobody has."""
    found: Any = TASKS.get(kind) or find("tasks", kind)
    if found is None:
        raise ConfigError(f"There is no task of type {kind!r} here. Install the package that has it.")
    task: type[Task] = found
    return task


def task_of_model(config: PreTrainedConfig) -> Task:
    """The task of a finished model, from its config: the type that it was trained for where that is known here, else
    by ``problem_type``, else by the number of its outputs."""
    outputs = output_names(config)
    own: Any = find("tasks", str(getattr(config, TASK_TYPE, None)))
    known = {task.problem_type: task for task in TASKS.values() if task.problem_type and task.head_kind == SEQUENCE}
    usual: type[Task] = TextRegression if len(outputs) == 1 else TextClassification
    if (head := kind_of_head(config)) != SEQUENCE:
        known, usual = {}, next(task for task in TASKS.values() if task.head_kind == head)
    task = own or known.get(str(getattr(config, "problem_type", None)), usual)
    return task.of_model(outputs, config.to_dict())
