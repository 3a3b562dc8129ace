"""Losses over a vocabulary, chunk by chunk, against all logits at once."""

import numpy as np
import pytest
import torch
from kit.tiny import VOCABULARY, tiny_inputs, tiny_masked_model

from raydistill.config import losses as config
from raydistill.data.batches import Batch
from raydistill.losses import ForwardKl, HiddenMse, Jsd, Losses, TaskLoss, build_losses
from raydistill.models import vocabulary
from raydistill.models.capture import capture
from raydistill.models.signals import LOGITS, TOP, UNITS, Signal
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling
from raydistill.tasks.targets import Ragged, Targets

NUM_UNITS = 7
TASK = MaskedLanguageModeling()


@pytest.fixture
def batch() -> Batch:
    inputs = tiny_inputs("bert", num_rows=3)
    lengths = inputs["attention_mask"].sum(1).numpy()
    real = inputs["attention_mask"].flatten().nonzero().squeeze(1)
    inputs[UNITS] = real[torch.tensor([1, 2, 6, 7, 9, 13, 14])]
    flat = np.zeros((NUM_UNITS, 3), np.int64)
    flat[:, 2] = [5, 9, 6, 7, 11, 12, 5]
    targets = Targets(Ragged(flat, np.array([2, 3, 2])), np.ones(3, bool))
    return Batch(np.arange(3), lengths, targets, inputs)


def two_models() -> tuple[torch.nn.Module, torch.nn.Module]:
    return tiny_masked_model("bert", num_layers=2, seed=1), tiny_masked_model("bert", num_layers=3, seed=2)


def dense(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    own = {name: tensor for name, tensor in batch.inputs.items() if name != UNITS}
    return model(**own).logits.flatten(0, 1)[batch.inputs[UNITS]]


def gradients(total: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(total, list(model.parameters()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("units_together", [1, 2, 5, 100])
def test_chunks_give_value_and_gradient_of_all_logits_at_once(batch, units_together, monkeypatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_NUMBERS", units_together * len(VOCABULARY))
    student, teacher = two_models()
    losses = Losses(
        {"kd": ForwardKl(2.0, 3.0), "task": TaskLoss(TASK, 0.5), "states": HiddenMse(((2, 3),), 32, 32, 0.1)}
    )
    counts = [20.0, 10.0, 40.0]
    with torch.no_grad():
        said = capture(teacher, batch.inputs, losses.teacher_needs)
    own = capture(student, batch.inputs, losses.student_needs)
    total, sums = losses(own, said, batch, counts)
    found = gradients(total, student)

    z, z_teacher = dense(student, batch), dense(teacher, batch).detach()
    p = (z_teacher / 3).softmax(-1)
    kl = 9 * (p * ((z_teacher / 3).log_softmax(-1) - (z / 3).log_softmax(-1))).sum()
    labels = torch.as_tensor(batch.targets.labels())
    task = -z.log_softmax(-1)[torch.arange(NUM_UNITS), labels].sum()
    last = Signal.of("hidden_states", 2), Signal.of("hidden_states", 3)
    states = (own[last[0]] - said[last[1]]).square().mean(-1).sum()
    expected = kl * 2 / 20 + task * 0.5 / 10 + states * 0.1 / 40
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.stack(sums), torch.stack([kl, task, states]).detach(), rtol=1e-5, atol=1e-5)
    wanted = gradients(expected, student)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_no_more_logits_than_a_chunk_are_there(batch, monkeypatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_NUMBERS", 3 * len(VOCABULARY))
    student, teacher = two_models()
    sizes: list[int] = []
    for model in (student, teacher):
        model.get_output_embeddings().register_forward_hook(lambda m, given, output: sizes.append(len(output)))
    losses = Losses({"kd": ForwardKl(), "other": Jsd(), "task": TaskLoss(TASK)})
    with torch.no_grad():
        said = capture(teacher, batch.inputs, {LOGITS})
    total, _ = losses(capture(student, batch.inputs, {LOGITS}), said, batch, [7.0] * 3)
    total.backward()
    assert sizes == [0, 0, 3, 3, 3, 3, 1, 1]  # both models, once for all terms, and not again for the gradient


def test_frozen_and_untrained_models(batch) -> None:
    student, teacher = two_models()
    losses, counts = Losses({"kd": ForwardKl()}), [7.0]
    with torch.no_grad():
        said = capture(teacher, batch.inputs, {LOGITS})
        value, _ = losses(capture(student, batch.inputs, {LOGITS}), said, batch, counts)
    student.requires_grad_(False)
    frozen, _ = losses(capture(student, batch.inputs, {LOGITS}), said, batch, counts)
    assert not frozen.requires_grad
    student.cls.predictions.bias.requires_grad_(True)
    head, _ = losses(capture(student, batch.inputs, {LOGITS}), said, batch, counts)
    (gradient,) = torch.autograd.grad(head, [student.cls.predictions.bias])
    z, z_teacher = dense(student, batch), dense(teacher, batch)
    expected = 2 * ((z / 2).softmax(-1) - (z_teacher / 2).softmax(-1)).mean(0)
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.stack([value, frozen]), head.detach().expand(2))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_likeliest_tokens_and_the_rest_as_one(batch, temperature) -> None:
    student, teacher = two_models()
    term = {"kd": config.ForwardKl(temperature=temperature)}
    size = len(VOCABULARY)
    z, z_teacher = dense(student, batch).detach().double(), dense(teacher, batch).detach().double()
    found = {}
    for k in (4, size):
        task = MaskedLanguageModeling(top_k=k)
        losses = build_losses(term, task, student.config, teacher.config, seed=0)
        assert losses.teacher_needs == {Signal.of(TOP, k)}
        with torch.no_grad():
            said = capture(teacher, batch.inputs, losses.teacher_needs)
            total, _ = losses(capture(student, batch.inputs, losses.student_needs), said, batch, [7.0])
        found[k] = float(total)
    p, q = (a.softmax(-1).tolist() for a in (z_teacher, z))
    by_hand = 0.0
    for own, other in zip(p, q, strict=True):
        best = sorted(range(size), key=own.__getitem__, reverse=True)[:4]
        sides = [[row[i] for i in best] + [1 - sum(row[i] for i in best)] for row in (own, other)]
        sides = [[value ** (1 / temperature) for value in side] for side in sides]
        a, b = ([value / sum(side) for value in side] for side in sides)
        by_hand += sum(x * np.log(x / y) for x, y in zip(a, b, strict=True)) * temperature**2 / NUM_UNITS
    assert found[4] == pytest.approx(by_hand, rel=1e-4)
    whole = (z_teacher / temperature).softmax(-1)
    log = (z_teacher / temperature).log_softmax(-1) - (z / temperature).log_softmax(-1)
    assert found[size] == pytest.approx(float((whole * log).sum(-1).mean()) * temperature**2, rel=1e-4)
    if temperature == 1.0:
        assert found[4] < found[size]  # what is told of fewer tokens differs less
