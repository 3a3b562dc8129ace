"""Ways to make a teacher out of an encoder and labels: ``teacher.finetune.method``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from raydistill.config.losses import TASK_ALONE, CosinePairs, Loss
from raydistill.config.section import known
from raydistill.config.teacher import Finetune, pair_group
from raydistill.config.training import Stage
from raydistill.errors import ConfigError, Diverged
from raydistill.evaluate.predict import predict
from raydistill.models.embedding import add_layer
from raydistill.models.head import output_layer, vector_width
from raydistill.models.pictures import settle
from raydistill.models.pooled import HEAD, headless
from raydistill.pipeline.context import Context
from raydistill.pipeline.stages import StageReport, stage_history, stage_lengths, stage_reports, untrained
from raydistill.train.calibration import fit_temperature
from raydistill.train.probe import STRENGTHS, constant_loss, fit_head
from raydistill.train.schedule import Schedule

Tuned = tuple[PreTrainedModel, list[dict[str, Any]]]
"""A model and its history."""

EARLY = 0.4
"""Share of the steps after which a training that has not begun to learn is given up; where its end is open it has the
least length: a tagger of rare entities answered none for the first 100 of 150 steps, and half the rate was worse."""
MAX_COMPONENT_ROWS = 20_000
"""Training rows by which principal components are found."""
LEARNED = 0.98
"""Share of a constant answer's loss; a training above it has learned nothing."""


def tune(context: Context, folder: Path, settings: Finetune | None) -> Tuned:
    """The model in ``folder`` tuned on the labelled rows, its probabilities calibrated on the validation rows; its
    vectors brought to the width of the config."""
    if settings is None:
        model, history = context.load(folder, dropout=0.0), untrained()
    else:
        model, history = tuned(context, folder, settings)
    if (width := context.config.task.num_components) is not None:
        narrow(context, model, width)
    return model, history


def tuned(context: Context, folder: Path, settings: Finetune) -> Tuned:
    """The model tuned and calibrated."""
    methods: dict[str, Callable[[Context, Path, Finetune], Tuned]] = {
        "full": full,
        "probe": probe,
        "contrastive": contrastive,
    }
    context.report.attempt = 1  # another teacher of several may have taken more
    model, history = methods[known(settings.method)](context, folder, settings)
    calibrate(context, model)
    return model, history


def full(context: Context, folder: Path, settings: Finetune) -> Tuned:
    """Train all of it on the task's loss; once more, with another order and half the rate, where it learns nothing."""
    floor = math.inf  # an encoder compares texts already, and knows more of tokens than how frequent they are
    if context.task.outputs and context.task.has_plain_outputs:
        floor = LEARNED * constant_loss(context.task, context.rows["train"].targets)
    metric, attempts = settings.metric or context.config.task.teacher_metric, settings.max_attempts or 1
    for attempt in range(attempts):
        seed, rate = context.config.seed + attempt, known(settings.learning_rate) / 2**attempt
        name = "finetune" if attempt == 0 else f"attempt{attempt + 1}"
        context.report.attempt = attempt + 1
        model = context.load(folder, dropout=None, sequences=settings.head, seed=seed)
        settle(model, context.rows["train"].sample())
        stages = stage_of(name, settings, TASK_ALONE, rate)
        losses = {entry["step"]: entry["train/loss"] for entry in context.history("teacher", name)}
        reports = partial(stage_reports, context, "teacher", model, stages, {}, None, labeled_only=True)
        look_at = patience(stage_lengths(context, "teacher", stages)[name])
        is_last = attempt + 1 == attempts
        try:
            with closing(reports(metric=metric, seed=seed)) as told:
                failure = watched(told, losses, look_at, math.inf if is_last else floor)
        except Diverged as error:
            if is_last:
                raise
            failure = str(error)
        if failure is None:
            about = {"attempt": attempt + 1} if attempt else {}
            return model, [entry | about for entry in stage_history(context, "teacher", stages)]
        context.report.notes.append(
            f"The teacher's training was begun again, with another order of the rows and a learning rate of "
            f"{rate / 2:g}: {failure}"
        )
    raise AssertionError("the last attempt returns or raises")


def patience(length: Schedule) -> float:
    """The step by which a training should have begun to learn."""
    return length.fewest_steps * (EARLY if length.min_steps is None else 1.0)


def watched(reports: Iterable[StageReport], losses: dict[int, float], look_at: float, floor: float) -> str | None:
    """Take a training's reports, to the end or up to where it has failed; what is wrong then, a sentence.

    ``look_at``: the step from which on it has failed if the mean of its losses since half of that is above ``floor``.
    """
    is_judged = False
    for told in reports:
        losses[told.step] = told.report.metrics["train/loss"]
        if not is_judged and told.step >= look_at:
            is_judged = True
            recent = [loss for step, loss in losses.items() if step > look_at / 2]
            if (loss := float(np.mean(recent))) > floor:
                return f"after {told.step} of {told.num_steps} steps its loss was {loss:.3f}, as if it saw no row."
    return None


