"""Reading the config classes: which names a dotted path may go on with, and what stands where."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from raydistill.config import tasks
from raydistill.config.losses import LossSection
from raydistill.config.section import Section
from raydistill.config.training import Stage
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, nearest


def variants(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, None left out; any other annotation alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return variants(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for arg in get_args(annotation) for member in variants(arg) if member is not type(None))
    return (annotation,)


def sections(annotation: Any) -> tuple[type[Section], ...]:
    """The config classes among the variants."""
    return tuple(v for v in variants(annotation) if isinstance(v, type) and issubclass(v, Section))


def type_tag(section: type[Section]) -> str | None:
    """The value of `type` that selects this class in a union, None for classes without one."""
    field = section.model_fields.get("type")
    return get_args(field.annotation)[0] if field and get_origin(field.annotation) is Literal else None


def entry_type(annotation: Any) -> Any | None:
    """What the values of a dict are, None where the annotation has no dict."""
    return next((get_args(v)[1] for v in variants(annotation) if get_origin(v) is dict), None)


def fields_below(annotation: Any, value: Any) -> dict[str, Any]:
    """The field names that are valid at a location, and what each takes: of all variants where no `type` chooses."""
    found = sections(annotation)
    tag = value.get("type") if isinstance(value, Mapping) else None
    meant = [section for section in found if type_tag(section) == tag] or found
    return {name: field.annotation for section in meant for name, field in section.model_fields.items()}


@dataclass(frozen=True)
class Setting:
    """One place in the config by its dotted name."""

    path: tuple[str, ...]
    annotation: Any
    is_entry: bool
    """An entry of a dict, such as a loss: null takes it out."""


def locate(name: str, data: dict[str, Any], make: bool = False) -> Setting:
    """Follow a dotted name through the config's classes and its plain `data`; ConfigError where it leads nowhere.

    With `make` what the data lacks on the way is put there, empty.
    """
    parts = name.split(".")
    node, annotation = data, Config
    for index, part in enumerate(parts):
        entry = entry_type(annotation)
        if entry is not None and not sections(entry):  # names of a flat dict may hold dots (tracking.tags.a.b)
            return Setting((*parts[:index], ".".join(parts[index:])), entry, True)
        here = ".".join(parts[: index + 1])
        below = fields_below(annotation, node).get(part, entry)
        if below is None:
            raise ConfigError(unknown_name(tuple(parts[: index + 1]), annotation, node))
        if index == len(parts) - 1:
            break
        if not sections(below) and entry_type(below) is None:
            raise ConfigError(f"nothing goes below {here}, which takes a plain value.")
        if make and not isinstance(node.get(part), dict):
            node[part] = {}
        elif not isinstance(node.get(part), dict):
            near = nearest(part, node)
            hint = f"did you mean {'.'.join([*parts[:index], near])}?" if near else f"it has {', '.join(node)}."
            raise ConfigError(f"the config has no {here}; {hint}")
        node, annotation = node[part], below
    return Setting(tuple(parts), below, entry is not None)


def put(data: dict[str, Any], setting: Setting, value: Any) -> None:
    """Replace one setting in plain data; null takes a dict's entry out."""
    node = data
    for part in setting.path[:-1]:
        node = node[part]
    if value is None and setting.is_entry:
        node.pop(setting.path[-1], None)
    else:
        node[setting.path[-1]] = value


def dotted_names(annotation: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted name of the tree; `*` stands for a name the user chooses."""
    for section in sections(annotation):
        for name, field in section.model_fields.items():
            yield f"{prefix}{name}"
            yield from dotted_names(field.annotation, f"{prefix}{name}.")
    if (entry := entry_type(annotation)) is not None:
        yield from dotted_names(entry, f"{prefix}*.")


def unknown_name(path: tuple[str | int, ...], annotation: Any, value: Any) -> str:
    """Why the last part of `path` is refused, and what was probably meant.

    `annotation` and `value` are those of the location that holds it.
    """
    *above, last = path
    prefix = "".join(f"{part}." for part in above)
    known = list(fields_below(annotation, value))
    names = set(dotted_names())
    elsewhere = [name for name in dict.fromkeys(dotted_names()) if name.rpartition(".")[2] == last]
    elsewhere = [name for name in elsewhere if ".members.*" not in name or name.replace(".members.*", "") not in names]
    # part of a name is nearer than a place elsewhere: student.layers means num_layers
    near = next((name for name in known if name.endswith(f"_{last}")), None) or nearest(str(last), known)
    if near and (not elsewhere or near.endswith(f"_{last}")):
        return f"unknown name; did you mean {prefix}{near}?"
    if f"{prefix}{last}" in elsewhere:
        return f"unknown name for this type of {above[-1]}. Known here: {', '.join(known)}."
    if elsewhere:
        return f"unknown name here; it belongs to {', '.join(elsewhere[:3])}. Known here: {', '.join(known)}."
    return f"unknown name. Known here: {', '.join(known)}." if known else "unknown name: nothing goes below this one."


def plain_words(text: str | None) -> str:
    """An attribute docstring as one line without markup."""
    return " ".join((text or "").replace("``", "").split())


def is_for(loss: type[LossSection], task: type[tasks.TaskSection]) -> bool:
    """Whether a loss can learn from a task's rows and predictions."""
    has_embeddings = not task.reads_pictures or "gradients" not in loss.compares
    return loss.takes(task.kind, task.has_units, task.over_vocabulary) and has_embeddings


def list_losses() -> dict[str, dict[str, Any]]:
    """Every loss type: what it is, looks at and is for, and its settings (default and meaning)."""
    found: dict[str, dict[str, Any]] = {}
    for section in sections(entry_type(Stage.model_fields["losses"].annotation)):
        assert issubclass(section, LossSection)
        settings = {
            name: {"default": field.default, "about": plain_words(field.description)}
            for name, field in section.model_fields.items()
            if name != "type"
        }
        found[type_tag(section) or section.__name__] = {
            "about": (section.__doc__ or "").strip(),
            "role": section.role,
            "compares": section.compares,
            "tasks": [n for n, known in tasks.SECTIONS.items() if is_for(section, known)],
            "settings": settings,
        }
    return found
