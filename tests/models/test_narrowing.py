"""What a narrower student keeps is what matters on the rows, and the rest is made up for, in every family."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.tiny import FAMILIES, save_tiny, tiny_classifier, tiny_inputs
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModelForSequenceClassification, MPNetConfig, PreTrainedModel

from raydistill.config.student import EncoderStudent
from raydistill.models import narrowing
from raydistill.models.embedding import LAYERS, add_layer
from raydistill.models.fields import head_width
from raydistill.models.head import EMBEDDING, Head
from raydistill.models.load import load_model
from raydistill.models.narrowing import narrowed
from raydistill.models.signals import SECOND
from raydistill.models.slices import Heads, Kept, reads_heads
from raydistill.models.student import build_student

HEADS, INNER = [1, 3], list(range(1, 64, 2))
HALF = EncoderStudent(hidden_size=16, num_layers=None)
FIRST = HALF.model_copy(update={"width_start": "first"})
ALL = (*FAMILIES, "albert")


def teacher_of(family: str) -> PreTrainedModel:
    if family != "albert":
        return tiny_classifier(family)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 4, "intermediate_size": 64}
    config = AlbertConfig(vocab_size=60, num_hidden_layers=4, num_labels=3, initializer_range=0.2, **sizes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def sample(family: str) -> list[dict[str, Tensor]]:
    return [tiny_inputs(family, num_rows=8, seed=seed) for seed in range(4)]


def linear(model: PreTrainedModel) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def states(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Last hidden states of all real tokens."""
    return model(**inputs, output_hidden_states=True).hidden_states[-1][inputs["attention_mask"].bool()]


@torch.no_grad()
def with_idle_inputs(family: str) -> PreTrainedModel:
    """A teacher whose layers read half of their heads and inner entries with weights near 0."""
    teacher = teacher_of(family)
    for name, module in linear(teacher).items():
        heads = [8 * head + i for head in HEADS for i in range(8)]
        read = heads if reads_heads(f"{name}.weight") else {64: INNER}.get(module.in_features)
        if read is not None:
            module.weight[:, [i for i in range(module.in_features) if i not in read]] *= 1e-3
    return teacher


