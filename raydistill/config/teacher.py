"""The ``teacher`` section: which model, how it is fine-tuned, and how its outputs reach the student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.losses import SequenceHead
from raydistill.config.section import Mistake, Name, OrAuto, Section, known, type_of
from raydistill.config.training import Optimization, Resources, without_gpu

FEWEST_PAIRED = 4
"""Rows that a contrastive training compares with each other at least."""


def pair_group(global_batch_size: int) -> int:
    """Rows of a batch that a contrastive training compares with each other."""
    return math.gcd(global_batch_size, 16)


class Finetune(Optimization):
    """Training of the teacher on the labelled rows; its probabilities are calibrated on the validation rows."""

    method: OrAuto[Literal["full", "probe", "contrastive"]] = "auto"
    """``full``: all weights, by the task's loss; ``probe``: a linear head on the mean of the frozen states, in seconds;
    ``contrastive``: rows with the same label are drawn together, then such a head. ``auto``: by the number of
    labels; ``full`` with a length or learning rate of your own."""
    max_attempts: int | None = Field(default=None, ge=1)
    """A ``full`` training that learns nothing is begun again, with another order of the rows and half the learning
    rate, until there were so many. By default 3, and 1 with a learning rate of your own."""

    head: SequenceHead = "softmax"
    """Of a tagger of words, see ``student.head``."""
    metric: str | None = None
    """Validation metric that picks the teacher's best epoch; by default one of its soft targets (log loss, RMSE): they
    are what a student learns, and at equal accuracy an early epoch's near-uniform ones teach little."""

    @property
    def epochs(self) -> float:
        """Passes over the labelled rows with a gradient; a probe makes none."""
        return 0.0 if self.method == "probe" else known(self.num_epochs)

    @property
    def fewest_epochs(self) -> float:
        """Passes that are made at least; a probe makes none."""
        return 0.0 if self.method == "probe" else super().fewest_epochs


class Pool(Section):
    """Teachers in actors of their own, on other devices and nodes than the training workers. They may come and go."""

    min: int = Field(default=1, ge=1)
    """Work begins when so many teachers are there; later it goes on with one."""
    max: int = Field(default=1, ge=1)
    """So many are asked for; an autoscaler brings nodes for them."""
    resources: Resources | None = None
    """What each teacher asks for, for example {GPU: 0.5}; by default one GPU where the cluster has some, else a CPU.
    Where there are nodes with the resource ``teacher``, teachers are placed on those."""
    accelerator_type: str | None = Field(default=None, min_length=1)
    """A kind of GPU by Ray's name, for example L4."""
    max_ahead_bytes: int = Field(default=64 * 2**20, ge=0)
    """Outputs that teachers may have ready for each training worker; beyond that they wait for the student."""

    def mistakes(self) -> list[Mistake]:
        found = without_gpu("resources", self.resources, self.accelerator_type)
        return [*found, (("min",), f"{self.min} is above max ({self.max}).")] if self.min > self.max else found


@dataclass(frozen=True)
class Mode:
    """How the teacher's signals reach the student."""

    name: str
    needs_recording: bool = False
    """Those of the training rows are recorded before a student trains."""
    needs_pool: bool = False
    """Teacher actors compute ahead of the student, which trains at the same time."""
    keeps_teacher: bool = False
    """The teacher's module stays in each training worker."""


MODES = {
    mode.name: mode
    for mode in (
        Mode("cached", needs_recording=True),
        Mode("online", keeps_teacher=True),
        Mode("pool", needs_pool=True),
    )
}


class TeacherModel(Section):
    """A classifier, or an encoder that is fine-tuned first."""

    model: str = Field(min_length=1)
    """A folder, ``pkg://package/path`` or a hub name: a fine-tuned classifier, or a plain encoder with ``finetune``. Or
    what an earlier run made: ``run:KEY`` its student, ``run:KEY/teacher``, ``models:/NAME@ALIAS``."""
    revision: str | None = None
    """Commit, tag or branch of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read; the student has it, too."""
    finetune: OrAuto[Finetune | None] = "auto"
    """Fine-tune the model on the labelled rows first; the best epoch by validation is kept. ``auto``: an encoder
    without a trained head."""


