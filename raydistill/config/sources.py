"""What a class of a user's own is made of: a digest of its source, and of all that it imports from beside it."""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

OURS = "raydistill"


def source_version(made: type) -> str | None:
    """The ``version`` that a class declares; else the digest of its module and of those modules that it, or one of its
    bases beside it, imports from its own package, or from the folder of a plain script, at any remove; of a notebook's
    class that of its cell. None where there is no source to read."""
    if (declared := getattr(made, "version", None)) is not None:
        return str(declared)
    if (file := _file_of_loaded(made.__module__)) is None:
        return _digest({"cell": cell}) if (cell := _cell(made)) else None
    spec = getattr(sys.modules[made.__module__], "__spec__", None)  # of python -m package.module the true name
    start = made.__module__ if spec is None else spec.name
    root, top = _root(start, file), start.partition(".")[0]
    is_installed = next(root.glob("*.dist-info"), None) is not None  # beside it lie packages that are no part of it
    ahead = [start, *(base.__module__ for base in made.__mro__[1:])]
    found: dict[str, bytes] = {}
    while ahead:
        name = ahead.pop()
        own = name.partition(".")[0]
        at = file if name in (start, made.__module__) else _file_in(root, name)
        if name in found or at is None or own == OURS or (is_installed and own != top):
            continue
        found[name] = at.read_bytes()
        ahead += _imported(found[name], name if at.name == "__init__.py" else name.rpartition(".")[0])
    return _digest(found)


def _digest(sources: dict[str, bytes]) -> str:
    lines = "".join(f"{name}\0{hashlib.sha256(sources[name]).hexdigest()}\n" for name in sorted(sources))
    return hashlib.sha256(lines.encode()).hexdigest()[:20]


def _file_of_loaded(name: str) -> Path | None:
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def _root(name: str, file: Path) -> Path:
    """The folder in which the top of a module's package lies."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.resolve().parents[depth]


def _file_in(root: Path, name: str) -> Path | None:
    """Where a module lies, without importing anything."""
    path = root.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imported(content: bytes, package: str) -> Iterator[str]:
    """Names of what may be modules, of the imports anywhere in a source."""
    try:
        tree = ast.parse(content)
    except SyntaxError:  # edited since it was loaded
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                base = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # of a script that is no package: it does not run either
                continue
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _cell(made: type) -> bytes:
    """The text of the notebook's cells in which a class's functions are written."""
    functions = [inspect.unwrap(getattr(value, "__func__", value)) for value in vars(made).values()]
    files = {function.__code__.co_filename for function in functions if inspect.isfunction(function)}
    return "".join(line for file in sorted(files) for line in linecache.getlines(file)).encode()