@pytest.mark.parametrize("family", ALL)
def test_what_layers_read_is_kept(family: str) -> None:
    teacher = with_idle_inputs(family)
    narrow = build_student(teacher, FIRST, seed=0)
    heads = Heads(head_width(teacher.config), head_width(narrow.config))
    shapes = {name: tensor.shape for name, tensor in narrow.state_dict().items()}
    kept: Kept = narrowed(teacher, shapes, heads, narrow.config, sample(family))[0]
    assert len(kept.chosen_heads) == len(kept.inner) == (1 if family == "albert" else 4)
    assert {tuple(heads.tolist()) for heads in kept.chosen_heads.values()} == {tuple(HEADS)}
    assert {tuple(entries.tolist()) for entries in kept.inner.values()} == {tuple(INNER)}
    assert kept.stream is not None
    torch.testing.assert_close(kept.stream @ kept.stream.T, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(
        kept.stream.sum(1), torch.full((16,), 2**0.5, dtype=torch.float64)
    )  # (1 / 32)^0.5 · 32 / 4


@torch.no_grad()
def with_half_a_stream(teacher: PreTrainedModel) -> PreTrainedModel:
    """The teacher with hidden states in 16 of 32 dimensions, none of them an entry, norms with equal weights, and two
    idle heads a layer."""
    torch.manual_seed(7)
    basis = torch.linalg.qr(torch.cat([torch.ones(32, 1), torch.randn(32, 15)], 1)).Q
    project = basis @ basis.T
    for name, module in teacher.base_model.named_modules():
        if isinstance(module, nn.LayerNorm) and len(module.weight) == 32:
            module.weight.fill_(float(module.weight.mean()))
            if module.bias is not None:
                module.bias.copy_(project @ module.bias)
        elif isinstance(module, nn.Embedding) and module.embedding_dim == 32:
            module.weight.copy_(module.weight @ project)
        elif isinstance(module, nn.Linear):
            reads = reads_heads(f"{name}.weight")
            if reads:
                module.weight[:, [i for i in range(32) if i // 8 not in HEADS]] = 0
            if reads or module.in_features != 32:
                module.weight.copy_(project @ module.weight)
                if module.bias is not None:
                    module.bias.copy_(project @ module.bias)
    return teacher


@pytest.mark.parametrize("family", ALL)
@torch.no_grad()
def test_a_stream_of_half_the_dimensions_is_kept_whole(family: str) -> None:
    """The student's states are the teacher's in another basis: all their products with each other are the same."""
    teacher = with_half_a_stream(teacher_of(family))
    shape = EncoderStudent(hidden_size=16, num_heads=2, intermediate_size=64, num_layers=None)
    unseen = tiny_inputs(family, num_rows=6, seed=99)
    built = build_student(teacher, shape, seed=0, sample=sample(family))
    first = build_student(teacher, shape, seed=0)
    wanted, made, cut = (x @ x.T for x in (states(model, unseen) for model in (teacher, built, first)))
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-2)
    assert (cut - wanted).abs().max() > 1


@pytest.mark.parametrize("with_layer", [False, True])
@torch.no_grad()
def test_vectors_of_such_a_sentence_encoder_stay(with_layer: bool, tmp_path: Path) -> None:
    """Through the layer that leads from the narrow states to the wide vectors, or through the teacher's own."""
    save_tiny(tmp_path, "bert", classifier=False)
    teacher = with_half_a_stream(load_model(tmp_path, Head((), kind=EMBEDDING)))
    if with_layer:
        add_layer(teacher, torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))
    shape = EncoderStudent(hidden_size=16, num_heads=2, intermediate_size=64, num_layers=None)
    built = build_student(teacher, shape, seed=0, sample=sample("bert"))
    assert getattr(built, LAYERS)[0].weight.shape == (32, 16)
    unseen = tiny_inputs("bert", num_rows=6, seed=99)
    torch.testing.assert_close(built(**unseen).logits, teacher(**unseen).logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "deberta-v2", "bert", "albert"])
