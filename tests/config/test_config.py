"""Config files, overrides and what is said about wrong ones."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit import ROOT
from pydantic import ValidationError

from raydistill.config.loading import flatten, load_config, load_data, to_yaml
from raydistill.config.schema import dotted_names, list_losses
from raydistill.config.syntax import MAX_BYTES, dump_yaml, parse_yaml
from raydistill.config.tree import Config
from raydistill.errors import ConfigError

JOBS = ROOT / "jobs"
GOOD: dict[str, Any] = {
    "data": {"path": "texts.csv"},
    "teacher": {"model": "encoder", "finetune": {"num_epochs": 2}},
    "student": {"num_layers": 2},
    "stages": {"distill": {"losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task", "weight": 0.5}}}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one place replaced."""
    tree = copy.deepcopy(GOOD)
    node = tree
    *above, last = path.split(".")
    for name in above:
        node = node.setdefault(name, {})
    node[last] = value
    return tree


def message(source: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "path", sorted(set(JOBS.glob("*.yaml")) - {JOBS / "gate.yaml", JOBS / "cluster.yaml"}), ids=lambda path: path.name
)
def test_every_recipe_parses(path: Path) -> None:
    assert load_config(path).stages


def test_quickstart_is_short() -> None:
    text = (JOBS / "quickstart.yaml").read_text()
    assert len(text.splitlines()) <= 20
    assert "raydistill distill jobs/quickstart.yaml" in text


def test_defaults_and_values() -> None:
    config = load_config(GOOD)
    assert (config.seed, config.data.max_length, config.student.num_layers) == (0, "auto", 2)
    assert config.stages["distill"].losses["task"].weight == 0.5
    assert load_config(config) == config


