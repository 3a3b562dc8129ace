"""How long a run or a sweep takes, for ``raydistill plan``: counted from the config, timed on a few batches here.

Left out, because it depends on the cluster: starting Ray and workers (10 to 30 s), measuring latencies, evaluation and
registration. A cluster whose nodes are slower or faster than this machine changes every figure in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from raydistill import recipes
from raydistill.config import Bounds, Config, Distribution, Stage, Sweep
from raydistill.data.size import Size
from raydistill.errors import ConfigError
from raydistill.models.shape import student_config
from raydistill.pages.scales import duration
from raydistill.search.front import within
from raydistill.search.proposals import DEFAULT_TRIALS
from raydistill.search.shared import count_parameters, shape_name, shapes_of
from raydistill.search.space import check_space, ends, label, space_size, sweep_of, with_params
from raydistill.search.timing import Machine, Sample, Speed, machine, num_cpus, time_student, time_teacher
from raydistill.search.trials import Value
from raydistill.train.device import Device
from raydistill.train.loop import Schedule

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PretrainedConfig

DRAWS = 100
"""Combinations whose mean stands for a trial's time: it is known to a tenth of their spread."""
FORWARD_SHARE = 1 / 3
"""Of a training step without its fixed part: a backward pass takes two forward passes, for inputs and for weights."""


@dataclass(frozen=True)
class Shape:
    """A student shape of the space: its size, and a config that has it."""

    num_parameters: int
    student: PretrainedConfig


def estimate(
    config: Config, teacher: PretrainedConfig, size: Size, plan: Mapping[str, Any], device_type: str
) -> dict[str, Any]:
    """What a plan says of the time: as ``sweep`` that of the config's sweep, or as ``time`` that of a run."""
    if config.sweep is not None:
        return {"sweep": estimate_sweep(config, teacher, size, plan, device_type)}
    return {"time": estimate_run(config, teacher, size, plan, device_type)}


def estimate_sweep(
    config: Config, teacher: PretrainedConfig, size: Size, plan: Mapping[str, Any], device_type: str
) -> dict[str, Any]:
    """Time and GPU hours of the sweep, from the other parts of the plan; every figure is an estimate.

    ``device_type``: what workers will compute on. Takes about 5 s. Raises ConfigError for a space that the sweep would
    refuse, or that leaves no shape to train.
    """
    check_space(config)
    sweep = sweep_of(config)
    shapes = sized_shapes(config, teacher)
    allowed = keep_allowed(shapes, sweep.constraints.get("num_parameters"))
    computer = machine(config, device_type, num_cpus())
    speed = measure(config, teacher, size, plan["teacher"], allowed, computer)
    seconds = [
        trial_seconds(drawn, allowed[name].num_parameters, size, speed)
        for drawn in draws(config)
        if (name := name_of(drawn, teacher)) in allowed
    ]
    if not seconds:  # a rare shape is the only one that is allowed
        seconds = [trial_seconds(config, shape.num_parameters, size, speed) for shape in allowed.values()]
    first = teacher_seconds(config, size, plan, speed)
    return {
        "search": sweep.search,
        "scheduler": sweep.scheduler,
        "size": space_size(sweep),
        "shapes": len(shapes),
        "rejected_shapes": len(shapes) - len(allowed),
        **cost(config, size, computer, first, float(np.mean(seconds))),
        "measured_on": computer.measured_on,
    }


def estimate_run(
    config: Config, teacher: PretrainedConfig, size: Size, plan: Mapping[str, Any], device_type: str
) -> dict[str, Any]:
    """Seconds of ``distill``'s phases that are left to do, from the other parts of the plan; every one an estimate.

    ``device_type``: what workers will compute on. Takes a few seconds, where all is there already none.
    """
    if all(phase["state"] == "there" for phase in plan["phases"]):
        return {"seconds": {}, "total": 0.0, "measured_on": None}
    computer = machine(config, device_type, num_cpus(), is_sweep=False)
    student = student_config(teacher, config.student)  # with as many outputs as there are classes
    shape = Shape(count_parameters(student), student)
    speed = measure(config, teacher, size, plan["teacher"], {"student": shape}, computer)
    seconds = run_seconds(config, shape.num_parameters, size, plan, speed)
    return {"seconds": seconds, "total": sum(seconds.values()), "measured_on": computer.measured_on}


def run_seconds(
    config: Config, num_parameters: int, size: Size, plan: Mapping[str, Any], speed: Speed
) -> dict[str, float]:
    """Seconds of ``teacher`` (fine-tuning and recording), ``student`` and ``baseline``; none of what is there."""
    missing = {phase["phase"] for phase in plan["phases"] if phase["state"] != "there"}
    found = {"teacher": teacher_seconds(config, size, plan, speed)}
    if "student" in missing:
        found["student"] = trial_seconds(config, num_parameters, size, speed)
    if "baseline" in missing:  # as many steps, without a teacher beside it
        alone = replace(speed, online_row=0.0)
        found["baseline"] = trial_seconds(config, num_parameters, size, alone)
    return {name: seconds for name, seconds in found.items() if seconds}


