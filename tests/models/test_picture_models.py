"""Models that read pictures: what they see, students cut from them, and batch norms that know nothing of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kit.pictures import SIZE, save_tiny_pictures, tiny_picture_config
from kit.runs import same_weights
from torch import Tensor

from raydistill.config.student import EncoderStudent
from raydistill.errors import ConfigError
from raydistill.models.capture import capture
from raydistill.models.head import IMAGE, Head, head_of, kind_of_head
from raydistill.models.load import is_tuned, load_model, new_model, save_model
from raydistill.models.pictures import NORMS, look, settle, train_mode
from raydistill.models.shape import student_config
from raydistill.models.signals import LOGITS, Signal
from raydistill.models.student import build_student

LABELS = ("a", "b", "c", "d")
HEAD = Head(LABELS, "single_label_classification", kind=IMAGE)
SHAPE = (3, SIZE, SIZE)
STACKS = ("vit", "beit", "dinov2")
STAGED = ("resnet", "mobilenet_v2")


def pictures(num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(num_rows, *SHAPE, generator=torch.Generator().manual_seed(seed))}


def loaded(folder: Path, family: str, **changes: Any) -> Any:
    return load_model(save_tiny_pictures(folder / family, family, **changes), HEAD, dropout=0.0)


def test_what_a_model_sees_of_a_picture() -> None:
    seen = {family: look(tiny_picture_config(family), SHAPE) for family in (*STACKS, *STAGED)}
    assert {family for family, sight in seen.items() if sight.is_stack} == set(STACKS)
    assert all(seen[family].num_patches == 17 for family in STACKS)  # 16 and the one for the whole
    assert look(tiny_picture_config("resnet"), (3, 224, 224)).num_patches == 196


@pytest.mark.parametrize("family", STACKS)
def test_states_of_patches_are_flat_and_belong_to_their_rows(family: str, tmp_path: Path) -> None:
    model, batch = loaded(tmp_path, family), pictures(3)
    wanted = [Signal.of("hidden_states", 2), Signal.of("queries", 1), LOGITS]
    with torch.inference_mode():
        found = capture(model, batch, wanted)
        alone = [capture(model, {"pixel_values": batch["pixel_values"][[i]]}, wanted) for i in range(3)]
        whole = model(**batch, output_hidden_states=True)
    assert found[wanted[0]].shape == found[wanted[1]].shape == (3 * 17, 32)
    torch.testing.assert_close(found[wanted[0]], whole.hidden_states[2].flatten(0, 1))
    for signal in wanted:
        torch.testing.assert_close(found[signal], torch.cat([one[signal] for one in alone]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", STACKS)
def test_a_student_has_the_layers_of_its_teacher(family: str, tmp_path: Path) -> None:
    """All of them give the teacher's logits bit for bit; some are those that were chosen, and load again."""
    teacher, batch = loaded(tmp_path, family), pictures(2)
    with torch.inference_mode():
        same = build_student(teacher, EncoderStudent(num_layers=None), seed=1)
        torch.testing.assert_close(same(**batch).logits, teacher(**batch).logits, atol=0, rtol=0)
    student = build_student(teacher, EncoderStudent(num_layers=2, teacher_layers=(1, 3)), seed=1)
    own, other = student.state_dict(), teacher.state_dict()
    moved = {name for name in own if name in other and not torch.equal(own[name], other[name])}
    assert all(".0." in name or ".1." in name for name in moved)
    for name in moved:
        layer = "1" if ".0." in name else "3"
        assert torch.equal(own[name], other[name.replace(".0." if layer == "1" else ".1.", f".{layer}.", 1)])
    save_model(student, tmp_path / family, tmp_path / "saved")
    again = load_model(tmp_path / "saved", None)
    torch.testing.assert_close(again(**batch).logits, student.eval()(**batch).logits)
    assert head_of(again).outputs == LABELS


