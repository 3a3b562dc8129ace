"""Object detection from pictures to results: the straight line in local mode, answers, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest
from kit.pictures import png, save_tiny_pictures
from kit.scenes import NAMES, QUERIES, save_tiny_detector, save_tiny_focal, scene_config, toy_scenes, write_scenes
from safetensors.torch import save_file
from transformers import DetrConfig, pipeline

from raydistill.cli import main as cli
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config
from raydistill.data.pictures import Picture
from raydistill.data.rows import PictureRows
from raydistill.deploy.comparison import compare_models
from raydistill.deploy.export.export import export
from raydistill.deploy.gate.promotion import promote
from raydistill.deploy.inference import evaluate_model
from raydistill.deploy.predictor import TorchPredictor
from raydistill.errors import RaydistillError
from raydistill.pipeline.distill import distill
from raydistill.pipeline.plan import make_plan
from raydistill.tasks.object_detection import ObjectDetection
from raydistill.tasks.object_detection.reading import objects


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    scene_config(folder)
    save_tiny_detector(folder / "few", num_detection_tokens=QUERIES - 2, seed=5)
    save_tiny_pictures(folder / "vit", "vit")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return distill(load_config(scene_config(folder, evaluate__latency=True)))


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    """A short run of the same teacher."""
    own = {"evaluate__baseline": False, "registry__name": None, "stages__distill__num_epochs": 2, **changes}
    return distill(load_config(scene_config(folder, **own)))


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_finds(results: dict[str, Any]) -> None:
    for model in ("teacher", "student"):
        found = results[model]["test"]
        assert found["map_50"]["value"] > 0.2, model
        assert found["map"]["low"] > 0
        assert found["map_large"]["value"] is None
        assert not results[model]["chance"]["at_chance"]
    assert results["student"]["num_parameters"] < results["teacher"]["num_parameters"]
    assert results["student"]["agreement"] > 0.3
    assert results["student"]["latency_ms"]["p50"] > 0
    assert results["labels"] == list(NAMES)
    assert results["task"]["main_metric"] == "map"
    assert {loss["type"] for loss in results["config"]["stages"]["distill"]["losses"].values()} == {
        *("forward_kl", "boxes", "task"),
    }
    assert sum(results["data"]["per_class"]["test"].values()) == sum(
        one["support"] for one in results["student"]["per_class"]
    )


@pytest.mark.slow
def test_the_record_is_of_pictures_not_of_objects(results: dict[str, Any]) -> None:
    size = 4 * QUERIES * 7 * results["data"]["num_rows"]["train"]
    assert any(f"its outputs take {size:,} bytes" in note for note in results["notes"])


@pytest.mark.slow
def test_the_same_again_computes_nothing(folder: Path, results: dict[str, Any]) -> None:
    assert distill(load_config(scene_config(folder, evaluate__latency=True)))["reused"] == ["run"]


def threshold_of(results: dict[str, Any]) -> float:
    """As the student's folder has it."""
    told = json.loads((Path(results["student"]["path"]) / "config.json").read_text())
    return float(told["object_detection"]["threshold"])


@pytest.mark.slow
def test_each_model_has_the_threshold_of_its_validation_pictures(results: dict[str, Any]) -> None:
    least = threshold_of(results)
    assert least == results["student"]["threshold"] == results["task"]["facts"]["threshold"]
    assert 0 < least < 1
    assert len({least, results["teacher"]["threshold"], results["baseline"]["threshold"], 0.5}) == 4


@pytest.mark.slow
def test_rows_that_are_shown_have_their_boxes(results: dict[str, Any]) -> None:
    shown = [*results["errors"], *results["disagreements"]]
    assert shown
    for row in shown:
        assert row["image"].startswith("data:image/jpeg;base64,")
        assert row["marks"].keys() == {"label", "student", "teacher"}
    page = Path(results["report"]).read_text()
    assert page.count('<rect class="label"') >= sum(len(row["marks"]["label"]) for row in shown)
    assert "found twice, or with a box that is off" in page
    card = (Path(results["student"]["path"]) / "README.md").read_text()
    least = threshold_of(results)
    assert f'pipeline("object-detection", "FOLDER_OR_REPO", threshold={least})' in card
    assert f"Scores count from: teacher {results['teacher']['threshold']:.2f}, student {least:.2f}" in page
    assert "Labelled objects by label" in card


