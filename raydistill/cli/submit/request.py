"""A command that is to run as a job: parsed by its own parser, and sent with what has to be different there."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raydistill.errors import ConfigError

if TYPE_CHECKING:
    from raydistill.config.data import Data
    from raydistill.config.tree import Config

REMOTE = ("distill", "sweep", "evaluate", "promote", "doctor")
"""Commands that can be submitted; without the name of one the words are those of distill."""
Kind = Literal["file", "data", "hub", "model", "storage"]


@dataclass(frozen=True)
class Reference:
    """Something that a command names by a path, a URL or a name, and under which setting."""

    setting: str
    """``config`` and ``model`` (arguments), ``--gate``, or a dotted name of the config."""
    value: str
    kind: Kind

    @property
    def local(self) -> Path | None:
        """The absolute path on this machine that the value would be, there or not; None for a URL."""
        text = self.value.removeprefix("file://")
        return None if "://" in text else Path(os.path.abspath(os.path.expanduser(text)))


@dataclass(frozen=True)
class Request:
    """A parsed command: its arguments as typed, their values, and the config where it has one."""

    name: str
    arguments: Sequence[str]
    params: Mapping[str, Any]
    config: Config | None
    data: Data | None

    def references(self) -> list[Reference]:
        """Everything that must be found on the cluster too."""
        if self.config is not None:
            return [Reference("config", self.params["config"], "file"), *config_references(self.config)]
        found = data_references(self.data) if self.data is not None else []
        if self.name == "evaluate":
            model = Reference("model", self.params["model"], "model")
            return [model, *found, *([] if found else [self.storage()])]
        gate = [Reference("--gate", self.params["gate"], "file")] if self.params.get("gate") is not None else []
        return [*gate, *found, self.storage()]

    def storage(self) -> Reference:
        value = self.config.storage if self.config is not None else self.params["storage"]
        return Reference("storage", value, "storage")

    def settings(self) -> dict[str, str]:
        """Every value in the config, or in what stands for one, by dotted name."""
        from raydistill.config.loading import flatten

        part = self.config or self.data
        values = flatten(part) if part is not None else {}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    def sends_project(self) -> bool:
        """Whether the command needs files of the project: a check of the nodes does not."""
        return self.name != "doctor"

    def needs_tracking(self) -> bool:
        """Whether it is refused without a tracking store; doctor says so itself."""
        if self.name == "doctor":
            return False
        return self.name != "evaluate" or self.params["model"].startswith(("runs:/", "models:/"))

    def words(self, changes: Mapping[str, str]) -> list[str]:
        """The command line, without the program: as it was typed, and the settings of ``changes`` take other values."""
        from raydistill.config.syntax import as_yaml

        words, more = list(self.arguments), ["--json"]
        if self.name == "doctor":
            more += ["--address", "auto"]  # of all nodes, and not of the head alone
        for setting, value in changes.items():
            if setting in ("config", "model"):
                words = [value if word == self.params[setting] else word for word in words]
            elif setting in ("--gate", "storage"):
                more += [f"--{setting.removeprefix('--')}", value]
            elif setting == "data.path" and self.config is None:
                more += ["--data", value]
            else:
                more += ["--set", f"{setting}={as_yaml(value)}"]
        end = words.index("--") if "--" in words else len(words)
        return [self.name, *words[:end], *more, *words[end:]]


def parse(commands: Mapping[str, Any], words: Sequence[str]) -> Request:
    """Parse ``[COMMAND] ARGUMENTS…`` as the command itself would, and read its config.

    ``commands``: click's commands by name. Raises click's UsageError, and ConfigError for a config that is wrong.
    """
    from raydistill.cli.options import with_storage
    from raydistill.config.loading import load_config, optional_data
    from raydistill.search.space import check_space

    name, arguments = (words[0], words[1:]) if words[0] in REMOTE else ("distill", words)
    if name == "distill" and arguments and arguments[0] in commands:
        raise ConfigError(f"raydistill {arguments[0]} cannot be submitted; these can: {', '.join(REMOTE)}.")
    params = commands[name].make_context(f"raydistill submit {name}", list(arguments)).params
    if "config" in params:
        params["overrides"] = with_storage(params["overrides"], params.pop("storage"))
        config = load_config(params["config"], params["overrides"])
        if name == "sweep":
            check_space(config)
        return Request(name, arguments, params, config, None)
    if params.get("gate"):
        from raydistill.config.loading import load_gate

        load_gate(params["gate"])
    return Request(name, arguments, params, None, optional_data(params.get("data"), params.get("overrides")))


def data_references(data: Data) -> list[Reference]:
    kind: Kind = "hub" if data.format == "hub" else "data"
    found = [Reference("data.path", data.path, kind)]
    return [*found, *([Reference("data.unlabeled", data.unlabeled, "data")] if data.unlabeled is not None else [])]


def config_references(config: Config) -> list[Reference]:
    from raydistill.config.student import STARTS

    found = [Reference("storage", config.storage, "storage"), *data_references(config.data)]
    teachers = {f"teacher.members.{name}": member.model for name, member in config.members.items()}
    teachers = teachers or {"teacher": config.lead.model}
    found += [Reference(f"{place}.model", model, "model") for place, model in teachers.items()]
    if config.student.checkpoint is not None:
        found.append(Reference("student.start", config.student.checkpoint, "model"))
    starts = config.sweep.space.get("student.start") if config.sweep is not None else None
    for value in getattr(starts, "choice", None) or ():
        if isinstance(value, str) and value not in STARTS:
            found.append(Reference("sweep.space.student.start", value, "model"))
    return found


def entry_point(words: Sequence[str]) -> str:
    """The shell line of the job; exec, so that a request to stop reaches the command itself and nothing in between."""
    return f"exec python -m raydistill {shlex.join(words)}"