@pytest.mark.parametrize(("task", "soft"), [("text_classification", "forward_kl"), ("text_regression", "logit_mse")])
@pytest.mark.parametrize("stages", [None, {"distill": {"num_epochs": 4}}])
def test_a_config_without_losses_learns_soft_targets_and_the_task(task: str, soft: str, stages: Any) -> None:
    bare = {"data": GOOD["data"], "teacher": {"model": "encoder"}, "task": {"type": task}}
    config = load_config(bare if stages is None else bare | {"stages": stages})
    found = {name: loss.type for name, loss in config.stages["distill"].losses.items()}
    assert found == {"kd": soft, "task": "task"}
    assert load_config(config) == config


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_config(GOOD).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("student.num_layer", 2, "student.num_layer: unknown name; did you mean student.num_layers?"),
        ("stages.distill.losses.kd.temprature", 2, "did you mean stages.distill.losses.kd.temperature?"),
        ("student.layers", 2, "student.layers: unknown name; did you mean student.num_layers?"),
        ("registry", None, "got null (leave the section out for its defaults; null goes below it: registry.name=null)"),
        ("data.split", None, "got null (leave the section out for its defaults)"),
        ("max_length", 3, "max_length: unknown name here; it belongs to data.max_length."),
        ("student.num_epochs", 3, "it belongs to teacher.finetune.num_epochs, stages.*.num_epochs."),
        ("zzz", 3, "zzz: unknown name. Known here: storage, seed, data"),
        ("seed", "3", "seed: Input should be a valid integer, got '3'."),
        ("seed", True, "seed: Input should be a valid integer, got true."),
        ("seed", None, "seed: Input should be a valid integer, got null."),
        ("seed", -1, "seed: Input should be greater than or equal to 0, got -1."),
        ("seed", 2**31, "seed: Input should be less than 2147483648, got 2147483648."),
        ("data.path", 3, "data.path: Input should be a valid string, got 3."),
        ("data.path", "", "data.path: String should have at least 1 character"),
        ("data.path", "a\0b", r"data.path: holds the control character '\x00'"),
        ("data.path", "a\x1bb", r"data.path: holds the control character '\x1b'"),
        ("data.path", "a\ud800", "holds what is no plain value"),
        ("data.path", object(), "holds what is no plain value: Unable to serialize unknown type: <class 'object'>"),
        ("data.max_length", 64.0, "data.max_length: Input should be a valid integer or 'auto', got 64.0."),
        ("data.format", "parqet", "data.format: unknown value 'parqet'; did you mean 'parquet'? Known values: auto"),
        ("data.split.test", 1, "data.split.test: Input should be less than 1, got 1."),
        ("data.split", {"test": 0.6, "validation": 0.5}, "data.split: validation and test take 1.1 of the rows"),
        ("data.columns", {"text_pair": "b"}, "data.columns.text: is missing: with text_pair ('b')"),
        ("data.columns", {"text": "a", "label": "a"}, "data.columns: one column has two roles (a, a)"),
        ("task.type", "text_clasification", "task.type: unknown type 'text_clasification'; did you mean"),
        ("task.labels", ["a"], "task.labels: needs two classes or more, got 1."),
        ("task.labels", ["a", "b", "a"], "task.labels: names 'a' twice."),
        ("task.labels", [False, "True"], "task.labels.0: Input should be a valid string, got false."),
        ("train.max_grad_norm", math.inf, "train.max_grad_norm: Input should be a finite number, got inf."),
        (
            "train.resources_per_worker",
            {"CPU": -1},
            "train.resources_per_worker.CPU: Input should be greater than or equal to 0, got",
        ),
        (
            "train",
            {"accelerator_type": "L4", "resources_per_worker": {"CPU": 4}},
            "train.resources_per_worker: asks for no GPU, but accelerator_type for a node with L4. Add GPU: 1, or",
        ),
        ("train", {"accelerator_type": "L4", "resources_per_worker": {"GPU": 0}}, "train.resources_per_worker: asks"),
        (
            "teacher.pool",
            {"accelerator_type": "L4", "resources": {"CPU": 4}},
            "teacher.pool.resources: asks for no GPU",
        ),
        ("stages", {}, "stages: Dictionary should have at least 1 item"),
        ("stages.distill.losses", {}, "stages.distill.losses: Dictionary should have at least 1 item"),
        (
            "stages.distill.losses.kd",
            {"type": "forward_k"},
            "kd.type: unknown type 'forward_k'; did you mean 'forward_kl'?",
        ),
        ("stages.distill.losses.kd", {"weight": 1}, "stages.distill.losses.kd.type: is missing. Known types: task, "),
        ("stages.distill.losses.kd", 3, "losses.kd: Input should be an object, got 3."),
        (
            "stages.distill.losses.kd.weight",
            -1,
            "losses.kd.weight: Input should be greater than or equal to 0, got -1.",
        ),
        ("stages.distill.losses.kd.temperature", 0, "kd.temperature: Input should be greater than 0, got 0."),
        (
            "stages.a/b",
            GOOD["stages"]["distill"],
            "stages.a/b: a name has letters of A to Z, digits, _ and -, and begins",
        ),
        ("stages.distill.losses", {"t": {"type": "task", "weight": 0}}, "losses: every weight is 0"),
        ("student.hidden_size", "x", "student.hidden_size: Input should be a valid integer, got 'x'."),
        (
            "student",
            {"hidden_size": 100, "num_heads": 12},
            "student.hidden_size: 100 is not divisible by num_heads (12)",
        ),
        ("student.dropout", 1.0, "student.dropout: Input should be less than 1, got 1.0."),
        ("student.teacher_layers", [0], "teacher_layers: names 1 layers, but student.num_layers is 2"),
        ("student.teacher_layers", [0, -1], "student.teacher_layers: layers count from 0, got -1."),
        ("student.teacher_layers", [], "student.teacher_layers: names no layer"),
        ("student.teacher_layers", [0, "b"], "student.teacher_layers.1: Input should be a valid integer, got 'b'."),
        ("student.teacher_layers", "b", "teacher_layers: Input should be a valid array or 'auto', got 'b'."),
        ("data.max_length", 2, "data.max_length: Input should be greater than or equal to 4"),
        ("stages.distill.num_epochs", "many", "num_epochs: Input should be a valid number or 'auto', got 'many'."),
        ("teacher.finetune", False, "teacher.finetune: Input should be an object or 'auto', got false."),
        ("student", {"teacher_layers": [0], "start": "random"}, "teacher_layers: has no effect with start: random"),
        (
            "registry.name",
            "a b",
            "registry.name: a name has letters of A to Z, digits, dots, _ and -, and begins with a letter",
        ),
        ("tracking.tags", {"a": 1}, "tracking.tags.a: Input should be a valid string, got 1."),
        ("tracking.experiment", "x" * 201, "tracking.experiment: String should have at most 200 characters"),
        ("data", {}, "data.path: is missing. A file, a folder, pkg://package/path"),
        ("stages.distill.losses.h", {"type": "hidden_mse", "layers": [[3, 1]]}, "stages.distill.losses.h.layers: "),
        ("stages.distill.losses.h", {"type": "hidden_mse", "layers": [[-1, 1]]}, "stages.distill.losses.h.layers: "),
        ("stages.distill.losses.h", {"type": "hidden_mse", "layers": []}, "stages.distill.losses.h.layers: "),
        ("stages.distill.losses.h", {"type": "hidden_mse", "layers": [[1]]}, "losses.h.layers.0.1: is missing"),
        ("stages.distill.losses.task", {"type": "task", "class_weights": {}}, "task.class_weights: names no class."),
        (
            "stages.distill.losses.task",
            {"type": "task", "class_weights": {"a": 0}},
            "a: Input should be greater than 0",
        ),
        (
            "stages.distill.losses.task",
            {"type": "task", "class_weights": "even"},
            "class_weights: unknown value 'even'; Known values: balanced",
        ),
        ("stages.distill.losses.task", {"type": "task", "label_smoothing": 1}, "should be less than 1"),
        ("evaluate.baseline", {"strt": "same"}, "evaluate.baseline.strt: unknown name; did you mean"),
        ("evaluate.baseline", [1], "evaluate.baseline: Input should be a value or a section, got [1]."),
        (
            "student.teacher_layers",
            {"a": 1},
            "student.teacher_layers: Input should be a valid array or 'auto', got {'a': 1}.",
        ),
        ("evaluate.baseline", "yes", "evaluate.baseline: Input should be a valid boolean, got 'yes'."),
    ],
)
def test_one_problem_is_named(path: str, value: Any, expected: str) -> None:
    text = message(changed(path, value))
    assert expected in text
    assert "problems" not in text  # nothing else is reported beside it


