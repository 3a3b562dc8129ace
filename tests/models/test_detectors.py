"""Detectors as models: what is read off them, students cut from them, heads for other classes, processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.pictures import png, save_tiny_pictures
from kit.scenes import NAMES, QUERIES, SIZE, queries, save_tiny_detector, tiny_detector_config
from PIL import Image
from torch import Tensor
from transformers import ViTImageProcessorPil, YolosImageProcessorPil, pipeline

from raydistill.config.student import EncoderStudent
from raydistill.data.pictures import Picture, Processor, sized
from raydistill.errors import ModelError
from raydistill.models.capture import capture
from raydistill.models.head import OBJECTS, Head, head_of, kind_of_head, output_layer
from raydistill.models.load import is_tuned, load_model, new_model, save_model
from raydistill.models.pictures import look
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.student import build_student
from raydistill.pipeline.stages import change
from raydistill.tasks.object_detection import ObjectDetection

HEAD = Head(NAMES, kind=OBJECTS)
SHAPE = (3, *SIZE)


def pictures(num_rows: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(num_rows, *SHAPE, generator=torch.Generator().manual_seed(seed))}


def loaded(folder: Path, **changes: Any) -> Any:
    return load_model(save_tiny_detector(folder / "yolos", names=NAMES, **changes), HEAD, dropout=0.0)


def test_a_detector_is_a_stack_whose_outputs_are_its_queries(tmp_path: Path) -> None:
    model, batch = loaded(tmp_path), pictures(3)
    sight = look(model.config, SHAPE)
    assert (sight.is_stack, sight.num_patches) == (True, 1 + 12 + QUERIES)
    wanted = [LOGITS, Signal.of("hidden_states", 2), Signal.of("queries", 1)]
    with torch.inference_mode():
        found, whole = capture(model, batch, wanted), model(**batch, output_hidden_states=True)
    assert found[LOGITS].shape == (3, LOGITS.width(model.config)) == (3, QUERIES * 7)
    logits, boxes = queries(found[LOGITS], 2)
    torch.testing.assert_close(logits, whole.logits)
    torch.testing.assert_close(boxes, whole.pred_boxes)
    torch.testing.assert_close(found[wanted[1]], whole.hidden_states[2].flatten(0, 1))
    assert found[wanted[2]].shape == (3 * sight.num_patches, 32)


def test_boxes_are_exact_under_autocast(tmp_path: Path) -> None:
    model, batch = loaded(tmp_path), pictures(3)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        boxes = queries(capture(model, batch, [LOGITS])[LOGITS], 2)[1]
        whole = model(**batch)
    with torch.inference_mode():
        expected = model.bbox_predictor(whole.last_hidden_state[:, -QUERIES:].float()).sigmoid()
    torch.testing.assert_close(boxes, expected)
    assert whole.pred_boxes.dtype == torch.bfloat16
    assert (whole.pred_boxes.float() - expected).abs().max() > 1e-4
    assert "forward" not in vars(model.bbox_predictor)


@pytest.mark.parametrize("depth", [3, 4])
def test_a_student_of_all_layers_is_its_teacher(depth: int, tmp_path: Path) -> None:
    """Of three layers, too: a head for objects has as many."""
    teacher, batch = loaded(tmp_path, num_layers=depth), pictures()
    student = build_student(teacher, EncoderStudent(num_layers=None), seed=1)
    with torch.inference_mode():
        for signal, values in capture(student, batch, [LOGITS]).items():
            assert torch.equal(values, capture(teacher, batch, [signal])[signal])


@pytest.mark.parametrize("layers", [(0, 3), (1,), (2, 3), (0, 1, 3)])
def test_a_student_goes_from_layer_to_layer_as_its_teacher_without_the_others(
    layers: tuple[int, ...], tmp_path: Path
) -> None:
    """What is added between layers is added where a layer is left out, too."""
    teacher, batch = loaded(tmp_path, num_layers=4), pictures()
    student = build_student(teacher, EncoderStudent(num_layers=len(layers), teacher_layers=layers), seed=1).eval()
    added = teacher.vit.encoder.interpolation.mid_position_embeddings.squeeze(1)
    assert added.abs().max() > 0
    with torch.inference_mode():
        states = teacher.vit.embeddings(batch["pixel_values"])
        for layer in range(layers[-1] + 1):
            states = teacher.vit.encoder.layer[layer](states) if layer in layers else states
            states = states + added[layer] if layer < layers[-1] else states
        tokens = teacher.vit.layernorm(states)[:, -QUERIES:]
        torch.testing.assert_close(student(**batch).logits, teacher.class_labels_classifier(tokens))
    again = build_student(teacher, EncoderStudent(num_layers=len(layers), start="random"), seed=1)
    assert not torch.equal(again(**batch).logits, student(**batch).logits)


def test_a_head_for_other_classes_is_set_anew_and_boxes_are_kept(tmp_path: Path) -> None:
    folder = save_tiny_detector(tmp_path / "yolos", names=("a", "b", "c"))
    assert not is_tuned(folder, HEAD)
    first, second = (load_model(folder, HEAD, seed=seed) for seed in (3, 4))
    assert output_layer(first).out_features == 3
    assert not torch.equal(output_layer(first).weight, output_layer(second).weight)
    assert torch.equal(first.bbox_predictor.layers[2].weight, second.bbox_predictor.layers[2].weight)
    assert kind_of_head(first.config) == OBJECTS
    save_model(first, folder, tmp_path / "saved")
    assert is_tuned(tmp_path / "saved", HEAD)
    assert head_of(load_model(tmp_path / "saved", None)).outputs == NAMES


def test_four_classes_are_not_taken_for_the_sides_of_boxes() -> None:
    model = new_model(tiny_detector_config(num_labels=4), seed=0)
    assert output_layer(model) is model.class_labels_classifier.layers[2]
    assert output_layer(new_model(tiny_detector_config(num_labels=3), seed=0)).out_features == 4


def test_outputs_follow_the_order_of_classes_and_no_object_stays_last(tmp_path: Path) -> None:
    folder, batch = save_tiny_detector(tmp_path / "yolos", names=NAMES), pictures()
    first, second = (load_model(folder, Head(names, kind=OBJECTS)) for names in (NAMES, NAMES[::-1]))
    with torch.inference_mode():
        torch.testing.assert_close(first(**batch).logits[..., [1, 0, 2]], second(**batch).logits)


def test_transformers_pipeline_gives_the_tasks_answers(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    save_model(model, tmp_path / "yolos", tmp_path / "saved")
    content = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)))
    (tmp_path / "one.png").write_bytes(content)
    expected = pipeline("object-detection", str(tmp_path / "saved"), threshold=0.0)(str(tmp_path / "one.png"))
    task = ObjectDetection(NAMES, threshold=0.0).of_rows([Picture("one", content)], None)
    processor = Processor.open(tmp_path / "saved")
    with torch.inference_mode():
        outputs = capture(model, {"pixel_values": torch.from_numpy(processor.encode([content]))}, [LOGITS])[LOGITS]
    (answer,) = task.answers(outputs.numpy())
    assert len(answer["objects"]) == len(expected) == QUERIES
    for own, other in zip(answer["objects"], sorted(expected, key=lambda one: -one["score"]), strict=True):
        assert own["score"] == pytest.approx(other["score"], abs=1e-5)
        assert {side: int(value) for side, value in own["box"].items()} == other["box"]
        assert own["label"] == other["label"]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (YolosImageProcessorPil(size={"height": 24, "width": 32}, do_pad=False), None),
        (YolosImageProcessorPil(size={"height": 24, "width": 24}, do_pad=False), None),
        (YolosImageProcessorPil(size={"shortest_edge": 24, "longest_edge": 64}), "does not bring the whole picture"),
        (YolosImageProcessorPil(size={"height": 24, "width": 32}, pad_size={"height": 40, "width": 40}), "pads it"),
        (ViTImageProcessorPil(size={"height": 24, "width": 32}), "makes no boxes"),
    ],
)
def test_only_a_processor_of_whole_pictures_will_do(own: Any, said: str | None, tmp_path: Path) -> None:
    own.save_pretrained(tmp_path)
    processor = Processor.open(tmp_path)
    if said is None:
        processor.check_whole()
    else:
        with pytest.raises(ModelError, match=said):
            processor.check_whole()


def test_pictures_are_brought_to_a_size_of_ones_own(tmp_path: Path) -> None:
    """Also where the folder is of the time before sizes had names, as those of hustvl/yolos-tiny are."""
    old = {"do_normalize": True, "do_resize": True, "format": "coco_detection", "max_size": 1333, "size": 512}
    written = {**old, "feature_extractor_type": "YolosFeatureExtractor", "image_processor_type": "YolosImageProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=r"Set task.picture_size"):
        Processor.open(tmp_path).check_whole()
    processor = Processor.open(tmp_path, (24, 40))
    processor.check_whole()
    content = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)))
    assert processor.pixels([content]).shape == (1, 3, 24, 40)
    change(tmp_path / "preprocessor_config.json", sized((24, 40)))
    np.testing.assert_array_equal(Processor.open(tmp_path).pixels([content]), processor.pixels([content]))


def test_a_classifier_of_pictures_is_none_of_objects(tmp_path: Path) -> None:
    folder = save_tiny_pictures(tmp_path / "vit", "vit", num_labels=2)
    assert kind_of_head(load_model(folder, None).config) != OBJECTS
