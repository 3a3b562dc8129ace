"""What is wrong with a config: dotted path, pydantic's words, the wrong value, and the nearest valid name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raydistill.config.schema import entry_type, plain_words, sections, type_tag, unknown_name, variants
from raydistill.config.section import MODEL_NAME_PATTERN, NAME_PATTERN, Auto
from raydistill.config.tree import Config
from raydistill.errors import nearest

Path = tuple[str | int, ...]

ALLOWED = {
    NAME_PATTERN: "letters of A to Z, digits, _ and -",
    MODEL_NAME_PATTERN: "letters of A to Z, digits, dots, _ and -",
}
"""What a name may hold, by its pattern; the first of it is a letter or a digit."""


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


def dotted(path: Path) -> str:
    return ".".join(map(str, path))


def show(value: Any) -> str:
    """A value as YAML would have it, cut to 80 characters."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def explain(error: ValidationError, raw: Any, root: type[BaseModel] = Config) -> list[Problem]:
    """The problems that a validation of `raw` as a `root` found."""
    items = error.errors(include_url=False)
    return [problem for item in items for problem in problems_of(item, locate(item["loc"], raw, root))]


def locate(loc: tuple[str | int, ...], raw: Any, root: type[BaseModel] = Config) -> Location:
    """Follow a pydantic location, telling names of the config from the tags of union members."""
    here = Location(annotation=root, value=raw)
    for part in loc:
        members = variants(here.annotation)
        if part == "[key]":
            here = Location(here.path, str, here.path[-1], here.holder, here.held)
        elif len(members) > 1:
            member = next((member for member in members if part in tags(member)), members[0])
            here = Location(here.path, member, here.value, here.holder, here.held)
        else:
            annotation, value = descend(members[0], part, here.value)
            here = Location((*here.path, part), annotation, value, members[0], here.value)
    return here


def tags(member: Any) -> tuple[str | None, ...]:
    """What pydantic may call a member of a union: its `type`, or the form of its values, see `form_of` and `OrAuto`."""
    if member == Auto:
        return ("auto",)
    found = sections(member)
    return ("value", "section", type_tag(found[0])) if found else ("value", "list" * (get_origin(member) is tuple))


def descend(annotation: Any, part: str | int, value: Any) -> tuple[Any, Any]:
    """Annotation and value one step further down."""
    below = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        below = value[part]
    if sections(annotation):
        field = annotation.model_fields.get(str(part))
        return (field.annotation if field else Any), below
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], below
    return entry_type(annotation) or Any, below


def problems_of(item: ErrorDetails, place: Location) -> Iterator[Problem]:
    """The problems that one pydantic error stands for."""
    kind, path, value = item["type"], place.path, place.value
    types = [tag for section in sections(place.annotation) if (tag := type_tag(section))]
    holder = next(iter(sections(place.holder)), None)
    field = holder.model_fields.get(str(path[-1])) if holder and path else None
    if kind == "cross_field":
        yield from (Problem((*path, *below), text) for below, text in item["ctx"]["problems"])
    elif kind == "extra_forbidden":
        yield Problem(path, unknown_name(path, place.holder, place.held))
    elif kind == "missing":
        yield Problem(path, f"is missing. {plain_words(field.description) if field else ''}".rstrip())
    elif kind in ("union_tag_invalid", "union_tag_not_found") and len(types) > 1:
        chosen = value.get("type") if isinstance(value, dict) else None
        yield Problem((*path, "type"), unknown_choice(chosen, types, "type"))
    elif kind == "union_tag_invalid":
        forms = item["ctx"]["expected_tags"].replace("'", "").replace(", ", " or a ")
        yield Problem(path, f"Input should be a {forms}, got {show(value)}.")
    elif kind == "string_pattern_mismatch":
        yield Problem(
            path,
            f"a name has {ALLOWED[item['ctx']['pattern']]}, and begins with a letter or a digit; got {show(value)}.",
        )
    elif kind == "literal_error":
        yield Problem(path, unknown_choice(value, [str(choice) for choice in get_args(variants(place.annotation)[0])]))
    else:
        forms = variants(field.annotation) if field is not None else ()
        words = [word for form in forms if get_origin(form) is Literal for word in get_args(form)]
        or_word = "".join(f" or {word!r}" for word in words) if kind.endswith(("_type", "_from_float")) else ""
        yield Problem(path, f"{item['msg']}{or_word}, got {show(value)}{null_hint(place)}.")


def unknown_choice(value: Any, known: list[str], noun: str = "value") -> str:
    """A value outside a fixed list, with the nearest of them."""
    near = nearest(value, known) if isinstance(value, str) else None
    what = "is missing." if value is None else f"unknown {noun} {show(value)};"
    hint = f" did you mean {near!r}?" if near else ""
    return f"{what}{hint} Known {noun}s: {', '.join(known)}."


def null_hint(place: Location) -> str:
    """What to write in place of a null for a whole section, which its user means for a setting in it."""
    fields = [field for section in sections(place.annotation) for field in section.model_fields.items()]
    if place.value is not None or not fields:
        return ""
    empty = next((name for name, field in fields if type(None) in get_args(field.annotation)), None)
    below = f"; null goes below it: {dotted((*place.path, empty))}=null" if empty else ""
    return f" (leave the section out for its defaults{below})"
