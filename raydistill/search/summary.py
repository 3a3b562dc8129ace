"""From a sweep's trials and finalists to ``sweep.json``, schema 1.

Plain JSON (no NaN: what is not defined is null), floats have 6 significant digits; settings and configs are exact.

============  ======================================================================================================
field         meaning
============  ======================================================================================================
schema        1; grows when a field changes its meaning or goes away
kind          ``sweep``
sweep_key     key of the sweep in storage
run_id        MLflow parent run; null without one
search        as in the config, like ``scheduler``, ``objectives`` ({name: max or min})
space         {name: {choice, uniform, loguniform or integer: values}}
constraints   {name: {min, max}}, either may be null
default       {name: value}: what the config itself says for the names of the space
counts        {state: trials in it}
stopped_by    what ended the search: num_trials, max_trials, max_hours, patience, grid; or null
concurrency   trials at a time
trials        list of {number, state, reason, params, measures, step, num_steps (null without a report), validations,
              seconds, setup_seconds, run_id, student, reused, schedule ([[step, params], ...], pbt)}
curves        {number: list of {step, <metric as tracked>: value}}, a point a validation
front         trial numbers of the Pareto front, best by the first objective first
importance    {objective: {name: share}}, shares sum to 1, largest first; by fANOVA over completed trials; {} without
              MIN_TRIALS of them, an objective is left out where all have one value
finalists     list, below
winner        {trial, seed, params, set, student, path}; null without one. ``set``: ["name=value", ...], with which
              ``distill CONFIG --set ...`` gives the same student (under pbt: its settings, not the trial's schedule)
results       results.json of the winner; or null
shapes        what was measured of the student shapes, by the sweep
teacher       {passes, passes_saved, rows}
seconds       {prepare, teacher, search, trials (training, summed), finals, evaluate, register, total}
verdict       the result in a sentence or two
config        the config of the sweep
notes         sentences about data and sweep

a finalist
trial, roles  number, and what it stands for (``best``, ``best <objective>``, ``knee``;
              ``default``: the config's own values)
params        its settings
search        measures of the trial itself, {validation/<metric>, num_parameters, latency_ms: value}
seeds         list of {seed, student, path, validation {metric: value}, test {metric: value}}
validation    {metric: {mean, sd}} over the seeds, as ``test``; sd of a sample (n - 1), null with one seed
shrinkage     {metric: value of the trial in the search - mean on test}; above 0: worse on test, or better if lower is
============  ======================================================================================================
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from raydistill.config.sweep import Distribution, Sweep
from raydistill.config.syntax import as_yaml
from raydistill.config.tree import Config
from raydistill.errors import ModelError
from raydistill.evaluate.intervals import spread
from raydistill.evaluate.results import strict_json
from raydistill.search.front import first_validation, has_values, keeps_constraints
from raydistill.search.ledger import Params, State, Trial
from raydistill.search.space import default_params, sweep_of, value_of
from raydistill.search.verdict import verdict
from raydistill.storage.redaction import redact_tree

SCHEMA = 1
MIN_TRIALS = 20
"""Completed trials below which a share of importance is chance for the most part."""


@dataclass(frozen=True)
class SeedOutcome:
    """A finalist trained again; metric names without ``validation/``."""

    seed: int
    student: str
    """Key of the student artefact."""
    path: str
    validation: dict[str, float]
    test: dict[str, float]


@dataclass(frozen=True)
class Finalist:
    """A trial that was trained again with fresh seeds."""

    trial: int
    roles: tuple[str, ...]
    seeds: tuple[SeedOutcome, ...]


def choose(
    finalists: Sequence[Finalist], sweep: Sweep, trials: Mapping[int, Trial]
) -> tuple[Finalist, SeedOutcome] | None:
    """The finalist with the best mean over its seeds, and the best of these seeds.

    The config's own values are among the finalists for comparison: they win too, but not where their trial broke a
    constraint. None without a finalist that may win. Finalist and seed go by the first validation objective, on
    validation; of equal ones the first. Raises ModelError where no finalist has a value.
    """
    name = first_validation(sweep.objectives)
    metric, sign = name.removeprefix("validation/"), 1.0 if sweep.objectives[name] == "max" else -1.0
    allowed = [finalist for finalist in finalists if keeps_constraints(trials[finalist.trial], sweep)]
    if not allowed:
        return None
    known = [finalist for finalist in allowed if values_of(finalist, "validation", metric)]
    if not known:
        raise ModelError(
            f"No trial that was trained again has a {name}, so none can be called the winner; the trials say why they "
            "failed."
        )
    winner = max(known, key=lambda finalist: sign * statistics.fmean(values_of(finalist, "validation", metric)))
    measured = [outcome for outcome in winner.seeds if math.isfinite(outcome.validation.get(metric, math.nan))]
    return winner, max(measured, key=lambda outcome: sign * outcome.validation[metric])


def values_of(finalist: Finalist, split: str, metric: str) -> list[float]:
    """A metric of all seeds where it is defined; split: ``validation`` or ``test``."""
    found = [getattr(outcome, split).get(metric) for outcome in finalist.seeds]
    return [value for value in found if value is not None and math.isfinite(value)]


def build_summary(
    *,
    config: Config,
    sweep_key: str,
    run_id: str | None,
    trials: Iterable[Trial],
    front: Sequence[Trial],
    finalists: Sequence[Finalist],
    winner: tuple[Finalist, SeedOutcome] | None,
    results: Mapping[str, Any] | None,
    shapes: Any,
    seconds: Mapping[str, float],
    concurrency: int | None,
    stopped_by: str | None,
    teacher: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The content of sweep.json, in strict JSON types."""
    sweep = sweep_of(config)
    known = {trial.number: trial for trial in trials}
    described = [finalist_section(finalist, known[finalist.trial]) for finalist in finalists]
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "sweep",
        "sweep_key": sweep_key,
        "run_id": run_id,
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "space": {name: strict_json(given(values), digits=None) for name, values in sweep.space.items()},
        "objectives": dict(sweep.objectives),
        "constraints": {name: bounds.model_dump() for name, bounds in sweep.constraints.items()},
        "default": strict_json(default_params(config), digits=None),
        "counts": {state: sum(trial.state == state for trial in known.values()) for state in get_args(State)},
        "stopped_by": stopped_by,
        "concurrency": concurrency,
        "trials": [trial_section(trial) for trial in known.values()],
        "curves": strict_json({trial.number: curve(trial) for trial in known.values() if trial.history}),
        "front": [trial.number for trial in front],
        "importance": strict_json(importance(config, list(known.values()))),
        "finalists": described,
        "winner": None if winner is None else winner_section(config, known[winner[0].trial], winner[1]),
        "results": None if results is None else strict_json(results, digits=None),
        "shapes": strict_json(shapes),
        "teacher": strict_json(teacher),
        "seconds": strict_json(seconds),
        "config": strict_json(redact_tree(config.model_dump(mode="json")), digits=None),
        "notes": list(notes),
    }
    return summary | {"verdict": verdict(summary)}