def test_a_head_for_other_classes_is_set_anew(tmp_path: Path) -> None:
    folder = save_tiny_pictures(tmp_path / "vit", "vit", num_labels=7)
    assert not is_tuned(folder, HEAD)
    model = load_model(folder, HEAD, seed=3)
    assert model.classifier.out_features == 4
    other = load_model(folder, HEAD, seed=4)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert torch.equal(model.vit.layers[0].attention.q_proj.weight, other.vit.layers[0].attention.q_proj.weight)
    save_model(model, folder, tmp_path / "saved")
    assert is_tuned(tmp_path / "saved", HEAD)
    assert not is_tuned(tmp_path / "saved", Head(("a", "b", "c", "e"), kind=IMAGE))
    assert torch.equal(load_model(tmp_path / "saved", HEAD, seed=9).classifier.weight, model.classifier.weight)
    plain = save_tiny_pictures(tmp_path / "plain", "vit")
    assert not is_tuned(plain, HEAD)
    assert kind_of_head(load_model(plain, HEAD).config) == IMAGE


@pytest.mark.parametrize("family", STAGED)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(family: str, tmp_path: Path) -> None:
    """A batch norm that looked at its micro-batch would make them."""
    model = loaded(tmp_path, family)
    settle(model, [pictures(16, seed=5)])
    batch = pictures(8)["pixel_values"]

    def gradients(parts: list[Tensor]) -> dict[str, Tensor]:
        train_mode(model)
        model.zero_grad()
        for part in parts:
            model(pixel_values=part).logits.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, cut = gradients([batch]), gradients([batch[:3], batch[3:]])
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    for name, gradient in whole.items():
        assert (gradient - cut[name]).abs().max() <= 2e-5 * gradient.abs().max().clamp_min(1e-3), name
    gradients([batch])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_buffers())
    assert model.training


def test_statistics_are_those_of_the_sample(tmp_path: Path) -> None:
    model = loaded(tmp_path, "resnet")
    norm = next(module for module in model.modules() if isinstance(module, NORMS))
    caught: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, given, output: caught.append(given[0].detach()))
    settle(model, [pictures(8, seed=1), pictures(8, seed=2)])
    handle.remove()
    means = torch.stack([states.mean((0, 2, 3)) for states in caught]).mean(0)
    torch.testing.assert_close(norm.running_mean, means, atol=1e-6, rtol=1e-5)
    assert not norm.training
    assert norm.momentum == 0.1


@pytest.mark.parametrize("family", STAGED)
def test_a_model_of_stages_is_taken_as_it_is(family: str, tmp_path: Path) -> None:
    folder = save_tiny_pictures(tmp_path / family, family, num_labels=7)
    teacher = loaded(tmp_path, "vit")
    student = build_student(teacher, EncoderStudent(start=str(folder)), seed=0, sample=[pictures(8)])
    assert student(**pictures(2)).logits.shape == (2, 4)
    source = load_model(folder, HEAD)
    norms = {name for name, module in source.named_modules() if isinstance(module, NORMS)}
    for name, tensor in student.state_dict().items():
        if name.rpartition(".")[0] not in norms:
            assert torch.equal(tensor, source.state_dict()[name]), name
    for asked in ({"num_layers": 1}, {"hidden_size": 16}, {"num_heads": 2}):
        with pytest.raises(ConfigError, match="stages of other widths"):
            student_config(teacher.config, EncoderStudent(start=str(folder), **asked))
    with pytest.raises(ConfigError, match=r"student\.num_layers"):
        student_config(source.config, EncoderStudent())
    whole = build_student(source, EncoderStudent(num_layers=None), seed=1, sample=[pictures(8)])
    assert same_weights(whole.state_dict(), source.state_dict())
    random = build_student(source, EncoderStudent(num_layers=None, start="random"), seed=1)
    assert not same_weights(random.state_dict(), source.state_dict())


def test_a_narrow_student_may_start_at_random(tmp_path: Path) -> None:
    teacher = loaded(tmp_path, "vit")
    student = build_student(teacher, EncoderStudent(num_layers=2, hidden_size=16, start="random"), seed=0)
    assert student.config.hidden_size == 16
    assert student(**pictures(2)).logits.shape == (2, 4)
    assert new_model(student.config, seed=0).num_parameters() == student.num_parameters()
