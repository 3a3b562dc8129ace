"""Every recipe loads and can be planned; the bench runs on a tiny problem."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from kit import ROOT
from kit.asked import asked_config
from kit.pictures import picture_config
from kit.scenes import scene_config
from kit.tagged import tagged_config
from kit.tiny import WORDS, save_tiny
from kit.toy import TOPICS, toy_config
from rich.console import Console

from raydistill.cli.starters import list_starters
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config, load_gate
from raydistill.config.tree import Config
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan

JOBS = ROOT / "jobs"
RECIPES = [starter.file for starter in list_starters().values() if starter.is_recipe]
METHODS = ("distilbert", "tinybert", "minilm", "pkd", "early", "late", "ensemble")
TOYS = dict.fromkeys(METHODS, toy_config) | {
    "question_answering": asked_config,
    "taggers": tagged_config,
    "image_classification": picture_config,
    "object_detection": scene_config,
}


def test_every_config_is_a_recipe() -> None:
    configs = [path for path in JOBS.rglob("*.yaml") if "kubernetes" not in path.parts]
    configs = [path for path in configs if path.name not in ("cluster.yaml", "gate.yaml")]
    assert sorted(RECIPES) == sorted(configs)


def test_there_is_a_quick_start() -> None:
    assert JOBS / "quickstart.yaml" in RECIPES
    assert len((JOBS / "quickstart.yaml").read_text(encoding="utf-8").splitlines()) <= 20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load(path: Path) -> None:
    assert isinstance(load_config(path), Config)
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith("# ")  # what `raydistill init` shows
    assert first.endswith(".")


def test_the_gate_is_the_default_one() -> None:
    gate = yaml.safe_load((JOBS / "gate.yaml").read_text(encoding="utf-8"))
    assert gate.keys() == Gate.model_fields.keys()
    assert load_gate(JOBS / "gate.yaml") == Gate()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not any(word in text for word in ("/home/", "/root/", "/tmp/", "/work/", "localhost", "127.0.0.1"))


@pytest.mark.parametrize("path", [path for path in RECIPES if "pkg://" in path.read_text()], ids=lambda path: path.stem)
def test_recipes_of_packages_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plan = make_plan(load_config(path, [f"storage={tmp_path / 'storage'}"]))
    phases = {phase["phase"].partition(" (")[0] for phase in plan["phases"]}  # of several teachers each has its own
    assert phases >= {"data", "tokens", "teacher", "student"}
    assert min(plan["data"]["rows"].values()) > 0
    assert all(steps > 0 for steps in plan["steps"].values())
    few = ["the test split has 50 labelled rows"] * (path.stem == "distilbert-general")  # whole documents
    assert len(plan["findings"]) == len(few)  # a recipe of ours runs without a warning
    assert all(text in finding for text, finding in zip(few, plan["findings"], strict=True))
    is_new = plan["student"]["num_heads"] is None  # the layers of a light student are new
    assert len(plan["student"]["teacher_layers"]) == (0 if is_new else plan["student"]["num_layers"])


def toy_recipe(path: Path, folder: Path) -> Config:
    """A recipe on the toy of its task, an epoch a stage."""
    recipe, toy = yaml.safe_load(path.read_text(encoding="utf-8")), TOYS[path.stem](folder)
    recipe["student"] |= {"num_layers": min(4, recipe["student"].get("num_layers", 4))}  # the toy's teacher has 4
    recipe["task"].pop("picture_size", None) if "task" in recipe else None
    own = recipe["teacher"].get("finetune") or {}
    toy["teacher"]["finetune"] |= {name: own[name] for name in ("head",) if name in own}
    if "members" in recipe["teacher"]:
        model = toy["teacher"]["model"]
        members = {name: {**one, "model": model} for name, one in recipe["teacher"]["members"].items()}
        toy["teacher"] = {**recipe["teacher"], "members": members, "allow_chance": True}
    recipe |= {name: toy[name] for name in ("storage", "data", "teacher", "train", "evaluate", "tracking")}
    if max(recipe["student"].get("teacher_layers", [0])) > 3:  # those of the toy
        recipe["student"]["teacher_layers"] = [0, 1, 2, 3]
    for stage in recipe["stages"].values():
        stage["num_epochs"] = 1
    return load_config(recipe)


OF_TASKS = pytest.mark.parametrize("path", [JOBS / f"{name}.yaml" for name in TOYS], ids=lambda path: path.stem)


@OF_TASKS
def test_recipes_can_be_checked(path: Path, tmp_path: Path) -> None:
    """Every loss once on a real batch; each has at most 40 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    config = toy_recipe(path, tmp_path)
    plan = make_plan(config, check=True)
    assert plan["steps"].keys() >= {f"student.{name}" for name in config.stages}