@pytest.mark.slow
def test_a_record_teaches_as_the_teacher_beside_the_student_does(folder: Path, results: dict[str, Any]) -> None:
    losses = {name: {"type": name} for name in ("forward_kl", "boxes", "hidden_mse", "box_features")}
    cached, online = (run(folder, stages__distill__losses=losses, teacher__mode=mode) for mode in ("cached", "online"))
    for one in ("map", "map_50", "mar"):
        values = [found["student"]["test"][one]["value"] for found in (cached, online)]
        assert values[0] == pytest.approx(values[1], abs=0.02)


@pytest.mark.slow
def test_crops_at_each_epoch_are_learned_with_their_boxes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the teacher while it is fine-tuned, by the student, and without a teacher."""
    batch, seen = PictureRows.batch, []

    def noted(self: PictureRows, row_ids: Any, epoch: tuple[int, int] | None = None) -> Any:
        made = batch(self, row_ids, epoch)
        if epoch is not None:
            before = objects(self.targets.values[row_ids])
            seen.append((len(row_ids), len(before.flat), len(objects(made.targets.values).flat)))
            assert made.targets.labeled.all()
        return made

    monkeypatch.setattr(PictureRows, "batch", noted)
    augment = {"copies": "each_epoch", "crop_area": 0.3}
    found = run(folder, data__augment=augment, teacher__finetune__num_epochs=2, evaluate__baseline=True)
    assert found["config"]["teacher"]["mode"] == "online"
    num_rows = found["data"]["num_rows"]["train"]
    assert sum(count for count, *_ in seen) == 6 * num_rows  # two epochs each
    before, after = (sum(column) for column in list(zip(*seen, strict=True))[1:])
    assert 0.5 * before < after < 0.95 * before


@pytest.mark.slow
@pytest.mark.parametrize("student", [{"start": "random", "num_layers": 2, "hidden_size": 32}, {"start": "few"}])
def test_a_student_of_its_own_start_learns_from_the_teacher(
    student: dict[str, Any], folder: Path, results: dict[str, Any]
) -> None:
    """One that is narrower, and one with other queries."""
    start = student["start"] if student["start"] == "random" else str(folder / student["start"])
    losses = {name: {"type": name} for name in ("forward_kl", "boxes", "box_features", "task")}
    found = run(folder, student={**student, "start": start}, stages__distill__losses=losses)
    made = json.loads((Path(found["student"]["path"]) / "config.json").read_text())
    assert made["id2label"] == {"0": "bright", "1": "dark"}
    assert made["num_detection_tokens"] == QUERIES - 2 * (student["start"] == "few")


@pytest.mark.slow
def test_pictures_may_have_a_size_of_their_own(folder: Path, results: dict[str, Any]) -> None:
    found = run(folder, task__picture_size=[16, 24], teacher__finetune__num_epochs=1)
    reader = json.loads((Path(found["student"]["path"]) / "preprocessor_config.json").read_text())
    assert reader["size"] == {"height": 16, "width": 24}
    assert found["config"]["data"]["max_length"] == 1 + 2 * 3 + QUERIES


@pytest.mark.slow
def test_all_ways_to_ask_give_the_same_objects(
    folder: Path, results: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """The command, transformers' pipeline, MLflow's model, and exports."""
    image, _ = toy_scenes(4, seed=9)[2]
    (folder / "fresh.png").write_bytes(png(image))
    capfd.readouterr()
    assert cli.execute(["predict", results["student"]["path"], "--file", str(folder / "fresh.png"), "--json"]) == 0
    own = json.loads(capfd.readouterr().out)["predictions"][0]["objects"]
    assert own
    assert min(one["score"] for one in own) >= threshold_of(results)
    assert cli.execute(["predict", results["student"]["path"], "--file", str(folder / "fresh.png")]) == 0
    told = capfd.readouterr().out.split("\t")[0]
    assert [part.split(" ")[0] for part in told.split("), ")] == [one["label"] for one in own]
    assert told.endswith(f"{own[-1]['box']['ymax']:.0f})")
    named = pipeline("object-detection", results["student"]["path"], threshold=threshold_of(results))(
        str(folder / "fresh.png")
    )
    assert [one["label"] for one in own] == [one["label"] for one in sorted(named, key=lambda one: -one["score"])]
    model = mlflow.pyfunc.load_model(f"models:/scenes/{results['model_version']}")
    assert mlflow.transformers.load_model(f"models:/scenes/{results['model_version']}").task == "object-detection"
    stored = model.predict(pandas.DataFrame({"image": [png(image)]}))[0]["objects"]
    for one, other in zip(own, stored, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["box"] == pytest.approx(other["box"], abs=0.01)


@pytest.fixture(scope="module")
def focal(folder: Path) -> dict[str, Any]:
    """A student with the first of the two layers of an RT-DETR's decoder."""
    write_scenes(folder / "few_scenes", toy_scenes(48))
    save_tiny_focal(folder / "rt_detr", names=("a", "b", "c"))
    losses = {"kd": {"type": "forward_kl"}, "boxes": {"type": "boxes"}, "maps": {"type": "hidden_mse"}}
    return run(
        folder,
        data__path=str(folder / "few_scenes"),
        teacher={"model": str(folder / "rt_detr"), "finetune": {"num_epochs": 1}, "allow_chance": True},
        student={"num_layers": 1},
        stages__distill__losses={**losses, "task": {"type": "task"}},
        stages__distill__num_epochs=1,
        evaluate__baseline=True,
    )


