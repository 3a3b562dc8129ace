"""Which trials may go on: asha, with what earlier sessions reached, and pbt, whose trials take over from each other."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler

from raydistill.config.sweep import Sweep
from raydistill.search.ledger import Trial

MANY = 1_000_000
"""Validations that no trial reaches: trials end by themselves, not by their scheduler's last rung."""


class Exchange(PopulationBasedTraining):
    """PBT in which a trial that takes over another's weights and settings stays itself in name and MLflow run."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("reused"):  # a student out of storage: it has no checkpoint that others could take over
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        own = {name: trial.config["trial"][name] for name in ("number", "name", "run_id", "seed")}
        config["trial"] = {**config["trial"], **own}
        return config, operations


def scheduler_for(sweep: Sweep, past: Sequence[Trial]) -> TrialScheduler | None:
    """The scheduler; ``past``: trials of an earlier session, whose values asha compares new ones with."""
    match sweep.scheduler:
        case "none":
            return None
        case "pbt":
            return Exchange(
                time_attr="validation",
                metric="score",
                mode="max",
                perturbation_interval=sweep.perturbation_interval,
                hyperparam_mutations={"trial": {"params": mutations(sweep)}},
                custom_explore_fn=lambda config: within_space(config, sweep),
            )
        case "asha":
            scheduler = AsyncHyperBandScheduler(
                time_attr="validation",
                metric="score",
                mode="max",
                max_t=MANY,
                grace_period=sweep.grace_period,
                reduction_factor=sweep.reduction_factor,
            )
            for trial in past:
                known = cast("Any", SimpleNamespace(trial_id=f"past-{trial.number}"))  # all that asha looks at
                scheduler.on_trial_add(cast("Any", None), known)
                for entry in trial.history:
                    scheduler.on_trial_result(cast("Any", None), known, dict(entry))
            return scheduler


def mutations(sweep: Sweep) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, values in sweep.space.items():
        if values.choice is not None:
            made[name] = list(values.choice)
        elif values.loguniform is not None:
            made[name] = tune.loguniform(*values.loguniform)
        elif values.uniform is not None:
            made[name] = tune.uniform(*values.uniform)
        elif values.integer is not None:
            made[name] = tune.randint(values.integer[0], values.integer[1] + 1)
    return made


def within_space(config: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """Keep a perturbed setting inside its range: PBT multiplies by 0.8 or 1.2 wherever that leads."""
    params = config["trial"]["params"]
    for name, values in sweep.space.items():
        ends = values.uniform or values.loguniform or values.integer
        if ends is not None:
            value = min(max(params[name], ends[0]), ends[1])
            params[name] = round(value) if values.integer is not None else float(value)
    return config
