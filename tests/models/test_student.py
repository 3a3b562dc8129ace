from pathlib import Path

import pytest
import torch
from kit.tiny import FAMILIES, save_tiny, tiny_classifier, tiny_config, tiny_inputs
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    FunnelConfig,
    LongformerConfig,
    MobileBertConfig,
)

from raydistill.config.student import EncoderStudent
from raydistill.errors import ConfigError, ModelError
from raydistill.models.fields import intermediate
from raydistill.models.layers import layer_stack
from raydistill.models.shape import student_config
from raydistill.models.slices import Heads, Kept, cut
from raydistill.models.student import build_student

STACKS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
    "modernbert": "model.layers",
    "deberta-v2": "deberta.encoder.layer",
}


def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(family)).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_give_the_teachers_logits_bit_for_bit(family: str) -> None:
    teacher = tiny_classifier(family, labels=("x", "y", "z"))
    built = build_student(teacher, EncoderStudent(num_layers=None), seed=1)
    assert torch.equal(logits(built, family), logits(teacher, family))
    assert built.config.id2label == {0: "x", 1: "y", 2: "z"}
    assert built.config.label2id == {"x": 0, "y": 1, "z": 2}


def test_without_a_shape_the_student_has_half_the_layers_of_its_teacher() -> None:
    teacher = tiny_classifier("bert")  # 4 layers
    depths = {
        name: build_student(teacher, student, seed=1).config.num_hidden_layers
        for name, student in {
            "nothing": EncoderStudent(),
            "width": EncoderStudent(hidden_size=16),
            "random": EncoderStudent(start="random"),
            "layers": EncoderStudent(teacher_layers=(0, 1, 3)),
        }.items()
    }
    assert depths == {"nothing": 2, "width": 4, "random": 4, "layers": 3}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_student_does_not_share_memory_with_its_teacher(family: str) -> None:
    teacher = tiny_classifier(family)
    before = logits(teacher, family)
    built = build_student(teacher, EncoderStudent(num_layers=None), seed=1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    built.config.num_labels = 7
    assert torch.equal(logits(teacher, family), before)
    assert teacher.config.num_labels == 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("student", "layers"),
    [
        (EncoderStudent(num_layers=3), (0, 2, 3)),
        (EncoderStudent(num_layers=1), (0,)),
        (EncoderStudent(teacher_layers=(0, 3)), (0, 3)),
        (EncoderStudent(teacher_layers=(2, 1)), (2, 1)),
    ],
)
def test_chosen_layers_are_copied(family: str, student: EncoderStudent, layers: tuple[int, ...]) -> None:
    teacher = tiny_classifier(family)
    built = build_student(teacher, student, seed=0)
    _, deep = layer_stack(teacher)
    shallow = built.get_submodule(STACKS[family])
    assert built.config.num_hidden_layers == len(shallow) == len(layers)
    for position, layer in enumerate(layers):
        origin = deep[layer].state_dict()
        for name, tensor in shallow[position].state_dict().items():
            assert name not in origin or torch.equal(tensor, origin[name]), name
    outside = {n: p for n, p in built.state_dict().items() if not n.startswith(STACKS[family])}
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in outside.items())
    assert torch.isfinite(logits(built, family)).all()


