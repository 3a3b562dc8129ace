"""Losses on gradients, on graphs, and contrastive ones: against finite differences and loops in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from kit.tiny import FAMILIES, tiny_classifier, tiny_config, tiny_inputs
from transformers import AutoModelForTokenClassification, BertConfig

from raydistill.config.training import Stage
from raydistill.data.batches import Batch
from raydistill.errors import ConfigError
from raydistill.losses import build_losses
from raydistill.losses.graph import HEAD_SIZE, GraphAttention
from raydistill.models.capture import capture
from raydistill.models.gradients import differentiable, input_gradients, signs
from raydistill.models.signals import GRADIENTS, UNITS
from raydistill.tasks import Targets, TextClassification

LENGTHS = [3, 1, 4, 2, 5, 2, 3]


def shape(width: int, layers: int) -> BertConfig:
    return BertConfig(hidden_size=width, num_attention_heads=1, num_hidden_layers=layers)


def built(term: dict[str, Any], widths: tuple[int, int] = (6, 8)) -> Any:
    losses = Stage.model_validate({"losses": {"it": term}}).losses
    student, teacher = (shape(width, layers) for width, layers in zip(widths, (2, 4), strict=True))
    return build_losses(losses, TextClassification("ab"), student, teacher, seed=0).terms["it"]


def batch_of(lengths: list[int]) -> Batch:
    unknown = np.zeros(len(lengths), np.int64)
    return Batch(np.arange(len(lengths)), np.array(lengths, np.int32), Targets(unknown, unknown > 0))


def states(width: int, seed: int) -> torch.Tensor:
    return torch.randn(sum(LENGTHS), width, generator=torch.Generator().manual_seed(seed))


def rows_of(flat: torch.Tensor) -> list[np.ndarray]:
    return np.split(flat.detach().double().numpy(), np.cumsum(LENGTHS)[:-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_what_a_small_step_of_the_embeddings_changes(family):
    model, inputs = tiny_classifier(family).double(), tiny_inputs(family)
    with differentiable(model) as embedded:
        logits = model(**inputs).logits
        found = input_gradients(logits, embedded[0], inputs, create_graph=False)
    step = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e-5
    values = []
    for side in (1, -1):
        hook = model.get_input_embeddings().register_forward_hook(lambda *given, s=side: given[-1] + s * step)
        with torch.no_grad():
            values.append(float((model(**inputs).logits * signs(inputs, logits.shape[-1])).sum()))
        hook.remove()
    assert (values[0] - values[1]) / 2 == pytest.approx(float((found.double() * step).sum()), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_and_student_have_the_same_gradients_in_any_batch(family):
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    trained = capture(model, inputs, [GRADIENTS])[GRADIENTS]
    with torch.inference_mode():
        recorded = capture(model, {n: x.clone() for n, x in inputs.items()}, [GRADIENTS])[GRADIENTS]
    padded = capture(model, tiny_inputs(family, length=40), [GRADIENTS])[GRADIENTS]
    assert trained.requires_grad
    assert not recorded.requires_grad
    assert recorded.shape == (inputs["attention_mask"].sum(), GRADIENTS.width(model.config))
    torch.testing.assert_close(recorded, trained.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(padded, trained, rtol=1e-3, atol=1e-5)
    squares = torch.stack([x.square().sum() for x in trained.split(inputs["attention_mask"].sum(1).tolist())])
    torch.testing.assert_close(squares, torch.ones_like(squares))


def test_signs_differ_from_output_to_output_and_from_row_to_row():
    inputs = {"input_ids": torch.randint(5, 30_000, (400, 12), generator=torch.Generator().manual_seed(0))}
    drawn = signs(inputs, 6)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    correlations = torch.corrcoef(drawn.T) - torch.eye(6)
    assert correlations.abs().max() < 0.2
    assert drawn.mean(0).abs().max() < 0.15
    units = torch.tensor([0, 1, 5, 12, 13, 30])
    assert signs({**inputs, UNITS: units}, 6).shape == (6, 6)


def test_gradients_of_units_are_of_all_of_them():
    model, inputs = AutoModelForTokenClassification.from_config(tiny_config("bert")).eval(), tiny_inputs("bert")
    found = capture(model, {**inputs, UNITS: torch.tensor([1, 3])}, [GRADIENTS])[GRADIENTS]
    by_row = [x.abs().sum() for x in found.split(inputs["attention_mask"].sum(1).tolist())]
    assert by_row[0] > 0
    assert all(value < 1e-6 for value in by_row[1:])  # both units are in the first row


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gradient_match", "gradient_attention"])
def test_a_student_is_trained_through_its_gradients(name, attention):
    """The loss's slope along its gradient, by finite differences in float64."""
    teacher, student = tiny_classifier("bert", seed=1), tiny_classifier("bert", num_layers=2).double()
    student.set_attn_implementation(attention)
    inputs = tiny_inputs("bert")
    batch = batch_of(inputs["attention_mask"].sum(1).tolist())
    with torch.no_grad():
        taught = capture(teacher, inputs, [GRADIENTS])
    loss = built({"type": name}, (8, 8))

    def value() -> torch.Tensor:
        return loss(capture(student, inputs, loss.student_needs), taught, batch).sum()

    weight = student.bert.encoder.layer[0].attention.self.query.weight
    (slope,) = torch.autograd.grad(value(), weight)
    step = 1e-3 * slope / slope.norm()
    with torch.no_grad():
        weight += step
        ahead = value().item()
        weight -= 2 * step
        behind = value().item()
    assert (ahead - behind) / 2e-3 == pytest.approx(slope.norm().item(), rel=0.02)