@pytest.mark.parametrize("name", ["data", "teacher"])
def test_missing_sections(name: str) -> None:
    assert f"config: {name}: is missing" in message({key: value for key, value in GOOD.items() if key != name})


def test_numbers_have_no_classes_to_weigh() -> None:
    overrides = ["task.type=text_regression", "stages.distill.losses={k: {type: logit_mse}, own: {type: task}}"]
    load_config(GOOD, overrides)
    for setting in ("class_weights=balanced", "label_smoothing=0.1"):
        place = f"stages.distill.losses.own.{setting.partition('=')[0]}"
        text = message(GOOD, (*overrides, f"stages.distill.losses.own.{setting}"))
        assert f"{place}: text_regression has no classes. Leave it out." in text


def test_baseline_needs_a_teacher_loss() -> None:
    overrides = ("stages.distill.losses.kd=null", "evaluate.baseline=true")
    assert "evaluate.baseline: needs a stage with a teacher loss" in message(GOOD, overrides)


def test_pretrained_baseline_needs_finetuning() -> None:
    load_config(GOOD, ["evaluate.baseline.start=pretrained"])
    overrides = ("evaluate.baseline.start=pretrained", "teacher.finetune=null")
    assert "evaluate.baseline.start: pretrained is the encoder before teacher.finetune" in message(GOOD, overrides)