def test_layer_types_of_modernbert_follow_the_layers() -> None:
    teacher = tiny_classifier("modernbert", num_layers=6)
    types = teacher.config.layer_types
    built = build_student(teacher, EncoderStudent(teacher_layers=(0, 2, 3)), seed=0)
    assert built.config.layer_types == [types[0], types[2], types[3]]
    assert [layer.attention_type for layer in built.model.layers] == [types[0], types[2], types[3]]
    deeper = student_config(teacher.config, EncoderStudent(start="random", num_layers=8))
    assert deeper.layer_types == [*types, types[0], types[1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_narrower_students_keep_whole_heads(family: str) -> None:
    """Half the width with heads of the same width: every parameter is the first part of the teacher's."""
    teacher = tiny_classifier(family)
    built = build_student(teacher, EncoderStudent(num_layers=2, hidden_size=16), seed=0)
    assert built.config.num_attention_heads == 2
    assert intermediate(built.config)[1] == 32
    wide = teacher.get_submodule(STACKS[family])[3].state_dict()
    for name, tensor in built.get_submodule(STACKS[family])[1].state_dict().items():
        expected = wide[name]
        blocks = 3 if "Wqkv" in name else 2 if ".Wi." in name else 1
        expected = torch.cat([part[: len(tensor) // blocks] for part in expected.chunk(blocks)])
        if tensor.dim() == 2:
            expected = expected[:, : tensor.shape[1]]
        assert torch.equal(tensor, expected), name
    embedding = built.get_input_embeddings().weight
    assert torch.equal(embedding, teacher.get_input_embeddings().weight[:, : embedding.shape[1]])
    found = logits(built, family)
    assert torch.isfinite(found).all()
    assert found.std() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "student",
    [
        EncoderStudent(hidden_size=16, num_heads=4),
        EncoderStudent(hidden_size=24, num_heads=2, intermediate_size=10, num_layers=3),
        EncoderStudent(hidden_size=12, num_heads=3),
        EncoderStudent(intermediate_size=20),
        EncoderStudent(num_heads=2),
        EncoderStudent(num_heads=8),
    ],
)
def test_any_narrower_shape_runs(family: str, student: EncoderStudent) -> None:
    built = build_student(tiny_classifier(family), student, seed=0)
    found = logits(built, family)
    assert torch.isfinite(found).all()
    assert found.shape == (5, 3)
    again = build_student(tiny_classifier(family), student, seed=1)  # nothing of it is random
    assert torch.equal(logits(again, family), found)


def test_heads_are_sliced_inside_where_their_number_stays() -> None:
    """4 heads of 8 become 4 of 4: queries, values and the output projection take the same entries of each head."""
    teacher = tiny_classifier("bert")
    built = build_student(teacher, EncoderStudent(hidden_size=16, num_heads=4), seed=0)
    kept = torch.tensor([8 * head + i for head in range(4) for i in range(4)])
    wide, narrow = teacher.bert.encoder.layer[1].attention, built.bert.encoder.layer[1].attention
    for name in ("query", "key", "value"):
        assert torch.equal(narrow.self.get_submodule(name).weight, wide.self.get_submodule(name).weight[kept, :16])
        assert torch.equal(narrow.self.get_submodule(name).bias, wide.self.get_submodule(name).bias[kept])
    assert torch.equal(narrow.output.dense.weight, wide.output.dense.weight[:16, kept])
    assert torch.equal(narrow.output.dense.bias, wide.output.dense.bias[:16])


def test_heads_of_albert_are_sliced_as_those_of_others() -> None:
    config = AlbertConfig(vocab_size=55, hidden_size=32, embedding_size=16, num_attention_heads=4, intermediate_size=64)
    teacher = AutoModelForSequenceClassification.from_config(config)
    built = build_student(teacher, EncoderStudent(hidden_size=16, num_heads=4), seed=0)
    kept = torch.tensor([8 * head + i for head in range(4) for i in range(4)])
    wide, narrow = (
        model.albert.encoder.albert_layer_groups[0].albert_layers[0].attention for model in (teacher, built)
    )
    assert torch.equal(narrow.value.weight, wide.value.weight[kept, :16])
    assert torch.equal(narrow.dense.weight, wide.dense.weight[:16, kept])
    assert torch.equal(narrow.dense.bias, wide.dense.bias[:16])


def test_a_width_at_which_the_projection_of_embeddings_would_be_lost_is_refused() -> None:
    teacher = tiny_classifier("electra")
    with pytest.raises(ConfigError, match=r"hidden_size is 20, as wide as the teacher's embeddings.*electra"):
        student_config(teacher.config, EncoderStudent(hidden_size=20))
    assert student_config(teacher.config, EncoderStudent(hidden_size=20, start="random")).hidden_size == 20
    built = build_student(teacher, EncoderStudent(hidden_size=16), seed=0)
    projection = built.electra.embeddings_project.weight
    assert torch.equal(projection, teacher.electra.embeddings_project.weight[:16])
    albert = AlbertConfig(vocab_size=55, hidden_size=32, embedding_size=16, num_attention_heads=4, intermediate_size=64)
    assert student_config(albert, EncoderStudent(hidden_size=16)).hidden_size == 16  # this family always has one


def test_rotary_heads_keep_the_pairs_of_matching_frequency() -> None:
    """Heads of 8 cut to 4: pairs (0, 4) and (2, 6), whose frequencies are exactly those of a head of 4."""
    teacher = tiny_classifier("modernbert")
    built = build_student(teacher, EncoderStudent(hidden_size=16, num_heads=4), seed=0)
    inside = torch.tensor([0, 2, 4, 6])
    kept = torch.cat([block * 32 + head * 8 + inside for block in range(3) for head in range(4)])
    wide, narrow = teacher.model.layers[1].attn, built.model.layers[1].attn
    assert torch.equal(narrow.Wqkv.weight, wide.Wqkv.weight[kept, :16])
    assert torch.equal(narrow.Wo.weight, wide.Wo.weight[:16, kept[:16]])
    frequencies = built.model.rotary_emb.full_attention_inv_freq
    assert torch.equal(frequencies, teacher.model.rotary_emb.full_attention_inv_freq[::2])


def test_fused_projection_that_alternates_by_head() -> None:
    """DeBERTa's in_proj holds each head's query, key and value side by side."""
    wide = torch.arange(2 * 3 * 4.0)[:, None].expand(24, 8)  # 2 heads of 4
    part = cut("deberta.encoder.layer.0.attention.self.in_proj.weight", wide, torch.Size((12, 4)), Kept(Heads(4, 2)))
    assert part[:, 0].tolist() == [0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21]


@pytest.mark.parametrize("family", FAMILIES)
def test_random_start_depends_on_the_seed_only(family: str) -> None:
    teacher, student = (
        tiny_classifier(family),
        EncoderStudent(start="random", hidden_size=40, num_layers=6, num_heads=4),
    )
    state = torch.get_rng_state()
    first = build_student(teacher, student, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = build_student(teacher, student, seed=3), build_student(teacher, student, seed=4)
    assert torch.equal(logits(first, family), logits(again, family))
    assert not torch.equal(logits(first, family), logits(other, family))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_is_off_by_default_and_reaches_the_modules(family: str) -> None:
    teacher = tiny_classifier(family)
    student = build_student(teacher, EncoderStudent(num_layers=2), seed=0).train()
    assert torch.equal(logits(student, family), logits(student, family))
    student = build_student(teacher, EncoderStudent(num_layers=2, dropout=0.3), seed=0).train()
    assert not torch.equal(logits(student, family), logits(student, family))
    assert {m.p for m in student.modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


def test_start_from_a_checkpoint(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "other", "bert", num_layers=3, seed=5, labels=("z", "x", "y"))
    teacher = tiny_classifier("bert", labels=("x", "y", "z"))
    built = build_student(teacher, EncoderStudent(start=str(folder)), seed=0)
    checkpoint = tiny_classifier("bert", num_layers=3, seed=5)
    torch.testing.assert_close(logits(built, "bert"), logits(checkpoint, "bert")[:, [1, 2, 0]])
    assert built.config.id2label == {0: "x", 1: "y", 2: "z"}
    cut_again = build_student(teacher, EncoderStudent(start=str(folder), num_layers=2, hidden_size=16), seed=0)
    planned = student_config(teacher.config, EncoderStudent(start=str(folder), num_layers=2, hidden_size=16))
    assert planned.to_dict() == cut_again.config.to_dict() | {"architectures": planned.architectures}


@pytest.mark.parametrize("family", FAMILIES)
def test_planned_config_is_the_built_one(family: str) -> None:
    teacher, student = tiny_classifier(family), EncoderStudent(num_layers=2, hidden_size=16, dropout=0.2)
    planned = student_config(teacher.config, student)
    built = build_student(teacher, student, seed=0).config
    assert planned.to_dict() == built.to_dict()


def test_widths_that_follow_hidden_size() -> None:
    deberta = student_config(tiny_config("deberta-v2"), EncoderStudent(hidden_size=16))
    assert deberta.pooler_hidden_size == 16
    distilbert = student_config(tiny_config("distilbert"), EncoderStudent(hidden_size=16))
    assert (distilbert.dim, distilbert.hidden_dim, distilbert.n_heads) == (16, 32, 2)
    config = tiny_config("electra")
    assert student_config(config, EncoderStudent(hidden_size=24)).embedding_size == 20
    config.embedding_size = config.hidden_size
    assert student_config(config, EncoderStudent(hidden_size=24)).embedding_size == 24


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (EncoderStudent(num_layers=5), "at most 4"),
        (EncoderStudent(hidden_size=48), "Set it to at most 32, or student.start to random"),
        (EncoderStudent(intermediate_size=65), "student.intermediate_size is 65, wider than the 64"),
        (EncoderStudent(num_heads=5), "Valid numbers of heads: 1, 2, 4, 8, 16, 32"),
        (EncoderStudent(teacher_layers=(0, 4)), "layers 0 to 3"),
    ],
)
def test_shapes_that_cannot_be_are_refused(student: EncoderStudent, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_student(tiny_classifier("bert"), student, seed=0)
    assert message in str(caught.value)


def test_rotary_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="Valid numbers of heads: 1, 2, 3, 6"):
        student_config(tiny_config("modernbert"), EncoderStudent(hidden_size=12, num_heads=4))


def test_models_without_a_stack_are_refused_where_layers_are_needed() -> None:
    small = {"vocab_size": 55, "num_labels": 3, "intermediate_size": 64}
    albert = AutoModelForSequenceClassification.from_config(
        AlbertConfig(**small, hidden_size=32, embedding_size=16, num_hidden_layers=4, num_attention_heads=4)
    ).eval()
    with pytest.raises(ModelError, match="no single stack of 4 layers"):
        build_student(albert, EncoderStudent(num_layers=2), seed=0)
    whole = build_student(albert, EncoderStudent(num_layers=None), seed=0)
    assert torch.equal(logits(whole, "roberta"), logits(albert, "roberta"))
    funnel = AutoModelForSequenceClassification.from_config(
        FunnelConfig(vocab_size=55, num_labels=3, d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[2, 2])
    )
    for student in (EncoderStudent(num_layers=2), EncoderStudent(num_layers=2, start="random")):
        with pytest.raises(ModelError):
            build_student(funnel, student, seed=0)


def test_windows_of_longformer_follow_the_layers() -> None:
    config = LongformerConfig(num_hidden_layers=4, attention_window=[2, 4, 6, 8])
    assert student_config(config, EncoderStudent(teacher_layers=(1, 3))).attention_window == [4, 8]


def test_a_width_that_its_family_cannot_run_is_refused() -> None:
    config = MobileBertConfig(vocab_size=55, num_hidden_layers=2, hidden_size=32, embedding_size=32)
    teacher = AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="width 48 with"):
        build_student(teacher, EncoderStudent(start="random", hidden_size=48, num_heads=6), seed=0)