@pytest.mark.parametrize("name", ["gradient_match", "gradient_attention"])
def test_gradient_losses_equal_their_definitions(name):
    own, other = states(8, 0), states(8, 1)
    values = built({"type": name}, (8, 8))({GRADIENTS: own}, {GRADIENTS: other}, batch_of(LENGTHS))
    expected = []
    for a, b in zip(rows_of(own), rows_of(other), strict=True):
        if name == "gradient_match":
            expected.append(float(((a - b) ** 2).sum()))
        else:
            gaps = [np.linalg.norm(s) - np.linalg.norm(t) for s, t in zip(a, b, strict=True)]
            expected.append(math.fsum(float(gap) ** 2 for gap in gaps))
    assert values.tolist() == pytest.approx(expected, rel=1e-4)
    narrow = built({"type": "gradient_attention"})({GRADIENTS: states(6, 0)}, {GRADIENTS: other}, batch_of(LENGTHS))
    assert narrow.shape == (len(LENGTHS),)
    with pytest.raises(ConfigError, match="6 wide in the student and 8 in the teacher"):
        built({"type": "gradient_match"})


@pytest.mark.parametrize("group", [3, 7])
def test_crd_equals_its_definition(group):
    own, other = states(6, 0), states(8, 1)
    loss = built({"type": "crd", "group_size": group, "temperature": 0.5})
    values = loss({"hidden_states[2]": own}, {"hidden_states[4]": other}, batch_of(LENGTHS))
    sides = []
    for flat, linear in zip((own, other), loss.projections, strict=True):
        weight, bias = (x.detach().double().numpy() for x in (linear.weight, linear.bias))
        sides.append([weight @ row.mean(0) + bias for row in rows_of(flat)])
    expected = []
    for first in range(0, len(LENGTHS), group):
        members = range(first, min(first + group, len(LENGTHS)))
        for i in members if len(members) > 1 else ():
            near = [
                math.exp(sides[0][i] @ sides[1][j] / np.linalg.norm(sides[0][i]) / np.linalg.norm(sides[1][j]) / 0.5)
                for j in members
            ]
            expected.append(-math.log(near[i - first] / math.fsum(near)))
    assert values.tolist() == pytest.approx(expected, rel=1e-4)
    assert (loss.count(batch_of(LENGTHS)), loss.group_size) == (len(expected), group)


def graph_by_hand(graph: Any, nodes: np.ndarray) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
    """Edges of each node and head, and each node's message."""

    def linear(module: Any, x: np.ndarray) -> np.ndarray:
        return module.weight.detach().double().numpy() @ x + module.bias.detach().double().numpy()

    queries, keys, values = ([linear(m, x) for x in nodes] for m in (graph.queries, graph.keys, graph.values))
    edges, messages = [], []
    for i in range(len(nodes)):
        others = [j for j in range(len(nodes)) if j != i]
        own, parts = [], []
        for head in range(graph.heads):
            part = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
            powers = [math.exp(queries[i][part] @ keys[j][part] / math.sqrt(HEAD_SIZE)) for j in others]
            shares = np.array(powers) / math.fsum(powers)
            own.append(shares)
            parts.append(sum(share * values[j][part] for share, j in zip(shares, others, strict=True)))
        edges.append(own)
        messages.append(linear(graph.messages, np.concatenate(parts)))
    return edges, messages


@pytest.mark.parametrize("nodes", ["rows", "tokens"])
def test_graph_attention_equals_its_definition(nodes):
    own, other = states(6, 0), states(8, 1)
    loss: GraphAttention = built({"type": "graph_attention", "nodes": nodes, "group_size": 3, "heads": 2})
    values = loss({"hidden_states[2]": own}, {"hidden_states[4]": other}, batch_of(LENGTHS))
    if nodes == "tokens":
        graphs = list(zip(rows_of(own), rows_of(other), strict=True))
    else:
        means = [np.stack([row.mean(0) for row in rows_of(flat)]) for flat in (own, other)]
        graphs = [(means[0][i : i + 3], means[1][i : i + 3]) for i in (0, 3, 6)]
    expected = []
    for student, teacher in graphs:
        if len(student) < 2:
            continue
        edges, messages = graph_by_hand(loss.student, student)
        taught, told = graph_by_hand(loss.teacher, teacher)
        for i in range(len(student)):
            follow = np.mean([np.sum(t * np.log(t / s)) for s, t in zip(edges[i], taught[i], strict=True)])
            cosines = [
                a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                for a, b in ((told[i], teacher[i]), (messages[i], told[i]))
            ]
            expected.append(2 - sum(cosines) + follow)
    assert values.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert loss.count(batch_of(LENGTHS)) == len(values)
    assert loss.group_size == (3 if nodes == "rows" else 1)


def test_the_student_does_not_pull_at_the_teachers_graph():
    """The teacher's graph learns to tell its own nodes alone, whatever the student says."""

    def gradients(seed: int) -> list[torch.Tensor]:
        loss = built({"type": "graph_attention"})
        own = states(6, seed).requires_grad_()
        loss({"hidden_states[2]": own}, {"hidden_states[4]": states(8, 9)}, batch_of(LENGTHS)).sum().backward()
        assert own.grad.abs().sum() > 0
        return [p.grad for p in loss.teacher.parameters()]

    for a, b in zip(gradients(0), gradients(1), strict=True):
        torch.testing.assert_close(a, b)