def test_all_problems_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        "data: {paht: x}\nteacher: {model: m}\nseed: -1\nstages:\n  a:\n    losses: {k: {type: kl}}\nwhen: 2020-01-01\n"
    )
    lines = message(path).splitlines()
    assert lines[0] == f"{path}: 5 problems"
    assert lines[1:3] == [
        "  - data.path: is missing. A file, a folder, pkg://package/path or the name of a data set on the Hugging "
        "Face hub.",
        "  - line 1: data.paht: unknown name; did you mean data.path?",
    ]
    assert lines[3].startswith("  - line 3: seed: Input should be greater than or equal to 0")
    assert lines[4].startswith("  - line 6: stages.a.losses.k.type: unknown type 'kl'")
    assert lines[5].startswith("  - line 7: when: unknown name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3\n", "line 2, column 2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: not valid YAML: found character '\\t'"),
        ("a: b: c\n", "line 1, column 5: not valid YAML: mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1: duplicate key a, first written on line 1; keep one."),
        ("a:\n  b: 1\n  b: 2\n", "line 3, column 3: duplicate key a.b"),
        (
            "a: !!python/object/apply:os.system [ls]\n",
            "line 1, column 4: not valid YAML: could not determine a constructor",
        ),
        ("a: &x [*x]\n", "nested too deeply"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not valid YAML: but found another document"),
        ("a: \x07\n", "a value cannot be read (unacceptable character #x0007"),
        ("[" * 3000, "nested too deeply"),
        ("a: " + "9" * 5000 + "\n", "a value cannot be read"),
        ("a: 2023-02-31\n", "a value cannot be read"),
        ("? [a]\n: b\n", "not valid YAML"),
        ("1: 2\n", "1: unknown name. Known here: storage"),
        ("", "the file is empty. Start from a recipe: raydistill init"),
        ("# nothing\n", "the file is empty"),
        ("- a\n", "expected names with values (data: …, teacher: …), got a list."),
        ("just words\n", "got a str."),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    found = message(path)
    assert expected in found
    assert found.startswith(str(path))


def test_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    path.write_text("\n".join(["a0: &a0 [x]", *levels]))
    assert "unfolds to more than 100,000 values" in message(path)


def test_plain_aliases_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    text = yaml.safe_dump({"data": GOOD["data"], "teacher": GOOD["teacher"]})
    stages = "stages:\n  a: &a {num_epochs: 2, losses: {k: {type: forward_kl}}}\n  b: {<<: *a, num_epochs: 3}\n"
    path.write_text(text + stages)
    config = load_config(path)
    assert (config.stages["a"].num_epochs, config.stages["b"].num_epochs) == (2, 3)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("")
    for wrong in ("jb.yaml", "."):
        assert f"In {tmp_path}: Did you mean 'job.yaml'?" in message(tmp_path / wrong), wrong
    assert "No such file or directory" in message(tmp_path / "none" / "job.yaml")
    assert "cannot be read" in message("a\0b")
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    assert "is larger than 1,000 kB" in message(tmp_path / "large.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: \xe4".encode("latin-1"))
    assert "is not UTF-8 text (byte 3" in message(tmp_path / "latin.yaml")
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + yaml.safe_dump(GOOD).encode())  # a mark that can be read
    assert load_config(tmp_path / "job.yaml") == load_config(GOOD)


@pytest.mark.parametrize("text", ["5e-5", "1e3", "+2E+4", ".5e1", "-1_0e2", "1.5e-3"])
def test_scientific_numbers_are_numbers(text: str) -> None:
    assert parse_yaml(text, "x").data == float(text)
    assert parse_yaml(dump_yaml({"a": text}), "x").data == {"a": text}  # quoted when it is text


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("student.num_layers=3", "student.num_layers", 3),
        ("stages.distill.learning_rate=3e-4", "stages.distill.learning_rate", 3e-4),
        ("stages.distill.losses.kd.weight=2", "stages.distill.losses.kd.weight", 2.0),
        ("stages.distill.losses.h={type: hidden_mse, weight: 3}", "stages.distill.losses.h.weight", 3.0),
        ("stages.distill.freeze=[a, b]", "stages.distill.freeze", ["a", "b"]),
        ("tracking.tags.team.name=x", "tracking.tags.team.name", "x"),
        ("train.resources_per_worker.GPU=1", "train.resources_per_worker.GPU", 1.0),
        ("evaluate.baseline.start=pretrained", "evaluate.baseline.start", "pretrained"),
        ("teacher.finetune=null", "teacher.finetune", None),
        ("storage=a=b", "storage", "a=b"),
        ("data.path='1'", "data.path", "1"),
    ],
)
def test_override(override: str, name: str, value: Any) -> None:
    assert flatten(load_config(GOOD, [override]))[name] == value


