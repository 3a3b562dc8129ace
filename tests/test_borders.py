"""Who may import what: heavy packages stay where they belong, and the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "raydistill"
HEAVY = ("torch", "ray", "mlflow", "transformers", "datasets", "pandas", "scipy", "sklearn", "matplotlib")
ALLOWED = {
    "ray": {
        "cluster/connection.py",
        "cluster/resources.py",
        "cluster/placement.py",
        "cluster/jobs.py",
        "cluster/nodes.py",
        "cluster/entry.py",
        "cluster/probe.py",
        "cluster/waiting.py",
        "search/actor.py",
        "search/schedulers.py",
        "search/tuning.py",
        "teacher/pool/teachers.py",
        "teacher/pool/signals.py",
        "teacher/pool/recording.py",
        "train/interfaces.py",
        "train/worker.py",
    },
    "mlflow": {
        "tracking.py",
        "registry/students.py",
        "registry/runs.py",
        "registry/versions.py",
        "registry/aliases.py",
        "registry/evidence.py",
    },
    "tests": set(),
    "pytest": set(),
}
PLAIN_TORCH = (
    *("losses", "models", "tasks", "data", "teacher/record.py", "teacher/store.py", "teacher/signals.py"),
    *("train/loop.py", "train/optimizer.py", "train/checkpoint.py"),
    *("evaluate/metrics.py", "evaluate/compare.py", "evaluate/latency.py", "evaluate/predict.py"),
)
ORCHESTRATION = ("cluster", "pipeline", "registry", "tracking", "cli", "console", "phases", "workplace")


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def imported(name: str) -> Iterator[str]:
    """Dotted names that a file imports anywhere: at the top, in functions, for type checkers, by import_module."""
    for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            first = node.args[0]
            yield first.value if isinstance(first, ast.Constant) else ast.unparse(first)


def test_there_are_files_to_look_at() -> None:
    assert {"__init__.py", "train/loop.py", "losses/base.py"} <= set(files())
    assert "ray.train.torch" in set(imported("train/worker.py"))  # in a function
    assert "mlflow" in {found.split(".")[0] for found in imported("registry/students.py")}


@pytest.mark.parametrize("package", ALLOWED)
def test_only_these_files_import(package: str) -> None:
    found = {name for name in files() if package in {module.split(".")[0] for module in imported(name)}}
    assert found <= ALLOWED[package]


@pytest.mark.parametrize("name", [name for name in files() if name.startswith(PLAIN_TORCH)])
def test_plain_parts_do_not_know_the_orchestration(name: str) -> None:
    upper = {f"raydistill.{module}" for module in ORCHESTRATION}
    assert {module for module in imported(name) if ".".join(module.split(".")[:2]) in upper} == set()


@pytest.mark.parametrize("name", [name for name in files() if name.startswith(("losses", "models", "tasks"))])
def test_losses_models_and_tasks_do_not_know_training_or_the_teacher(name: str) -> None:
    above = ("raydistill.train", "raydistill.teacher", "raydistill.evaluate")
    assert [module for module in imported(name) if module.startswith(above)] == []


@pytest.mark.parametrize(
    "code",
    [
        "import raydistill",
        "import raydistill.config, raydistill.errors, raydistill.loading, raydistill.schema, raydistill.console",
        "from raydistill.cli import execute; assert execute(['--help']) == 0",
        "from raydistill.cli import execute; assert execute(['distill', '--help']) == 0",
        "from raydistill.cli import execute; assert execute(['cache', '--help']) == 0",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}\nimport sys\nloaded = [name for name in {HEAVY} if name in sys.modules]\nassert not loaded, loaded"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["train.loop", "losses", "models.student", "teacher.record", "evaluate.predict"])
def test_the_loop_and_its_parts_load_neither_ray_nor_mlflow(module: str) -> None:
    check = f"import raydistill.{module}, sys\nassert not {{'ray', 'mlflow'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_models_are_moved_by_device_only() -> None:
    calls = {
        name
        for name in files()
        for node in ast.walk(ast.parse((PACKAGE / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    }
    assert calls == set()
