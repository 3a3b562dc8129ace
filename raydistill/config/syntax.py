"""YAML text to plain data, safely: no tags, no duplicate keys, no alias bombs, and `5e-5` is a number."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from raydistill.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000  # a config has some 100; aliases count as often as they are used

Path = tuple[str | int, ...]

# YAML 1.1, which PyYAML speaks, wants a dot and a signed exponent: without this resolver 5e-5 and 2e10 would be text.
FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
FLOAT_TAG = "tag:yaml.org,2002:float"


class Loader(yaml.SafeLoader):
    """The safe loader with the number syntax of YAML 1.2 and JSON."""


class Dumper(yaml.SafeDumper):
    """The safe dumper that quotes what `Loader` would read as a number."""


for _side in (Loader, Dumper):
    _side.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+.0123456789"))


@dataclass(frozen=True)
class Document:
    """Plain data and the line (from 1) on which each path of it begins."""

    data: Any
    lines: dict[Path, int]


def parse_yaml(text: str, name: str) -> Document:
    """Read one YAML document; `name` is what errors call it.

    Raises ConfigError with line and column for bad syntax, duplicate keys, aliases that multiply, and foreign tags.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines = inspect(node, name)
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        context = f" ({error.context})" if error.context and error.context_mark else ""
        where = at(error.problem_mark or error.context_mark)
        raise ConfigError(f"{name}{where}: not valid YAML: {error.problem}{context}.") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply to be a config.") from None
    except (yaml.YAMLError, ValueError) as error:  # a control character, the 31st of February, 4,300 digits
        said = str(error).splitlines()[0]
        raise ConfigError(f"{name}: a value cannot be read ({said}); put it in quotes if it is text.") from None


def dump_yaml(data: Any) -> str:
    """Write plain data so that `parse_yaml` reads the same back."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def as_yaml(value: Any) -> str:
    """A value on one line that YAML reads back; text is quoted only where it would be read as something else."""
    if isinstance(value, str) and reads_back(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def reads_back(text: str) -> bool:
    try:
        return bool(parse_yaml(text, "").data == text)
    except ConfigError:
        return False


def at(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""


def inspect(root: yaml.Node, name: str) -> dict[Path, int]:
    """The line of every path. Refuses keys written twice, and more than MAX_NODES values: those behind an alias count
    as often as it is used."""
    lines: dict[Path, int] = {}
    left = MAX_NODES

    def visit(node: yaml.Node, path: Path) -> None:
        nonlocal left
        left -= 1 + (len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0)
        if left < 0:
            raise ConfigError(f"{name}: unfolds to more than {MAX_NODES:,} values; a config does not need that many.")
        lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                visit(child, (*path, index))
        elif isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], int] = {}
            for key, child in node.value:
                label = key.value if isinstance(key, yaml.ScalarNode) else "?"
                line = lines[(*path, label)] = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and (key.tag, label) in first:
                    dotted = ".".join(map(str, (*path, label)))
                    raise ConfigError(
                        f"{name}{at(key.start_mark)}: duplicate key {dotted}, first written on line "
                        f"{first[key.tag, label]}; keep one."
                    )
                first[key.tag, label] = line
                visit(child, (*path, label))

    visit(root, ())
    return lines
