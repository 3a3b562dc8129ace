"""From a YAML file (or a dict) and `--set` overrides to a Config, and back to dotted names and YAML.

Relative paths inside a config count from the working directory, not from the file.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from raydistill.config.data import Data
from raydistill.config.gate import Gate
from raydistill.config.plugins import load_named
from raydistill.config.problems import Path, Problem, dotted, explain
from raydistill.config.schema import child_type, describe, entry_type, sections, unknown_name
from raydistill.config.section import Section
from raydistill.config.syntax import MAX_BYTES, MAX_NODES, Document, dump_yaml, parse_yaml
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, nearest

MAX_DEPTH = 30
S = TypeVar("S", bound=Section)


def load_config(source: str | os.PathLike[str] | Mapping[str, Any] | Config, overrides: Sequence[str] = ()) -> Config:
    """Read a config and put `a.b=value` overrides on top, in their order.

    Raises ConfigError, which names every problem at once: line, dotted path, wrong value and nearest valid name.
    """
    name, data, lines, problems = read_source(source, "config", "data: …, teacher: …")
    if not (data or problems or overrides or isinstance(source, Mapping)):
        raise ConfigError(f"{name}: the file is empty. Start from a recipe: raydistill init")
    for assignment in overrides:
        path = override(data, assignment)
        lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
    return validate(data, problems, name, lines, Config)


def load_gate(source: str | os.PathLike[str] | Mapping[str, Any] | Gate) -> Gate:
    """Read the rules of a gate. Raises ConfigError as ``load_config``."""
    name, data, lines, problems = read_source(source, "gate", "min_retention: …")
    return validate(data, problems, name, lines, Gate)


def read_source(
    source: str | os.PathLike[str] | Mapping[str, Any] | Section, kind: str, example: str
) -> tuple[str, dict[str, Any], dict[Path, int], list[Problem]]:
    """What errors call the source, its plain data, the lines of a file's paths, and what is no plain data in it."""
    if isinstance(source, Section | Mapping):
        name, document = kind, Document(source, {})
    else:
        name = os.fspath(source)
        document = parse_yaml(read_text(name), name)
    problems: list[Problem] = []
    data = plain({} if document.data is None else document.data, (), problems, [0])
    if not isinstance(data, dict):
        raise ConfigError(f"{name}: expected names with values ({example}), got a {type(data).__name__}.")
    return name, data, document.lines, problems


def validate(data: dict[str, Any], problems: list[Problem], name: str, lines: dict[Path, int], section: type[S]) -> S:
    """The section, or one ConfigError with all problems."""
    found = None
    if section is Config:
        load_named(data)
    try:
        # JSON mode is strict about types ("3" is no number) and still takes lists for tuples.
        found = section.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        known = {problem.path for problem in problems}
        problems = problems + [problem for problem in explain(error, data, section) if problem.path not in known]
    if found is not None and not problems:
        return found
    problems.sort(key=lambda problem: line_of(problem.path, lines))
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
    except FileNotFoundError:
        raise ConfigError(missing_file(name)) from None
    except IsADirectoryError:
        inside = sorted(path.name for path in FilePath(name).glob("*.y*ml"))[:10]
        found = f"it holds {', '.join(inside)}" if inside else "it holds no YAML file"
        raise ConfigError(f"{name} is a folder ({found}); name one config file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{name!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{name} is larger than {MAX_BYTES // 1000:,} kB; a config is a few lines. Is it the right file?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start} cannot be read); save it as UTF-8.") from None


def missing_file(name: str) -> str:
    """What to do about a file that is not there."""
    path = FilePath(name)
    folder = path.parent
    if not folder.is_dir():
        return f"{name} does not exist: there is no folder {folder}. List the recipes with: raydistill init"
    near = nearest(path.name, [other.name for other in folder.iterdir() if other.suffix in (".yaml", ".yml")])
    hint = f"did you mean {folder / near}?" if near else "list the recipes with: raydistill init"
    return f"{name} does not exist (looked in {folder.resolve()}); {hint}"


