import pickle

import pytest
import torch
from kit.tiny import FAMILIES, HIDDEN_SIZE, tiny_classifier, tiny_config, tiny_inputs
from torch import Tensor
from transformers import AutoModelForTokenClassification

from raydistill.errors import ConfigError, ModelError
from raydistill.models.capture import capture
from raydistill.models.layers import layer_stack
from raydistill.models.signals import LOGITS, PROJECTIONS, UNITS, Signal

SIGNALS = ("logits", "hidden_states[0]", "hidden_states[2]", "hidden_states[4]")


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_equal_hugging_faces_own_under_the_mask(family: str) -> None:
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    with torch.no_grad():
        found = capture(model, inputs, SIGNALS)
        reference = model(**inputs, output_hidden_states=True)
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    assert list(found) == list(SIGNALS)
    assert torch.equal(found["logits"], reference.logits)
    for index in (0, 2, 4):
        assert torch.equal(found[f"hidden_states[{index}]"], reference.hidden_states[index][mask])
        assert found[f"hidden_states[{index}]"].shape == (mask.sum(), HIDDEN_SIZE)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_units_are_those_of_their_tokens(family: str) -> None:
    model, inputs = AutoModelForTokenClassification.from_config(tiny_config(family)).eval(), tiny_inputs(family)
    length = inputs["input_ids"].shape[1]
    units = [(0, 1), (0, 3), (2, 2), (4, 1), (4, 1)]
    with torch.no_grad():
        found = capture(model, {**inputs, UNITS: torch.tensor([r * length + t for r, t in units])}, SIGNALS)
        reference = model(**inputs).logits
    assert torch.equal(found[LOGITS], torch.stack([reference[row, token] for row, token in units]))
    assert len(found[Signal("hidden_states[2]")]) == inputs["attention_mask"].sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_length_has_no_influence(family: str) -> None:
    model = tiny_classifier(family)
    with torch.no_grad():
        short = capture(model, tiny_inputs(family), SIGNALS)
        padded = capture(model, tiny_inputs(family, length=40), SIGNALS)
    for signal in SIGNALS:
        torch.testing.assert_close(padded[signal], short[signal], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_token_types_reach_the_model(family: str) -> None:
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    assert inputs["token_type_ids"].sum() > 0
    with torch.no_grad():
        with_types = capture(model, inputs, ["logits"])["logits"]
        inputs["token_type_ids"] = torch.zeros_like(inputs["token_type_ids"])
        without = capture(model, inputs, ["logits"])["logits"]
    assert (with_types - without).abs().max() > 1e-3


def test_hidden_states_are_not_asked_for_without_need() -> None:
    model = tiny_classifier("bert")
    asked = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs["output_hidden_states"]), with_kwargs=True
    )
    capture(model, tiny_inputs("bert"), ["logits"])
    capture(model, tiny_inputs("bert"), ["hidden_states[1]"])
    assert asked == [False, True]


def test_compute_dtype_is_kept_and_logits_are_float32() -> None:
    model = tiny_classifier("bert").to(torch.bfloat16)
    found = capture(model, tiny_inputs("bert"), ["logits", "hidden_states[4]"])
    assert found["logits"].dtype == torch.float32
    assert found["hidden_states[4]"].dtype == torch.bfloat16


def test_gradients_stop_at_padding() -> None:
    """The gradient of a sum over real tokens is 1 for each of them and 0 for padding, and reaches the embeddings."""
    model, inputs = tiny_classifier("bert"), tiny_inputs("bert")
    states: list[Tensor] = []
    model.bert.encoder.layer[-1].register_forward_hook(lambda module, args, output: states.append(output))
    found = capture(model, inputs, ["hidden_states[4]"])["hidden_states[4]"]
    gradient = torch.autograd.grad(found.sum(), states[0], retain_graph=True)[0]
    assert torch.equal(gradient, inputs["attention_mask"][:, :, None].expand_as(gradient).float())
    found.square().sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_without_a_mask_every_token_is_real() -> None:
    model = tiny_classifier("bert")
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3]])}
    assert capture(model, inputs, ["hidden_states[1]"])["hidden_states[1]"].shape == (8, HIDDEN_SIZE)


def test_widths_and_levels() -> None:
    config = tiny_config("distilbert", num_labels=5)
    states = Signal.of("hidden_states", 4)
    assert (LOGITS.width(config), states.width(config)) == (5, HIDDEN_SIZE)
    assert (LOGITS.is_token_level, states.is_token_level) == (False, True)
    assert (states, states.name, states.layer) == ("hidden_states[4]", "hidden_states", 4)
    assert (LOGITS.num_bytes(config, 10, 70), states.num_bytes(config, 10, 70)) == (10 * 5 * 4, 70 * HIDDEN_SIZE * 2)
    assert dict.fromkeys(pickle.loads(pickle.dumps([LOGITS, states])), 0) == {LOGITS: 0, states: 0}


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_make_the_attention_that_the_model_itself_has(family: str) -> None:
    """Softmax of queries times keys, as an eager model returns it; relative positions come on top in two families."""
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    signals = [Signal.of(name, 2) for name in PROJECTIONS]
    with torch.no_grad():
        found = capture(model, inputs, signals)
    mask = inputs["attention_mask"].bool()
    assert {tensor.shape for tensor in found.values()} == {(int(mask.sum()), HIDDEN_SIZE)}
    assert not torch.equal(found[signals[0]], found[signals[1]])
    assert not any(module._forward_hooks for module in layer_stack(model)[1].modules())  # nothing is left behind
    if family in ("modernbert", "deberta-v2"):
        return
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = model(**inputs, output_attentions=True).attentions[1]
    for row, length in enumerate(mask.sum(1).tolist()):
        first = int(mask[:row].sum())
        q, k = (found[signal][first : first + length].view(length, 4, 8).transpose(0, 1) for signal in signals[:2])
        expected = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1)
        torch.testing.assert_close(attention[row, :, :length, :length], expected, rtol=1e-4, atol=1e-5)


def test_a_family_without_projections_says_so() -> None:
    with pytest.raises(ModelError, match=r"layers 1 to 4"):
        capture(tiny_classifier("bert"), tiny_inputs("bert"), ["queries[5]"])
    model = tiny_classifier("bert")
    model.bert.encoder.layer[1].attention.self.query = torch.nn.Identity()
    with pytest.raises(ModelError, match="no single linear layer that makes its queries"):
        capture(model, tiny_inputs("bert"), ["queries[2]"])


@pytest.mark.parametrize(
    "signal", ["hidden_states", "hidden_states[-1]", "hidden_states[1] ", "embeddings", "", "queries[0]"]
)
def test_unknown_signals_are_refused(signal: str) -> None:
    with pytest.raises(ConfigError, match="Known signals: logits"):
        capture(tiny_classifier("bert"), tiny_inputs("bert"), [signal])


def test_layers_beyond_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden_states\[0\] to hidden_states\[4\]"):
        capture(tiny_classifier("bert"), tiny_inputs("bert"), ["hidden_states[5]"])
    with pytest.raises(ConfigError, match="4 layers"):
        Signal("hidden_states[5]").width(tiny_config("bert"))
