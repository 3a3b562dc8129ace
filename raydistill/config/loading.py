"""From a YAML file (or a dict) and `--set` overrides to a Config, and back to dotted names and YAML.

Relative paths inside a config count from the working directory, not from the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from raydistill.config.data import Data
from raydistill.config.filling import with_method, with_mode, with_stages, with_ways
from raydistill.config.gate import Gate
from raydistill.config.plugins import load_named
from raydistill.config.problems import Path, explain
from raydistill.config.schema import locate, put
from raydistill.config.section import Section
from raydistill.config.syntax import MAX_BYTES, Document, dump_yaml, parse_yaml
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.storage.paths import names_beside

S = TypeVar("S", bound=Section)


def load_config(source: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """Read a config and put `a.b=value` overrides on top, in their order.

    Raises ConfigError, which names every problem at once: line, dotted path, wrong value and nearest valid name.
    """
    data, name, lines = read_source(source, "config", "data: …, teacher: …")
    if not (data or overrides or isinstance(source, Mapping)):
        raise ConfigError(f"{name}: the file is empty. Start from a recipe: raydistill init")
    for assignment in overrides:
        path = override(data, assignment)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
    return validate(data, name, lines, Config)


def load_gate(source: str | os.PathLike[str] | Mapping[str, Any] | Gate) -> Gate:
    """Read the rules of a gate. Raises ConfigError as ``load_config``."""
    return validate(*read_source(source, "gate", "min_retention: …"), Gate)


def read_source(
    source: str | os.PathLike[str] | Mapping[str, Any] | Section, kind: str, example: str
) -> tuple[dict[str, Any], str, dict[Path, int]]:
    """The source's plain data, what errors call it, and the lines of a file's paths."""
    if isinstance(source, Section | Mapping):
        name, document = kind, Document(source, {})
    else:
        name = os.fspath(source)
        document = parse_yaml(read_text(name), name)
    data = plain({} if document.data is None else document.data, name)
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected names with values ({example}), got a {type(data).__name__}.")
    return data, name, document.lines


def plain(value: Any, name: str) -> Any:
    """A copy out of dicts, lists and scalars, as JSON has them."""
    try:
        return from_json(to_json(value, inf_nan_mode="constants"))
    except ValueError as error:  # pydantic's serialisation error is one
        raise ConfigError(f"{name}: holds what is no plain value: {error}") from error


def validate(data: dict[str, Any], name: str, lines: dict[Path, int], section: type[S]) -> S:
    """The section, or one ConfigError with all problems."""
    if section is Config:
        load_named(data)
        data = with_stages(with_mode(with_ways(with_method(data))))
    try:
        # JSON mode is strict about types ("3" is no number) and still takes lists for tuples.
        return section.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = sorted(explain(error, data, section), key=lambda problem: line_of(problem.path, lines))
    texts = [f"line {lines[p.path]}: {p}" if p.path in lines and p.path else str(p) for p in problems]
    if len(texts) == 1:
        raise ConfigError(f"{name}: {texts[0]}")
    raise ConfigError(f"{name}: {len(texts)} problems\n" + "\n".join(f"  - {text}" for text in texts))


def line_of(path: Path, lines: dict[Path, int]) -> int:
    """The line of a path, or of the nearest place above it; 0 where there are no lines."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 0)


def read_text(name: str) -> str:
    """The text of a config file; every way in which it cannot be read is a ConfigError."""
    try:
        with open(name, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES // 1000:,} kB, and a config is a few lines")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start} cannot be read); save it as UTF-8.") from None
    except OSError as error:
        path = FilePath(name).absolute()
        beside = names_beside(path / "config.yaml" if path.is_dir() else path)
        raise ConfigError(f"{name} cannot be read: {error.strerror}. {beside} Recipes: raydistill init") from None
    except ValueError as error:  # or a NUL in the name
        raise ConfigError(f"{name!r} cannot be read: {error}.") from None


def override(data: dict[str, Any], assignment: str) -> Path:
    """Put one `a.b.c=value` into the plain data and return its path; null takes a dict's entry out.

    Raises ConfigError for a path that the config does not know.
    """
    name, equals, text = assignment.partition("=")
    name = name.strip()
    if not equals or not all(name.split(".")):
        example = f"{name}=VALUE" if name and all(name.split(".")) else "train.num_workers=2"
        raise ConfigError(f"--set {assignment}: expected NAME=VALUE, for example --set {example}")
    value = plain(parse_yaml(text, f"--set {name}").data, f"--set {name}")
    try:
        setting = locate(name, data, make=True)
    except ConfigError as error:
        raise ConfigError(f"--set {name}: {error}") from None
    put(data, setting, value)
    return setting.path


def flatten(section: Section) -> dict[str, Any]:
    """Dotted names and plain leaf values (tuples as lists), in the order of the config or of a part of it."""
    return flatten_plain(section.model_dump(mode="json"), "")


def flatten_plain(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            flat.update(flatten_plain(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def to_yaml(config: Config) -> str:
    """The whole config, defaults included, as YAML that `load_config` reads back to an equal Config."""
    return dump_yaml(config.model_dump(mode="json"))


def load_data(path: str, overrides: Sequence[str] = ()) -> Data:
    """The data section alone, for a path and `data.name=value` overrides."""
    check_data_overrides(overrides)
    return data_config(path, overrides).data


NO_MODEL = "-"
"""In the place of a teacher's name that nobody has given yet."""


def data_config(path: str, overrides: Sequence[str] = (), *, has_teacher: bool = False) -> Config:
    """A config of which only data and task mean something, for a path and overrides of these sections; and the teacher
    with ``has_teacher``."""
    check_data_overrides(overrides, ("data.", "task.", "teacher.") if has_teacher else ("data.", "task."))
    rest = {"teacher": {"model": NO_MODEL}, "stages": {"distill": {"losses": {"task": {"type": "task"}}}}}
    return load_config({"data": {"path": path}, **rest}, overrides)


def check_data_overrides(overrides: Sequence[str], sections: tuple[str, ...] = ("data.",)) -> None:
    """ConfigError for an override of another section, where only these are used."""
    for assignment in overrides:
        name, _, value = (part.strip() for part in assignment.partition("="))
        if name == "storage":
            raise ConfigError(f"--set {assignment}: this command reads no config; write --storage {value}")
        if not name.startswith(sections):
            *most, last = (section.removesuffix(".") for section in sections)
            known = f"{', '.join(most)} and {last}" if most else last
            raise ConfigError(f"--set {assignment}: only names of {known} are used here, such as data.max_length=64")


def optional_data(path: str | None, overrides: Sequence[str] | None) -> Data | None:
    """The data section of ``--data``, or None without it. ConfigError for overrides of a section that is not there."""
    if path is not None:
        return load_data(path, overrides or [])
    if overrides:
        check_data_overrides(overrides)
        raise ConfigError(
            f"--set {overrides[0]} says how to read --data, which is missing. Add --data, or leave it out."
        )
    return None
