"""What a run goes by, decided once in the driver: every teacher, and all that the config leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raydistill.config.section import known
from raydistill.config.student import EncoderStudent
from raydistill.config.teacher import Finetune, MixtureTeacher
from raydistill.config.tree import SEVERAL_CRFS, Config
from raydistill.data.prepare import DataInfo, data_key, prepare_data
from raydistill.data.size import Texts, look
from raydistill.errors import ConfigError
from raydistill.models.crf import is_crf
from raydistill.models.embedding import set_head_of
from raydistill.models.folder import resolve_model
from raydistill.models.head import Head, vector_width
from raydistill.models.load import read_config
from raydistill.models.precision import compute_dtype
from raydistill.pipeline.completion import Models, check_models, check_pooled, complete
from raydistill.pipeline.defaults import Choice
from raydistill.pipeline.failures import about_member
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks import Task, task_of

if TYPE_CHECKING:
    from raydistill.cluster.placement import State


@dataclass(frozen=True)
class ResolvedTeacher:
    """One of the teachers, resolved as if it were the only one, so that what another run made of it is found again."""

    name: str
    """In ``teacher.members``; empty where the config has a single teacher."""
    weight: float
    config: Config
    """What the config would be with this teacher alone."""
    source: Path
    models: Models


@dataclass(frozen=True)
class Resolved:
    """A config that leaves nothing open, with the teachers and the data that decided it."""

    config: Config
    choices: tuple[Choice, ...]
    """What was chosen, and why."""
    teachers: tuple[ResolvedTeacher, ...]
    """One or more. The student starts from the first, and reads its tokens."""
    data: Artifact
    info: DataInfo
    texts: Texts
    device: str
    """What workers compute on, ``cpu`` or ``cuda``."""
    dtype: str

    @property
    def source(self) -> Path:
        """The folder of the first teacher."""
        return self.teachers[0].source

    @property
    def models(self) -> Models:
        """Those of the first teacher and of the student."""
        return self.teachers[0].models

    @property
    def task(self) -> Task:
        return task_of(self.info.task)

    @property
    def suffixes(self) -> list[str]:
        """What the phases of each teacher have behind their names: nothing where there is one."""
        return [""] if len(self.teachers) == 1 else [f" ({one.name})" for one in self.teachers]

    @property
    def tunings(self) -> dict[str, Finetune | None]:
        """How each teacher is fine-tuned, by its suffix."""
        tunings = (known(one.config.lead.finetune) for one in self.teachers)
        return dict(zip(self.suffixes, tunings, strict=True))


def resolve(config: Config, storage: Storage, *, prepares: bool, state: State | None = None) -> Resolved:
    """Resolve a config against its models and its data, which it ``prepares``, or only looks at.

    ``state``: of the cluster that it is for, else of the one at hand. Raises RaydistillError for what would end a run.
    """
    from raydistill.cluster.resources import device_type

    teachers = open_teachers(config)
    data = prepare_data(config, storage) if prepares else Artifact(storage, "data", data_key(config))
    info, texts = look(config, data)
    info = info.answered_by(teachers[0].models.teacher)
    config, teachers, choices = complete_teachers(config, teachers, info, texts)
    device = device_type(config, state)
    dtype = compute_dtype(config.train.dtype, device)
    return Resolved(config, tuple(choices), teachers, data, info, texts, device, dtype)


def open_teachers(config: Config) -> tuple[ResolvedTeacher, ...]:
    """Look at each teacher, before the data is there. Raises RaydistillError, which names the one of several."""
    if not isinstance(config.teacher, MixtureTeacher):
        return (open_teacher("", 1.0, config),)
    found: list[ResolvedTeacher] = []
    for name, member in config.members.items():
        own = config.model_copy(update={"teacher": member.alone})
        if found:  # students are cut from the first one
            evaluate = config.evaluate.model_copy(update={"baseline": False})
            own = own.model_copy(update={"student": EncoderStudent(), "evaluate": evaluate, "sweep": None})
        with about_member(name):
            found.append(open_teacher(name, member.weight, own))
            if is_crf(found[-1].models.teacher):
                raise ConfigError(f"{member.model} is a CRF: {SEVERAL_CRFS} Name it alone.")
    return tuple(found)


def open_teacher(name: str, weight: float, config: Config) -> ResolvedTeacher:
    source = resolve_model(config.lead.model, config.lead.revision, config.lead.trust_remote_code)
    return ResolvedTeacher(name, weight, config, source, check_models(config, source))


def complete_teachers(
    config: Config, teachers: Sequence[ResolvedTeacher], info: DataInfo, texts: Texts
) -> tuple[Config, tuple[ResolvedTeacher, ...], list[Choice]]:
    """The config and those of the teachers with everything chosen that is open, and what was chosen."""
    first, *later = teachers
    with about_member(first.name):
        config, choices = complete(config, first.models, info, texts, first.source)
        check_pooled(config, first.models)
    if not isinstance(config.teacher, MixtureTeacher):
        return config, (replace(first, config=config),), choices
    done = [replace(first, config=config.model_copy(update={"teacher": config.lead}))]
    members = dict(config.teacher.members)
    for one in later:
        with about_member(one.name):
            own, made = complete(one.config, one.models, info, texts, one.source)
            check_pooled(own, one.models)
        choices += [named(choice, one.name) for choice in made if choice.name.startswith(("teacher.", "data."))]
        members[one.name] = members[one.name].model_copy(update={"finetune": own.lead.finetune})
        done.append(replace(one, config=own))
    mixture = config.teacher.model_copy(update={"members": members})
    if config.task.kind == "vector" and config.task.num_components is None:
        check_widths(done, task_of(info.task).head)
    return config.model_copy(update={"teacher": mixture}), tuple(done), choices


def named(choice: Choice, name: str) -> Choice:
    """A choice for one of several teachers, where it stands in the config of all."""
    own = f"teacher.members.{name}"
    is_own = choice.name.startswith("teacher.")
    return replace(choice, name=own + choice.name.removeprefix("teacher") if is_own else f"{choice.name} of {own}")


def check_widths(teachers: Sequence[ResolvedTeacher], head: Head) -> None:
    """ConfigError for vectors that have no mean."""
    widths = {}
    for one in teachers:
        own = read_config(one.source, one.config.lead.trust_remote_code)
        set_head_of(own, one.source, head)
        widths[one.name] = vector_width(own)
    if len({*widths.values()}) > 1:
        told = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise ConfigError(
            f"teacher.members: vectors of other widths ({told}) have no mean. Bring all to one with task.width, or "
            "name teachers of one width."
        )