@pytest.mark.slow
@OF_TASKS
def test_recipes_run(path: Path, tmp_path: Path, mlflow_uri: str) -> None:
    config = toy_recipe(path, tmp_path)
    results = distill(config)
    weighed = {key for entry in results["curves"]["student"] for key in entry["metrics"]}
    losses = {name for stage in config.stages.values() for name in stage.losses}
    assert {f"train/loss/{name}" for name in losses} <= weighed


def toy_rows(num_rows: int, seed: int) -> tuple[list[str], list[str]]:
    draw = random.Random(seed)
    labels = [draw.choice(list(TOPICS)) for _ in range(num_rows)]
    texts = [" ".join(draw.choices([*TOPICS[label], *WORDS[:9]], k=draw.randint(4, 18))) for label in labels]
    return texts, labels


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from problem import make_problem

    folder = tmp_path_factory.mktemp("bench")
    encoder = save_tiny(folder / "encoder", num_layers=4, classifier=False)
    return make_problem(toy_rows(70, 0), toy_rows(40, 1), encoder, folder, max_length=24, num_epochs=2)


@pytest.mark.slow
def test_bench_compares_three_loops(problem: Any) -> None:
    from throughput import describe, print_report, run_contenders

    lines: list[str] = []
    report = describe(problem, run_contenders(problem, lines.append))
    found = json.loads(json.dumps(report))
    assert list(found["contenders"]) == ["raydistill", "dynamic", "padded"]
    assert len(lines) == 6  # 70 rows are 3 steps an epoch, so each of the 6 steps is a turn
    for measured in found["contenders"].values():
        assert measured["ms_per_row"] > 0
        assert 0 <= measured["accuracy"] <= 1
    assert found["ratios"]["raydistill"] == 1.0
    assert found["contenders"]["raydistill"]["recording_ms_per_row"] > 0
    assert found["length"]["max"] <= 24
    with (console := Console(record=True, width=120)).capture():
        print_report(console, report)


def test_bench_contenders_start_from_the_same_weights_and_see_the_same_rows(problem: Any) -> None:
    from contenders import as_dataset, raydistill_loop, trainer_loop

    ours, hand = raydistill_loop(problem), trainer_loop(problem, pad_to_max=True)
    state = hand.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.model.state_dict().items())
    assert (ours.model.config.hidden_dropout_prob, hand.model.config.hidden_dropout_prob) == (0.0, 0.1)
    padded, plain = as_dataset(problem.rows, 24), as_dataset(problem.rows, None)
    assert {len(ids) for ids in padded["input_ids"]} == {24}
    assert [sum(mask) for mask in padded["attention_mask"]] == problem.rows.lengths.tolist()
    assert [len(ids) for ids in plain["input_ids"]] == problem.rows.lengths.tolist()
    hand.finish()


def test_bench_losses_agree(problem: Any) -> None:
    """The Trainer's loss on a batch is the one that the product's loop minimises."""
    from contenders import DISTILLATION, DistillationTrainer

    from raydistill.config.training import Stage
    from raydistill.losses import build_losses
    from raydistill.tasks import TextClassification

    student, teacher = problem.load(problem.student, 0.0).eval(), problem.load(problem.teacher, 0.0).eval()
    rows, ids = problem.rows, np.arange(16)
    inputs = rows.inputs(ids)
    trainer = DistillationTrainer.__new__(DistillationTrainer)
    trainer.teacher = teacher
    by_hand = trainer.compute_loss(student, {**inputs, "labels": torch.from_numpy(rows.targets.values[ids])})
    terms = Stage.model_validate({"losses": DISTILLATION}).losses
    losses = build_losses(terms, TextClassification(problem.labels), student.config, teacher.config, seed=0)
    batch = rows.batch(ids)
    logits = ({"logits": model(**inputs).logits} for model in (student, teacher))
    total, _ = losses(*logits, batch, [16.0, 16.0])
    assert by_hand.item() == pytest.approx(total.item(), rel=1e-5)


def test_bench_sentences_are_real_and_split_by_document() -> None:
    from problem import cut_sentences

    (texts, labels), (held_out, _) = cut_sentences(300, 100)
    assert (len(texts), len(held_out)) == (300, 100)
    assert len(set(labels)) == 5
    assert all(8 <= len(text.split()) <= 60 for text in texts)
    assert not set(texts) & set(held_out)


def test_bench_reads_a_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from problem import read_file

    pq.write_table(
        pa.table({"text": [f"text {i}" for i in range(30)], "label": ["a", "b"] * 15}), tmp_path / "x.parquet"
    )
    (texts, labels), (held_out, _) = read_file(str(tmp_path / "x.parquet"), 20, 8)
    assert (len(texts), len(labels), len(held_out)) == (20, 20, 8)
    assert not set(texts) & set(held_out)