def sized_shapes(config: Config, teacher: PretrainedConfig) -> dict[str, Shape]:
    """The shapes of the space with their sizes; ConfigError where there is none."""
    found = {name: Shape(count_parameters(shaped), shaped) for name, shaped in shapes_of(config, teacher).items()}
    if not found:
        raise ConfigError("sweep.space: no combination of its student settings is possible with this teacher.")
    return found


def name_of(config: Config, teacher: PretrainedConfig) -> str | None:
    """Name of the config's shape, None for one that cannot be."""
    with suppress(ConfigError):
        return shape_name(student_config(teacher, config.student))
    return None


def keep_allowed(shapes: Mapping[str, Shape], bounds: Bounds | None) -> dict[str, Shape]:
    """The shapes whose size lies within the constraint; ConfigError where there is none."""
    allowed = {name: shape for name, shape in shapes.items() if bounds is None or within(shape.num_parameters, bounds)}
    if not allowed:
        sizes = [shape.num_parameters for shape in shapes.values()]
        raise ConfigError(
            f"sweep.constraints.num_parameters: leaves no student of the space, whose smallest has {min(sizes):,} "
            f"parameters and largest {max(sizes):,}. Widen the constraint or the space."
        )
    return allowed


def draws(config: Config) -> Iterator[Config]:
    """Configs of random trials, always the same ones; impossible combinations are left out."""
    random = np.random.default_rng(0)
    for _ in range(DRAWS):
        params = {name: draw(values, random) for name, values in sweep_of(config).space.items()}
        with suppress(ConfigError):
            yield with_params(config, params)


def draw(values: Distribution, random: np.random.Generator) -> Value:
    if values.choice is not None:
        return label(values.choice[int(random.integers(len(values.choice)))])
    low, high = ends(values)
    if values.integer is not None:
        return int(random.integers(int(low), int(high), endpoint=True))
    if values.loguniform is not None:
        return math.exp(random.uniform(math.log(low), math.log(high)))
    return float(random.uniform(low, high))


def measure(
    config: Config,
    teacher: PretrainedConfig,
    size: Size,
    planned: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    computer: Machine,
) -> Speed:
    """Time the teacher, and the smallest and the largest shape in the stage that trains longest."""
    length = max(4, round(size.num_tokens["train"] / max(size.num_rows["train"], 1)))
    device = Device(computer.device, planned["dtype"])
    trial = Sample(length, size.labels, device, computer.threads)
    stage = max(config.stages.values(), key=lambda stage: stage.num_epochs * num_rows(stage, size))
    ordered = sorted(shapes.values(), key=lambda shape: shape.num_parameters)
    # a GPU is timed alone, and each worker has one; threads are timed as many as all workers have together
    workers = max(1, config.train.num_workers) if computer.device == "cuda" else 1
    measured = []
    for shape in {shape.num_parameters: shape for shape in (ordered[0], ordered[-1])}.values():
        step = time_student(config, stage, shape.student, teacher, trial)
        measured.append((shape.num_parameters, replace(step, per_row=step.per_row / workers)))
    smallest, largest = measured[0], measured[-1]
    return Speed(
        teacher_row=time_teacher(teacher, Sample(length, size.labels, device, computer.cpus)) / workers,
        # the optimizer passes over all weights: in proportion, without the memory that training it here would take
        teacher_step=largest[1].fixed * count_parameters(teacher) / largest[0],
        online_row=time_teacher(teacher, trial) / workers if planned["mode"] == "online" else 0.0,
        smallest=smallest,
        largest=largest,
    )


def num_rows(stage: Stage, size: Size) -> int:
    """Rows that a stage of the student trains on."""
    return size.num_rows["train"] if recipes.teacher_speaks(stage) else size.num_labeled


def schedule_of(config: Config, stage: Stage, size: Size) -> Schedule:
    return Schedule.of_epochs(num_rows(stage, size), config.train.global_batch_size, stage.num_epochs)


def num_validations(config: Config, size: Size) -> int:
    """Validations of a whole trial."""
    schedules = [schedule_of(config, stage, size) for stage in config.stages.values()]
    return sum(math.ceil(schedule.num_steps / schedule.validate_steps) for schedule in schedules)


def trial_seconds(config: Config, num_parameters: int, size: Size, speed: Speed) -> float:
    """Training of one student to its end, validations included."""
    step = speed.step(num_parameters)
    validation = size.num_rows["validation"] * step.per_row * FORWARD_SHARE
    seconds = num_validations(config, size) * validation
    for stage in config.stages.values():
        rows = stage.num_epochs * num_rows(stage, size)
        seconds += step.seconds(schedule_of(config, stage, size).num_steps, rows)
        seconds += rows * speed.online_row * recipes.teacher_speaks(stage)
    return seconds