@pytest.mark.slow
def test_a_focal_detector_keeps_the_first_layers_of_its_decoder(focal: dict[str, Any]) -> None:
    made, of_teacher = (
        json.loads((Path(focal[model]["path"]) / "config.json").read_text()) for model in ("student", "teacher")
    )
    assert (made["decoder_layers"], of_teacher["decoder_layers"]) == (1, 2)
    assert made["id2label"] == {"0": "bright", "1": "dark"}
    assert made["object_detection"]["focal"]
    assert focal["student"]["test"]["map"]["value"] is not None
    assert Path(focal["report"]).is_file()


@pytest.mark.slow
def test_a_focal_detector_answers_alike_here_and_in_transformers(folder: Path, focal: dict[str, Any]) -> None:
    """Of every picture, at a threshold that all pass."""
    model, scenes = TorchPredictor(Path(focal["student"]["path"])), folder / "few_scenes" / "images"
    task = model.task
    assert isinstance(task, ObjectDetection)
    task.threshold = 0.0
    names = sorted(str(path) for path in scenes.iterdir())[:4]
    pictures = [Picture(name, Path(name).read_bytes()) for name in names]
    outputs = model.outputs(pictures)
    reader = pipeline("object-detection", focal["student"]["path"], threshold=0.0)
    for own, name in zip(task.of_rows(pictures, None).answers(outputs), names, strict=True):
        expected = sorted(reader(name), key=lambda one: -one["score"])
        assert [one["label"] for one in own["objects"]] == [one["label"] for one in expected]


@pytest.mark.slow
def test_a_focal_detector_is_exported(folder: Path, focal: dict[str, Any]) -> None:
    storage = str(folder / "storage")
    found = export(focal["student"]["path"], "onnx", folder / "focal", storage=storage, latency=False, margin=0.1)
    assert found["good"], found["formats"]
    assert found["formats"]["onnx"]["agreement"] == 1


@pytest.mark.slow
def test_a_model_is_measured_on_its_rows_and_on_others(folder: Path, results: dict[str, Any]) -> None:
    model, storage = results["student"]["path"], str(folder / "storage")
    own = evaluate_model(model, storage=storage, num_samples=50)
    assert own["metrics"]["map"]["value"] == pytest.approx(results["student"]["test"]["map"]["value"], abs=1e-4)
    other = evaluate_model(model, load_config(scene_config(folder)).data, storage=storage, num_samples=50)
    assert other["num_rows"] == 256
    pair = compare_models([results["teacher"]["path"], model], None, storage=storage, latency=False)["pairs"][0]
    assert pair["agreement"] == pytest.approx(results["student"]["agreement"], abs=1e-3)


@pytest.fixture(scope="module")
def exports(folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    storage = str(folder / "storage")
    return export(results["student"]["path"], "all", folder / "out", storage=storage, latency=False, margin=0.1)


@pytest.mark.slow
def test_every_format_holds_what_torch_says(exports: dict[str, Any]) -> None:
    assert exports["good"], exports["formats"]
    assert exports["formats"]["onnx"]["largest_difference"] < 1e-4
    assert exports["formats"]["onnx"]["agreement"] == 1
    assert set(exports["formats"]) == {"onnx", "onnx-int8", "torch-int8", "safetensors-bf16"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "safetensors-bf16"])
