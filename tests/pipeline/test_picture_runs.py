"""Image classification from pictures to results: the straight line in local mode, and by what models are compared."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.pictures import KINDS, SIZE, picture_config, png, save_tiny_pictures, toy_picture
from kit.runs import read_weights
from kit.toy import without_key_biases
from transformers import ViTImageProcessorPil, pipeline

from raydistill.config.loading import load_config
from raydistill.data.rows import PictureRows
from raydistill.errors import ConfigError, ModelError
from raydistill.models.capture import capture
from raydistill.pipeline.distill import distill
from raydistill.pipeline.estimate import estimate_run
from raydistill.pipeline.plan import make_plan
from raydistill.teacher import signals
from raydistill.train import loop

HIDDEN = {
    "kd": {"type": "forward_kl"},
    "hidden": {"type": "hidden_mse", "layers": "auto"},
    "relations": {"type": "minilm_v2", "layers": "last"},
}


def with_loss(kind: str, **more: Any) -> dict[str, Any]:
    """A ResNet that learns by one loss."""
    return {"student": {"start": "resnet"}, "stages__distill__losses": {"it": {"type": kind, **more}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, mlflow_uri: str) -> Path:
    """Pictures, tiny models of three families, and storage."""
    folder = tmp_path_factory.mktemp("pictures")
    picture_config(folder)
    save_tiny_pictures(folder / "resnet", "resnet", num_labels=7)
    save_tiny_pictures(folder / "mobilenet", "mobilenet_v2", num_labels=7)
    save_tiny_pictures(folder / "large", "vit", image_size=64)
    save_tiny_pictures(folder / "wide", "swin")
    ViTImageProcessorPil(size={"height": SIZE, "width": 2 * SIZE}).save_pretrained(folder / "wide")
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    return distill(load_config(picture_config(folder)))


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    own = {"evaluate__baseline": False, "registry__name": None, **changes}
    return distill(load_config(picture_config(folder, **own)))


def test_a_student_learns_what_its_teacher_sees(results: dict[str, Any]) -> None:
    assert results["teacher"]["test"]["accuracy"]["value"] > 0.5  # of four kinds, in noise
    assert results["student"]["test"]["accuracy"]["value"] > 0.5
    assert results["student"]["num_parameters"] < results["teacher"]["num_parameters"]
    assert results["tfidf"] is None
    assert results["baseline"]["steps"] > 0
    assert results["layers"]["start"] == [[0, 0], [1, 1], [2, 4]]
    assert results["labels"] == list(KINDS)


def test_the_same_again_computes_nothing(folder: Path, results: dict[str, Any]) -> None:
    assert distill(load_config(picture_config(folder)))["reused"] == ["run"]


def test_rows_that_are_shown_have_a_small_picture(results: dict[str, Any]) -> None:
    shown = [*results["errors"], *results["disagreements"]]
    assert shown
    for row in shown:
        assert re.fullmatch(r"\w+/\d+\.png", row["text"])
        assert row["image"].startswith("data:image/jpeg;base64,")


def test_a_student_is_an_ordinary_folder_that_a_pipeline_loads(folder: Path, results: dict[str, Any]) -> None:
    model = pipeline("image-classification", results["student"]["path"])
    draw = np.random.default_rng(99)
    (folder / "fresh.png").write_bytes(png(toy_picture("blank", draw)))
    found = model(str(folder / "fresh.png"))
    assert {answer["label"] for answer in found} == set(KINDS)
    card = (Path(results["student"]["path"]) / "README.md").read_text()
    assert 'pipeline("image-classification", "FOLDER_OR_REPO")' in card
    assert "On other pictures they are not known" in card
    assert "tokens of a row" not in card
    assert "cut to" not in card


@pytest.mark.slow
def test_hidden_states_and_relations_of_patches_are_compared(folder: Path) -> None:
    cached = run(folder, stages__distill__losses=HIDDEN)
    online = run(folder, stages__distill__losses=HIDDEN, teacher__mode="online")
    assert any("Layers of stages.distill.losses.hidden by similarity" in note for note in cached["notes"])
    a, b = (without_key_biases(read_weights(one["student"]["path"])) for one in (cached, online))
    for name in a:  # recorded states are in half precision
        torch.testing.assert_close(a[name], b[name], atol=3e-3, rtol=3e-2)


@pytest.mark.slow
def test_a_student_and_its_teacher_see_the_same_crops_others_at_each_epoch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a teacher while it is fine-tuned, and a student without one; nobody sees a training picture as it is."""
    seen: list[tuple[str, torch.Tensor]] = []

    def spied(name: str, module: Any) -> None:
        def told(model: Any, inputs: Any, *more: Any) -> Any:
            seen.append((name, inputs["pixel_values"]))
            return capture(model, inputs, *more)

        monkeypatch.setattr(module, "capture", told)

    spied("student", loop)
    spied("teacher", signals)
    asked: list[tuple[int, ...]] = []
    batch = PictureRows.batch

    def noted(self: PictureRows, row_ids: Any, epoch: tuple[int, int] | None = None) -> Any:
        asked.extend((row, epoch[1]) for row in row_ids if epoch is not None)
        return batch(self, row_ids, epoch)

    monkeypatch.setattr(PictureRows, "batch", noted)
    augment = {"copies": "each_epoch", "ways": ["crop"], "crop_area": 0.5}
    own = {"data__augment": augment, "train__tokens_per_micro_batch": 100, "evaluate__baseline": True}
    found = run(folder, **own, teacher__finetune__num_epochs=2)
    num_rows = len(asked) // 8  # two epochs of the teacher, three of the student, three of the baseline
    assert sorted(asked) == sorted((row, e) for epochs in (2, 3, 3) for e in range(epochs) for row in range(num_rows))
    pairs = [(a, b) for (one, a), (other, b) in pairwise(seen) if (one, other) == ("teacher", "student")]
    assert sum(len(own) for _, own in pairs) == 3 * num_rows
    assert all(taught.equal(own) for taught, own in pairs)
    trained = [pictures for name, pictures in seen if name == "student"]
    assert all(own.equal(alone) for (_, own), alone in zip(pairs, trained[-len(pairs) :], strict=True))
    assert len(torch.unique(torch.cat(trained), dim=0)) == 3 * num_rows  # the teacher's two epochs are among them
    assert found["config"]["teacher"]["mode"] == "online"
    assert "signals" not in found["reused"]
    assert found["student"]["test"]["accuracy"]["value"] > 0.3


