"""Losses: one file a family. ``build_losses`` turns the named dict of the config into modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from raydistill.config import losses as settings
from raydistill.config.plugins import find
from raydistill.config.training import Stage
from raydistill.losses.attention import AttentionKl, AttentionLoss, AttentionMse, Minilm, MinilmV2
from raydistill.losses.base import Loss, Losses
from raydistill.losses.boxes import Boxes, BoxFeatures
from raydistill.losses.contrastive import CosinePairs, Crd
from raydistill.losses.gradients import GradientAttention, GradientMatch
from raydistill.losses.graph import GraphAttention
from raydistill.losses.hidden import HiddenCosine, HiddenKl, HiddenLoss, HiddenMse, Pkd, PooledCosine
from raydistill.losses.logits import Dist, Dkd, ForwardKl, Jsd, LogitMse, ReverseKl, SoftCrossEntropy, SoftLoss
from raydistill.losses.relations import RkdAngle, RkdDistance
from raydistill.losses.sequences import KBest, Likelihood
from raydistill.losses.task import TaskLoss
from raydistill.losses.vectors import SimilarityMatrix, VectorCosine, VectorMse
from raydistill.models.crf import is_crf, predictions
from raydistill.models.head import vector_width
from raydistill.models.layer_map import layer_map
from raydistill.models.pictures import last_state, state_widths
from raydistill.models.shared import num_shared
from raydistill.models.signals import GRADIENTS, PROJECTIONS, TOP, Signal, State
from raydistill.tasks import Targets, Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

SOFT: dict[str, type[SoftLoss]] = {
    "forward_kl": ForwardKl,
    "reverse_kl": ReverseKl,
    "jsd": Jsd,
    "soft_cross_entropy": SoftCrossEntropy,
    "dkd": Dkd,
    "dist": Dist,
}

HIDDEN: dict[str, type[HiddenLoss]] = {
    "hidden_mse": HiddenMse,
    "hidden_cosine": HiddenCosine,
    "hidden_kl": HiddenKl,
    "embedding_mse": HiddenMse,
    "pkd": Pkd,
    "pooled_cosine": PooledCosine,
    "box_features": BoxFeatures,
}

ATTENTION: dict[str, type[AttentionLoss]] = {
    "attention_mse": AttentionMse,
    "attention_kl": AttentionKl,
    "minilm": Minilm,
}

__all__ = [
    "AttentionKl",
    "AttentionMse",
    "BoxFeatures",
    "Boxes",
    "CosinePairs",
    "Crd",
    "Dist",
    "Dkd",
    "ForwardKl",
    "GradientAttention",
    "GradientMatch",
    "GraphAttention",
    "HiddenCosine",
    "HiddenKl",
    "HiddenMse",
    "Jsd",
    "KBest",
    "Likelihood",
    "LogitMse",
    "Loss",
    "Losses",
    "Minilm",
    "MinilmV2",
    "Pkd",
    "PooledCosine",
    "ReverseKl",
    "RkdAngle",
    "RkdDistance",
    "SimilarityMatrix",
    "SoftCrossEntropy",
    "TaskLoss",
    "VectorCosine",
    "VectorMse",
    "build_losses",
    "build_stages",
    "signal_sizes",
]


def build_losses(
    terms: Mapping[str, settings.Loss],
    task: Task,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    *,
    seed: int,
    targets: Targets | None = None,
) -> Losses:
    """Build the named losses for a student and a teacher of these shapes; projections start from ``seed``.

    ``teacher`` may be None where no term needs one. ``targets``: of the training rows, by which classes are balanced;
    None where losses are only asked what they need.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        losses = Losses({name: build_loss(term, task, student, teacher, targets) for name, term in terms.items()})
    if teacher is not None:
        losses.begins_at = beginning(num_shared(student) or 0, losses.student_needs)
    return losses


def beginning(num_shared: int, needs: Collection[Signal]) -> Signal | None:
    """The states behind the shared layers, where nothing that is needed of the student lies before them."""
    first = {"hidden_states": num_shared, **dict.fromkeys(PROJECTIONS, num_shared + 1)}
    inside = (signal == GRADIENTS or (signal.layer or 0) < first.get(signal.name, 0) for signal in needs)
    return None if num_shared == 0 or any(inside) else Signal.of("hidden_states", num_shared)


def build_stages(
    stages: Mapping[str, Stage],
    task: Task,
    student: PretrainedConfig,
    teacher: PretrainedConfig,
    *,
    seed: int,
) -> dict[str, Losses]:
    """Build the losses of every stage, by its name."""
    return {name: build_losses(stage.losses, task, student, teacher, seed=seed) for name, stage in stages.items()}