def teacher_seconds(config: Config, size: Size, plan: Mapping[str, Any], speed: Speed) -> float:
    """What is left to do of fitting the teacher and recording its signals."""
    there = {phase["phase"] for phase in plan["phases"] if phase["state"] == "there"}
    signals = {phase["phase"] for phase in plan["phases"] if phase["phase"].startswith("signal ")}
    validation = size.num_rows["validation"]
    seconds, rows = 0.0, 0.0
    if config.teacher.finetune is not None and "teacher" not in there:
        epochs = config.teacher.finetune.num_epochs
        seconds = plan["steps"]["teacher"] * speed.teacher_step
        rows = epochs * size.num_labeled / FORWARD_SHARE + math.ceil(epochs) * validation
    if not signals <= there:
        rows += size.num_rows["train"]
    if "teacher" not in there or not signals <= there:
        rows += validation
    return seconds + rows * speed.teacher_row


def num_trials(sweep: Sweep) -> int:
    """Trials that train, if no constraint rejects more than the search can replace."""
    size = space_size(sweep)
    wanted = sweep.num_trials or (size if sweep.search == "grid" and size else DEFAULT_TRIALS)
    return min(limit for limit in (wanted, size, sweep.max_trials) if limit is not None)


def num_finals(sweep: Sweep) -> int:
    """Trainings of finalists at most: the best trial or, of a front, its ends and its knee, with every seed."""
    roles = 1 if len(sweep.objectives) == 1 else len(sweep.objectives) + 1
    return sweep.final_seeds * min(roles + 1, num_trials(sweep))  # and the config's own values


def cost(config: Config, size: Size, computer: Machine, first: float, mean: float) -> dict[str, Any]:
    """The sum, from ``first`` (seconds of the teacher) and ``mean`` (seconds of a trial trained to its end).

    Pairs are [low, high]: ``asha`` may stop as many trials as its rungs allow, or none.
    """
    sweep = sweep_of(config)
    trials, finals = num_trials(sweep), num_finals(sweep)
    concurrency = min(computer.concurrency, trials)
    trained = asha_share(num_validations(config, size), sweep) if sweep.scheduler == "asha" else 1.0
    longest = math.inf if sweep.max_hours is None else 3600 * sweep.max_hours
    search = [min(trials * mean * share / concurrency, longest) for share in (trained, 1.0)]
    baseline = mean if recipes.baseline_settings(config) is not None else 0.0
    last = finals * mean / min(computer.concurrency, finals) + baseline
    devices = [first + seconds * concurrency + finals * mean + baseline for seconds in search]
    return {
        "trials": trials,
        "concurrency": concurrency,
        "teacher_seconds": first,
        "trial_seconds": mean,
        "search_seconds": search,
        "final_trainings": finals,
        "final_seconds": last,
        "hours": [(first + seconds + last) / 3600 for seconds in search],
        "gpu_hours": [computer.gpus * seconds / 3600 for seconds in devices] if computer.gpus else None,
    }


def asha_share(validations: int, sweep: Sweep) -> float:
    """Share of all validations that is left if at every rung one in ``reduction_factor`` trials goes on."""
    rung, alive, done = min(sweep.grace_period, validations), 1.0, 0.0
    reached = 0
    while reached < validations:
        done += alive * (rung - reached)
        reached, rung = rung, min(rung * sweep.reduction_factor, validations)
        alive /= sweep.reduction_factor
    return done / validations


def print_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print the estimate in the lines of a plan."""
    from rich.text import Text

    size, rejected = found["size"], found["rejected_shapes"]
    of = f" of {size:,} combinations" if size is not None else ""
    shapes = plural(found["shapes"], "student size")
    without = f", {rejected:,} of them rejected by num_parameters" if rejected else ""
    finals = plural(found["final_trainings"], "final training")
    teacher = f"≈ {duration(found['teacher_seconds'])}" if found["teacher_seconds"] else "there already"
    lines = [
        f"sweep      {plural(found['trials'], 'trial')}{of}: {found['search']}, scheduler {found['scheduler']}",
        f"           {shapes}{without}; {found['concurrency']} at a time",
        f"cost       teacher {teacher}, a trial ≈ {duration(found['trial_seconds'])}",
        f"           all trials ≈ {span(found['search_seconds'])}, {finals} ≈ {duration(found['final_seconds'])}",
        f"           in all ≈ {span([3600 * hours for hours in found['hours']])}",
    ]
    if found["gpu_hours"] is not None:
        low, high = (f"{hours:.2g}" for hours in found["gpu_hours"])
        lines[-1] += f", ≈ {low if low == high else f'{low} to {high}'} GPU hours"
    lines.append(f"           timed with random weights on {found['measured_on']}")
    for line in lines:
        console.print(Text(line))


def print_run_estimate(console: Console, found: Mapping[str, Any]) -> None:
    """Print the time of a run in the lines of a plan."""
    if not found["seconds"]:
        console.print("time       nothing is left to train")
        return
    parts = ", ".join(f"{name} ≈ {duration(seconds)}" for name, seconds in found["seconds"].items())
    lines = [
        f"time       ≈ {duration(found['total'])}, without starting and evaluating",
        f"           {parts}",
        f"           timed with random weights on {found['measured_on']}",
    ]
    for line in lines:
        console.print(line, markup=False)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def span(seconds: Sequence[float]) -> str:
    low, high = map(duration, seconds)
    return low if low == high else f"{low} to {high}"