def plain(value: Any, path: Path, problems: list[Problem], count: list[int]) -> Any:
    """A copy out of dicts, lists and scalars; what is none of these is noted as a problem and left out as None."""
    count[0] += 1
    if len(path) > MAX_DEPTH or count[0] > MAX_NODES:
        raise ConfigError(f"{dotted(path[:8])}: nested too deeply, or too many values, to be a config.")
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        copy: dict[str, Any] = {}
        for key, below in value.items():
            if isinstance(key, str) and not control_character(key):
                copy[str(key)] = plain(below, (*path, key), problems, count)
            else:
                problems.append(Problem(path, f"the name {key!r} is not plain text; put names in quotes."))
        return copy
    if isinstance(value, list | tuple):
        return [plain(below, (*path, index), problems, count) for index, below in enumerate(value)]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        if (bad := control_character(value)) is not None:
            problems.append(Problem(path, f"holds the control character {bad!r}; delete it."))
            return None
        return str(value)
    return plain_scalar(value, path, problems)


def plain_scalar(value: Any, path: Path, problems: list[Problem]) -> Any:
    if value is None or type(value) is bool:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    problems.append(Problem(path, f"{type(value).__name__} {show_odd(value)} cannot be used here; {way_out(value)}."))
    return None


def show_odd(value: Any) -> str:
    return "of more than 18 digits" if isinstance(value, int) else str(value)[:60]


def way_out(value: Any) -> str:
    return "write a finite, smaller number" if isinstance(value, int | float) else "put it in quotes if it is text"


def control_character(text: str) -> str | None:
    """The first character that no path or name contains: controls (but newline and tab) and lone surrogates."""
    return next((c for c in text if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")), None)


def override(data: dict[str, Any], assignment: str) -> Path:
    """Put one `a.b.c=value` into the plain data and return its path; null takes a dict's entry out.

    Raises ConfigError for a path that the config does not know.
    """
    name, equals, text = assignment.partition("=")
    name = name.strip()
    parts = name.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {assignment}: expected NAME=VALUE, for example --set train.num_workers=2")
    problems: list[Problem] = []
    value = plain(parse_yaml(text, f"--set {name}").data, tuple(parts), problems, [0])
    if problems:
        raise ConfigError(f"--set {problems[0]}")
    node, annotation = data, Config
    for index, part in enumerate(parts):
        entry = entry_type(annotation)
        if entry is not None and not sections(entry):  # names of a flat dict may hold dots (tracking.tags.a.b)
            parts[index:] = [".".join(parts[index:])]
            part = parts[index]
        below = child_type(annotation, part, node)
        if below is None:
            raise ConfigError(f"--set {name}: {unknown_name(tuple(parts[: index + 1]), annotation, node)}")
        if index == len(parts) - 1:
            break
        if not sections(below) and entry_type(below) is None:
            full = dotted(tuple(parts[: index + 1]))
            raise ConfigError(f"--set {name}: nothing goes below {full}, it takes {describe(below)}.")
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node, annotation = node[part], below
    if value is None and entry is not None:
        node.pop(parts[-1], None)
    else:
        node[parts[-1]] = value
    return tuple(parts)


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


def data_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """A config of which only data and task mean something, for a path and overrides of these sections."""
    check_data_overrides(overrides, ("data.", "task."))
    rest = {"teacher": {"model": "-"}, "stages": {"distill": {"losses": {"task": {"type": "task"}}}}}
    return load_config({"data": {"path": path}, **rest}, overrides)


def check_data_overrides(overrides: Sequence[str], sections: tuple[str, ...] = ("data.",)) -> None:
    """ConfigError for an override of another section, where only these are used."""
    for assignment in overrides:
        name, _, value = (part.strip() for part in assignment.partition("="))
        if name == "storage":
            raise ConfigError(f"--set {assignment}: this command reads no config; write --storage {value}")
        if not name.startswith(sections):
            known = " and ".join(section.removesuffix(".") for section in sections)
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