def test_bench_errors_of_a_thread_reach_the_caller() -> None:
    from contenders import in_turns

    def work(pause: Any) -> None:
        pause(1)
        raise ValueError("broken")

    turns = in_turns(work)
    assert next(turns) == 1
    with pytest.raises(ValueError, match="broken"):
        next(turns)
    assert list(in_turns(lambda pause: [pause(step) for step in (1, 2)])) == [1, 2]  # type: ignore[func-returns-value]


def test_bench_of_sweeps_counts_steps_and_seconds() -> None:
    import sweeps

    def trial(step: int, accuracy: float, seconds: float, setup: float) -> dict[str, Any]:
        measures = {"validation/accuracy": accuracy}
        shared = {"validations": 1, "reused": False, "measures": measures, "setup_seconds": setup}
        return {"step": step, "seconds": seconds, **shared}

    trials = [trial(100, 0.7, 10.0, 4.0), trial(25, 0.6, 2.0, 0.1), trial(100, 0.8, 8.0, 0.2)]
    trials.append({"validations": 0, "reused": False})  # rejected
    summary = {
        "objectives": {"validation/accuracy": "max", "latency_ms": "min"},
        "trials": trials,
        "concurrency": 2,
        "teacher": {"passes_saved": 9},
        "seconds": {"teacher": 15.0, "shared/teacher": 4.0, "shared/record": 1.0, "search": 12.0},
    }
    costs = sweeps.figures(summary)
    assert costs["overhead"] == pytest.approx((15 + 12) / (4 + 1 + 20 / 2))
    assert (costs["trials"], costs["steps"], costs["passes_saved"]) == (3, 225, 9)
    assert costs["warm_setup_seconds"] == 0.1  # the first trials of both actors left out
    assert list(sweeps.best_so_far(summary)) == [(100, 0.7), (125, 0.7), (225, 0.8)]
    assert (sweeps.best_within(summary, 200), sweeps.best_within(summary, 50)) == (0.7, None)


def test_bench_of_defaults_draws_disjoint_rows_and_reads_both_kinds_of_files(tmp_path: Path) -> None:
    import defaults

    rated = [f"{i}\t{(-1) ** i * (i % 4) / 1.5:.2f}\tthe text number {i}" for i in range(1000)]
    (tmp_path / "rated.txt").write_text("\n".join(rated))
    with (tmp_path / "table.csv").open("w", newline="") as file:
        texts, labels = toy_rows(900, 0)
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    kept = list(defaults.table(tmp_path / "rated.txt"))
    assert len(kept) == 500
    assert kept[0] == ("the text number 2", "pos")
    assert {label for text, label in kept if int(text.split()[-1]) % 2} == {"neg"}
    rows = defaults.draw(str(tmp_path / "table.csv"), 100, seed=1)
    sizes = {split: len(found) for split, found in rows.texts.items()}
    assert sizes == {"test": 600, "validation": 10, "train": len(set(texts)) - 610}
    assert len(set().union(*rows.texts.values())) == sum(sizes.values())
    assert sum(map(bool, rows.labels["train"])) == 90
    assert len(rows.labeled[0]) == 100
    assert dict(zip(texts, labels, strict=True)).items() >= dict(zip(*rows.labeled, strict=True)).items()
    (found,) = defaults.tfidf(rows, tmp_path)
    assert found.accuracy > 0.8  # the topics are words


def test_bench_of_defaults_counts_cells(capsys: pytest.CaptureFixture[str]) -> None:
    import defaults

    def cell(labels: int, model: str, accuracy: float, most_gain: float | None = None) -> dict[str, Any]:
        about = {"set": "a.csv", "labels": labels, "seed": 0, "contender": model.split()[0]}
        return about | vars(defaults.Found(model, accuracy, 5.0, most_gain))

    cells = [cell(100, "defaults student", 0.8, 0.1), cell(100, "search student", 0.805)]
    cells += [cell(300, "defaults student", 0.7, -0.02), cell(300, "search student", 0.75), cell(300, "tfidf", 0.5)]
    defaults.report(cells, Console(width=200))
    shown = capsys.readouterr().out
    assert "Within a point of a search of 8: 1 of 2 cells." in shown
    assert "beyond chance: 1 of 2 cells." in shown
    assert "tfidf: 5 s, median of 1 cells" in shown
    assert "80.0 ± 3.2" in shown


