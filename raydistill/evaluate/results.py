"""From outputs and measurements to ``results.json``, schema 2.

All figures are plain JSON (no NaN: what is not defined is null), floats have 6 significant digits.

==================  ================================================================================================
field               meaning
==================  ================================================================================================
schema              2; grows when a field changes its meaning or goes away
run_id              MLflow run; null without one
model_version       version in the registry; null when the student was not registered
challenger          {taken, why}: whether that version took the alias challenger, and if not, why; added by the
                    pipeline, null or absent when it was not registered
task                {type, metrics: [those that tables show, the main one first], main_metric, guessing: what a model
                    is that learned nothing, facts: what rebuilds the task}
labels              names of the outputs, in their order
data                {num_rows: {split: rows}, labeled: {split: labelled rows}, per_class: {split: {output: labelled
                    rows}}, {} where that has no meaning, summary: the targets in a line}
bootstrap           {samples, level}: resampling by example behind low and high, see ``evaluate.intervals``
student, teacher    a model, below; several teachers are one, without path, which predicts their weighted mean, and its
                    ``members``: {name: {weight, path, validation, test: {metric: value} of it alone}}
baseline            a model, and its ``steps`` and ``start``: the same student trained without a teacher; or null
tfidf               a model, without path, latency and throughput, and its ``model``, in words, and ``num_rows``, the
                    labelled rows that it was fitted to: a linear model on TF-IDF of one and two words; or null
champion            a model, and its registry ``version``; or null
seeds               null, or with evaluate.seeds {num, student, baseline}; each null or {seed: of the median one by the
                    validation metric, which is the one above; test: {metric: {mean, sd}}, sd of a sample; values: list
                    of {seed, metric: value on test}}
retention           student ÷ teacher on test, of perplexity, RMSE and MAE teacher ÷ student: {metric: value} of those
                    for which that makes sense; null where what is divided by is <= 0
agreement           how far student and teacher say the same on test rows, labelled or not; 1 where they always do
differences         {student_minus_teacher, student_minus_baseline, student_minus_tfidf, student_minus_champion,
                    teacher_minus_baseline}: each null or {metric: {value, low, high}} on test, paired
ratios              student ÷ teacher: {num_parameters, bytes, latency_p50, throughput}
seconds             {phase: seconds}, ``start`` what is in none of them (imports, Ray, MLflow), ``total``, their sum
reused              names of the artefacts that were there already
curves              {student, baseline, teacher}: list of {step, metrics: {name: value}}, at most 400 points and all
                    those with a ``validation/`` metric
disagreements       up to 20 test rows on which student and teacher contradict each other, the plainest first: list of
                    {row, text, text_pair, label, student, teacher}; texts cut to 500 characters, ``text_pair`` may be
                    null, ``label`` is the target in words or null, a model {answer: in words, sure: 0 to 1 or null}; of
                    pictures ``text`` is the name, and ``image`` a small copy as a data URI
errors              the same of up to 10 labelled test rows which the student answers wrongly, the plainest first
robustness          {metric, perturbations: {lower, upper, typos, half}, left_out: {perturbation: why it says nothing
                    of such rows}} of the test rows written otherwise, see ``data.perturbations``, or null; each
                    {rows_changed: share of the rows that models read otherwise, same_because: why none is, or null,
                    models: {teacher, student[, baseline]: {value, low, high of the metric, change: {value, low, high}
                    against the rows as they are, paired, same_part: where a part of the rows is left, {value, low,
                    high} on that part as it was, which the change is against, else null}}, null where no row is
                    changed, student_minus_teacher: {value, low, high} of the difference of their changes, paired,
                    is_more_fragile: whether the student loses more beyond chance, see ``evaluate.robustness``}
layers              pairs [student, teacher] of layers, counted from 1, 0 the embeddings: {student, teacher: number of
                    layers; start: what the student was cut from, empty for a random start or a checkpoint's; losses:
                    {stages.<stage>.losses.<name>: pairs} of the losses that compare hidden states; similarities: where
                    a loss has ``layers: auto`` the linear CKA of the student's hidden states, before any training, with
                    the teacher's, [student][teacher], or null}
config              the config of the run, without credentials, with everything chosen that it left open
choices             list of {name, value, why}: what was chosen, added by the pipeline
decision            {decision: ship, do not ship or cannot tell yet, reason: a sentence, next: a sentence}: whether the
                    default gate would pass the student, as far as it needs neither champion nor other rows
verdict             the result in a sentence or two
notes               sentences about data and run, added by the pipeline
report              where the run's page lies, added by the pipeline; null where it could not be drawn

a model
path                where its Hugging Face folder lies
num_parameters      numbers in it
bytes               size on disk of weights and config
latency_ms          {p50, p95} of one row; null when not measured, as the next two
throughput          rows a second at batch size latency_setting.batch_size
latency_setting     {batch_size, length, repeats, waited, threads, device, dtype}; waited: share of the CPU time asked
                    for that other work had: above 0.1 the figures are too high, which a note says
latency_by_shape    list of {batch_size, length, ms}: median of one call of teacher and student, in turns, the smallest
                    shape first; ms is null for those that would have taken too long. Null for others: a baseline has
                    the student's shape
validation, test    {metric: {value, low, high}}, all metrics of the task; validation may be null
agreement           with the teacher on test
diverged            {setting, value, why} of the learning rate at which its training diverged, or null
chance              {at_chance, reason, why, metric, value, answer}, see ``evaluate.compare.chance``
per_class           test: list of {name, precision, recall, f1, support, predicted}, with several labels a row also
                    {auc, threshold}, of words a type of entity each; this and what follows only where the task has them
entity_errors       test: labelled entities {exact, wrong_type, wrong_border, overlapped (both), missed}, and those
                    ``invented`` where none is
answer_errors       test: questions answered {right, one_word_off, overlapping (with a right answer), elsewhere,
                    not_answered (though there is an answer), invented (though there is none)}
box_errors          test: answers {right, misplaced (on an object, with a box that is off), confused (of another class),
                    invented}, and objects missed
threshold           score from which on what a detector finds is an answer
confusion           test: rows counted [label][prediction]
pairwise_pr_auc     test: area under the precision-recall curve (average precision) of telling class i from class j,
                    [i][j], on the rows of these two; null where i = j or one has no row. Random scores reach the share
                    of class i in these rows. Of more than 100 classes it is left out
reliability         test: list of {confidence, accuracy, rows}, the non-empty ones of 15 bins
scatter             test: pairs [target, output] of up to 500 rows
==================  ================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raydistill.evaluate.bootstrap import LEVEL
from raydistill.evaluate.compare import retention
from raydistill.evaluate.decision import decide
from raydistill.evaluate.divergence import Divergence
from raydistill.evaluate.robustness import Perturbed, robustness
from raydistill.evaluate.scoreboard import Scoreboard, describe_task
from raydistill.evaluate.verdict import verdict
from raydistill.storage.redaction import redact_tree
from raydistill.tasks.base import Task
from raydistill.tasks.targets import Array, Targets

SCHEMA = 2
MODELS = ("teacher", "student", "baseline", "tfidf", "champion")
MAX_CURVE_POINTS = 400


@dataclass(frozen=True)
class SplitRows:
    """Identity and targets of the rows of a split, in the order of every model's outputs."""

    targets: Targets
    """A row without a label counts for agreement only."""
    example_ids: Array
    """(N,) int64; rows of one example are resampled together."""


