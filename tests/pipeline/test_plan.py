"""What plan says before anything is computed, and that it computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.tiny import FAMILIES, WORDS, save_tiny, without_tokenizer_limit
from kit.toy import TOPICS, toy_config, write_toy_csv
from rich.console import Console
from transformers import AutoModelForSequenceClassification, FNetConfig

from raydistill.cli.show.plan import print_plan
from raydistill.config.loading import load_config
from raydistill.errors import ConfigError, ModelError
from raydistill.pipeline.completion import Models, check_models, check_signals
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan
from raydistill.pipeline.prepare import prepare
from raydistill.search.budget import estimate
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tasks import TextClassification


def states(plan: dict[str, Any]) -> dict[str, str]:
    return {phase["phase"]: phase["state"] for phase in plan["phases"]}


def test_before_the_data_is_prepared_it_estimates_and_writes_nothing(tmp_path):
    config = load_config(toy_config(tmp_path))
    plan = make_plan(config, estimate=estimate)
    assert plan["estimate"]
    assert plan["data"]["rows"] == {"train": 192, "validation": 24, "test": 24}
    assert sum(plan["data"]["per_class"]["train"].values()) == plan["data"]["labeled"] == 60
    assert [*plan["time"]["seconds"]][:5] == ["start", "prepare", "teacher", "baseline", "student"]
    assert states(plan)["data"] == "to do"
    assert states(plan)["student"] == "after teacher"
    assert not Path(config.storage).exists()


def test_a_weight_of_a_class_that_is_not_there_is_refused_before_any_work(tmp_path):
    weighed = {"type": "task", "class_weights": {"film": 2.0, "sprot": 3.0}}
    config = load_config(toy_config(tmp_path, stages__distill__losses__task=weighed))
    named = r"stages\.distill\.losses\.task\.class_weights names 'sprot', .* Did you mean 'sport'\?"
    for look in (make_plan, lambda config: prepare(config, Storage(config.storage))):
        with pytest.raises(ConfigError, match=named):
            look(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beyond_the_positions_of_a_model_are_refused_before_any_work(tmp_path, family):
    """Just where the forward pass would fail: families count positions from 0 or 1, or know no limit."""
    teacher = without_tokenizer_limit(save_tiny(tmp_path / family, family, num_layers=2, labels=tuple(sorted(TOPICS))))
    model = AutoModelForSequenceClassification.from_pretrained(teacher).eval()

    def runs(length: int) -> bool:
        try:
            model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length, dtype=torch.long))
        except (IndexError, RuntimeError):
            return False
        return True

    longest = max(length for length in range(64, 70) if runs(length))
    assert longest == {"roberta": 65, "modernbert": 69, "deberta-v2": 69}.get(family, 66)
    for length in (longest, longest + 1):
        config = load_config(toy_config(tmp_path, teacher={"model": str(teacher)}, data__max_length=length))
        if length > longest and longest < 69:
            for refuse in (make_plan, lambda config: prepare(config, Storage(config.storage))):
                with pytest.raises(
                    ConfigError, match=rf"data\.max_length is {length}, but .* positions for {longest} "
                ):
                    refuse(config)
            assert not Storage(config.storage).list("data")
        else:
            check_models(config, teacher)


def write_pairs(folder: Path) -> dict[str, Any]:
    """A config of pairs, some without a label, some twice, and of test rows without labels."""
    rows = [{"premise": f"good film {w}", "hypothesis": f"{w} bad plot", "label": i % 2} for i, w in enumerate(WORDS)]
    unlabeled = [{"premise": f"the team {w}", "hypothesis": f"a match {w} and the win"} for w in WORDS]
    (folder / "pairs").mkdir()
    (folder / "pairs" / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, *rows[:7], *unlabeled])))
    (folder / "pairs" / "test.jsonl").write_text("\n".join(map(json.dumps, unlabeled[:5])))
    return toy_config(folder, data={"path": str(folder / "pairs"), "max_length": 10})


def test_the_first_plan_counts_as_the_run_will(tmp_path):
    config = load_config(write_pairs(tmp_path))
    first = make_plan(config)  # a test split without a label column, pairs, unlabelled rows, copies
    distill(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"baseline": False})}))
    second = make_plan(config)
    assert (first["estimate"], second["estimate"]) == (True, False)
    assert first["data"] == second["data"]  # a sample of all rows
    assert first["steps"] == second["steps"]
    assert second["data"]["labeled"] == len(WORDS) - 2 * round(len(WORDS) * 0.1)
    assert second["data"]["cut"] == {"train": len(WORDS), "validation": 0, "test": 0}  # the unlabelled: 12 tokens


def test_steps_and_signal_sizes_are_those_of_the_run(tmp_path):
    hidden = {"type": "hidden_mse", "layers": "last"}
    config = load_config(toy_config(tmp_path, stages__distill__losses__hidden=hidden))
    results = distill(config)
    plan = make_plan(config, estimate=estimate)
    assert set(states(plan).values()) == {"there"}
    assert plan["time"]["total"] == 0
    assert results["data"]["per_class"] == plan["data"]["per_class"]
    assert plan["steps"]["student.distill"] == results["curves"]["student"][-1]["step"] == results["baseline"]["steps"]
    assert plan["steps"]["teacher"] == results["curves"]["teacher"][-1]["step"]
    recorded = sorted(
        sum(info.bytes for info in Artifact(Storage(config.storage), "signals", key).manifest().files.values())
        for key in Storage(config.storage).list("signals")
        if len(key) == 20
    )
    expected = plan["teacher"]["signal_bytes"]["hidden_states[4]"]
    assert recorded[-1] == pytest.approx(expected, rel=0.1)
    assert plan["layer_maps"] == {"stages.distill.losses.hidden": [[2, 4]]}


def test_the_teacher_runs_online_where_its_signals_are_too_large(tmp_path):
    hidden = {"type": "hidden_mse"}
    plan = make_plan(
        load_config(toy_config(tmp_path, stages__distill__losses__hidden=hidden, teacher__max_cache_bytes=1000))
    )
    assert plan["teacher"]["mode"] == "online"
    assert "more than teacher.max_cache_bytes" in plan["teacher"]["why"]


def test_findings(tmp_path):
    changes = {"student__start": "random", "stages__distill__losses__kd__weight": 0.0}
    found = " ".join(make_plan(load_config(toy_config(tmp_path, **changes)))["findings"])
    assert "a random student needs far more" in found
    assert "stages.distill.losses.kd: its weight is 0" in found
    untrained = {"model": toy_config(tmp_path)["teacher"]["model"], "finetune": None}
    finding, few = make_plan(load_config(toy_config(tmp_path, teacher=untrained)))["findings"]
    assert "has no trained classification head. Leave teacher.finetune out" in finding
    assert few.startswith("data: the test split has 24 labelled rows, and the gate judges on 200 or more (min_rows)")


@pytest.mark.parametrize(("labeled", "is_told"), [(199, True), (200, False)])
def test_a_test_split_that_is_too_small_for_the_gate_is_told_before_the_run(tmp_path, labeled, is_told):
    """Counted are labelled rows, also of a split that the data has."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_toy_csv(folder / "train.csv", 60)
    lines = write_toy_csv(tmp_path / "rows.csv", 210, seed=1).read_text().splitlines()
    unlabeled = [line.rpartition(",")[0] + "," for line in lines[1 + labeled :]]
    (folder / "test.csv").write_text("\n".join([*lines[: 1 + labeled], *unlabeled]))
    config = toy_config(tmp_path, data={"path": str(folder), "max_length": 24})
    told = [finding for finding in make_plan(load_config(config))["findings"] if f"has {labeled} labelled" in finding]
    assert bool(told) is is_told