def given(values: Distribution) -> dict[str, Any]:
    """A distribution as it was written: the one of its fields that is set."""
    fields = {name: getattr(values, name) for name in type(values).model_fields}
    return {name: content for name, content in fields.items() if content is not None}


def trial_section(trial: Trial) -> dict[str, Any]:
    last = trial.history[-1] if trial.history else {}
    return {
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason,
        "params": strict_json(trial.params, digits=None),
        "measures": measures_of(trial),
        "step": last.get("step"),
        "num_steps": last.get("num_steps"),
        "validations": len(trial.history),
        "seconds": strict_json(trial.seconds),
        "setup_seconds": strict_json(trial.setup_seconds),
        "run_id": trial.run_id,
        "student": trial.student,
        "reused": trial.reused,
        "schedule": strict_json(trial.schedule, digits=None),
    }


def measures_of(trial: Trial) -> dict[str, Any]:
    """Facts and validation metrics; a number of parameters keeps all its digits."""
    measures = {name: int(v) if name == "num_parameters" else v for name, v in trial.measures.items()}
    return dict(strict_json(measures))


def curve(trial: Trial) -> list[dict[str, Any]]:
    """What a trial reported at its validations, without lengths and times."""
    return [
        {name: value for name, value in point.items() if name not in ("num_steps", "seconds")}
        for point in trial.history
    ]


def finalist_section(finalist: Finalist, trial: Trial) -> dict[str, Any]:
    section: dict[str, Any] = {
        "trial": finalist.trial,
        "roles": list(finalist.roles),
        "params": strict_json(trial.params, digits=None),
        "search": measures_of(trial),
        "seeds": strict_json([asdict(outcome) for outcome in finalist.seeds]),
    }
    means: dict[str, float] = {}
    for split in ("validation", "test"):
        metrics = dict.fromkeys(name for outcome in finalist.seeds for name in getattr(outcome, split))
        spreads = {metric: spread(values_of(finalist, split, metric)) for metric in metrics}
        section[split] = strict_json(spreads)
        means = {metric: value["mean"] for metric, value in spreads.items() if value["mean"] is not None}
    found = {metric: trial.values.get(f"validation/{metric}") for metric in means}  # means: those on test
    shrinkage = {metric: value - means[metric] for metric, value in found.items() if value is not None}
    return section | {"shrinkage": strict_json(shrinkage)}


def winner_section(config: Config, trial: Trial, outcome: SeedOutcome) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "seed": outcome.seed,
        "params": strict_json(trial.params, digits=None),
        "set": settings(config, trial.params, outcome.seed),
        "student": outcome.student,
        "path": outcome.path,
    }


def settings(config: Config, params: Params, seed: int) -> list[str]:
    """Overrides that turn the sweep's config into the trial's, with this seed."""
    space = sweep_of(config).space
    values = {name: value_of(space[name], shown) for name, shown in params.items()} | {"train.seed": seed}
    return [f"{name}={as_yaml(value)}" for name, value in values.items()]


def importance(config: Config, trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """Share of each setting in the variance of each objective, by Optuna's fANOVA with the config's seed.

    Completed trials only: values that a scheduler cut short differ by their length too.
    """
    objectives = sweep_of(config).objectives
    completed = [trial for trial in trials if trial.state == "completed" and has_values(trial, objectives)]
    if len(completed) < MIN_TRIALS:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from raydistill.search.study import empty_study, replay

    study = empty_study(config)
    replay(study, sweep_of(config), completed)

    def shares(index: int) -> dict[str, float]:
        evaluator = FanovaImportanceEvaluator(seed=config.seed)
        return get_param_importances(study, evaluator=evaluator, target=lambda trial: trial.values[index])

    varied = [name for name in objectives if len({trial.measures[name] for trial in completed}) > 1]
    return {name: shares(index) for index, name in enumerate(objectives) if name in varied}