@dataclass(frozen=True)
class ModelOutcome:
    """What was measured of one model."""

    path: str | None
    num_parameters: int
    num_bytes: int
    task: Task
    """With the model's own thresholds, where it has any."""
    test: Array
    """Outputs (N, C)."""
    validation: Array | None = None
    """Outputs (N, C); None for a champion of which only the test predictions were kept."""
    latency: Mapping[str, Any] | None = None
    """As ``evaluate.latency.measure_models`` returns it."""
    latency_by_shape: Sequence[Mapping[str, Any]] | None = None
    """As ``evaluate.latency.measure_shapes`` returns it."""
    perturbed: Mapping[str, Array] = field(default_factory=dict)
    """By perturbation, outputs (N, C) on the test rows so written, where they read otherwise."""
    diverged: Divergence | None = None
    """Where its training did."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """``steps`` and ``start`` of a baseline, ``model`` and ``num_rows`` of one on TF-IDF, ``version`` of a champion,
    ``members`` of several teachers."""


@dataclass(frozen=True)
class RunMeasurements:
    """All that ``build_results`` needs of one run."""

    task: Task
    validation: SplitRows
    test: SplitRows
    teacher: ModelOutcome
    student: ModelOutcome
    baseline: ModelOutcome | None = None
    tfidf: ModelOutcome | None = None
    champion: ModelOutcome | None = None
    run_id: str | None = None
    model_version: int | None = None
    num_rows: Mapping[str, int] = field(default_factory=dict)
    labeled: Mapping[str, int] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Labelled rows by split and output; empty where that has no meaning."""
    summary: str = ""
    """The targets of the training rows in a line."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    reused: Sequence[str] = ()
    curves: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """``student``, ``baseline``, ``teacher`` -> list of {step, metrics}."""
    disagreements: Sequence[Mapping[str, Any]] = ()
    """As ``evaluate.disagreements.describe_rows`` returns them, like ``errors``."""
    errors: Sequence[Mapping[str, Any]] = ()
    layers: Mapping[str, Any] | None = None
    """{student, teacher, start, losses, similarities}, as in results.json."""
    perturbed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By perturbation the test rows whose ``texts`` and ``tokens`` are changed; empty where none is asked for."""
    perturbed_targets: Mapping[str, Targets] = field(default_factory=dict)
    """By perturbation, of the test rows so written."""
    seeds: Mapping[str, Any] | None = None
    """As in results.json."""
    config: Mapping[str, Any] = field(default_factory=dict)
    num_samples: int = 1000
    seed: int = 0


