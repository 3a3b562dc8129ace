"""What a sweep takes at most, for ``raydistill plan``: its trials, and the time of the config's own student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raydistill.config.sweep import Sweep
from raydistill.config.tree import Config
from raydistill.data.size import Size
from raydistill.errors import ConfigError
from raydistill.models.shape import count_parameters
from raydistill.pipeline import recipes
from raydistill.pipeline.estimate import estimate_run, measure, student_seconds, teacher_seconds
from raydistill.pipeline.resolve import Resolved
from raydistill.pipeline.status import Phase
from raydistill.pipeline.timing import Machine, machine
from raydistill.search.front import within
from raydistill.search.proposals import planned_trials
from raydistill.search.sharing import shapes_of
from raydistill.search.space import check_space, space_size, sweep_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def estimate(resolved: Resolved, size: Size, mode: str, phases: Sequence[Phase]) -> dict[str, Any]:
    """What a plan says of the time: as ``sweep`` that of the config's sweep, or as ``time`` that of a run."""
    if resolved.config.sweep is not None:
        return {"sweep": estimate_sweep(resolved, size, mode, phases)}
    return {"time": estimate_run(resolved, size, mode, phases)}


def estimate_sweep(resolved: Resolved, size: Size, mode: str, phases: Sequence[Phase]) -> dict[str, Any]:
    """Hours of the sweep if every trial is like the config's own student and none is stopped early.

    Takes a few seconds. Raises ConfigError for a space that the sweep would refuse, or that leaves no shape to train.
    """
    config = resolved.config
    check_space(config)
    sweep = sweep_of(config)
    sizes = count_shapes(config, resolved.models.teacher)
    computer = machine(config, resolved.device)
    speed = measure(resolved, size, mode, computer)
    missing = [phase for phase in phases if not phase.is_done]
    first, each = teacher_seconds(resolved, size, missing, speed), student_seconds(config, size, speed)
    return {
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "size": space_size(sweep),
        "shapes": len(sizes),
        "rejected_shapes": sum(not is_allowed for is_allowed in sizes.values()),
        "teacher_seconds": first,
        "trial_seconds": each,
        **add_up(config, computer, first, each),
        "measured_on": computer.measured_on,
    }


def add_up(config: Config, computer: Machine, first: float, each: float) -> dict[str, Any]:
    """The sum of ``first`` (seconds of the teacher) and of trials, finals and baseline that take ``each``."""
    sweep = sweep_of(config)
    trials, finals = num_trials(sweep), num_finals(sweep)
    concurrency = min(computer.concurrency, trials)
    longest = math.inf if sweep.max_hours is None else 3600 * sweep.max_hours
    search = min(trials * each / concurrency, longest)
    baseline = each if recipes.baseline_settings(config) is not None else 0.0
    seconds = first + search + finals * each / min(computer.concurrency, finals) + baseline
    on_devices = first + search * concurrency + finals * each + baseline
    return {
        "trials": trials,
        "concurrency": concurrency,
        "final_trainings": finals,
        "hours": seconds / 3600,
        "gpu_hours": computer.gpus * on_devices / 3600 if computer.gpus else None,
    }


def count_shapes(config: Config, teacher: PretrainedConfig) -> dict[str, bool]:
    """The student shapes of the space, and whether the constraint on their size lets them train.

    Raises ConfigError where there is none, or none that may.
    """
    sizes = {name: count_parameters(shaped) for name, shaped in shapes_of(config, teacher).items()}
    if not sizes:
        raise ConfigError("sweep.space: no combination of its student settings is possible with this teacher.")
    bounds = sweep_of(config).constraints.get("num_parameters")
    allowed = {name: bounds is None or within(size, bounds) for name, size in sizes.items()}
    if not any(allowed.values()):
        raise ConfigError(
            "sweep.constraints.num_parameters: leaves no student of the space, whose smallest has "
            f"{min(sizes.values()):,} parameters and largest {max(sizes.values()):,}. Widen constraint or space."
        )
    return allowed


def num_trials(sweep: Sweep) -> int:
    """Trials that train, if no constraint rejects more than the search can replace."""
    limits = (planned_trials(sweep), space_size(sweep), sweep.max_trials)
    return min(limit for limit in limits if limit is not None)


def num_finals(sweep: Sweep) -> int:
    """Trainings of finalists at most: the best trial or, of a front, its ends and its knee, with every seed."""
    roles = 1 if len(sweep.objectives) == 1 else len(sweep.objectives) + 1
    return sweep.final_seeds * min(roles + 1, num_trials(sweep))  # and the config's own values
