"""Sentence encoders: pooling, projections, and folders that hold them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from kit.tiny import FAMILIES, save_tiny, tiny_encoder, tiny_inputs
from safetensors.torch import load_file
from transformers import AutoModel

from raydistill.config.student import EncoderStudent
from raydistill.errors import ModelError
from raydistill.models.capture import capture
from raydistill.models.embedding import LAYERS, add_layer, read_modules
from raydistill.models.folder import model_digest
from raydistill.models.head import EMBEDDING, Head, head_in, vector_width
from raydistill.models.load import load_model, save_model
from raydistill.models.signals import LOGITS, SECOND, Signal
from raydistill.models.student import build_student

HEAD = Head((), kind=EMBEDDING)


def by_hand(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    rows = [row[0] if pooling == "cls" else row[: int(m.sum())].mean(0) for row, m in zip(states, mask, strict=True)]
    return torch.stack([row / row.norm() for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_pooled_states_of_the_plain_encoder(family: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, family, classifier=False)
    inputs = tiny_inputs(family)
    with torch.no_grad():
        states = AutoModel.from_pretrained(tmp_path).eval()(**inputs)[0]
        for pooling in ("mean", "cls"):
            model = load_model(tmp_path, Head((), kind=EMBEDDING, embedding={"pooling": pooling}))
            found = capture(model, inputs, {LOGITS, Signal("hidden_states[4]")})
            torch.testing.assert_close(found[LOGITS], by_hand(states, inputs["attention_mask"], pooling))
            assert len(found[Signal("hidden_states[4]")]) == int(inputs["attention_mask"].sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_same_vectors_and_its_encoder_is_a_plain_one(family: str, tmp_path: Path) -> None:
    """A narrower student reaches the teacher's width by a layer that is kept beside the encoder."""
    save_tiny(tmp_path / "teacher", family, classifier=False)
    teacher = load_model(tmp_path / "teacher", HEAD)
    shape = EncoderStudent(num_layers=2, hidden_size=16, num_heads=2)
    student = build_student(teacher, shape, seed=0)
    assert vector_width(student.config) == 32
    weight = getattr(student, LAYERS)[0].weight
    assert torch.equal(weight, torch.eye(32, 16))
    with torch.no_grad():
        weight.copy_(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)))
    save_model(student, tmp_path / "teacher", tmp_path / "student")
    assert not any(LAYERS in name for name in load_file(tmp_path / "student" / "model.safetensors"))
    inputs = tiny_inputs(family)
    again = load_model(tmp_path / "student", None)
    plain, report = AutoModel.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student(**inputs).logits)
        states = plain.eval()(**inputs)[0]
        vectors = torch.stack(
            [row[: int(m.sum())].mean(0) @ weight.T for row, m in zip(states, inputs["attention_mask"], strict=True)]
        )
        torch.testing.assert_close(student(**inputs).logits, torch.nn.functional.normalize(vectors, dim=-1))


def test_a_students_layer_is_cut_from_the_teachers_where_it_has_one(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", classifier=False)
    teacher = load_model(tmp_path, HEAD)
    add_layer(teacher, torch.randn(8, 32, generator=torch.Generator().manual_seed(1)))
    assert vector_width(teacher.config) == 8
    student = build_student(teacher, EncoderStudent(num_layers=2, hidden_size=16, num_heads=2), seed=0)
    assert torch.equal(getattr(student, LAYERS)[0].weight, getattr(teacher, LAYERS)[0].weight[:, :16])
    same = build_student(teacher, EncoderStudent(num_layers=4), seed=0)
    inputs = tiny_inputs("bert")
    with torch.no_grad():
        torch.testing.assert_close(same(**inputs).logits, teacher(**inputs).logits)


def test_two_texts_of_a_row_are_read_as_if_alone() -> None:
    """Also the longer one first, and signals of tokens stay in the order of the row's own."""
    model = load_like()
    first, second = (tiny_inputs("bert", 5, seed) for seed in (0, 1))
    order = [4, 2, 0, 3, 1]
    second = {name: tensor[order] for name, tensor in second.items()}
    lengths = [side["attention_mask"].sum(1) for side in (first, second)]
    rows = torch.zeros(5, int(sum(lengths).max()), dtype=torch.long)
    joined = {name: rows.clone() for name in first}
    for row in range(5):
        for name in first:
            ends = (int(lengths[0][row]), int(lengths[1][row]))
            joined[name][row, : sum(ends)] = torch.cat([first[name][row, : ends[0]], second[name][row, : ends[1]]])
    signals = {LOGITS, Signal("hidden_states[1]")}
    with torch.no_grad():
        both = capture(model, {**joined, SECOND: lengths[0]}, signals)
        apart = [capture(model, side, signals) for side in (first, second)]
    torch.testing.assert_close(both[LOGITS], torch.cat([side[LOGITS] for side in apart], dim=1))
    parts = [side["hidden_states[1]"].split(n.tolist()) for side, n in zip(apart, lengths, strict=True)]  # type: ignore[index]
    wanted = torch.cat([torch.cat(pair) for pair in zip(*parts, strict=True)])
    torch.testing.assert_close(both[Signal("hidden_states[1]")], wanted)


def load_like() -> torch.nn.Module:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_tiny(Path(folder), "bert", classifier=False)
        return load_model(Path(folder), HEAD)


def test_modules_of_a_folder_are_read_and_others_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert", classifier=False)
    assert read_modules(tmp_path) is None
    before = model_digest(tmp_path)

    def write(pooling: dict[str, object], *more: str) -> None:
        kinds = ["Transformer", "Pooling", *more]
        listed = [{"path": "" if i == 0 else f"{i}_{kind}", "type": f"a.b.{kind}"} for i, kind in enumerate(kinds)]
        (tmp_path / "modules.json").write_text(json.dumps(listed))
        (tmp_path / "1_Pooling").mkdir(exist_ok=True)
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    write({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    cls = model_digest(tmp_path)
    assert read_modules(tmp_path) == {"pooling": "cls", "normalize": False, "layers": []}
    write({"pooling_mode": "mean"}, "Normalize")
    assert read_modules(tmp_path) == {"pooling": "mean", "normalize": True, "layers": []}
    assert len({before, cls, model_digest(tmp_path)}) == 3
    assert head_in(load_model(tmp_path, HEAD).config).embedding["normalize"] is True  # type: ignore[index]
    for pooling, kinds, message in (
        ({"pooling_mode_max_tokens": True}, (), "pools by max_tokens. Known are"),
        ({"pooling_mode": "mean"}, ("CNN",), "has the module CNN there"),
    ):
        write(pooling, *kinds)
        with pytest.raises(ModelError, match=message):
            load_model(tmp_path, HEAD)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"Cannot read .*modules.json"):
        load_model(tmp_path, HEAD)
    shutil.rmtree(tmp_path / "1_Pooling")


def test_a_damaged_encoder_is_refused(tmp_path: Path) -> None:
    model = tiny_encoder("bert")
    weights = {name: tensor for name, tensor in model.state_dict().items() if "layer.2.output.dense" not in name}
    save_tiny(tmp_path, "bert", classifier=False)
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"missing or of another shape: encoder.layer.2.output.dense"):
        load_model(tmp_path, HEAD)