def test_overrides_build_a_new_entry_and_null_removes_one() -> None:
    overrides = ["stages.late.losses.x.type=logit_mse", "stages.late.losses.x.weight=2", "stages.distill=null"]
    config = load_config(GOOD, overrides)
    assert list(config.stages) == ["late"]
    assert config.stages["late"].losses["x"].weight == 2
    assert "distill" in GOOD["stages"]  # the caller's dict is untouched


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("student.num_layer=2", "--set student.num_layer: unknown name; did you mean student.num_layers?"),
        ("stages.distill.losses.kd.tmperature=2", "did you mean stages.distill.losses.kd.temperature?"),
        ("stages.distill.losses.new.wait=2", "did you mean stages.distill.losses.new.weight?"),
        ("stages.distill.losses.new.weight=2", "stages.distill.losses.new.type: is missing. Known types"),
        ("seed.x=2", "--set seed.x: nothing goes below seed, which takes a plain value."),
        ("seed", "expected NAME=VALUE"),
        ("=2", "expected NAME=VALUE"),
        ("a..b=2", "expected NAME=VALUE"),
        ("seed=[1", "--set seed, line 1, column 3: not valid YAML"),
        ("seed=!!python/name:os.system x", "could not determine a constructor for the tag"),
        ("data.path='a\\", "not valid YAML"),
        ('data.path="\\0"', r"data.path: holds the control character '\x00'"),
        ("seed=x", "seed: Input should be a valid integer, got 'x'."),
    ],
)
def test_wrong_override(override: str, expected: str) -> None:
    assert expected in message(GOOD, (override,))


def test_an_overridden_value_has_no_line_any_more(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(GOOD) + "seed: 1\n")
    assert message(path, ("seed=-1",)) == f"{path}: seed: Input should be greater than or equal to 0, got -1."


def test_flat_names_are_overrides_and_known_names() -> None:
    config = load_config(JOBS / "quickstart.yaml")
    flat = flatten(config)
    assert all(not isinstance(value, dict) or value == {} for value in flat.values())
    bare = load_config(GOOD)
    drop = [f"{name}=null" for name in ("stages.distill.losses.kd", "stages.distill.losses.task")]
    again = load_config(
        bare, [*drop, *(f"{name}={dump_yaml(value).removesuffix('...' + chr(10))}" for name, value in flat.items())]
    )
    assert again == config
    known = set(dotted_names())
    stars = {name.replace(".distill.", ".*.").replace(".kd.", ".*.").replace(".task.", ".*.") for name in flat}
    assert {name for name in stars if name not in known} <= {"task.type", "tracking.tags"} - known


def test_yaml_round_trip() -> None:
    config = load_config(JOBS / "quickstart.yaml", ["tracking.tags={a: '1e5', b: 'no', c: '2020-01-01', d: ä}"])
    assert load_config(parse_yaml(to_yaml(config), "x").data) == config


def test_data_section_alone() -> None:
    assert load_data("a.csv", ["data.max_length=32"]).max_length == 32
    with pytest.raises(ConfigError, match="only names of data"):
        load_data("a.csv", ["seed=1"])