def test_the_lines_of_an_export_run_as_they_stand(form: str, exports: dict[str, Any]) -> None:
    place = Path(exports["formats"][form]["path"])
    for name, (image, _) in zip(("one.jpg", "another.jpg"), toy_scenes(2, seed=3), strict=True):
        image.save(place / name)
    about = json.loads((place / "export.json").read_text())
    shapes = "print(*map(tuple, (logits.shape, pred_boxes.shape)))"
    told = subprocess.run(
        [sys.executable, "-c", "\n".join([*about["load"], shapes])],
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == f"(2, {QUERIES}, 3) (2, {QUERIES}, 4)"
    assert [(one["name"], one["axes"]) for one in about["outputs"]] == [
        ("logits", ["batch", QUERIES, 3]),
        ("pred_boxes", ["batch", QUERIES, 4]),
    ]


@pytest.mark.slow
def test_a_gate_judges_by_average_precision(folder: Path, results: dict[str, Any]) -> None:
    """No version stands beside it; the teacher's share, the leak of rows and the recall of classes are known."""
    lenient = Gate(min_rows=20, max_latency_ratio=50.0, min_class_recall=0.01, min_retention=0.5)
    version, storage = results["model_version"], str(folder / "storage")
    found = promote("scenes", version=version, gate=lenient, storage=storage, dry_run=True)
    assert found["verdict"] == "passed", found["rules"]
    own = found["comparison"]["models"]["challenger"]["metrics"]["map"]["value"]
    assert own == pytest.approx(results["student"]["test"]["map"]["value"], abs=1e-4)
    assert found["retention"]["value"] == pytest.approx(results["retention"]["map"], abs=1e-3)


def test_a_plan_knows_the_size_of_a_record(folder: Path) -> None:
    plan = make_plan(load_config(scene_config(folder, storage=str(folder / "elsewhere"))))
    assert plan["teacher"]["signal_bytes"]["logits"] == 4 * QUERIES * 7 * plan["data"]["rows"]["train"]
    assert plan["data"]["unit"] == "patches"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher__model": "vit"}, r"teacher.model: .*vit, a vit model, is none of the detectors .*yolos"),
        ({"teacher__model": "detr"}, r"teacher.model: .*a detr model, is none of the detectors"),
        ({"student": {"start": "vit"}}, r"student.start: .*a vit model, is none of the detectors"),
        (
            {"student": {"start": "rt_detr"}},
            r"student.start: .*rt_detr model, and teacher.model, a yolos one, say diff",
        ),
        ({"teacher__model": "rt_detr", "student": {"num_layers": 3}}, r"num_layers is 3, but the decoder has 2 layers"),
        ({"stages__distill__losses": {"kd": {"type": "logit_mse"}}}, r"logit_mse cannot compare the boxes"),
        ({"stages__distill__losses": {"kd": {"type": "dkd"}}}, r"dkd cannot compare the boxes of object_detection"),
        ({"task": {"type": "image_classification"}}, r"Set task.type: object_detection"),
        (
            {"task": {"type": "image_classification"}, "stages__distill__losses": {"x": {"type": "box_features"}}},
            r"losses.x: box_features needs boxes; image_classification has none",
        ),
        ({"task__labels": []}, r"needs a class, got 0"),
        ({"evaluate__metric": "accuracy"}, r"accuracy is no metric of object_detection"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(changes: dict[str, Any], said: str, folder: Path) -> None:
    save_tiny_focal(folder / "rt_detr", names=("a", "b", "c"))
    DetrConfig(architectures=["DetrForObjectDetection"]).save_pretrained(folder / "detr")
    save_file({}, folder / "detr" / "model.safetensors")
    shutil.copyfile(folder / "yolos" / "preprocessor_config.json", folder / "detr" / "preprocessor_config.json")
    places = {name: str(folder / name) for name in ("vit", "detr", "rt_detr")}
    named = {
        key: places.get(value, value)
        if isinstance(value, str)
        else {k: places.get(v, v) for k, v in value.items()}
        if key == "student"
        else value
        for key, value in changes.items()
    }
    with pytest.raises(RaydistillError, match=said):
        make_plan(load_config(scene_config(folder, **named)))