@pytest.mark.slow
def test_copies_of_pictures_are_recorded_as_other_rows_are(folder: Path) -> None:
    found = run(folder, data__augment={"copies": 1, "crop_area": 0.5}, teacher__finetune__num_epochs=2)
    plan = make_plan(load_config(picture_config(folder, data__augment={"copies": 1, "crop_area": 0.5})))
    assert found["config"]["teacher"]["mode"] == "auto"
    assert plan["teacher"]["signal_bytes"]["logits"] == 2 * 4 * 4 * plan["data"]["rows"]["train"]
    assert found["curves"]["student"][-1]["step"] == plan["steps"]["student.distill"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "mobilenet"])
def test_a_network_of_convolutions_learns_the_logits_of_a_transformer(family: str, folder: Path) -> None:
    """Its checkpoint has a head for other classes: a new one is set."""
    found = run(folder, student={"start": str(folder / family)})
    made = json.loads((Path(found["student"]["path"]) / "config.json").read_text())
    assert list(made["id2label"].values()) == list(KINDS)
    assert found["config"]["student"]["num_layers"] is None
    if family == "resnet":
        assert found["student"]["test"]["accuracy"]["value"] > 0.4


MAPS = {
    "kd": {"type": "forward_kl"},
    "maps": {"type": "hidden_mse", "layers": "auto"},
    "pooled": {"type": "pooled_cosine"},
    "rows": {"type": "rkd_distance"},
}


@pytest.mark.slow
def test_a_network_of_convolutions_learns_the_patches_of_a_transformer(folder: Path) -> None:
    """From a record of them as from the teacher beside it, by layers that are measured on one grid."""
    own = {"student": {"start": str(folder / "resnet")}, "stages__distill__losses": MAPS}
    cached, online = run(folder, **own), run(folder, **own, teacher__mode="online")
    assert any("Layers of stages.distill.losses.maps by similarity" in note for note in cached["notes"])
    assert (cached["layers"]["student"], cached["layers"]["teacher"]) == (2, 4)
    assert cached["layers"]["losses"]["stages.distill.losses.pooled"] == [[2, 4]]
    a, b = (read_weights(one["student"]["path"]) for one in (cached, online))
    for name in a:  # recorded states are in half precision
        torch.testing.assert_close(a[name], b[name], atol=3e-3, rtol=3e-2)