def probe(context: Context, folder: Path, settings: Finetune) -> Tuned:
    """A linear head on the mean of the states that the encoder has."""
    model = context.load(folder, dropout=None, pooled=True)
    strength = refit(context, model, STRENGTHS)
    context.report.notes.append(
        f"The teacher is a linear head on frozen states; cross-validation chose its C, {strength:g}."
    )
    metric = settings.metric or context.config.task.teacher_metric
    found = {f"validation/{name}": value for name, value in context.validate(model, metric).metrics.items()}
    return model, [{"step": 0, "validated": True, "kept": True, **found}]


def contrastive(context: Context, folder: Path, settings: Finetune) -> Tuned:
    """Draw rows with the same label together and others apart; then a linear head on the mean of the states."""
    model = context.load(folder, dropout=None, pooled=True)
    losses: dict[str, Loss] = {"pairs": CosinePairs(group_size=pair_group(context.config.train.global_batch_size))}
    stages = stage_of("contrastive", settings, losses, known(settings.learning_rate), f"{HEAD}.*")
    reports = stage_reports(
        context,
        "teacher",
        model,
        stages,
        {},
        None,
        labeled_only=True,
        metric=settings.metric or context.config.task.teacher_metric,
        before_validation=partial(refit, context, model, (1.0,)),
    )
    for _ in reports:
        pass
    return model, stage_history(context, "teacher", stages)


def narrow(context: Context, model: PreTrainedModel, width: int) -> None:
    """Let a sentence encoder end with a projection to the principal components of its vectors of the training texts, as
    sentence-transformers does it: without their mean. Raises ConfigError where they are too few."""
    rows = context.rows["train"]
    ids = np.sort(np.random.default_rng(context.config.seed).permutation(rows.num_rows)[:MAX_COMPONENT_ROWS])
    found = predict(
        model, rows, tokens=context.inference_tokens, device=context.device, group=context.group, row_ids=ids
    )
    vectors = found.reshape(-1, vector_width(model.config)).astype(np.float64)
    most = min(vectors.shape[1] - 1, len(vectors))
    if width > most:
        raise ConfigError(
            f"task.width: {width} principal components of {len(vectors):,} training texts, whose vectors have "
            f"{vectors.shape[1]} numbers: set it to {most} or less, or leave it out."
        )
    values, components = np.linalg.eigh(np.cov(vectors, rowvar=False))  # ascending
    signs = np.sign(components[np.abs(components).argmax(axis=0), np.arange(len(values))])
    add_layer(model, torch.from_numpy((components * signs).T[::-1][:width].astype(np.float32).copy()))
    kept = float(values[::-1][:width].sum() / values.sum())
    context.report.notes.append(
        f"The teacher's vectors were brought to {width} principal components, which have {100 * kept:.1f} % of the "
        f"variance of the vectors of {len(vectors):,} training texts."
    )


def stage_of(name: str, settings: Finetune, losses: dict[str, Loss], rate: float, *frozen: str) -> dict[str, Stage]:
    told = settings.model_dump(exclude={"metric", "method", "head", "max_attempts", "learning_rate", "freeze"})
    return {name: Stage(**told, losses=losses, learning_rate=rate, freeze=(*settings.freeze, *frozen))}


def refit(context: Context, model: PreTrainedModel, strengths: tuple[float, ...]) -> float:
    """Bring the head of a model with mean states to its optimum on the labelled rows; the C that it goes by."""
    rows = context.rows["train"]
    ids = np.flatnonzero(rows.targets.labeled)
    model.eval()
    with headless(model):
        found = predict(
            model, rows, tokens=context.inference_tokens, device=context.device, group=context.group, row_ids=ids
        )
    own = rows.targets.take(ids), context.task, strengths, rows.example_ids[ids]
    return fit_head(output_layer(model), torch.from_numpy(found), *own)


def calibrate(context: Context, model: PreTrainedModel) -> None:
    """Divide the logits by the temperature that fits the validation rows best: a student learns the probabilities."""
    if context.task.kind == "value" or not context.task.outputs or not context.task.has_plain_outputs:
        return
    parts = [context.labeled(model, split, one_order=True) for split in context.orders("validation")]
    outputs, targets = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
    chain = getattr(model, "crf", None)
    temperature = fit_temperature(context.task, outputs, targets, None if chain is None else chain.scores())
    with torch.no_grad():
        for part in (output_layer(model), *([] if chain is None else [chain])):
            for parameter in part.parameters():
                parameter.div_(temperature)
    context.report.notes.append(
        f"The teacher's logits were divided by {temperature:.2f}, which fits its probabilities to the {len(targets):,} "
        "validation rows."
    )