def signal_sizes(
    stages: Mapping[str, Losses],
    teacher: PretrainedConfig,
    num_units: int,
    num_tokens: int,
    states: Sequence[State] = (),
) -> dict[Signal, int]:
    """The signals that the stages' losses ask of the teacher, and the bytes that each takes where it is recorded;
    ``states``: those of a teacher that reads pictures."""
    needs = frozenset[Signal]().union(*(losses.teacher_needs for losses in stages.values()))
    return {signal: signal.num_bytes(teacher, num_units, num_tokens, states) for signal in sorted(needs)}


def options(term: settings.SoftLossSection) -> dict[str, Any]:
    """A term's settings beyond those that all of its family have."""
    return term.model_dump(exclude=set(settings.SoftLossSection.model_fields) | {"type"})


def build_loss(
    term: settings.Loss,
    task: Task,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    targets: Targets | None = None,
) -> Loss:
    """Build one loss: the one place that knows every type; others build themselves, see ``Loss.build``."""
    match term:
        case settings.TaskLoss() if is_crf(student):
            return Likelihood(term.weight)
        case settings.TaskLoss():
            task.check_loss()
            weights = class_weights(term, task, targets)
            return TaskLoss(task, term.weight, weights, term.label_smoothing)
        case settings.SoftLossSection() if term.type in SOFT:
            shared = (term.weight, term.temperature, task.kind, term.standardize, term.confidence)
            soft = SOFT[term.type](*shared, **options(term))
            soft.problem = task.problem
            if teacher is not None:
                kept = predictions(teacher) if task.top_k is None else Signal.of(TOP, task.top_k)
                soft.read(predictions(student), kept)
            return soft
        case settings.KBest():
            return KBest(term.weight, term.k)
        case settings.LogitMse():
            return LogitMse(term.weight)
        case settings.Boxes():
            assert task.problem is not None
            return Boxes(task.problem, term.weight)
        case settings.VectorMse() | settings.VectorCosine():
            compared = VectorMse if isinstance(term, settings.VectorMse) else VectorCosine
            return compared(vector_width(student), term.weight)
        case settings.SimilarityMatrix():
            return SimilarityMatrix(vector_width(student), term.group_size, term.weight)
        case settings.CosinePairs():
            return CosinePairs(last_state(student), term.group_size, term.weight)
        case settings.RkdDistance() | settings.RkdAngle():
            assert teacher is not None
            depths = (last_state(student), last_state(teacher))
            relation = RkdDistance if isinstance(term, settings.RkdDistance) else RkdAngle
            return relation(*depths, term.group_size, term.weight)
        case settings.AttentionLossSection() | settings.MinilmV2():
            assert teacher is not None
            pairs = layer_map(term.layers, student.num_hidden_layers, teacher.num_hidden_layers, term.first_layer)
            if isinstance(term, settings.MinilmV2):
                return MinilmV2(pairs, student, teacher, term.relation_heads, term.weight)
            return ATTENTION[term.type](pairs, student, teacher, term.heads, term.weight)
        case settings.GradientMatch():
            assert teacher is not None
            return GradientMatch(GRADIENTS.width(student), GRADIENTS.width(teacher), term.weight)
        case settings.GradientAttention():
            return GradientAttention(term.weight)
        case settings.GraphAttention() | settings.Crd():
            assert teacher is not None
            depths = (last_state(student), last_state(teacher))
            widths = (state_widths(student)[-1], state_widths(teacher)[-1])
            if isinstance(term, settings.Crd):
                return Crd(depths, widths, term.group_size, term.temperature, weight=term.weight)
            return GraphAttention(depths, widths, term.nodes, term.heads, term.group_size, term.weight)
        case settings.LayerLossSection() | settings.EmbeddingMse() if term.type in HIDDEN:
            assert teacher is not None
            depths = (last_state(student), last_state(teacher))
            pairs = layer_map(term.layers, *depths) if isinstance(term, settings.LayerLossSection) else ((0, 0),)
            more: dict[str, Any] = {"temperature": term.temperature} if isinstance(term, settings.HiddenKl) else {}
            more |= {"problem": task.problem} if isinstance(term, settings.BoxFeatures) else {}
            more |= {"pictures": (student, teacher)} if task.reads_pictures else {}
            return HIDDEN[term.type](pairs, state_widths(student), state_widths(teacher), term.weight, **more)
        case _:
            joined: Any = find("losses", term.type)
            assert joined is not None, f"no loss of type {term.type}"
            loss: Loss = joined.build(term, task, student, teacher)
            return loss


def class_weights(term: settings.TaskLoss, task: Task, targets: Targets | None) -> torch.Tensor | None:
    """The weight of each output (C,), float32; None where all rows count alike."""
    if isinstance(term.class_weights, dict):
        return torch.tensor([term.class_weights.get(name, 1.0) for name in task.outputs])
    if term.class_weights is None or targets is None:
        return None
    return torch.as_tensor(task.balanced_weights(targets), dtype=torch.float32)
