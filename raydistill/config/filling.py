"""What a config leaves out and what it says implies, as plain data: before it is read into the tree."""

from __future__ import annotations

from typing import Any

from raydistill.config.data import EACH_EPOCH, PICTURE_WAYS
from raydistill.config.losses import ForwardKl
from raydistill.config.tasks import SECTIONS, task_type

DEFAULT_TOP_K = 64
"""Likeliest tokens of which a record keeps the probabilities: bytes a hidden token are 8 times as many."""


def with_method(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data that says what a length or a learning rate of the user's own for the teacher implies."""
    teacher = data.get("teacher")
    if not isinstance(teacher, dict):
        return data
    members = teacher.get("members")
    if isinstance(members, dict):
        return {**data, "teacher": {**teacher, "members": {n: with_full_method(one) for n, one in members.items()}}}
    return {**data, "teacher": with_full_method(teacher)}


def with_full_method(teacher: Any) -> Any:
    """One teacher's section, with that."""
    finetune = teacher.get("finetune") if isinstance(teacher, dict) else None
    if not isinstance(finetune, dict):
        return teacher
    is_written = any(finetune.get(name, "auto") != "auto" for name in ("num_epochs", "learning_rate"))
    method = {"method": "full"} if is_written and finetune.get("method", "auto") == "auto" else {}
    return {**teacher, "finetune": {**finetune, **method}}


def section_of(task: Any) -> Any:
    """The class of a task's section; None where its type is none that is known, or no word at all."""
    kind = task_type(task)
    return SECTIONS.get(kind) if isinstance(kind, str) else None


def with_ways(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data that says how pictures are seen otherwise where it says that they are."""
    section, rows = section_of(data.get("task", {})), data.get("data")
    augment = rows.get("augment") if isinstance(rows, dict) else None
    if section is None or not section.reads_pictures or not isinstance(rows, dict) or not isinstance(augment, dict):
        return data
    return {**data, "data": {**rows, "augment": {"ways": [*PICTURE_WAYS], **augment}}}


def with_mode(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data that says where a teacher is asked whose rows are others at each epoch: beside the student. So it is
    where tokens are hidden, or, where such rows have copies, it is asked once; then how many tokens are kept."""
    task, teacher, rows = data.get("task"), data.get("teacher"), data.get("data")
    section = section_of(task) if isinstance(task, dict) else None
    if not isinstance(task, dict) or section is None:
        return data
    if not isinstance(teacher, dict) or teacher.get("type", "model") != "model":
        return data
    mode = teacher.get("mode", "auto")
    augment = rows.get("augment") if isinstance(rows, dict) else None
    if isinstance(augment, dict) and augment.get("copies") == EACH_EPOCH and mode == "auto":
        return {**data, "teacher": {**teacher, "mode": "online"}}
    if not section.over_vocabulary:
        return data
    if mode == "auto":
        mode = "online" if task.get("copies", 1) == 1 else "cached"
    kept = {"top_k": DEFAULT_TOP_K} if mode == "cached" and task.get("top_k") is None else {}
    return {**data, "teacher": {**teacher, "mode": mode}, "task": {**task, **kept}}


def with_stages(data: dict[str, Any]) -> dict[str, Any]:
    """Plain data with the stages that it leaves out: there is one, and one without losses learns soft targets (or the
    teacher's numbers, where there are no classes) and the task, of objects boxes, too; of embeddings the teacher's
    vectors and how they lie to each other; of hidden tokens DistilBERT's three terms, 5 : 2 : 1
    (https://arxiv.org/abs/1910.01108)."""
    stages, section = data.get("stages", {"distill": {}}), section_of(data.get("task", {}))
    if not isinstance(stages, dict):
        return data
    soft = "forward_kl" if section is None or section.kind in ForwardKl.kinds else "logit_mse"
    losses: dict[str, Any] = {"kd": {"type": soft}, "task": {"type": "task", "weight": 0.5}}
    if section is not None and section.kind == "boxes":
        losses |= {"boxes": {"type": "boxes"}}
    if section is not None and section.kind == "vector":
        losses = {"vectors": {"type": "vector_mse"}, "similarities": {"type": "similarity_matrix"}}
    if section is not None and section.over_vocabulary:
        losses |= {"task": {"type": "task", "weight": 0.4}, "hidden": {"type": "hidden_cosine", "weight": 0.2}}
    filled = {n: {"losses": losses, **stage} if isinstance(stage, dict) else stage for n, stage in stages.items()}
    return {**data, "stages": filled}
