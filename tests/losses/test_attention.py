"""Losses on queries, keys and values: against loops in float64, and against the attention of transformers itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from kit.tiny import FAMILIES, tiny_classifier, tiny_config, tiny_inputs
from transformers import BertConfig

from raydistill.config.loading import load_config
from raydistill.config.training import Stage
from raydistill.data.batches import Batch
from raydistill.errors import ConfigError
from raydistill.losses import Loss, attention, build_losses
from raydistill.losses.attention import cut, scores
from raydistill.models.capture import capture
from raydistill.models.signals import PROJECTIONS, Signal
from raydistill.tasks import Targets, TextClassification

LENGTHS = [3, 1, 4, 2, 5]
NAMES = ("attention_mse", "attention_kl", "minilm", "minilm_v2")


def shape(width: int, heads: int, layers: int) -> BertConfig:
    return BertConfig(hidden_size=width, num_attention_heads=heads, num_hidden_layers=layers)


STUDENT, TEACHER = shape(8, 2, 2), shape(12, 2, 4)


def built(term: dict[str, Any], student: Any = STUDENT, teacher: Any = TEACHER) -> Any:
    losses = Stage.model_validate({"losses": {"it": term}}).losses
    return build_losses(losses, TextClassification("ab"), student, teacher, seed=0).terms["it"]


def batch_of(lengths: list[int]) -> Batch:
    unknown = np.zeros(len(lengths), np.int64)
    return Batch(np.arange(len(lengths)), np.array(lengths, np.int32), Targets(unknown, unknown > 0))


def projections(width: int, layer: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {f"{name}[{layer}]": torch.randn(sum(LENGTHS), width, generator=draw) for name in PROJECTIONS}


def by_head(flat: torch.Tensor, heads: int) -> list[list[np.ndarray]]:
    """For each row, for each head, (L, d) in float64."""
    rows = np.split(flat.double().numpy(), np.cumsum(LENGTHS)[:-1])
    return [np.split(row, heads, axis=1) for row in rows]


def softmax(x: np.ndarray) -> np.ndarray:
    powers = [math.exp(value - max(x)) for value in x]
    return np.array(powers) / math.fsum(powers)


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def relation(left: np.ndarray, right: np.ndarray, token: int) -> np.ndarray:
    return np.array([float(left[token] @ other) / math.sqrt(left.shape[1]) for other in right])


def by_hand(name: str, own: dict[str, torch.Tensor], other: dict[str, torch.Tensor], heads: int) -> list[float]:
    sides = [[by_head(tensor, heads) for tensor in found.values()] for found in (own, other)]
    values = []
    for row, length in enumerate(LENGTHS):
        for token in range(length):
            terms: dict[str, list[float]] = {}
            for head in range(heads):
                (qs, ks, vs), (qt, kt, vt) = ([part[row][head] for part in side] for side in sides)
                attended = relation(qs, ks, token), relation(qt, kt, token)
                pairs = {"qk": attended, "vv": (relation(vs, vs, token), relation(vt, vt, token))}
                pairs |= {"qq": (relation(qs, qs, token), relation(qt, qt, token))}
                pairs |= {"kk": (relation(ks, ks, token), relation(kt, kt, token))}
                terms.setdefault("mse", []).append(float(np.mean((attended[0] - attended[1]) ** 2)))
                for kind, (s, t) in pairs.items():
                    terms.setdefault(kind, []).append(kl(softmax(t), softmax(s)))
            parts = {"attention_mse": ["mse"], "attention_kl": ["qk"], "minilm": ["qk", "vv"]}
            values.append(sum(float(np.mean(terms[kind])) for kind in parts.get(name, ["qq", "kk", "vv"])))
    return values


@pytest.mark.parametrize("chunk", [attention.CHUNK, 40])
@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_their_definitions_at_any_width_and_in_any_number_of_parts(name, chunk, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    own, other = projections(8, 2, 0), projections(12, 4, 1)
    more = {"relation_heads": 4} if name == "minilm_v2" else {}
    loss = built({"type": name, "layers": "last", **more})
    values = loss(own, other, batch_of(LENGTHS))
    expected = by_hand(name, own, other, 4 if name == "minilm_v2" else 2)
    assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert loss.count(batch_of(LENGTHS)) == len(values)
    assert loss.role == "representation"
    assert not list(loss.parameters())
    assert (
        loss(other | projections(12, 2, 1), other, batch_of(LENGTHS)).abs().max() < 1e-5
        if name == "minilm_v2"
        else True
    )


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_computed_again_for_the_same_gradient(name, monkeypatch):
    def gradients() -> list[torch.Tensor]:
        own = {key: tensor.requires_grad_() for key, tensor in projections(8, 2, 0).items()}
        loss = built({"type": name, "layers": "last"})
        loss(own, projections(12, 4, 1), batch_of(LENGTHS)).sum().backward()
        return [tensor.grad for tensor in own.values() if tensor.grad is not None]

    whole = gradients()
    monkeypatch.setattr(attention, "CHUNK", 40)
    assert len(cut(LENGTHS, 2)) > 1
    parts = gradients()
    assert len(parts) == len(whole) >= 2
    for a, b in zip(parts, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_rows_are_cut_where_their_scores_no_longer_fit(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 100)
    assert cut([5, 5, 5, 1, 1, 1, 20, 2], 2) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7), slice(7, 8)]
    assert cut([30], 12) == [slice(0, 1)]


def test_padding_between_rows_changes_nothing():
    """A row's values are those it has alone."""
    own, other = projections(8, 2, 0), projections(12, 4, 1)
    for name in NAMES:
        loss = built({"type": name, "layers": "last"})
        together = loss(own, other, batch_of(LENGTHS)).split(LENGTHS)
        starts = np.cumsum(LENGTHS) - LENGTHS
        for row, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
            parts = [{n: x[start : start + length] for n, x in side.items()} for side in (own, other)]
            torch.testing.assert_close(loss(*parts, batch_of([length])), together[row], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_scores_are_the_attention_of_the_model_itself(family):
    model, inputs = tiny_classifier(family), tiny_inputs(family)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = capture(model, inputs, [Signal.of("queries", 2), Signal.of("keys", 2)])
        expected = model(**inputs, output_attentions=True).attentions[1]
    lengths = inputs["attention_mask"].sum(1).tolist()
    heads = model.config.num_attention_heads
    flat = [x.split(lengths) for x in found.values()]
    for row, (queries, keys) in enumerate(zip(*flat, strict=True)):
        own = scores(queries[None], keys[None], heads).softmax(-1)[0]
        first = int(inputs["attention_mask"][row].argmax())
        real = slice(first, first + lengths[row])
        torch.testing.assert_close(own, expected[row, :, real, real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_family_can_learn_from_them(family, name):
    """From a student of half the depth: finite gradients that reach the layers compared."""
    teacher, student = tiny_classifier(family, seed=1), tiny_classifier(family, num_layers=2)
    loss: Loss = built({"type": name}, student.config, teacher.config)
    inputs = tiny_inputs(family)
    batch = batch_of(inputs["attention_mask"].sum(1).tolist())
    with torch.no_grad():
        taught = capture(teacher, inputs, loss.teacher_needs)
    value = loss(capture(student, inputs, loss.student_needs), taught, batch).mean()
    value.backward()
    assert value > 0
    norms = [p.grad.norm() for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(norm) for norm in norms)
    assert sum(bool(norm > 0) for norm in norms) > 4


def test_heads_that_stand_for_each_other():
    narrower, regrouped = shape(6, 1, 2), shape(8, 4, 2)
    assert built({"type": "attention_kl"}).head_pairs == ((0, 0), (1, 1))
    assert built({"type": "attention_kl"}, narrower).head_pairs == ((0, 0),)  # as wide as the teacher's: its first
    assert built({"type": "attention_kl"}, regrouped).head_pairs is None
    assert built({"type": "attention_mse", "heads": "mean"}).head_pairs is None
    assert built({"type": "attention_mse", "heads": [[0, 1]]}).head_pairs == ((0, 1),)
    own, other = projections(8, 2, 0), projections(12, 4, 1)
    crossed = built({"type": "attention_kl", "layers": "last", "heads": [[0, 1], [1, 0]]})
    swapped = {n: torch.cat([x[:, 6:], x[:, :6]], dim=1) for n, x in other.items()}
    straight = built({"type": "attention_kl", "layers": "last"})
    batch = batch_of(LENGTHS)
    torch.testing.assert_close(crossed(own, other, batch), straight(own, swapped, batch))


def test_the_mean_of_heads_is_a_distribution():
    own, other = projections(8, 2, 0), projections(12, 4, 1)
    values = built({"type": "attention_kl", "layers": "last", "heads": "mean"})(own, other, batch_of(LENGTHS))
    found = []
    sides = [[by_head(side[f"{n}[{layer}]"], 2) for n in ("queries", "keys")] for side, layer in ((own, 2), (other, 4))]
    for row, length in enumerate(LENGTHS):
        for token in range(length):
            means = [
                np.mean([softmax(relation(q[row][h], k[row][h], token)) for h in range(2)], axis=0) for q, k in sides
            ]
            found.append(kl(means[1], means[0]))
    assert values.tolist() == pytest.approx(found, rel=1e-3, abs=1e-6)


def test_shared_keys_serve_several_queries():
    queries, keys = torch.randn(1, 3, 8), torch.randn(1, 3, 4)
    found = scores(queries, keys, 4, 2)
    for head in range(4):
        expected = queries[0, :, 2 * head : 2 * head + 2] @ keys[0, :, 2 * (head // 2) : 2 * (head // 2) + 2].T
        torch.testing.assert_close(found[0, head], expected / math.sqrt(2))


def test_relation_heads_divide_both_widths():
    for widths, expected in {(768, 768): 48, (384, 768): 48, (192, 384): 24, (312, 768): 24, (384, 1024): 64}.items():
        student, teacher = (shape(width, 1, 2) for width in widths)
        assert built({"type": "minilm_v2"}, student, teacher).relation_heads == expected
    with pytest.raises(ConfigError, match=r"relation_heads is 3.* 1, 2, 4, or to auto"):
        built({"type": "minilm_v2", "relation_heads": 3})


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigError, match=r"minilm compares .* 4 and 2"):
        built({"type": "minilm"}, shape(8, 4, 2))
    with pytest.raises(ConfigError, match="of 0 to 1 and 0 to 1"):
        built({"type": "attention_kl", "heads": [[0, 2]]})
    losses = {"a": {"type": "attention_kl", "layers": [[0, 1]]}}
    with pytest.raises(ConfigError, match="names layer 0; layers count from 1"):
        load_config({"data": {"path": "x.csv"}, "teacher": {"model": "x"}, "stages": {"s": {"losses": losses}}})


def test_maps_leave_the_embeddings_out():
    assert built({"type": "attention_mse", "layers": "auto"}).pairs == ((1, 2), (2, 4))
    assert built({"type": "minilm_v2"}).pairs == ((2, 4),)
    assert tiny_config("bert").num_hidden_layers == 4
