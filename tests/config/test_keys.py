"""What of a section goes into keys: a setting that is added changes none, one whose default changes needs a version."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, create_model
from pydantic_core import PydanticUndefined, to_jsonable_python

from raydistill.config import losses, tasks
from raydistill.config.section import Section
from raydistill.config.tree import Config

DEFAULTS = Path(__file__).parent / "defaults.json"
"""By section its version and its settings' defaults, without those that must be given."""


class Inner(Section):
    type: Literal["inner"] = "inner"
    size: int = 3


class Other(Section):
    type: Literal["other"] = "other"
    size: int = 4


class Outer(Section):
    name: str
    rate: float = 0.5
    either: Annotated[Inner | Other, Field(discriminator="type")] = Inner()
    several: tuple[Inner, ...] = ()
    named: dict[str, Inner] | None = None
    plain: dict[str, float] | None = None


def sections(annotation: Any = Config) -> Iterator[type[Section]]:
    """All sections below one, itself included."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
        for field in annotation.model_fields.values():
            yield from sections(field.annotation)
    for argument in get_args(annotation):
        yield from sections(argument)


KINDS = {kind.__name__: kind for kind in [*sections(), *losses.SECTIONS.values(), *tasks.SECTIONS.values()]}


def test_a_recipe_holds_what_differs_from_the_defaults() -> None:
    assert Outer(name="a").recipe() == Outer(name="a", rate=0.5, either=Inner(size=3)).recipe() == {"name": "a"}
    assert Outer(name="a", either=Inner(size=5)).recipe() == {"name": "a", "either": {"type": "inner", "size": 5}}
    assert Outer(name="a", either=Other()).recipe() == {"name": "a", "either": {"type": "other"}}
    given = {"several": (Inner(), Inner(size=1)), "named": {"x": Inner(), "y": Inner(size=2)}, "plain": {"a": 1.0}}
    assert Outer(name="a", **given).recipe(exclude={"name"}) == {
        "several": [{"type": "inner"}, {"type": "inner", "size": 1}],
        "named": {"x": {"type": "inner"}, "y": {"type": "inner", "size": 2}},
        "plain": {"a": 1.0},
    }
    assert Outer(name="a", **given).recipe(include={"several": {"__all__": {"size"}}}) == {"several": [{}, {"size": 1}]}
    assert Outer(name="a", plain={}).recipe() == {"name": "a", "plain": {}}


def test_the_second_version_of_a_section_is_in_recipes_where_all_of_it_is_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Inner, "version", 2)
    assert Outer(name="a").recipe() == {"name": "a", "either": {"version": 2}}
    assert Outer(name="a", named={"x": Inner()}).recipe(include={"named"}) == {
        "named": {"x": {"type": "inner", "version": 2}}
    }
    monkeypatch.setattr(Outer, "version", 3)
    assert Outer(name="a", either=Other()).recipe() == {"name": "a", "either": {"type": "other"}, "version": 3}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_setting_that_is_added_changes_no_recipe(name: str) -> None:
    kind = KINDS[name]
    given = {name: field.default for name, field in kind.model_fields.items() if not field.is_required()}
    later = create_model(f"Later{name}", __base__=kind, added=(float, 0.5))
    before = kind.model_construct(**given).recipe()
    assert later.model_construct(**given).recipe() == before
    assert later.model_construct(**given, added=0.25).recipe() == {**before, "added": 0.25}


def test_a_default_that_changes_raises_the_version_of_its_section() -> None:
    """Else what was made with the old one is taken for made with the new one. Add settings that are new to the file."""
    known = json.loads(DEFAULTS.read_text())
    found = {name: {"version": kind.version, **defaults(kind)} for name, kind in sorted(KINDS.items())}
    for name in known.keys() & found.keys():
        if (version := found[name]["version"]) == known[name]["version"]:
            changed = {s for s, default in known[name].items() if found[name].get(s, PydanticUndefined) != default}
            assert not changed, f"{name}.version is still {version}: raise it, or leave the default of {changed}."
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(section)}" for name, section in found.items())
    assert known == found, f"Write to {DEFAULTS.name}:\n{{\n{lines}\n}}"


def defaults(kind: type[Section]) -> dict[str, Any]:
    given = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
    plain = {name: value.recipe() if isinstance(value, Section) else value for name, value in given.items()}
    found: dict[str, Any] = to_jsonable_python({n: v for n, v in plain.items() if v is not PydanticUndefined})
    return found