def build_results(outcome: RunMeasurements) -> dict[str, Any]:
    """The content of results.json, in strict JSON types. Raises DataError or ModelError as ``Scoreboard``."""
    named = {name: getattr(outcome, name) for name in MODELS}
    models: dict[str, ModelOutcome] = {name: model for name, model in named.items() if model is not None}
    validated = {name: model.validation for name, model in models.items() if model.validation is not None}
    validation = _scoreboard(outcome, outcome.validation, validated)
    test = _scoreboard(outcome, outcome.test, {name: model.test for name, model in models.items()})
    sections = {
        name: _section(name, model, test, validation.intervals(name) if name in validated else None)
        for name, model in models.items()
    }
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": outcome.run_id,
        "model_version": outcome.model_version,
        "task": None,
        "labels": list(outcome.task.outputs),
        "data": {
            "num_rows": dict(outcome.num_rows),
            "labeled": {**outcome.labeled, "test": test.num_rows},
            "per_class": {split: dict(counts) for split, counts in outcome.per_class.items()},
            "summary": outcome.summary,
        },
        "bootstrap": {"samples": outcome.num_samples, "level": LEVEL},
        **{name: sections.get(name) for name in named},
        "seeds": outcome.seeds,
        "retention": retention(test.scores["student"].values, test.scores["teacher"].values),
        "agreement": sections["student"]["agreement"],
        "differences": {
            f"student_minus_{other}": test.differences(other, "student") if other in models else None
            for other in MODELS
            if other != "student"
        }
        | {"teacher_minus_baseline": test.differences("baseline", "teacher") if "baseline" in models else None},
        "ratios": _ratios(sections["student"], sections["teacher"]),
        "seconds": dict(outcome.seconds),
        "reused": list(outcome.reused),
        "curves": {name: _thin(points) for name, points in outcome.curves.items()},
        "disagreements": outcome.disagreements,
        "errors": outcome.errors,
        "robustness": _robustness(outcome, models) if outcome.perturbed else None,
        "layers": outcome.layers,
    }
    exact = {"task": describe_task(outcome.student.task), "config": redact_tree(dict(outcome.config))}
    results = strict_json(results) | strict_json(exact, digits=None)
    return results | {"decision": decide(results), "verdict": verdict(results)}


