"""Tasks: one file a task, with its loss, cost and decoding."""

from __future__ import annotations

from raydistill.config import tasks as config
from raydistill.tasks.text_classification import TextClassification

__all__ = ["TextClassification", "make_task"]


def make_task(task: config.Task, labels: tuple[str, ...]) -> TextClassification:
    """The task that a config section describes, for the class names ``labels``, in the order of the logits."""
    match task.type:
        case "text_classification":
            return TextClassification(labels)
