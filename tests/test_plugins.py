"""A user's own loss and task: registered from Python, and from an installed package by its entry points."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from kit import ROOT
from kit.toy import toy_config

from raydistill.config import losses as settings
from raydistill.config import plugins
from raydistill.config.loading import load_config
from raydistill.errors import ConfigError, RaydistillError
from raydistill.losses import ForwardKl, Loss, build_losses
from raydistill.tasks import TextClassification

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tiny-plugin"
version = "1.0"

[project.entry-points."raydistill.losses"]
huber_logits = "tiny_plugin:HuberLogits"
broken = "tiny_plugin:Missing"

[project.entry-points."raydistill.tasks"]
rating = "tiny_plugin:Rating"
""",
    "tiny_plugin.py": '''
from typing import Literal

import torch.nn.functional as F

from raydistill.config.losses import LossSection
from raydistill.config import tasks as config
from raydistill.losses import Loss
from raydistill.tasks.regression import TextRegression


class HuberLogits(Loss):
    """Huber's loss between the logits of both models, the mean over the outputs."""

    student_needs = teacher_needs = frozenset({"logits"})

    class Settings(LossSection):
        """Huber's loss between logits."""

        type: Literal["huber_logits"] = "huber_logits"
        delta: float = 1.0
        """Where squared turns into absolute."""

    def __init__(self, weight=1.0, delta=1.0):
        super().__init__(weight)
        self.delta = delta

    def count(self, batch):
        return batch.num_rows

    def forward(self, student, teacher, batch):
        pair = student["logits"].float(), teacher["logits"].float()
        return F.huber_loss(*pair, delta=self.delta, reduction="none").mean(-1)


class Rating(TextRegression):
    """Stars from 1 to 5."""

    type = "rating"

    class Settings(config.TextRegression):
        """Stars from 1 to 5."""

        type: Literal["rating"] = "rating"

    def answers(self, outputs):
        return [{"value": min(5.0, max(1.0, answer["value"]))} for answer in super().answers(outputs)]
''',
}

RUN = """
import json, sys
import raydistill
from raydistill.deploy.inference import answer_rows
from raydistill.deploy.opening import open_model

results = raydistill.distill(json.load(open(sys.argv[1])))
path = results["student"]["path"]
print(json.dumps({
    "losses": sorted({name for point in results["curves"]["student"] for name in point["metrics"] if "loss/" in name}),
    "task": results["task"]["type"],
    "answers": [row for _, row in answer_rows(open_model(path, None, ""), [(0, "good film"), (1, "bad team")])],
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, content in PACKAGE.items():
        (source / name).write_text(content)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True)
    return target


def write_stars(folder: Path) -> Path:
    rows = [(f"{'good' if i % 5 > 2 else 'bad'} film {'very ' * (i % 7)}movie {i}", 1 + i % 5) for i in range(120)]
    path = folder / "stars.jsonl"
    path.write_text("".join(json.dumps({"text": text, "stars": stars}) + "\n" for text, stars in rows))
    return path


@pytest.mark.slow
def test_an_installed_package_brings_a_loss_and_a_task(site: Path, tmp_path: Path) -> None:
    content = toy_config(tmp_path, task={"type": "rating"}, evaluate__baseline=False, registry={})
    content["data"] = {"path": str(write_stars(tmp_path)), "max_length": 20}
    losses = {"huber": {"type": "huber_logits", "delta": 0.5}, "task": {"type": "task", "weight": 0.5}}
    content["stages"]["distill"]["losses"] = losses
    (tmp_path / "config.json").write_text(json.dumps(content))
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "config.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["losses"] == ["train/loss/huber", "train/loss/task"]
    assert told["task"] == "rating"
    assert all(1 <= answer["value"] <= 5 for answer in told["answers"])


def test_a_package_that_cannot_be_loaded_is_named(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(site))
    content = toy_config(tmp_path)
    content["stages"]["distill"]["losses"] = {"kd": {"type": "broken"}}
    with pytest.raises(RaydistillError, match=r"The package of broken .* cannot be loaded"):
        load_config(content)


class SharpKl(ForwardKl):
    """Soft targets at a temperature of half the usual one."""

    class Settings(settings.LossSection):
        """Soft targets, sharper."""

        type: Literal["sharp_kl"] = "sharp_kl"
        sharpness: float = 2.0
        """The temperature's inverse."""

    @classmethod
    def build(cls, settings, task, student, teacher) -> Loss:  # type: ignore[no-untyped-def]
        return cls(settings.weight, 1 / settings.sharpness, task.kind)


@pytest.fixture
def unregistered():  # type: ignore[no-untyped-def]
    yield
    plugins.forget()


@pytest.mark.usefixtures("unregistered")
def test_a_class_registered_from_python_joins_the_config(tmp_path: Path) -> None:
    content = toy_config(tmp_path)
    content["stages"]["distill"]["losses"] = {"kd": {"type": "sharp_kl", "sharpness": 4, "weight": 2.0}}
    with pytest.raises(ConfigError, match="unknown type 'sharp_kl'"):
        load_config(content)
    plugins.register(SharpKl)
    config = load_config(content)
    built = build_losses(config.stages["distill"].losses, TextClassification("ab"), None, None, seed=0)["kd"]  # type: ignore[arg-type]
    assert (type(built), built.weight, built.temperature) == (SharpKl, 2.0, 0.25)
    content["stages"]["distill"]["losses"]["kd"]["sharpnes"] = 4
    with pytest.raises(ConfigError, match=r"sharpnes.*did you mean.*sharpness"):
        load_config(content)
    assert plugins.registered() == (SharpKl,)


@pytest.mark.usefixtures("unregistered")
def test_what_cannot_join_says_why() -> None:
    with pytest.raises(ConfigError, match="Loss has no class Settings"):
        plugins.register(Loss)
    taken = type("Taken", (Loss,), {"Settings": settings.LogitMse})
    with pytest.raises(ConfigError, match="'logit_mse' of Taken is taken"):
        plugins.register(taken)