class ModelTeacher(TeacherModel):
    """One teacher, and how its outputs reach the student."""

    type: Literal["model"] = "model"
    allow_chance: bool = False
    """Go on with a teacher that is no better than chance on the validation rows, instead of ending the run."""
    mode: Literal["auto", "cached", "online", "pool"] = "auto"
    """``cached``: record its outputs once; ``online``: run it beside the student; ``pool``: teacher actors compute
    ahead of it; ``auto``: by ``max_cache_bytes``."""
    pool: Pool | None = None
    """Teacher actors: they record (``cached``) or compute ahead of the student (``pool``)."""
    max_cache_bytes: int = Field(default=20_000_000_000, ge=0)
    """Up to this size ``auto`` records outputs that are wider than logits."""

    @property
    def has_actors(self) -> bool:
        """Whether teachers may run in actors of their own."""
        return self.pool is not None or self.feeds_student

    @property
    def feeds_student(self) -> bool:
        """Whether it is settled that teacher actors work at the same time as the student."""
        return self.mode in MODES and MODES[self.mode].needs_pool

    def choose_mode(self, total: int) -> tuple[Mode, str]:
        """The mode, and why; ``total``: bytes that all signals of the training rows would take."""
        if self.mode != "auto":
            return MODES[self.mode], f"teacher.mode: {self.mode}"
        if total <= self.max_cache_bytes:
            return MODES["cached"], f"its outputs take {total:,} bytes, within teacher.max_cache_bytes"
        wide = "online" if self.pool is None else "pool"
        return MODES[wide], f"its outputs would take {total:,} bytes, more than teacher.max_cache_bytes"


class Member(TeacherModel):
    """One of several teachers."""

    weight: float = Field(default=1.0, ge=0)
    """How much it counts beside the others; their sum does not matter. 0, of the first: the student starts from it and
    has its tokenizer, and learns from the others alone."""

    @property
    def alone(self) -> ModelTeacher:
        """The same teacher as if there were no other."""
        known = {name: getattr(self, name) for name in TeacherModel.model_fields}
        return ModelTeacher.model_validate(known | {"allow_chance": True, "mode": "cached"})


class MixtureTeacher(Section):
    """Several teachers, of whose predictions a student learns the weighted mean. It starts from the first one and reads
    that one's tokens; each other reads texts with its own tokenizer."""

    type: Literal["mixture"]
    members: dict[Name, Member] = Field(min_length=1)
    """The teachers, by names of your choice; the first is the one that the student starts from."""
    allow_chance: bool = False
    """Go on where the mean is no better than chance on the validation rows, instead of ending the run."""
    mode: Literal["auto", "cached", "online", "pool"] = "auto"
    """``cached``, which ``auto`` means, too: each teacher is run once, one after the other."""
    pool: Pool | None = None
    """Not for several teachers."""

    has_actors: ClassVar[bool] = False
    feeds_student: ClassVar[bool] = False

    def choose_mode(self, total: int) -> tuple[Mode, str]:
        """The mode, and why."""
        return MODES["cached"], f"{len(self.members)} teachers are run once, one after the other"

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        why = "a mixture is recorded, as its teachers are there one after the other"
        if self.mode not in ("auto", "cached"):
            found.append((("mode",), f"{why}; write cached, or name a single teacher."))
        if self.pool is not None:
            found.append((("pool",), f"{why}, by the training workers. Leave it out, or name a single teacher."))
        seen: dict[str, str] = {}
        if not any(member.weight for member in self.members.values()):
            found.append((("members",), "nobody has a weight above 0; give one to those that the student learns from."))
        for number, (name, member) in enumerate(self.members.items()):
            if number and not member.weight:
                text = "only the first, from which the student starts, may have no say. Leave it out or weigh it."
                found.append((("members", name, "weight"), text))
            first = seen.setdefault(member.model_dump_json(exclude={"weight"}), name)
            if first != name:
                text = f"is the same teacher as {first}. Leave it out, and add its weight to that of {first}."
                found.append((("members", name), text))
        return found


def teacher_type(given: Any) -> Any:
    """The type that a teacher's section names; a single model is what one without a type means."""
    return type_of(given, "model")


Teacher = Annotated[
    Annotated[ModelTeacher, Tag("model")] | Annotated[MixtureTeacher, Tag("mixture")],
    Discriminator(teacher_type),
]
