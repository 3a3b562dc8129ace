"""The space of a sweep: which settings its trials may change, checked before anything runs, and a trial's config.

A trial's settings are *labels*, plain values that searcher, MLflow and tables can show; a list or a section among the
choices is labelled by its JSON text.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raydistill.config.loading import validate
from raydistill.config.problems import dotted, explain, show
from raydistill.config.schema import Setting, locate, put, variants
from raydistill.config.sweep import Distribution, Sweep, may_change, wanted
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.pipeline.recipes import student_seed
from raydistill.search.ledger import Params, Value

SEED = "train.seed"
TRAIN = ("global_batch_size", "max_grad_norm", "early_stopping", "seed")
"""Settings of ``train`` that change the student; the others change how fast and where it trains."""
SEARCHED = ("student", "stages", "train")
REFUSED = {
    "data": "changes the data, which all trials share; search student, stages or train.",
    "task": "changes the data, which all trials share; search student, stages or train.",
    "teacher": "changes the teacher, which all trials share; search student, stages or train.",
    "evaluate": "changes how students are measured, by which trials are compared; search student, stages or train.",
    "seed": "splits the data too, which all trials share; write train.seed.",
}
MAX_COMBINATIONS = 1000


def sweep_of(config: Config) -> Sweep:
    """The sweep section, with the objective that the task gives where it names none; ConfigError where there is no
    section."""
    sweep = config.sweep
    if sweep is None:
        raise ConfigError("sweep: is missing. Write what to search, for example sweep: {space: {NAME: {choice: …}}}")
    main = f"validation/{config.task.main_metric}"
    return sweep if sweep.objectives else sweep.model_copy(update={"objectives": {main: wanted(main)}})


def check_space(config: Config) -> None:
    """Refuse names that trials may not change, and values that the settings do not take.

    Raises one ConfigError that names every problem. Values that are only impossible together are no problem here:
    such combinations are rejected one by one.
    """
    space = sweep_of(config).space
    if config.train.num_workers == 0:
        raise ConfigError("train.num_workers: a sweep runs on Ray; write 1 or more (0 is for distill alone).")
    if config.evaluate.seeds > 1:
        raise ConfigError("evaluate.seeds is for distill: a sweep trains its finalists with sweep.final_seeds.")
    if config.teacher.feeds_student:
        raise ConfigError(
            "teacher.mode: pool feeds one student, and a sweep trains many. Write cached, which records once for all "
            "trials (teacher.pool may do it), or online."
        )
    problems = [
        f"sweep.space.{name}: {text}" for name, values in space.items() for text in problems_of(config, name, values)
    ]
    for name in space:
        above = [other for other in space if name.startswith(f"{other}.")]
        problems += [f"sweep.space.{name}: lies inside {other}, which varies too; keep one of them." for other in above]
    finite = {name: finite_values(values) for name, values in space.items() if decides_signals(name)}
    deciding = {name: len(known) for name, known in finite.items() if known is not None}
    count = math.prod(deciding.values())
    if count > MAX_COMBINATIONS and not problems:
        problems = [
            f"sweep.space: {', '.join(deciding)} have {count:,} combinations; each may need its own teacher outputs or "
            f"latency; {MAX_COMBINATIONS:,} are possible. Write fewer choices or narrower ranges of whole numbers."
        ]
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"sweep.space: {len(problems)} problems\n" + "\n".join(f"  - {text}" for text in problems))


def decides_signals(name: str) -> bool:
    """Whether other values of a setting may need other signals: shapes, kinds of losses and their layers do; weights,
    temperatures, rates and what a training run is given do not."""
    return not may_change(name) and not name.startswith("train.")


def problems_of(config: Config, name: str, values: Distribution) -> list[str]:
    """What is wrong with one name of the space and its values."""
    data = plain_of(config)
    top = name.partition(".")[0]
    if top in Config.model_fields and top not in SEARCHED:
        return [REFUSED.get(top, "has no influence on what a student learns; search student, stages or train.")]
    try:
        setting = locate(name, data)
    except ConfigError as error:
        return [str(error)]
    if text := why_refused(setting.path) or why_no_range(values, setting.annotation):
        return [text]
    return value_problems(data, setting, values)


def why_refused(path: Sequence[str]) -> str | None:
    """Why trials may not change this setting, None where they may."""
    if len(path) == 1:
        return f"is a whole part of the config; name the settings below it, for example {path[0]}.NAME."
    if path[0] == "train" and path[1] not in TRAIN:
        return f"changes how fast a student trains, not what it becomes; of train only {', '.join(TRAIN)} serve."
    if path[-1] == "type":
        section = dotted(tuple(path[:-1]))
        if len(path) == 2:
            return "changes which settings there are; make a sweep of each."
        return f"changes which settings there are; write {section}: {{choice: [{{type: …}}, …]}} instead."
    return None


def why_no_range(values: Distribution, annotation: Any) -> str | None:
    """Why a range does not suit the setting, None where it does."""
    if values.choice is not None:
        return None
    kinds = variants(annotation)
    if int not in kinds and float not in kinds:
        return "takes no numbers, so it has no range; write choice."
    if float not in kinds and values.integer is None:
        return "takes whole numbers; write integer: [low, high] or choice."
    return None


def value_problems(data: dict[str, Any], setting: Setting, values: Distribution) -> list[str]:
    """What the config says to each choice, or to both ends of a range, put in its place; and choices that are equal."""
    problems: dict[str, None] = {}
    seen: dict[str, Any] = {}
    for value in values.choice if values.choice is not None else ends(values):
        changed = replaced(data, setting, value)
        try:
            value_there = validated(changed, setting)
        except ValidationError as error:
            # errors between fields may be mended by another name of the space
            if any(item["type"] != "cross_field" for item in error.errors(include_url=False)):
                problems.update((below(str(found), setting.path), None) for found in explain(error, changed))
            continue
        same = json.dumps(value_there, sort_keys=True)
        if same in seen:
            both = f"{show(label(seen[same]))} and {show(label(value))}"
            problems[f"names the same value twice, {both}; delete one."] = None
        seen[same] = value
    return list(problems)


def below(text: str, path: Sequence[str]) -> str:
    """A problem without the name that stands before it already."""
    return text.removeprefix(f"{dotted(tuple(path))}: ").removeprefix(f"{dotted(tuple(path))}.")


def ends(values: Distribution) -> tuple[float, float]:
    """Both ends of a range."""
    found = values.uniform or values.loguniform or values.integer
    if found is None:
        raise ValueError("a choice has no ends")
    return found


def label(value: Any) -> Value:
    """What searcher, MLflow and tables show of a value: scalars as they are, lists and sections as compact JSON."""
    if isinstance(value, dict | list | tuple):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    return value


def value_of(values: Distribution, shown: Value) -> Any:
    """Inverse of `label`; ConfigError for a label that is none of the choices."""
    if values.choice is None:
        return shown
    known = {json.dumps(label(value)): value for value in values.choice}  # by JSON text: 1 and 1.0 and true differ
    if json.dumps(shown) not in known:
        raise ConfigError(f"sweep.space: {show(shown)} is none of the choices {', '.join(known)}.")
    return known[json.dumps(shown)]


def with_params(config: Config, params: Params) -> Config:
    """The config of one trial: `params` (any of the space's names, as labels) in place, the sweep left out.

    Raises ConfigError for an impossible combination.
    """
    space = sweep_of(config).space
    data = plain_of(config)
    settings = {name: locate(name, data) for name in params}
    for name, shown in params.items():
        data = replaced(data, settings[name], value_of(space[name], shown))
    return validate(data, "impossible combination", {}, Config)


def default_params(config: Config) -> Params:
    """What the config itself says for the space's names; it need not be inside the space, see `contains`."""
    data = plain_of(config)
    params: Params = {}
    for name, values in sweep_of(config).space.items():
        setting = locate(name, data)
        own = setting_in(data, setting)
        if values.choice is not None:
            own = next((choice for choice in values.choice if means(data, setting, choice, own)), own)
        elif values.integer is not None and isinstance(own, float) and own.is_integer():
            own = int(own)
        params[name] = label(own)
    return params


def means(data: dict[str, Any], setting: Setting, choice: Any, own: Any) -> bool:
    """Whether a choice, its defaults filled in, is the value that the config has."""
    try:
        return bool(validated(replaced(data, setting, choice), setting) == own)
    except ValidationError:
        return False


def contains(sweep: Sweep, params: Params) -> bool:
    """Whether a combination lies in the space."""
    return params.keys() == sweep.space.keys() and all(
        holds(values, params[name]) for name, values in sweep.space.items()
    )


def holds(values: Distribution, shown: Value) -> bool:
    if values.choice is not None:
        return json.dumps(shown) in {json.dumps(label(value)) for value in values.choice}
    if isinstance(shown, bool | str | None) or (values.integer is not None and not isinstance(shown, int)):
        return False
    low, high = ends(values)
    return low <= shown <= high


def finite_values(values: Distribution) -> Sequence[Value] | None:
    """All labels in their order; None for a continuous range."""
    if values.choice is not None:
        return [label(value) for value in values.choice]
    return range(values.integer[0], values.integer[1] + 1) if values.integer is not None else None


def space_size(sweep: Sweep) -> int | None:
    """Number of combinations; None where a range is continuous."""
    found = [finite_values(values) for values in sweep.space.values()]
    sizes = [len(values) for values in found if values is not None]
    return math.prod(sizes) if len(sizes) == len(found) else None


def combination(sweep: Sweep, index: int) -> Params:
    """One of the combinations of a finite space, counted from 0 in the order written, the last name fastest."""
    params: Params = {}
    for name, values in reversed(sweep.space.items()):
        known = finite_values(values)
        if known is None:
            raise ValueError(f"{name} is a continuous range")
        index, place = divmod(index, len(known))
        params[name] = known[place]
    return dict(reversed(params.items()))


def fresh_seeds(config: Config, trials: Sequence[Params]) -> list[int]:
    """Seeds for the finals, with which none of the trials was trained. They lie beyond the space's own, if those leave
    room: so they stay fresh in a sweep that goes on with more trials."""
    sweep, own = sweep_of(config), student_seed(config)
    used = {own, config.seed, *(params.get(SEED) for params in trials)}
    top = own
    if (values := sweep.space.get(SEED)) is not None:
        top = max([own, *(values.integer or ()), *(seed for seed in values.choice or () if isinstance(seed, int))])
    candidates = itertools.chain(range(top + 1, 2**31), range(2**31))
    return list(itertools.islice((seed for seed in candidates if seed not in used), sweep.final_seeds))


def plain_of(config: Config) -> dict[str, Any]:
    """The config as plain data, without its sweep."""
    return {**config.model_dump(mode="json"), "sweep": None}


def replaced(data: dict[str, Any], setting: Setting, value: Any) -> dict[str, Any]:
    """A copy of `data` with one setting replaced."""
    changed = copy.deepcopy(data)
    put(changed, setting, value)
    return changed


def setting_in(data: Mapping[str, Any], setting: Setting) -> Any:
    """The plain value of a setting; None also for an entry that is not there."""
    node: Any = data
    for part in setting.path:
        node = node.get(part)
    return node


def validated(data: dict[str, Any], setting: Setting) -> Any:
    """The value of a setting as the config reads it, defaults included; pydantic's ValidationError if it is refused."""
    return setting_in(plain_of(Config.model_validate_json(json.dumps(data), strict=True)), setting)