def test_losses_are_described() -> None:
    found = list_losses()
    soft = ["forward_kl", "reverse_kl", "jsd", "soft_cross_entropy", "dkd", "dist"]
    hidden = ["hidden_mse", "hidden_cosine", "hidden_kl", "embedding_mse", "pkd", "pooled_cosine", "box_features"]
    tokens = ["attention_mse", "attention_kl", "minilm", "minilm_v2"]
    relations = ["rkd_distance", "rkd_angle", "gradient_match", "gradient_attention", "graph_attention", "crd"]
    vectors = ["vector_mse", "vector_cosine", "similarity_matrix"]
    assert list(found) == [
        "task",
        *soft,
        "k_best",
        "logit_mse",
        "boxes",
        *hidden,
        *tokens,
        *relations,
        "cosine_pairs",
        *vectors,
    ]
    rows = ["text_classification", "text_regression", "multi_label_classification"]
    everywhere = [*rows, "token_classification", "question_answering"]
    pictures = "image_classification"
    assert found["logit_mse"]["tasks"] == [*everywhere, pictures]
    both = [*everywhere, "embeddings", "masked_language_modeling", pictures, "object_detection"]
    assert {n for n, loss in found.items() if loss["tasks"] == both} >= {"task", "hidden_mse", "rkd_angle"}
    assert {n for n, loss in found.items() if loss["tasks"] == ["embeddings"]} == set(vectors)
    assert found["jsd"]["tasks"] == [name for name in both if name not in ("text_regression", "embeddings")]
    assert pictures not in found["gradient_match"]["tasks"]
    words = ["text_classification", "token_classification", pictures]
    assert (found["dkd"]["tasks"], found["dkd"]["compares"]) == (words, "logits, labels")
    assert found["dist"]["tasks"] == found["cosine_pairs"]["tasks"] == ["text_classification", pictures]
    assert found["boxes"]["tasks"] == found["box_features"]["tasks"] == ["object_detection"]
    assert found["k_best"]["tasks"] == ["token_classification"]
    assert found["forward_kl"]["settings"]["temperature"]["default"] == 2.0
    assert all(loss["about"] for loss in found.values())


NAMES = sorted({part for name in dotted_names() for part in name.split(".") if part != "*"})
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["auto", "task", "forward_kl", "hidden_mse", "same", "linear"])
    | st.dates()
    | st.binary(max_size=3)
)
TREES = st.recursive(
    SCALARS,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4) | st.integers(), below, max_size=4)
    ),
    max_leaves=12,
)


def test_every_setting_is_described() -> None:
    schema = Config.model_json_schema()
    for name, section in {**schema["$defs"], "Config": schema}.items():
        assert section.get("description"), name
        # what a type stands for is told by its section
        told = {field for field, about in section["properties"].items() if about.get("description") or "const" in about}
        sections = {field for field, about in section["properties"].items() if "$ref" in about}
        assert section["properties"].keys() - told - sections == set(), name


def complaint(work: Callable[[], object]) -> str | None:
    """What a ConfigError says, None where there is none; anything else passes through and fails the test."""
    try:
        work()
    except ConfigError as error:
        return str(error)
    return None


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(tree=st.dictionaries(st.sampled_from(NAMES), TREES, max_size=5), use_good=st.booleans())
def test_any_dict_is_a_config_or_a_config_error(tree: dict[str, Any], use_good: bool) -> None:
    found = complaint(lambda: load_config({**GOOD, **tree} if use_good else tree))
    assert found is None or (found.startswith("config: ") and ": 0 problems" not in found)


@settings(max_examples=200)
@example("task.type", "-")  # a list with nothing in it
@given(st.sampled_from(sorted(dotted_names())), st.text(max_size=8) | st.integers().map(str))
def test_any_override_is_a_config_or_a_config_error(name: str, value: str) -> None:
    sweep = {"sweep": {"space": {"student.num_layers": {"choice": [1, 2]}}}}
    found = complaint(lambda: load_config(GOOD | sweep, [f"{name.replace('*', 'x')}={value}"]))
    assert found is None or "x" in found or name in found


@settings(max_examples=200)
@given(st.text(alphabet="ab:-{}[]&*!'\"#,\n\t >|%?0.e", max_size=40))
def test_any_text_is_yaml_or_a_config_error(text: str) -> None:
    found = complaint(lambda: parse_yaml(text, "x"))
    assert found is None or found.startswith("x")


def test_cyclic_dicts_are_refused() -> None:
    tree: dict[str, Any] = {}
    tree["data"] = tree
    assert "Circular reference" in message(tree)


def test_path_objects_are_taken() -> None:
    assert load_config(changed("data.path", Path("a") / "b")).data.path == os.path.join("a", "b")