@pytest.mark.slow
def test_bench_of_defaults_runs_the_tool_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import defaults

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(defaults, "ENCODER", str(save_tiny(tmp_path / "encoder", "bert", classifier=False)))
    monkeypatch.setattr(defaults, "TEST_ROWS", 60)
    monkeypatch.setattr(defaults, "SEARCHED", 2)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*toy_rows(200, 0), strict=True)])
    rows = defaults.draw(str(tmp_path / "table.csv"), 60, seed=0)
    run = [defaults.CONTENDERS[name](rows, tmp_path / "run") for name in ("before", "search")]
    found = {one.model: one for models in run for one in models}
    assert set(found) == {"before teacher", "before student", "before no teacher", "search student"}
    assert all(0 <= one.accuracy <= 1 and one.seconds > 0 for one in found.values())
    assert found["before student"].most_gain is not None


def test_bench_of_taggers_has_real_entities_and_pairs_differences() -> None:
    import taggers
    from news import news_sentences

    rows = news_sentences(300)
    assert len({row["text"] for row in rows}) == 300
    found = {(kind, row["text"][start:end]) for row in rows for start, end, kind in row["label"]}
    assert {("LOC", "China"), ("PER", "Blair")} <= found
    assert {kind for kind, _ in found} == {"PER", "MONEY", "DATE", "LOC"}
    luck = np.random.default_rng(0).normal(size=1001) / 10
    cells = [
        {
            "seed": seed,
            "found": {taggers.REFERENCE: (0.6 + luck).tolist(), "better": (0.61 + 0.02 * seed + luck).tolist()},
        }
        for seed in (0, 1)
    ]
    console = Console(record=True, width=120)
    taggers.qualities(cells, taggers.REFERENCE, "2 of 6 layers", console)
    assert "2.0 [2.0, 2.0]" in console.export_text()  # the mean of two seeds; what sentences do to both is taken out


def test_bench_of_methods_has_every_loss_and_recipe(tmp_path: Path) -> None:
    import methods

    models = {"data": {"path": "x.csv"}, "teacher": {"model": "x"}}
    for task, few in (("text_classification", {"rkd_angle", "tinybert.yaml"}), ("token_classification", {"hidden_kl"})):
        found = methods.methods(task, 3, None)
        assert next(iter(found)) == methods.REFERENCE  # the first, so that others stand beside it
        assert few < found.keys()
        for name, settings in found.items():
            config = load_config({**models, "task": {"type": task}, **settings})
            assert name.endswith(".yaml") or config.stages["distill"].losses["own"].type == name
        narrow = methods.methods(task, 3, 192)
        assert found.keys() - narrow.keys() == {"early.yaml", "late.yaml"}
        assert {settings["student"]["hidden_size"] for settings in narrow.values()} == {192}


@pytest.mark.slow
def test_bench_of_methods_pairs_runs_by_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import methods

    data, toy = tmp_path / "toy.csv", toy_config(tmp_path)
    short = {
        name: {"teacher": toy["teacher"], "stages": {"distill": {"num_epochs": 1, **settings["stages"]["distill"]}}}
        for name, settings in methods.methods("text_classification", 3, None).items()
        if name in ("forward_kl", "dkd")
    }
    monkeypatch.setattr(methods, "methods", lambda task, layers, width: short)
    arguments = [str(data), "--labeled", "60", "--methods", "forward_kl", "dkd", "--storage", str(tmp_path / "s")]
    cells = tmp_path / "cells.jsonl"
    for _ in range(2):  # the second reads what the first computed
        methods.main([*arguments, "--cells", str(cells)])
    found = [json.loads(line) for line in cells.read_text().splitlines()]
    assert [cell["method"] for cell in found] == ["forward_kl", "dkd"]
    assert found[0]["found"].keys() == {"forward_kl", "no teacher", "teacher"}
    assert "difference from forward_kl" in capsys.readouterr().out


def test_bench_of_tasks_has_rows_of_every_kind(tmp_path: Path) -> None:
    import tasks

    rated = tmp_path / "rated.txt"
    rated.write_text("".join(f"{i}\t{i % 9 - 4}.5\ta tweet of number {i}\n" for i in range(2600)))
    for name, (read, labeled, settings) in tasks.TASKS.items():
        rows = read(rated)
        assert len(rows) >= tasks.TESTED + labeled, name
        assert len({json.dumps(row) for row in rows}) > 0.9 * len(rows)
        load_config({"data": {"path": "x.jsonl"}, "teacher": {"model": "x"}, **settings})
    assert {row["label"] for row in tasks.pairs(rated)} == {"own", "other"}


@pytest.mark.slow
def test_bench_of_tasks_times_both_sides_in_turns(capsys: pytest.CaptureFixture[str]) -> None:
    import tasks

    rows = tasks.word_rows(40)
    assert rows.units is not None
    assert rows.num_rows == 40  # no sentence of several windows
    ratios = tasks.speed(Console(), num_rows=40, rounds=3)
    assert ratios.keys() == {"a step of words", "its vectors, recorded"}
    assert all(0.2 < ratio < 5 for ratio in ratios.values())
    assert "a step of rows" in capsys.readouterr().out
