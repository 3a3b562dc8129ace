"""Students that have their teacher's first layers as they are, and begin behind them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kit.tiny import FAMILIES, tiny_classifier, tiny_config, tiny_inputs
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from raydistill.config.loading import load_config
from raydistill.config.student import EncoderStudent as Student
from raydistill.errors import ConfigError, ModelError
from raydistill.losses import beginning
from raydistill.models.capture import capture
from raydistill.models.layers import layer_stack
from raydistill.models.shape import start_layers, student_config
from raydistill.models.shared import check_shared, num_shared, set_shared, shared_parameters
from raydistill.models.signals import Signal
from raydistill.models.student import build_student

STATES = Signal("hidden_states[2]")


def run_layers(model: PreTrainedModel) -> list[int]:
    """Count, from now on, how often the attention of each layer is run."""
    _, layers = layer_stack(model)
    counts = [0] * len(layers)

    def count(index: int) -> Any:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    for index, layer in enumerate(layers):
        next(layer.children()).register_forward_hook(count(index))
    return counts


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_goes_on_where_it_is_told_to(family: str, padding_side: str) -> None:
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    if padding_side == "left":
        inputs = {name: tensor.flip(1) for name, tensor in inputs.items()}  # any tokens do
    wanted = [STATES, "hidden_states[3]", "queries[3]", "logits"]
    with torch.no_grad():
        whole = capture(model, inputs, wanted)
        capture(model, inputs, wanted, {STATES: whole[STATES]})  # the first of a family looks at what its layers give
        counts = run_layers(model)
        begun = capture(model, inputs, wanted, {STATES: whole[STATES]})
    mask = inputs["attention_mask"].bool()
    assert not mask.all()
    assert counts[:2] == [0, 0]
    assert min(counts[2:]) == 1
    for signal in wanted[: 4 if padding_side == "right" else 3]:  # these heads look at the first place, padding here
        torch.testing.assert_close(begun[signal], whole[signal], rtol=0, atol=1e-5)
    with torch.no_grad():
        again = capture(model, inputs, ["logits"])["logits"]
    assert torch.equal(again, whole[Signal("logits")])
    assert counts[:2] == [1, 1]  # the layers are as they were


@pytest.mark.parametrize("family", FAMILIES)
def test_what_states_depend_on_is_shared(family: str) -> None:
    model = tiny_classifier(family)
    inputs = tiny_inputs(family)
    set_shared(model.config, 2)
    shared = shared_parameters(model)
    stack, _ = layer_stack(model)
    assert any("word_embeddings" in name or "tok_embeddings" in name for name in shared)
    assert {name.removeprefix(f"{stack}.")[0] for name in shared if name.startswith(f"{stack}.")} == {"0", "1"}
    with torch.no_grad():
        before = capture(model, inputs, [STATES])[STATES]
        for name, parameter in model.named_parameters():
            if name not in shared:
                parameter.add_(1.0)
        after = capture(model, inputs, ["logits", STATES])
    assert torch.equal(after[STATES], before)
    set_shared(model.config, 0)
    assert set(shared_parameters(model)) < set(shared)
    set_shared(model.config, None)
    assert shared_parameters(model) == []


@pytest.mark.parametrize("start", ["teacher_layers", "random"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_has_its_teachers_first_layers(family: str, start: str) -> None:
    teacher, inputs = tiny_classifier(family), tiny_inputs(family)
    student = build_student(teacher, Student(num_layers=4, share_layers=2, start=start), seed=1)
    with torch.no_grad():
        wanted, found = (capture(model, inputs, [STATES, "hidden_states[3]"]) for model in (teacher, student))
    assert torch.equal(found[STATES], wanted[STATES])
    assert torch.equal(found["hidden_states[3]"], wanted["hidden_states[3]"]) == (start == "teacher_layers")
    assert num_shared(student.config) == 2
    assert num_shared(build_student(student, Student(num_layers=2), seed=0).config) is None


def test_the_layers_behind_are_chosen_from_the_others() -> None:
    config = tiny_config("bert", num_layers=12)
    chosen = {
        (num_layers, shared): start_layers(config, Student(num_layers=num_layers, share_layers=shared))
        for num_layers, shared in ((6, 3), (5, 3), (4, 3), (3, 3), (6, 0))
    }
    assert chosen == {
        (6, 3): (0, 1, 2, 3, 7, 11),
        (5, 3): (0, 1, 2, 3, 11),
        (4, 3): (0, 1, 2, 3),
        (3, 3): (0, 1, 2),
        (6, 0): (0, 2, 4, 7, 9, 11),
    }
    assert student_config(config, Student(share_layers=8)).num_hidden_layers == 8
    with pytest.raises(ConfigError, match="share_layers is 13, but the teacher has 12 layers"):
        student_config(config, Student(num_layers=14, share_layers=13, start="random"))


def test_kinds_of_layers_stay_with_shared_ones() -> None:
    config = tiny_config("modernbert", num_layers=6)
    for start in ("teacher_layers", "random"):
        made = student_config(config, Student(num_layers=4, share_layers=3, start=start))
        assert made.layer_types[:3] == config.layer_types[:3]


@pytest.mark.parametrize(
    ("needs", "begins"),
    [
        (["logits"], True),
        (["hidden_states[2]", "hidden_states[4]", "queries[3]", "k_best[2]"], True),
        (["logits", "hidden_states[1]"], False),
        (["keys[2]"], False),
        (["gradients", "logits"], False),
    ],
)
def test_no_loss_looks_at_what_is_not_run(needs: list[str], begins: bool) -> None:
    signals = [Signal(name) for name in needs]
    assert beginning(2, signals) == (STATES if begins else None)
    assert beginning(0, signals) is None


def test_families_that_change_states_between_layers_are_refused() -> None:
    """deberta-v2 may convolve what its first layer gives, so what is recorded of it is something else."""
    config = tiny_config("deberta-v2")
    config.conv_kernel_size, config.conv_act = 3, "gelu"
    convolved = AutoModelForSequenceClassification.from_config(config).eval()
    set_shared(convolved.config, 1)
    with pytest.raises(ModelError, match="share_layers is 1, but a deberta-v2 model changes the states"):
        check_shared(convolved)
    set_shared(convolved.config, 2)
    check_shared(convolved)


def test_last_states_that_are_normalised_are_no_place_to_begin() -> None:
    """ModernBERT normalises its last states; transformers gives them before or after that, as its version goes."""
    model, inputs, last = tiny_classifier("modernbert"), tiny_inputs("modernbert"), Signal("hidden_states[4]")
    for num_layers in (1, 3):
        set_shared(model.config, num_layers)
        check_shared(model)
    set_shared(model.config, 4)
    with torch.no_grad():
        whole = capture(model, inputs, [last, "logits"])
        begun = capture(model, inputs, ["logits"], {last: whole[last]})
    if torch.allclose(begun["logits"], whole["logits"], atol=1e-4):
        check_shared(model)
    else:
        with pytest.raises(ModelError, match="a modernbert model changes the states"):
            check_shared(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 16}, "another width"),
        ({"num_layers": 1}, "2 of 1 layers"),
        ({"dropout": 0.1}, "no dropout"),
        ({"start": "some/checkpoint"}, "none of the teacher's layers"),
        ({"teacher_layers": [0, 2, 3]}, "the first 2 of teacher_layers must be 0 to 1"),
    ],
)
def test_settings_that_share_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    config = {"data": {"path": "x.csv"}, "teacher": {"model": "x"}, "student": {"share_layers": 2, **given}}
    with pytest.raises(ConfigError, match=message):
        load_config(config)