@torch.no_grad()
def test_states_inside_a_classifiers_head_are_chosen_by_what_the_last_layer_reads(family: str) -> None:
    """Entries of these states, and no directions of them, as an activation comes between."""
    teacher = with_half_a_stream(teacher_of(family))
    last = list(linear(teacher).values())[-1]
    last.weight[:, ::2] = 0
    shape = EncoderStudent(hidden_size=16, num_heads=2, intermediate_size=64, num_layers=None)
    built = build_student(teacher, shape, seed=0, sample=sample(family))
    unseen = tiny_inputs(family, num_rows=6, seed=99)
    torch.testing.assert_close(built(**unseen).logits, teacher(**unseen).logits, rtol=0, atol=5e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_entries_that_follow_from_others_are_not_missed(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the inner entries are copies of the others, so a student without them has its teacher's states."""
    monkeypatch.setattr(narrowing, "RIDGE", 1e-9)
    teacher, inputs = tiny_classifier(family), sample(family)
    with torch.no_grad():
        for module in linear(teacher).values():
            if module.in_features == 64:
                module.weight[:, 32:] = 0.1 * module.weight[:, :32]  # copies matter less, so the others are kept
            blocks = module.out_features // 64
            if module.in_features == 32 and module.out_features in (64, 128):
                for block in range(blocks):
                    module.weight[64 * block + 32 : 64 * block + 64] = module.weight[64 * block : 64 * block + 32]
                    if module.bias is not None:  # where the activation is straight, so that none is nearly constant
                        module.bias[:32] += 5
                        module.bias[32:] = module.bias[:32]
        built, first = (
            build_student(
                teacher, EncoderStudent(num_layers=None, intermediate_size=32, width_start=start), seed=0, sample=inputs
            )
            for start in ("pca", "first")
        )
        unseen = tiny_inputs(family, num_rows=6, seed=99)
        wanted, made, cut = (
            model(**unseen, output_hidden_states=True).hidden_states[-1][unseen["attention_mask"].bool()]
            for model in (teacher, built, first)
        )
    assert (made - wanted).norm() < 0.1 * (cut - wanted).norm()


@torch.no_grad()
def test_basis_and_weights_are_those_of_loops_over_single_rows() -> None:
    """Rows one by one without padding, in float64 with numpy: the stream, one layer's feed-forward, and a norm."""
    teacher, inputs = tiny_classifier("bert"), sample("bert")
    built = build_student(teacher, HALF, seed=0, sample=inputs)
    read: dict[str, list[np.ndarray]] = {}

    def keep(name: str, given: Tensor) -> None:
        read.setdefault(name, []).extend(given.detach().double().reshape(-1, given.shape[-1]).numpy())

    modules = linear(teacher)
    for name, module in modules.items():
        module.register_forward_pre_hook(lambda module, given, name=name: keep(name, given[0]))
    for batch in inputs:
        for row in range(8):
            length = int(batch["attention_mask"][row].sum())
            teacher(**{key: tensor[row : row + 1, :length] for key, tensor in batch.items()})

    readers = [
        n for n in modules if len(read[n][0]) == 32 and not n.endswith("attention.output.dense") and n != "classifier"
    ]
    stacked = []
    for name in readers:
        xs = np.array(read[name])
        xs = xs - xs.mean(0)
        stacked.append(xs / np.sqrt((xs**2).sum()))
    rows = np.concatenate(stacked)
    rows = rows - rows.mean(1, keepdims=True)  # what lies beside the direction of equal entries
    axes = np.concatenate([np.full((1, 32), 32**-0.5), np.linalg.svd(rows)[2][:15]])
    project = axes.T @ axes
    wide, narrow = (m.bert.embeddings.word_embeddings.weight.double().numpy() for m in (teacher, built))
    np.testing.assert_allclose(narrow @ narrow.T, wide @ project @ wide.T, rtol=1e-3, atol=1e-4)
    stream = np.linalg.lstsq(wide, narrow, rcond=None)[0]  # (32, 16)

    name = "bert.encoder.layer.2.output.dense"
    xs = np.array(read[name])
    weight, bias = (p.double().numpy() for p in modules[name].parameters())
    matters = np.array([np.var(xs[:, i]) * sum(w**2 for w in weight[:, i]) for i in range(64)])
    inner = np.sort(np.argsort(-matters)[:32])
    others = np.setdiff1d(np.arange(64), inner)
    means = xs.mean(0)
    centred = xs - means
    covariance = centred.T @ centred / len(xs)
    kept = covariance[np.ix_(inner, inner)]
    ridge = 32 / len(xs) * np.trace(kept) / 32
    predicted = np.linalg.inv(kept + ridge * np.eye(32)) @ covariance[np.ix_(inner, others)]
    made = built.bert.encoder.layer[2].output.dense
    np.testing.assert_allclose(
        made.weight.numpy(), stream.T @ (weight[:, inner] + weight[:, others] @ predicted.T), rtol=1e-3, atol=1e-4
    )
    bias = bias + weight[:, others] @ (means[others] - means[inner] @ predicted)
    np.testing.assert_allclose(made.bias.numpy(), stream.T @ bias, rtol=1e-3, atol=1e-4)

    norm, own = (m.bert.encoder.layer[2].attention.output.LayerNorm for m in (teacher, built))
    gamma, beta = norm.weight.double().numpy(), norm.bias.double().numpy()
    xs = np.array(read["bert.encoder.layer.2.intermediate.dense"])
    normal = ((xs - beta) / gamma) @ stream  # what the student's norm makes, but for its division by the deviation
    deviation = np.sqrt(np.mean([np.var(row) for row in normal]))
    wanted = xs @ stream
    for entry in range(16):
        slope, start = np.polyfit(normal[:, entry], wanted[:, entry], 1)
        assert abs(float(own.weight[entry]) - slope * deviation) < 1e-3
        assert abs(float(own.bias[entry]) - start) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_same_rows_give_the_same_student_however_they_are_batched(family: str) -> None:
    teacher, student, inputs = tiny_classifier(family), EncoderStudent(hidden_size=16, num_layers=2), sample(family)
    padded = [{key: nn.functional.pad(tensor, (0, 3)) for key, tensor in batch.items()} for batch in inputs]
    halves = [{key: t[part] for key, t in batch.items()} for batch in padded for part in (slice(3), slice(3, 8))]
    first, again, other = (build_student(teacher, student, seed=0, sample=s) for s in (inputs, inputs, halves))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    unseen = tiny_inputs(family, num_rows=6, seed=99)
    torch.testing.assert_close(first(**unseen).logits, other(**unseen).logits, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("width", [8, 16, 24])
@torch.no_grad()
def test_rows_as_long_as_a_model_is_wide_give_the_same_student(family: str, width: int) -> None:
    """What is pooled, (B, width), is not taken for masks of tokens (B, length); nor are 32 rows for entries."""
    teacher, narrow = tiny_classifier(family), EncoderStudent(hidden_size=width, num_heads=2, num_layers=2)
    rows = tiny_inputs(family, num_rows=32)
    longest = rows["input_ids"].shape[1]
    assert longest < 32
    short, *others = (
        build_student(
            teacher,
            narrow,
            seed=0,
            sample=[{key: nn.functional.pad(tensor, (0, length - longest)) for key, tensor in rows.items()}],
        )
        for length in (longest, 24, 32, 64)
    )
    unseen = tiny_inputs(family, num_rows=6, seed=99)
    for other in others:
        torch.testing.assert_close(short(**unseen).logits, other(**unseen).logits, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_rows_of_two_texts_are_read_as_texts() -> None:
    """They are measured apart, as the model will read them."""
    teacher, first, second = tiny_classifier("bert"), *(tiny_inputs("bert", num_rows=1, seed=seed) for seed in (1, 2))
    pair = {key: torch.cat([first[key], second[key]], 1) for key in first}
    pair[SECOND] = torch.tensor([first["input_ids"].shape[1]])
    apart, together = (
        build_student(teacher, HALF, seed=0, sample=rows).state_dict() for rows in ([first, second], [pair])
    )
    for name, tensor in apart.items():
        torch.testing.assert_close(tensor, together[name], rtol=1e-2, atol=1e-2)


def test_without_rows_or_where_nothing_is_cut_nothing_is_measured() -> None:
    def unread() -> Iterator[dict[str, Tensor]]:
        raise AssertionError("read")
        yield {}

    teacher = tiny_classifier("bert")
    for student in (EncoderStudent(num_layers=2), FIRST, EncoderStudent(start="random", hidden_size=16)):
        build_student(teacher, student, seed=0, sample=unread())
    assert same(build_student(teacher, HALF, seed=0), build_student(teacher, FIRST, seed=0))


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_family_with_parts_that_are_not_known_keeps_the_first_entries() -> None:
    """mpnet has one number a head for each distance, in all layers together; and of inner entries that are as many as
    hidden ones nobody can say which they are."""
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "num_hidden_layers": 2}
    mpnet = AutoModelForSequenceClassification.from_config(MPNetConfig(vocab_size=60, **sizes)).eval()
    square = build_student(tiny_classifier("bert"), EncoderStudent(intermediate_size=32), seed=0)
    for teacher in (mpnet, square):
        rows = [
            {name: tensor for name, tensor in batch.items() if name != "token_type_ids"} for batch in sample("bert")
        ]
        assert same(build_student(teacher, HALF, seed=0, sample=rows), build_student(teacher, FIRST, seed=0))


def test_a_single_row_is_enough() -> None:
    """Its head's covariance is 0: nothing is predicted, and nothing fails."""
    one = tiny_inputs("bert", num_rows=1)
    built = build_student(tiny_classifier("bert"), EncoderStudent(hidden_size=16), seed=0, sample=[one])
    assert all(torch.isfinite(tensor).all() for tensor in built.state_dict().values())
