"""What is wrong with a config, in the user's words: dotted path, wrong value, what is allowed, nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from raydistill.config.schema import describe, plain_words, section_for, sections, type_tag, unknown_name, variants
from raydistill.config.section import MODEL_NAME_PATTERN, NAME_PATTERN
from raydistill.config.tree import Config
from raydistill.errors import nearest

Path = tuple[str | int, ...]

BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("greater than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
PATTERNS = {
    NAME_PATTERN: "letters, digits, '_' and '-', beginning with a letter or digit",
    MODEL_NAME_PATTERN: "letters, digits, '.', '_' and '-', beginning with a letter or digit",
}


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where (a path into the config) and what."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text


@dataclass(frozen=True)
class Location:
    """A pydantic location, resolved against the config classes and the data."""

    path: Path = ()
    annotation: Any = Config
    value: Any = None
    holder: Any = None
    """Annotation of the location that holds this one, `held` its value."""
    held: Any = None
    union: Location | None = None
    """The union without `type` that was passed on the way; its errors come once a variant."""
    variant: Any = None
    """The variant of that union of which the error speaks."""
    is_key: bool = False


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def show(value: Any) -> str:
    """A value as YAML would have it, cut to 80 characters."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def explain(error: ValidationError, raw: Any, root: type[BaseModel] = Config) -> list[Problem]:
    """Rephrase every error of a validation of `raw` as a `root`; those of a union's variants become one."""
    problems: dict[Problem, None] = {}
    items = error.errors(include_url=False)
    for item in items:
        location = locate(item["loc"], raw, root)
        if location.union is not None:
            meant = variant_for(location.union)
            if meant is None:
                problems[Problem(location.union.path, wrong_type(location.union))] = None
                continue
            if meant is not location.variant:
                continue
        problems.update(dict.fromkeys(rephrase(item["type"], item.get("ctx", {}), location)))
    # never empty: better pydantic's own words than an error that names nothing
    return list(problems) or [Problem(locate(item["loc"], raw, root).path, item["msg"]) for item in items]


def locate(loc: tuple[str | int, ...], raw: Any, root: type[BaseModel] = Config) -> Location:
    """Follow a pydantic location, telling names of the config from the labels of union members."""
    location = Location(annotation=root, value=raw)
    for part in loc:
        members = variants(location.annotation)
        if part == "[key]":
            location = Location(location.path, str, location.path[-1], location.holder, location.held, is_key=True)
        elif len(members) > 1:
            member = pick(members, str(part))
            tagged = all(type_tag(section) for section in sections(location.annotation)) and sections(
                location.annotation
            )
            union, variant = (location.union, location.variant) if tagged else (location, member)
            location = Location(location.path, member, location.value, location.holder, location.held, union, variant)
        else:
            annotation, value = descend(members[0], part, location.value)
            path = (*location.path, part)
            location = Location(path, annotation, value, members[0], location.value, location.union, location.variant)
    return location


def pick(members: tuple[Any, ...], label: str) -> Any:
    """The union member that a label names: a type tag, a class name, `tuple[...]`, `literal[...]` or `bool`."""
    head = label.partition("[")[0].lower()
    for member in members:
        tag = type_tag(member) if sections(member) else None
        kind = getattr(get_origin(member) or member, "__name__", None) or str(get_origin(member)).rpartition(".")[2]
        # a class that checks itself after validation is called "function-after[check(), Name]"
        if label == tag or head == kind.lower() or (sections(member) and label.endswith(f" {kind}]")):
            return member
    return members[0]


def descend(annotation: Any, part: str | int, value: Any) -> tuple[Any, Any]:
    """Annotation and value one step further down."""
    below = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        below = value[part]
    if sections(annotation):
        field = annotation.model_fields.get(str(part))
        return (field.annotation if field else Any), below
    args = get_args(annotation)
    if get_origin(annotation) is dict:
        return args[1], below
    if get_origin(annotation) is tuple and isinstance(part, int):
        return args[0 if args[-1] is Ellipsis else min(part, len(args) - 1)], below
    return Any, below


