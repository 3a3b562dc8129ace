"""A user's own losses and tasks: classes that join the config's unions under the ``type`` of their ``Settings``.

They come from Python (``raydistill.register(MyLoss)``) or from an installed package, by an entry point of the group
``raydistill.losses`` or ``raydistill.tasks`` whose name is the type; a package is loaded when a config names its type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import entry_points
from operator import or_
from typing import Annotated, Any

from pydantic import Field, Tag

from raydistill.config import losses, tasks
from raydistill.config.metrics import METRICS
from raydistill.config.section import Name, Section
from raydistill.config.sources import source_version
from raydistill.config.training import Stage
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, RaydistillError

SECTIONS: dict[str, type[Section]] = {"losses": losses.LossSection, "tasks": tasks.TaskSection}
"""What the settings of a group's classes derive from."""
OWN: dict[str, Iterable[str]] = {"losses": losses.SECTIONS, "tasks": tasks.SECTIONS}
"""Types that are built in."""


@dataclass(frozen=True)
class Plugin:
    """A class that joined, as its source was then; by that it is in the keys of what is made with it."""

    made: type
    version: str | None
    """None: there is no source to read."""


_registered: dict[str, dict[str, Plugin]] = {group: {} for group in SECTIONS}


def register(*classes: type | Plugin) -> None:
    """Let configs name these losses and tasks; each has ``Settings``, a section with its ``type``.

    Workers are handed what the driver has as ``registered``. Raises ConfigError for a class without such settings, or
    with a type that is taken; RaydistillError for one whose package here is not the driver's.
    """
    for given in classes:
        plugin = given if isinstance(given, Plugin) else Plugin(given, source_version(given))
        made, settings = plugin.made, getattr(plugin.made, "Settings", None)
        group = next((name for name, base in SECTIONS.items() if _is_section(settings, base)), None)
        if group is None or settings is None:
            raise ConfigError(
                f"{made.__name__} has no class Settings that derives from raydistill.config.losses.LossSection or "
                "raydistill.config.tasks.TaskSection. Add one, with a field type of its own."
            )
        kind = str(settings.model_fields["type"].default)
        before = _registered[group].get(kind)
        if kind in OWN[group] or (before is not None and before.made.__name__ != made.__name__):
            raise ConfigError(f"The type {kind!r} of {made.__name__} is taken. Give its Settings another one.")
        if plugin is given and plugin != before:
            _check_source(plugin)
        _registered[group][kind] = plugin
        METRICS.update(getattr(made, "metric_facts", {}))
    if classes:
        _rebuild()


def _check_source(plugin: Plugin) -> None:
    """Refuse a class that was imported here, not sent along, from another source than where the run began."""
    made = plugin.made
    is_imported = getattr(sys.modules.get(made.__module__), made.__qualname__, None) is made
    if is_imported and source_version(made) not in (None, plugin.version):
        raise RaydistillError(
            f"The source of {made.__module__}.{made.__qualname__} on this node is not that of the process that began "
            "the run. Install the same package on every node, and run the command again."
        )


def registered() -> tuple[Plugin, ...]:
    """What joined in this process; workers are handed it."""
    return tuple(plugin for group in _registered.values() for plugin in group.values())


def sources_in(settings: Any) -> dict[str, str]:
    """By type the version of each class that joined and that settings, as JSON, name at any depth.

    Raises ConfigError for a class without a source that declares no ``version``: nobody could tell what an edited one
    has made from what it made before.
    """
    found = {}
    for kind in _types_in(settings):
        for plugin in (group[kind] for group in _registered.values() if kind in group):
            if plugin.version is None:
                raise ConfigError(
                    f"The source of {plugin.made.__name__} (type {kind!r}) cannot be read here, so what is made with "
                    "it could not be told from what an edited one makes. Write it into a file, or give the class a "
                    "version, a text that you change with it."
                )
            found[f"{plugin.made.__name__} {kind}"] = plugin.version
    return found


def _types_in(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(kind := node.get("type"), str):
            yield kind
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for value in node:
        yield from _types_in(value)


def forget() -> None:
    """Let no class of the user's own take part any more."""
    for group in _registered.values():
        group.clear()
    _rebuild()


def find(group: str, kind: str) -> type | None:
    """The class of a type, loaded from its package if need be; None for a type that nobody has.

    Raises RaydistillError where the package cannot be loaded.
    """
    if kind in _registered[group]:
        return _registered[group][kind].made
    for point in entry_points(group=f"raydistill.{group}", name=kind):
        try:
            made = point.load()
        except Exception as error:  # whatever the package's own code raises
            raise RaydistillError(
                f"The package of {kind} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        register(made)
        found = _registered[group].get(kind)
        return None if found is None else found.made
    return None


def load_named(config: Mapping[str, Any]) -> None:
    """Load the packages of all types that a config, not yet checked, names and that are not built in."""
    named = [("tasks", config.get("task"))]
    for stage in _mapping(config.get("stages")).values():
        named += [("losses", term) for term in _mapping(_mapping(stage).get("losses")).values()]
    for group, section in named:
        kind = _mapping(section).get("type")
        if isinstance(kind, str) and kind not in OWN[group]:
            find(group, kind)


def _mapping(node: Any) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else {}


def _is_section(settings: Any, base: type[Section]) -> bool:
    return isinstance(settings, type) and issubclass(settings, base) and "type" in settings.model_fields


def _rebuild() -> None:
    """Put all settings into the unions of the tree."""
    terms: Any = reduce(or_, [*losses.SECTIONS.values(), *_settings("losses")])
    Stage.model_fields["losses"].annotation = dict[Name, Annotated[terms, Field(discriminator="type")]]
    kinds = {**tasks.SECTIONS, **{str(s.model_fields["type"].default): s for s in _settings("tasks")}}
    tagged: Any = reduce(or_, (Annotated[section, Tag(kind)] for kind, section in kinds.items()))
    Config.model_fields["task"].annotation = tagged  # the field keeps its discriminator
    Stage.model_rebuild(force=True)
    Config.model_rebuild(force=True)


def _settings(group: str) -> list[type[Section]]:
    return [plugin.made.Settings for plugin in _registered[group].values()]  # type: ignore[attr-defined]
