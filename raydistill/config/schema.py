"""Reading the config classes: which names a dotted path may go on with, and what is expected where."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from raydistill.config.section import Section
from raydistill.config.training import Stage
from raydistill.config.tree import Config
from raydistill.errors import nearest

SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


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


def section_for(annotation: Any, value: Any) -> type[Section] | None:
    """The class that `value` is meant for: the only one, or the one that its `type` names."""
    found = sections(annotation)
    if len(found) == 1:
        return found[0]
    tag = value.get("type") if isinstance(value, Mapping) else None
    return next((section for section in found if type_tag(section) == tag), None)


def entry_type(annotation: Any) -> Any | None:
    """What the values of a dict are, None where the annotation has no dict."""
    return next((get_args(v)[1] for v in variants(annotation) if get_origin(v) is dict), None)


def child_type(annotation: Any, name: str, value: Any) -> Any | None:
    """What stands under `name`, None where there is no such name."""
    section = section_for(annotation, value)
    candidates = [section] if section else list(sections(annotation))
    for candidate in candidates:
        if name in candidate.model_fields:
            return candidate.model_fields[name].annotation
    return entry_type(annotation)


def names_below(annotation: Any, value: Any) -> list[str]:
    """The field names that are valid at a location."""
    section = section_for(annotation, value)
    candidates = [section] if section else list(sections(annotation))
    return list(dict.fromkeys(name for candidate in candidates for name in candidate.model_fields))


def describe(annotation: Any) -> str:
    """What a location expects, in words."""
    tags = [tag for section in sections(annotation) if (tag := type_tag(section))]
    if len(tags) > 1:
        return f"a section with a type ({', '.join(tags)})"
    return " or ".join(describe_variant(variant) for variant in variants(annotation))


def describe_variant(variant: Any) -> str:
    origin, args = get_origin(variant), get_args(variant)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args)) if len(args) > 1 else repr(args[0])
    if origin is tuple:
        inner = f"{describe(args[0])}, ..." if args[-1] is Ellipsis else ", ".join(map(describe, args))
        return f"a list [{inner}]"
    if origin is dict:
        return f"names with {describe(args[1])} each"
    if isinstance(variant, type) and issubclass(variant, Section):
        return "a section with " + ", ".join(variant.model_fields)
    return SCALARS.get(variant, str(variant))


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
    known = names_below(annotation, value)
    elsewhere = list(dict.fromkeys(name for name in dotted_names() if name.rpartition(".")[2] == last))
    # part of a name is nearer than a place elsewhere: student.layers means num_layers
    near = next((name for name in known if name.endswith(f"_{last}")), None) or nearest(str(last), known)
    if near and (not elsewhere or near.endswith(f"_{last}")):
        return f"unknown name; did you mean {prefix}{near}?"
    if elsewhere:
        return f"unknown name here; it belongs to {', '.join(elsewhere[:3])}. Known here: {', '.join(known)}."
    return f"unknown name. Known here: {', '.join(known)}." if known else "unknown name: nothing goes below this one."


def plain_words(text: str | None) -> str:
    """An attribute docstring as one line without markup."""
    return " ".join((text or "").replace("``", "").split())


def list_losses() -> dict[str, dict[str, Any]]:
    """Every loss type with what it is and its settings (default and meaning)."""
    found: dict[str, dict[str, Any]] = {}
    for section in sections(entry_type(Stage.model_fields["losses"].annotation)):
        settings = {
            name: {"default": field.default, "about": plain_words(field.description)}
            for name, field in section.model_fields.items()
            if name != "type"
        }
        found[type_tag(section) or section.__name__] = {"about": (section.__doc__ or "").strip(), "settings": settings}
    return found
