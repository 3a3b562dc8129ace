"""Who may import what: folders stand above what they use, heavy packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter

import pytest
from kit import ROOT

PACKAGE = ROOT / "raydistill"
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets", "pandas", "scipy", "sklearn", "matplotlib")
ORDER = (
    *(("errors",), ("storage",), ("config",), ("cluster", "models"), ("tasks",)),
    *(
        ("data", "tracking"),
        ("losses", "teacher", "evaluate"),
        ("train", "deploy"),
        ("pipeline",),
        ("search",),
        ("cli",),
    ),
)
"""A folder may import those of earlier groups, none of its own group and none of a later one."""
FLOOR = {name: floor for floor, names in enumerate(ORDER) for name in names}
ALLOWED = {
    "ray": ("cluster", "pipeline", "teacher/pool", "search", "cli/doctor", "cli/submit"),
    "mlflow": ("tracking",),
    "tests": (),
    "pytest": (),
}
FRONT = {"__init__.py", "__main__.py"}
"""What a user imports or runs; they may use every folder."""


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@cache
def nodes(name: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))))


def imported(name: str) -> Iterator[str]:
    """Dotted names that a file imports anywhere: at the top, in functions, for type checkers, by import_module."""
    for node in nodes(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0]
            yield first.value if isinstance(first, ast.Constant) else ast.unparse(first)


def file_of(module: str) -> str | None:
    """The file of a module of ours, itself or of the package; None for what is no module."""
    place = "/".join(module.split(".")[1:])
    return next((name for name in (f"{place}.py", f"{place}/__init__.py") if (PACKAGE / name).is_file()), None)


def own_imports(name: str) -> set[str]:
    """The files of ours that a file imports names from."""
    ours = {module for module in imported(name) if module.startswith("raydistill.")}
    return {found for module in ours if (found := file_of(module)) is not None and found != name}


def room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def test_there_are_files_to_look_at() -> None:
    assert {"__init__.py", "train/loop.py", "losses/base.py"} <= set(files())
    assert "ray.train.torch" in set(imported("pipeline/worker.py"))  # in a function
    assert "mlflow" in {found.split(".")[0] for found in imported("tracking/registry/students.py")}
    assert "losses/base.py" in own_imports("train/loop.py")


def test_every_module_that_is_imported_is_there() -> None:
    """The type checker lets a missing module pass, as it does those of libraries without types."""
    found = [(name, node) for name in files() for node in nodes(name)]
    wanted = {(name, node.module) for name, node in found if isinstance(node, ast.ImportFrom)}
    ours = {(name, module) for name, module in wanted if module and module.startswith("raydistill.")}
    assert {(name, module) for name, module in ours if file_of(module) is None} == set()


def test_every_folder_has_its_place() -> None:
    assert {room(name) for name in files()} - {"__init__", "__main__"} == FLOOR.keys()


def test_a_folder_stands_above_all_that_it_imports() -> None:
    arrows = {(name, found) for name in files() if name not in FRONT for found in own_imports(name)}
    others = {(name, found) for name, found in arrows if room(found) != room(name)}
    assert {(name, found) for name, found in others if FLOOR[room(found)] >= FLOOR[room(name)]} == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    arrows = {name: {found for found in own_imports(name) if not found.endswith("__init__.py")} for name in files()}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(arrows)  # CycleError names the files


@pytest.mark.parametrize("package", ALLOWED)
def test_only_these_folders_import(package: str) -> None:
    found = {name for name in files() if package in {module.split(".")[0] for module in imported(name)}}
    assert {name for name in found if not name.startswith(ALLOWED[package])} == set()


def test_the_loop_and_its_parts_load_neither_ray_nor_mlflow() -> None:
    """One after another in one process: the first that loads them is told."""
    checks = [
        f"import raydistill.{module}\nassert not {{'ray', 'mlflow'}} & set(sys.modules), '{module}'"
        for module in ("losses", "models.student", "evaluate.predict", "teacher.record", "train.loop")
    ]
    command = [sys.executable, "-c", "\n".join(["import sys", *checks])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_models_are_moved_by_device_only() -> None:
    calls = {
        name
        for name in files()
        for node in nodes(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    }
    assert calls == set()
