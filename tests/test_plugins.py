"""A user's own loss and task: registered from Python, and from an installed package by its entry points."""

from __future__ import annotations

import importlib
import json
import linecache
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from kit import ROOT
from kit.toy import toy_config

from raydistill.config import losses as settings
from raydistill.config import plugins, tasks
from raydistill.config.loading import load_config
from raydistill.config.sources import source_version
from raydistill.config.teacher import MODES
from raydistill.errors import ConfigError, RaydistillError
from raydistill.losses import ForwardKl, Loss, build_losses
from raydistill.pipeline import recipes
from raydistill.pipeline.distill import distill
from raydistill.pipeline.prepare import prepare
from raydistill.storage.storage import Storage
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
    assert [plugin.made for plugin in plugins.registered()] == [SharpKl]


@pytest.mark.usefixtures("unregistered")
def test_what_cannot_join_says_why() -> None:
    with pytest.raises(ConfigError, match="Loss has no class Settings"):
        plugins.register(Loss)
    taken = type("Taken", (Loss,), {"Settings": settings.LogitMse})
    with pytest.raises(ConfigError, match="'logit_mse' of Taken is taken"):
        plugins.register(taken)


FILES = {
    "own/__init__.py": "",
    "own/losses.py": "from raydistill.losses import ForwardKl\nfrom .parts import size\n\n\n"
    "class Mine(ForwardKl):\n    def divergence(self, student, teacher, batch):\n        return size(student)\n",
    "own/parts/__init__.py": "def size(x):\n    from own.parts import deep\n    return deep.norm(x)\n",
    "own/parts/deep.py": "import beside\n\n\ndef norm(x):\n    return beside.ONE * x.norm()\n",
    "own/other.py": "ANOTHER = 1\n",
    "beside.py": "ONE = 1\n",
}


def version_in(folder: Path, monkeypatch: pytest.MonkeyPatch, edited: str | None = None) -> str | None:
    """The version of ``own.losses.Mine``, imported from there, where one file was edited."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + ("\n# edited\n" if name == edited else ""))
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(folder))
        made = importlib.import_module("own.losses").Mine
        found = source_version(made)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "beside")]:
        del sys.modules[name]
    return found


def test_a_version_covers_what_a_class_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module, and what that imports of its own package or, where it is not installed, from beside it."""
    before = version_in(tmp_path / "a", monkeypatch)
    assert before == version_in(tmp_path / "b", monkeypatch)
    edited = {name: version_in(tmp_path / name.replace("/", "-"), monkeypatch, name) for name in FILES}
    assert {name for name, version in edited.items() if version != before} == {
        *("own/losses.py", "own/parts/__init__.py", "own/parts/deep.py", "beside.py")
    }
    (installed := tmp_path / "site" / "own-1.0.dist-info").mkdir(parents=True)
    assert version_in(installed.parent, monkeypatch) == version_in(installed.parent, monkeypatch, "beside.py") != before


def made_in_a_cell(text: str, file: str) -> type:
    """A class of a notebook, whose cells IPython puts where tracebacks look for their lines."""
    names = {"__name__": "no_such_module", "ForwardKl": ForwardKl}
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    exec(compile(text, file, "exec"), names)
    return names["Mine"]  # type: ignore[return-value]


def test_a_cell_is_a_source_and_a_prompt_is_none() -> None:
    first, again, edited = (
        made_in_a_cell(f"class Mine(ForwardKl):\n    def count(self, batch):\n        return {n}\n", f"<cell {i}>")
        for i, n in enumerate([1, 1, 2])
    )
    assert source_version(first) == source_version(again) != source_version(edited)
    prompted = type("Mine", (ForwardKl,), {"__module__": "no_such_module"})
    assert source_version(prompted) is None
    assert source_version(type("Told", (prompted,), {"version": 3})) == "3"


class Stars(TextClassification):
    """Classes by another name."""

    type = "stars"

    class Settings(tasks.TextClassification):
        """Classes by another name."""

        type: Literal["stars"] = "stars"


@pytest.mark.usefixtures("unregistered")
def test_edited_classes_make_anew_what_they_change(tmp_path: Path) -> None:
    """A loss: student and run. A task: the data and, by the digest of its tokens, all that is made with it."""

    def made(loss: str | None, task: str | None) -> tuple[dict[str, Any], str, str, str]:
        for base, version in ((SharpKl, loss), (Stars, task)):
            told = {} if version is None else {"version": version}
            plugins.register(type(base.__name__, (base,), {"__module__": "typed", **told}))
        content = toy_config(tmp_path, task={"type": "stars"}, student__num_layers=2)
        content["stages"]["distill"]["losses"] = {"kd": {"type": "sharp_kl"}}
        config = load_config(content)
        prepared = prepare(config, Storage(config.storage))
        student = recipes.student_recipe(prepared.config, "s", "t", "k", "float32", MODES["cached"])
        return student, prepared.run_key, prepared.data.key, prepared.tokens.digest

    before = made("1", "1")
    assert made("1", "1") == before
    assert [a == b for a, b in zip(made("2", "1"), before, strict=True)] == [False, False, True, True]
    assert [a == b for a, b in zip(made("1", "2"), before, strict=True)] == [True, False, False, False]
    for unread in ((None, "1"), ("1", None)):
        with pytest.raises(ConfigError, match=r"The source of \w+ .* cannot be read here.* give the class a version"):
            made(*unread)


@pytest.mark.usefixtures("unregistered")
def test_a_run_from_before_a_setting_was_added_is_found(tmp_path: Path) -> None:
    """So it is from before an update of raydistill, whose own losses are sections like this one."""

    class Later(SharpKl.Settings):
        """Soft targets at a low temperature, and more."""

        softness: float = 1.0

    content = toy_config(tmp_path, teacher__finetune__num_epochs=1, stages__distill__num_epochs=1)
    content["stages"]["distill"]["losses"] = {"kd": {"type": "sharp_kl"}}
    made = {"__module__": "typed", "version": "1"}
    plugins.register(type("SharpKl", (SharpKl,), made))
    before = distill(load_config(content))
    plugins.register(type("SharpKl", (SharpKl,), {**made, "Settings": Later}))
    again = distill(load_config(content))
    assert (again["reused"], again["run_id"]) == (["run"], before["run_id"])
    content["stages"]["distill"]["losses"]["kd"]["softness"] = 2.0
    other = distill(load_config(content))
    assert set(other["reused"]) >= {"data", "tokens", "teacher", "baseline"}
    assert other["run_id"] != before["run_id"]


@pytest.mark.usefixtures("unregistered")
def test_a_worker_refuses_a_package_that_is_not_the_drivers() -> None:
    plugins.register(SharpKl)
    (plugin,) = plugins.registered()
    plugins.forget()
    with pytest.raises(RaydistillError, match=r"SharpKl on this node is not that of the process that began"):
        plugins.register(plugins.Plugin(SharpKl, "other"))
    plugins.register(plugin)
    sent = type("Sent", (SharpKl,), {"__module__": "__main__"})  # as a notebook's is: with the job
    plugins.forget()
    plugins.register(plugins.Plugin(sent, "other"))
    assert plugins.sources_in({"losses": [{"type": "sharp_kl"}]}) == {"Sent sharp_kl": "other"}
