"""What every part of the config tree is built on: frozen, strict sections, and the names that users choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from raydistill.storage.redaction import CONTROLS, redact_tree

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]
"""A name the user chooses; it becomes part of dotted names, metric keys and folder names."""


def form_of(value: Any) -> str:
    """Which member of a union a value is meant for, by its form alone: the tag ``section``, ``list`` or ``value``."""
    if isinstance(value, Mapping | BaseModel):
        return "section"
    return "list" if isinstance(value, list | tuple) else "value"


def type_of(given: Any, usual: str) -> Any:
    """The ``type`` that a section names, plain or made; ``usual``: what one without a type means."""
    return given.get("type", usual) if isinstance(given, Mapping) else getattr(given, "type", None)


Auto = Literal["auto"]
T = TypeVar("T")


def word_or_value(word: str) -> Callable[[Any], str]:
    """What tells a setting's one word from its other values, by the tags ``word`` and ``value``."""
    return lambda value: word if isinstance(value, str) and value == word else "value"


OrAuto = Annotated[Annotated[T, Tag("value")] | Annotated[Auto, Tag("auto")], Discriminator(word_or_value("auto"))]
"""A setting that ``pipeline.defaults`` chooses, from the models and the data, where it is ``auto``."""


def known(value: T | Auto) -> T:
    """A setting that has been chosen, as all have been once the data is prepared."""
    assert value != "auto"
    return value


Mistake = tuple[tuple[str, ...], str]
"""Names below the section that checks, and what is wrong there."""


def refuse(mistakes: list[Mistake]) -> None:
    """Raise one validation error that carries every mistake, if there are any."""
    if mistakes:
        text = "; ".join(f"{'.'.join(path)}: {reason}" for path, reason in mistakes)
        raise PydanticCustomError("cross_field", "{text}", {"text": text, "problems": mistakes})


class Section(BaseModel):
    """Base of every part of the tree: unknown names and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    version: ClassVar[int] = 1
    """Raised when a default changes, or the same settings make something else: keys of what was made before differ."""

    @model_validator(mode="after")
    def check(self) -> Self:
        texts = [(name, CONTROLS.search(value)) for name, value in self if isinstance(value, str)]
        unseen = [((name,), f"holds the control character {bad[0]!r}; delete it.") for name, bad in texts if bad]
        refuse(unseen + self.mistakes())
        return self

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Without credentials: what is shown of a section may be logged, or end on a dashboard."""
        for name, value in super().__repr_args__():
            yield name, redact_tree(value, name or "")

    def mistakes(self) -> list[Mistake]:
        """What is wrong between fields that are each valid."""
        return []

    def recipe(self, **chosen: Any) -> dict[str, Any]:
        """The part of the section that goes into keys, as JSON: its ``type``, the settings that differ from their
        defaults, and its ``version`` from the second on. A setting that is added later changes no key.

        ``chosen``: ``include`` or ``exclude``, as ``model_dump`` takes them.
        """
        found: dict[str, Any] = _differing(self, self.model_dump(mode="json", **chosen), _NOTHING)
        return found


_NOTHING = object()
"""Equal to no value: the default of what has none, and the recipe of what is its default."""


def _differing(value: Any, dumped: Any, default: Any) -> Any:
    """``dumped``, the JSON of a value, without the defaults of sections in it; _NOTHING for one that is its default.

    Sections of a later version than the first are in it even where they are their default.
    """
    is_default = value == default
    found: dict[str, Any] = {}
    if isinstance(value, Section):
        for name in dumped:
            own, field = getattr(value, name), type(value).model_fields[name]
            usual = own if is_default else field.get_default(call_default_factory=True)
            found[name] = dumped[name] if name == "type" and not is_default else _differing(own, dumped[name], usual)
        if value.version != 1:
            found["version"] = value.version
    elif isinstance(value, Mapping):
        for name, own in value.items():
            found[str(name)] = _differing(own, dumped[str(name)], own if is_default else _NOTHING)
    elif isinstance(value, list | tuple) and not is_default:
        return [_differing(own, one, _NOTHING) for own, one in zip(value, dumped, strict=True)]
    else:
        return _NOTHING if is_default else dumped
    found = {name: recipe for name, recipe in found.items() if recipe is not _NOTHING}
    return _NOTHING if is_default and not found else found
