"""One setting of the config by its dotted name: where it stands, what it takes, and the config with another value."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raydistill.config.problems import dotted
from raydistill.config.schema import child_type, describe, entry_type, sections, unknown_name
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, nearest


@dataclass(frozen=True)
class Setting:
    """One place in the config that trials give different values."""

    path: tuple[str, ...]
    annotation: Any
    is_entry: bool
    """An entry of a dict, such as a loss: null takes it out."""


def locate(name: str, data: Mapping[str, Any]) -> Setting:
    """Follow a dotted name through the config's classes and its plain `data`; ConfigError where it leads nowhere."""
    parts = tuple(name.split("."))
    node, annotation = data, Config
    for index, part in enumerate(parts):
        here = dotted(parts[: index + 1])
        entry = entry_type(annotation)
        below = child_type(annotation, part, node)
        if below is None:
            raise ConfigError(unknown_name(parts[: index + 1], annotation, node))
        if index == len(parts) - 1:
            return Setting(parts, below, entry is not None)
        if not sections(below) and entry_type(below) is None:
            raise ConfigError(f"nothing goes below {here}, it takes {describe(below)}.")
        if not isinstance(node.get(part), dict):
            near = nearest(part, node)
            hint = f"did you mean {dotted((*parts[:index], near))}?" if near else f"it has {', '.join(node)}."
            raise ConfigError(f"the config has no {here}; {hint}")
        node, annotation = node[part], below
    raise AssertionError("a name has a part")


def plain_of(config: Config) -> dict[str, Any]:
    """The config as plain data, without its sweep."""
    return {**config.model_dump(mode="json"), "sweep": None}


def put(data: dict[str, Any], setting: Setting, value: Any) -> dict[str, Any]:
    """A copy of `data` with one setting replaced."""
    changed = copy.deepcopy(data)
    node = changed
    for part in setting.path[:-1]:
        node = node[part]
    if value is None and setting.is_entry:
        node.pop(setting.path[-1], None)
    else:
        node[setting.path[-1]] = value
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
