"""What Optuna is told about a sweep: the search space, the sampler, and what came of every trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from raydistill.config.sweep import Bounds, Sweep
from raydistill.config.tree import Config
from raydistill.search.ledger import Params, Trial
from raydistill.search.space import label, sweep_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

NEUTRAL: Literal["FAIL"] = "FAIL"
"""Optuna's state for what no sampler looks at."""


@dataclass(frozen=True)
class TrialOutcome:
    """What became of a trial, in Optuna's terms."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] | None = None
    """The objectives of a COMPLETE trial, in order."""
    reports: Mapping[int, float] | None = None
    """The objective at validations 1, 2, … of a PRUNED one."""
    violations: Mapping[str, float] | None = None
    """Constraints, broken where above 0."""


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """The space, choices as labels."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, BaseDistribution] = {}
    for name, values in sweep.space.items():
        if values.choice is not None:
            found[name] = CategoricalDistribution([label(value) for value in values.choice])
        elif values.integer is not None:
            found[name] = IntDistribution(*values.integer)
        elif values.loguniform is not None:
            found[name] = FloatDistribution(*values.loguniform, log=True)
        elif values.uniform is not None:
            found[name] = FloatDistribution(*values.uniform)
    return found


def sampler_for(sweep: Sweep, num_trials: int, seed: int) -> BaseSampler:
    """The sampler of a search; for a grid, whose combinations need none, a random one."""
    from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

    if sweep.search == "bayesian":
        # Lagging trials stop early and count little: a quarter of the trials at random, not Optuna's fixed 10.
        startup = max(5, num_trials // 4)
        return TPESampler(n_startup_trials=startup, multivariate=True, constant_liar=True, seed=seed)
    if sweep.search == "evolution":
        # Optuna's 50 would make most sweeps one random generation; a quarter gives four generations.
        return NSGAIISampler(population_size=min(max(4, num_trials // 4), 50), seed=seed)
    return RandomSampler(seed=seed)


def study_of(config: Config, trials: Iterable[Trial]) -> optuna.Study:
    """A study in memory with these trials, numbered from 0 in their order; those that have not ended are running.

    Of use for the importance of settings. Choices appear as their labels.
    """
    study = empty_study(config)
    replay(study, sweep_of(config), trials)
    return study


def empty_study(config: Config) -> optuna.Study:
    """A study in memory that knows the sweep's objectives; until it gets another sampler it draws at random."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial otherwise
    objectives = sweep_of(config).objectives
    known = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}
    directions = [known[direction] for direction in objectives.values()]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), directions=directions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "experimental" in Optuna's eyes
        study.set_metric_names(list(objectives))
    return study


def replay(study: optuna.Study, sweep: Sweep, trials: Iterable[Trial]) -> dict[int, optuna.Trial]:
    """Take trials into a study as if it had proposed them; return those that have not ended, by ledger number."""
    left: dict[int, optuna.Trial] = {}
    for trial in trials:
        asked = ask(study, sweep, trial.params)
        if trial.has_ended:
            tell(study, asked, outcome(trial, sweep))
        else:
            left[trial.number] = asked
    return left


def ask(study: optuna.Study, sweep: Sweep, params: Params | None = None) -> optuna.Trial:
    """A running trial of the study: with these settings, or with the sampler's."""
    from optuna.samplers import BaseGASampler

    if params is None:
        return study.ask(distributions(sweep))
    study.enqueue_trial(dict(params))
    asked = study.ask(distributions(sweep))
    if isinstance(study.sampler, BaseGASampler):
        # Optuna does not ask the sampler where all is given, and what has no generation never becomes a parent.
        study.sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[asked.number])
    return asked


def tell(study: optuna.Study, asked: optuna.Trial, came: TrialOutcome) -> None:
    """End a running trial of the study."""
    from optuna.trial import TrialState

    for index, value in sorted((came.reports or {}).items()):
        asked.report(value, index)
    for name, value in (came.violations or {}).items():
        asked.set_constraint(name, value)
    study.tell(asked, came.values, state=TrialState[came.state])


def outcome(trial: Trial, sweep: Sweep, reports: Mapping[int, float] | None = None) -> TrialOutcome:
    """What the sampler learns from a trial that has ended; `reports` go over those in its history.

    Rejected and failed ones are kept as infeasible, so that TPE leaves their neighbourhood; NSGA-II never takes them
    as parents. One that was stopped is pruned where Optuna knows that (one objective) and the sampler looks at it
    (NSGA-II does not: with asha its generations would hardly fill), else complete with what it reached.
    """
    measures = trial.measures
    broken = violations(measures, sweep.constraints)
    values = tuple(measures.get(name, math.nan) for name in sweep.objectives)
    is_known = all(map(math.isfinite, values))
    if trial.state == "stopped" and len(sweep.objectives) == 1 and sweep.search != "evolution":
        return TrialOutcome("PRUNED", reports={**history(trial, sweep), **(reports or {})}, violations=broken)
    if trial.state in ("completed", "stopped") and is_known:
        return TrialOutcome("COMPLETE", values=values, violations=broken)
    if not any(value > 0 for value in broken.values()):
        broken["possible"] = 1.0
    return TrialOutcome("PRUNED", violations=broken)


def history(trial: Trial, sweep: Sweep) -> dict[int, float]:
    """The first objective at validations 1, 2, …"""
    name = next(iter(sweep.objectives))
    found: list[Any] = [report[name] for report in trial.history if report.get(name) is not None]
    return {index: float(value) for index, value in enumerate(found, 1)}


def violations(measures: Mapping[str, float], constraints: Mapping[str, Bounds]) -> dict[str, float]:
    """How far each known measure lies outside its bounds, as a share of the bound, so that they add up."""
    found: dict[str, float] = {}
    for name, bounds in constraints.items():
        value = measures.get(name, math.nan)
        if not math.isfinite(value):
            continue
        if bounds.max is not None:
            found[f"{name} max"] = (value - bounds.max) / (abs(bounds.max) or 1.0)
        if bounds.min is not None:
            found[f"{name} min"] = (bounds.min - value) / (abs(bounds.min) or 1.0)
    return found