def variant_for(union: Location) -> Any | None:
    """The variant that the shape of the value speaks for: a section for a mapping, a tuple for a list."""
    if isinstance(union.value, dict):
        return section_for(union.annotation, union.value)
    wanted = {list: tuple, bool: bool, int: int, float: float}.get(type(union.value))
    return next((v for v in variants(union.annotation) if wanted in (v, get_origin(v))), None) if wanted else None


def rephrase(kind: str, context: dict[str, Any], location: Location) -> Iterator[Problem]:
    """The problems that one pydantic error stands for."""
    path, value = location.path, location.value
    if kind == "cross_field":
        yield from (Problem((*path, *below), text) for below, text in context["problems"])
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        yield Problem((*path, "type"), unknown_type(location))
    else:
        yield Problem(path, sentence(kind, context, location, value))


def sentence(kind: str, context: dict[str, Any], location: Location, value: Any) -> str:
    """Why one value is refused."""
    if kind == "extra_forbidden":
        return unknown_name(location.path, location.holder, location.held)
    if kind == "missing":
        holder = next(iter(sections(location.holder)), None)
        field = holder.model_fields.get(str(location.path[-1])) if holder and location.path else None
        about = plain_words(field.description) if field else ""
        return f"is missing. {about}" if about else f"is missing; it takes {describe(location.annotation)}."
    if kind in BOUNDS:
        words, bound = BOUNDS[kind]
        return f"must be {words} {context[bound]:g}, got {show(value)}."
    if kind in ("too_short", "string_too_short"):
        return f"must not be empty, got {show(value)}."
    if kind in ("too_long", "string_too_long"):
        return f"must not be longer than {context['max_length']}, got {show(value)}."
    if kind == "string_pattern_mismatch":
        allowed = PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
        return f"{'the name ' if location.is_key else ''}{show(value)} is not allowed; use {allowed}."
    if kind == "literal_error":
        return unknown_choice(value, [str(choice) for choice in get_args(location.annotation)])
    if kind == "finite_number":
        return f"must be a finite number, got {show(value)}."
    return wrong_type(location)


def unknown_choice(value: Any, known: list[str], noun: str = "value") -> str:
    """A value outside a fixed list, with the nearest of them."""
    near = nearest(value, known) if isinstance(value, str) else None
    hint = f"did you mean {near!r}? " if near else ""
    return f"unknown {noun} {show(value)}; {hint}Known {noun}s: {', '.join(known)}."


def unknown_type(location: Location) -> str:
    """The `type` of a union that is missing or names no class."""
    known = [tag for section in sections(location.annotation) if (tag := type_tag(section))]
    if not isinstance(location.value, dict) or "type" not in location.value:
        return f"is missing. Known types: {', '.join(known)}."
    return unknown_choice(location.value["type"], known, "type")


def wrong_type(location: Location) -> str:
    """What the location expects, what it got, and the usual cause."""
    value, expected = location.value, describe(location.annotation)
    kinds = variants(location.annotation)
    hint = ""
    if value is None and sections(location.annotation):
        fields = [field for section in sections(location.annotation) for field in section.model_fields.items()]
        empty = next((name for name, field in fields if type(None) in get_args(field.annotation)), None)
        hint = " (leave the section out for its defaults"
        hint += f"; null goes below it: {dotted((*location.path, empty))}=null)" if empty else ")"
    elif value is None:
        hint = " (nothing is written here; delete the line for the default)"
    elif isinstance(value, str) and str not in kinds and is_number(value):
        hint = " (text; write it without quotes)"
    elif isinstance(value, float) and int in kinds and value.is_integer():
        hint = f"; write {int(value)}"
    elif isinstance(value, bool | int | float) and str in kinds:
        hint = "; put it in quotes if it is text"
    return f"expected {expected}, got {show(value)}{hint}."


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True
