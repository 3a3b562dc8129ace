"""Masked language models: what is read off them, and folders and students of them."""

from pathlib import Path

import pytest
import torch
from kit.tiny import FAMILIES, VOCABULARY, tiny_config, tiny_encoder, tiny_inputs, tiny_masked_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from raydistill.config.student import EncoderStudent
from raydistill.models import vocabulary
from raydistill.models.capture import capture
from raydistill.models.head import MASKED, Head
from raydistill.models.load import has_head, load_model, save_model
from raydistill.models.signals import ANSWERS, LABELS, LOGITS, UNITS, Signal
from raydistill.models.student import build_student

HEAD = Head((), None, kind=MASKED)
TIED = [family for family in FAMILIES if family != "deberta-v2"]
"""Families whose decoder is a linear layer; the newer deberta multiplies by its embedding itself."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_NUMBERS", 2 * len(VOCABULARY))


def masked_inputs(family: str) -> dict[str, torch.Tensor]:
    """A batch of which five positions of real tokens are units."""
    inputs = tiny_inputs(family, num_rows=3)
    real = inputs["attention_mask"].flatten().nonzero().squeeze(1)
    units = real[torch.tensor([1, 2, 5, 8, len(real) - 2])]
    return inputs | {UNITS: units, LABELS: torch.tensor([7, 9, 11, 5, 6])}


def plain_logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    own = {name: tensor for name, tensor in inputs.items() if name not in (UNITS, LABELS)}
    return model(**own).logits.flatten(0, 1)[inputs[UNITS]]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_units_are_those_of_the_whole_model(family: str) -> None:
    model, inputs = tiny_masked_model(family), masked_inputs(family)
    expected = plain_logits(model, inputs)
    last = Signal.of("hidden_states", 4)
    found = capture(model, inputs, {LOGITS, ANSWERS, Signal.of("top_logits", 3), last})
    logits = found[LOGITS]
    assert [part.stop - part.start for part in logits.chunks()] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([logits.part(part) for part in logits.chunks()]), expected)
    log_p = torch.log(torch.softmax(expected.double(), dim=-1))
    rows = torch.arange(5)
    answers = found[ANSWERS].double()
    torch.testing.assert_close(answers[:, 0], log_p[rows, inputs[LABELS]], rtol=1e-4, atol=1e-5)
    assert torch.equal(answers[:, 1].long(), log_p.argmax(-1))
    torch.testing.assert_close(answers[:, 2], log_p.amax(-1), rtol=1e-4, atol=1e-5)
    top = found[Signal.of("top_logits", 3)]
    ids = vocabulary.top_ids(top)
    assert torch.equal(ids, log_p.argsort(dim=-1, descending=True)[:, :3])
    p = log_p.exp()
    rest = [1 - sum(float(p[row, i]) for i in ids[row]) for row in range(5)]
    told = vocabulary.top_log_probabilities(top).double().exp()
    torch.testing.assert_close(told[:, :3], p.gather(1, ids), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(told[:, 3], torch.tensor(rest, dtype=torch.float64), rtol=1e-3, atol=1e-5)
    assert torch.equal(
        model(**{n: t for n, t in inputs.items() if n not in (UNITS, LABELS)}).logits.flatten(0, 1)[inputs[UNITS]],
        expected,
    )  # nothing of it stays in the model


@torch.no_grad()
@pytest.mark.parametrize("family", TIED)
def test_only_units_are_decoded(family: str) -> None:
    model, inputs, decoded = tiny_masked_model(family), masked_inputs(family), []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, given, output: decoded.append(len(output))
    )
    capture(model, inputs, {ANSWERS})
    hook.remove()
    assert decoded == [0, 2, 2, 1]


@torch.no_grad()
def test_words_are_decoded_in_the_dtype_in_which_they_were_captured() -> None:
    """Wherever somebody looks at them: losses do so where autocast has ended."""
    model, inputs = tiny_masked_model("bert"), masked_inputs("bert")
    with torch.autocast("cpu", torch.bfloat16):
        half, expected = capture(model, inputs, {LOGITS})[LOGITS], plain_logits(model, inputs)
    exact, all_units = capture(model, inputs, {LOGITS})[LOGITS], slice(None)
    assert torch.equal(half.to(torch.device("cpu")).part(all_units), expected.float())
    with torch.autocast("cpu", torch.bfloat16):
        inside = exact.part(all_units)
    assert torch.equal(inside, exact.part(all_units))


def test_signals_know_their_size() -> None:
    config = tiny_masked_model("bert").config
    assert (LOGITS.width(config), ANSWERS.width(config)) == (len(VOCABULARY), 3)
    assert Signal.of("top_logits", 8).num_bytes(config, 10, 999) == 4 * 17 * 10


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_and_its_student_keep_the_vocabulary_head(family: str, tmp_path: Path) -> None:
    model = tiny_masked_model(family)
    model.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer(family).save_pretrained(tmp_path / "teacher")
    assert has_head(tmp_path / "teacher", kind=MASKED)
    assert not has_head(tmp_path / "teacher")
    loaded, inputs = load_model(tmp_path / "teacher", HEAD, dropout=0.0), masked_inputs(family)
    with torch.no_grad():
        assert torch.equal(plain_logits(loaded, inputs), plain_logits(model, inputs))
        whole = build_student(loaded, EncoderStudent(num_layers=4), seed=0)
        assert torch.equal(plain_logits(whole, inputs), plain_logits(model, inputs))
    student = build_student(loaded, EncoderStudent(num_layers=2), seed=0)
    save_model(student, tmp_path / "teacher", tmp_path / "student")
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "student", local_files_only=True).eval()
    with torch.no_grad():
        assert torch.equal(plain_logits(plain, inputs), plain_logits(student, inputs))
    assert plain.config.num_hidden_layers == 2


def test_a_narrower_student_has_its_embedding_as_decoder(tmp_path: Path) -> None:
    model = tiny_masked_model("bert")
    sample = [tiny_inputs("bert")]
    student = build_student(model, EncoderStudent(num_layers=2, hidden_size=16), seed=0, sample=sample)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert student.get_output_embeddings().weight.shape == (len(VOCABULARY), 16)


@pytest.mark.parametrize("family", TIED)
def test_an_encoder_without_the_head_gets_one_with_its_embedding(family: str, tmp_path: Path) -> None:
    tiny_encoder(family).save_pretrained(tmp_path)
    tiny_tokenizer(family).save_pretrained(tmp_path)
    assert not has_head(tmp_path, kind=MASKED)
    first, again, other = (load_model(tmp_path, HEAD, seed=seed) for seed in (1, 1, 2))
    inputs = masked_inputs(family)
    with torch.no_grad():
        logits = [plain_logits(model, inputs) for model in (first, again, other)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight


def test_the_other_head_of_a_pretrained_bert_is_left_out(tmp_path: Path) -> None:
    tiny_masked_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    more = {"cls.seq_relationship.weight": torch.zeros(2, 32), "cls.seq_relationship.bias": torch.zeros(2)}
    save_file(load_file(file) | more, file, metadata={"format": "pt"})
    assert load_model(tmp_path, HEAD).config.architectures == ["BertForMaskedLM"]


def test_a_masked_model_is_an_encoder_to_classify_with(tmp_path: Path) -> None:
    tiny_masked_model("bert").save_pretrained(tmp_path)
    tiny_tokenizer("bert").save_pretrained(tmp_path)
    classifier = load_model(tmp_path, Head(("good", "bad")))
    assert type(classifier).__name__ == "BertForSequenceClassification"
    assert tiny_config("bert").vocab_size == classifier.config.vocab_size
    assert classifier.config.id2label == {0: "good", 1: "bad"}
