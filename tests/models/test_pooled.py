"""Classifiers on the mean of an encoder's states."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from kit.tiny import FAMILIES, save_tiny, tiny_encoder, tiny_inputs
from transformers import AutoModelForSequenceClassification

from raydistill.config.student import EncoderStudent
from raydistill.errors import ModelError
from raydistill.models.capture import capture
from raydistill.models.head import Head, output_layer
from raydistill.models.load import has_head, load_model, save_model
from raydistill.models.pooled import headless
from raydistill.models.student import build_student

LABELS = ("sport", "tech", "film")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_reads_the_mean_of_the_real_tokens_states(family: str, tmp_path: Path) -> None:
    folder, inputs = save_tiny(tmp_path, family, classifier=False), tiny_inputs(family)
    model = load_model(folder, Head(LABELS), pooled=True)
    found = capture(model, inputs, {"logits", "hidden_states[2]"})
    encoder = tiny_encoder(family).eval()
    with torch.no_grad():
        output = encoder(**inputs, output_hidden_states=True)
    rows = [row[mask.bool()].mean(0) for row, mask in zip(output[0], inputs["attention_mask"], strict=True)]
    embeddings = F.normalize(torch.stack(rows), dim=-1)
    layer = output_layer(model)
    assert torch.allclose(found["logits"], embeddings @ layer.weight.T + layer.bias, atol=1e-5)
    real = inputs["attention_mask"].bool()
    assert torch.allclose(found["hidden_states[2]"], output.hidden_states[2][real], atol=1e-6)
    with headless(model), torch.no_grad():
        assert torch.allclose(model(**inputs).logits, embeddings, atol=1e-5)
    assert output_layer(model) is layer


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_it_is_saved_and_loaded_and_its_students_are_the_familys_own(family: str, tmp_path: Path) -> None:
    folder, inputs = save_tiny(tmp_path / "encoder", family, classifier=False), tiny_inputs(family)
    model = load_model(folder, Head(LABELS), pooled=True)
    save_model(model, folder, tmp_path / "saved")
    assert has_head(tmp_path / "saved")
    again = load_model(tmp_path / "saved", Head(("film", "sport", "tech")))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits[:, [2, 0, 1]])
    student = build_student(again, EncoderStudent(num_layers=2), seed=0)
    save_model(student, folder, tmp_path / "student")
    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, student(**inputs).logits)


def test_transformers_alone_says_that_it_lacks_the_head(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "encoder", classifier=False)
    save_model(load_model(folder, Head(LABELS), pooled=True), folder, tmp_path / "saved")
    _, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert "classifier.weight" in report["missing_keys"]


def test_a_classifiers_own_head_can_be_replaced(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, labels=("yes", "no"))
    assert load_model(folder, Head(LABELS), pooled=True).config.num_labels == 3
    with pytest.raises(ModelError, match="do not match"):
        load_model(folder, Head(LABELS))