def test_a_checked_plan_computes_every_loss_once(tmp_path):
    plan = make_plan(load_config(toy_config(tmp_path, stages__distill__losses__kd__weight=1e6)), check=True)
    assert any("the gradient of 'kd' is" in finding for finding in plan["findings"])
    assert states(plan)["tokens"] == "there"
    assert states(plan)["teacher"] == "to do"


def test_a_start_with_another_vocabulary_is_refused(tmp_path):
    config = toy_config(tmp_path)
    start = save_tiny(tmp_path / "start", "bert", classifier=False)
    plan = make_plan(load_config({**config, "student": {"num_layers": 2, "start": str(start)}}))
    assert [finding for finding in plan["findings"] if not finding.startswith("data: the test split")] == []
    text = (start / "tokenizer.json").read_text()
    (start / "tokenizer.json").write_text(text.replace(f'"{WORDS[0]}"', '"another"'))
    with pytest.raises(ConfigError, match=r"student\.start: .* has another tokenizer"):
        make_plan(load_config({**config, "student": {"num_layers": 2, "start": str(start)}}))


def test_it_reads_well_at_eighty_columns(tmp_path, capsys):
    plan = make_plan(load_config(toy_config(tmp_path, data__max_length=8)), estimate=estimate)
    console = Console(width=80, force_terminal=False, record=True)
    print_plan(console, plan)
    text = console.export_text()
    assert "192 rows, 60 labelled, ≈ " in text
    assert "texts are cut at 8 tokens" in text
    assert "time       ≈ " in text
    assert [line.split() for line in text.splitlines() if line.startswith("film ")] == [["film", "23", "9", "9"]]
    assert "from layers 1, 4 of the teacher" in text  # as the report and the card count them
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("term", "why"),
    [
        ({"type": "dkd"}, "losses.kd: dkd needs 3 classes or more, and there are 2"),
        ({"type": "dist"}, "losses.kd: dist needs 3 classes or more, and there are 2"),
        (
            {"type": "forward_kl", "standardize": True},
            "kd.standardize: standardised logits of two classes are always 1",
        ),
    ],
)
def test_losses_on_the_other_classes_are_refused_where_there_is_one_before_any_work(term, why, tmp_path: Path) -> None:
    losses = {"kd": term, "task": {"type": "task"}}
    config = toy_config(tmp_path, stages__distill__losses=losses)
    assert make_plan(load_config(config))["phases"]
    table = Path(config["data"]["path"])
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.endswith("sport")))
    with pytest.raises(ConfigError, match=why):
        make_plan(load_config(config))
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize(
    ("term", "why"),
    [
        ({"type": "minilm_v2", "relation_heads": 5}, "relation_heads is 5, which does not divide"),
        ({"type": "attention_kl", "heads": [[0, 9]]}, "heads is"),
        ({"type": "hidden_mse", "layers": [[1, 9]]}, "The layer map has the pair"),
    ],
)
def test_what_models_of_these_shapes_cannot_be_compared_by_is_refused_before_any_work(term, why, tmp_path):
    config = load_config(toy_config(tmp_path, stages__distill__losses__it=term))
    for look in (make_plan, lambda config: prepare(config, Storage(config.storage))):
        with pytest.raises(ConfigError, match=why):
            look(config)


def test_a_family_without_attention_is_refused_before_any_work(tmp_path):
    term = {"type": "minilm_v2"}
    config = load_config(toy_config(tmp_path, stages__distill__losses__it=term))
    shaped = FNetConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2)
    shaped.num_attention_heads = 2
    with pytest.raises(ModelError, match="has no single linear layer that makes its"):
        check_signals(config, TextClassification(tuple(TOPICS)), Models(shaped, shaped, None))