def test_a_plan_knows_the_maps_of_a_network_of_convolutions(folder: Path) -> None:
    losses = {"maps": {"type": "hidden_mse"}, "first": {"type": "hidden_cosine", "layers": [[1, 0]]}}
    own = {"teacher__model": str(folder / "resnet"), "stages__distill__losses": losses}
    config = picture_config(folder, **own, student={"start": str(folder / "vit")})
    plan = make_plan(load_config(config), estimate=estimate_run)
    rows = plan["data"]["rows"]["train"]
    sizes = {f"hidden_states[{i}]": 2 * rows * n for i, n in enumerate((16 * 8, 16 * 16, 4 * 32))}
    assert plan["teacher"]["signal_bytes"] == sizes
    assert plan["layer_maps"]["stages.distill.losses.maps"] == [[1, 1], [2, 1], [3, 2], [4, 2]]
    assert plan["total"] > 0
    found = run(folder, **own, student={"start": str(folder / "vit")})
    assert found["layers"]["teacher"] == 2
    for name, size in sizes.items():  # beside the numbers of its rows and where they begin
        recorded = [f for f in folder.glob("storage/signals/*/*.arrow") if name.encode() in f.read_bytes()[:600]]
        assert min(abs(file.stat().st_size - size) for file in recorded) < 20 * rows + 2000


@pytest.mark.slow
def test_a_network_of_convolutions_teaches(folder: Path) -> None:
    found = run(folder, teacher__model=str(folder / "resnet"), student={"num_layers": None})
    assert found["teacher"]["test"]["accuracy"]["value"] > 0.4
    assert found["layers"]["start"] == []


@pytest.mark.parametrize(
    ("teacher", "changes", "error", "said"),
    [
        ("vit", {"student": {"start": "resnet"}, "stages__distill__losses": HIDDEN}, ConfigError, "sees other parts"),
        ("vit", with_loss("pkd"), ConfigError, r"losses\.it: pkd compares hidden states one by one"),
        ("vit", with_loss("embedding_mse"), ConfigError, r"embedding_mse .*Use losses on feature maps, such as hidden"),
        (
            "vit",
            with_loss("graph_attention", nodes="tokens"),
            ConfigError,
            "graph_attention compares hidden states one",
        ),
        ("vit", with_loss("attention_kl"), ConfigError, "attention_kl compares queries, keys one by one"),
        ("wide", with_loss("hidden_mse"), ConfigError, "a swin model has maps of which it is not known"),
        ("vit", with_loss("hidden_mse", layers=[[3, 4]]), ConfigError, r"pair \[3, 4\].* to 2 for the student"),
        ("vit", {"student": {"start": "resnet", "num_layers": 2}}, ConfigError, r"student\.num_layers: a resnet model"),
        ("vit", {"student": {"start": "large"}}, ModelError, "cannot read the teacher's pictures"),
        ("vit", {"data__max_length": 5}, ConfigError, "a picture has 17 patches"),
        ("resnet", {"student": {}}, ConfigError, r"student\.num_layers: a resnet model has stages"),
        ("resnet", {"student": {"num_layers": None}, "teacher__finetune": None}, ModelError, "labels do not match"),
    ],
)
def test_models_that_do_not_go_together_are_refused_before_any_work(
    teacher: str, changes: dict[str, Any], error: type[Exception], said: str, folder: Path
) -> None:
    config = load_config(picture_config(folder, teacher__model=str(folder / teacher), **changes))
    if config.student.checkpoint is not None:
        start = str(folder / config.student.start)
        config = config.model_copy(update={"student": config.student.model_copy(update={"start": start})})
    with pytest.raises(error, match=said):
        make_plan(config)


def test_a_plan_speaks_of_patches_and_estimates_the_time(folder: Path) -> None:
    config = load_config(picture_config(folder, storage=str(folder / "elsewhere"), stages__distill__losses=HIDDEN))
    plan = make_plan(config, estimate=estimate_run)
    assert plan["data"]["tokens"]["train"] == 17 * plan["data"]["rows"]["train"]
    assert plan["data"]["unit"] == "patches"
    assert plan["teacher"]["signal_bytes"]["hidden_states[4]"] == 2 * 32 * plan["data"]["tokens"]["train"]
    assert plan["total"] > 0
    start = make_plan(load_config(picture_config(folder, student={"start": str(folder / "mobilenet")})))
    assert start["student"]["teacher_layers"] == []


def test_losses_are_checked_on_real_pictures(folder: Path, results: dict[str, Any]) -> None:
    found = make_plan(load_config(picture_config(folder)), check=True)["findings"]
    assert any(
        "gradient norms on real rows" in finding or "as it is before its fine-tuning" in finding for finding in found
    )
