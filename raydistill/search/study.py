"""What Optuna is told about a sweep: the search space, the sampler, and what came of every trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from raydistill.config.sweep import Bounds, Sweep
from raydistill.config.tree import Config
from raydistill.search.ledger import Params, Trial
from raydistill.search.space import label, sweep_of

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


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
            tell(study, sweep, asked, trial)
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


def tell(study: optuna.Study, sweep: Sweep, asked: optuna.Trial, trial: Trial | None) -> None:
    """End a running trial of the study with what the sampler learns from it; None: a repeat, at which none looks, as
    at one that failed without blame.

    Rejected and failed ones are kept as infeasible, so that TPE leaves their neighbourhood; NSGA-II never takes them
    as parents. One that was stopped is pruned where Optuna knows that (one objective) and the sampler looks at it
    (NSGA-II does not: with asha its generations would hardly fill), else complete with what it reached.
    """
    from optuna.trial import TrialState

    if trial is None or trial.is_blameless:
        study.tell(asked, state=TrialState.FAIL)
        return
    broken = violations(trial.measures, sweep.constraints)
    values = [trial.measures.get(name, math.nan) for name in sweep.objectives]
    is_known, state = all(map(math.isfinite, values)), TrialState.PRUNED
    if trial.state == "stopped" and len(values) == 1 and sweep.search != "evolution":
        if is_known:
            asked.report(values[0], len(trial.history))
    elif trial.state in ("completed", "stopped") and is_known:
        state = TrialState.COMPLETE
    elif not any(value > 0 for value in broken.values()):
        broken["possible"] = 1.0
    for name, value in broken.items():
        asked.set_constraint(name, value)
    study.tell(asked, values if state == TrialState.COMPLETE else None, state=state)


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