def _scoreboard(outcome: RunMeasurements, rows: SplitRows, outputs: Mapping[str, Array]) -> Scoreboard:
    return Scoreboard(
        {name: getattr(outcome, name).task for name in outputs},
        outputs,
        rows.targets,
        example_ids=rows.example_ids,
        num_samples=outcome.num_samples,
        seed=outcome.seed,
    )


def _robustness(outcome: RunMeasurements, models: Mapping[str, ModelOutcome]) -> dict[str, Any]:
    """Of the models that the run has made; of others only what they say of the rows as they are is known."""
    own = {name: model for name, model in models.items() if name in ("teacher", "student", "baseline")}
    perturbed = [
        Perturbed(
            kind,
            len(outcome.test.targets),
            changed["texts"],
            changed["tokens"],
            {name: model.perturbed[kind] for name, model in own.items()} if changed["tokens"] else {},
            outcome.perturbed_targets.get(kind),
        )
        for kind, changed in outcome.perturbed.items()
    ]
    return robustness(
        {name: model.task for name, model in own.items()},
        {name: model.test for name, model in own.items()},
        perturbed,
        outcome.test.targets,
        example_ids=outcome.test.example_ids,
        num_samples=outcome.num_samples,
        seed=outcome.seed,
    )


def _section(name: str, model: ModelOutcome, test: Scoreboard, validated: Mapping[str, Any] | None) -> dict[str, Any]:
    latency = dict(model.latency or {})
    return {
        "path": model.path,
        "num_parameters": model.num_parameters,
        "bytes": model.num_bytes,
        "latency_ms": latency.pop("latency_ms", None),
        "throughput": latency.pop("throughput", None),
        "latency_setting": latency or None,
        "latency_by_shape": model.latency_by_shape,
        "validation": validated,
        "test": test.intervals(name),
        "agreement": test.agreement(name, "teacher"),
        "chance": test.chance(name),
        "diverged": None if model.diverged is None else vars(model.diverged),
        **test.details(name),
        **model.more,
    }


def _ratios(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {n: student[n] / teacher[n] for n in ("num_parameters", "bytes")}
    measured = student["latency_ms"] is not None and teacher["latency_ms"] is not None
    ratios["latency_p50"] = student["latency_ms"]["p50"] / teacher["latency_ms"]["p50"] if measured else None
    ratios["throughput"] = student["throughput"] / teacher["throughput"] if measured else None
    return ratios


def _thin(points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th point, so that MAX_CURVE_POINTS are left, and all points with a validation metric."""
    stride = max(1, math.ceil(len(points) / MAX_CURVE_POINTS))
    return [
        {"step": point["step"], "metrics": dict(point["metrics"])}
        for i, point in enumerate(points)
        if i % stride == 0 or any(name.startswith("validation/") for name in point["metrics"])
    ]


def strict_json(value: Any, digits: int | None = 6) -> Any:
    """The same value in JSON types: numpy to Python, tuples to lists, NaN and infinities to None, floats rounded."""
    if isinstance(value, Mapping):
        return {str(key): strict_json(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [strict_json(item, digits) for item in value]
    if isinstance(value, np.generic):
        return strict_json(value.item(), digits)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    return value
