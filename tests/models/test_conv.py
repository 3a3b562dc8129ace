"""Light students: what they start from, that padding plays no part, and how their folders load elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit.ranks import run_ranks
from kit.tiny import FAMILIES, save_tiny, tiny_classifier, tiny_inputs
from kit.toy import make_toy, relative_difference, toy_config

from raydistill.config.loading import load_config
from raydistill.config.student import ConvStudent, EncoderStudent
from raydistill.errors import ConfigError
from raydistill.models.capture import capture
from raydistill.models.conv import narrowed
from raydistill.models.head import Head
from raydistill.models.load import load_model, save_model
from raydistill.models.signals import Signal
from raydistill.models.student import build_student
from raydistill.train.loop import StageRun

LABELS = ("film", "money", "sport")


def light(family: str = "bert", **shape: Any) -> Any:
    teacher = tiny_classifier(family, labels=LABELS)
    return teacher, build_student(teacher, ConvStudent(type="conv", **shape), seed=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_starts_from_the_embeddings_of_every_family(family: str) -> None:
    teacher, student = light(family)
    table = teacher.get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, table)  # electra's are narrower than its states
    assert student.config.hidden_size == table.shape[1]
    assert list(student.config.id2label.values()) == list(LABELS)
    inputs = tiny_inputs(family)
    with torch.no_grad():
        assert student(**inputs).logits.shape == (5, 3)
    with pytest.raises(ConfigError, match=r"wider than the \d+ of the teacher's embeddings"):
        light(family, hidden_size=table.shape[1] + 1)
    again = light(family, hidden_size=40, start="random")[1]
    assert not torch.equal(again.get_input_embeddings().weight[:, : table.shape[1]], table)


def test_a_narrower_table_has_the_principal_components_of_the_wide_one() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 12, generator=generator) * torch.linspace(0.1, 2, 12) + 3
    found = narrowed(table, 4).numpy()
    centered = (table - table.mean(0)).numpy()
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    expected = left[:, :4] * sizes[:4]
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-4)
    # no other four directions keep distances between tokens as well
    gaps = lambda rows: ((rows[:, None] - rows[None]) ** 2).sum(-1)  # noqa: E731
    random = centered @ np.linalg.qr(np.random.default_rng(0).normal(size=(12, 4)))[0]
    assert np.abs(gaps(centered) - gaps(found)).sum() < np.abs(gaps(centered) - gaps(random)).sum()
    assert narrowed(table, 12) is table


def by_loops(model: Any, ids: list[int], types: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """States of a row's tokens after each layer and its logits, in float64 and one token and channel at a time."""
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    eps = model.config.layer_norm_eps

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    e = "conv.embeddings"
    words, kinds = w[f"{e}.word_embeddings.weight"], w[f"{e}.token_type_embeddings.weight"]
    states = [[norm(words[i] + kinds[t], f"{e}.norm") for i, t in zip(ids, types, strict=True)]]
    half = model.config.kernel_size // 2
    for layer in range(model.config.num_hidden_layers):
        name, below, above = f"conv.layers.{layer}", states[-1], []
        for place in range(len(ids)):
            near = w[f"{name}.depthwise.bias"].copy()
            for channel in range(len(near)):
                for step in range(-half, half + 1):
                    if 0 <= place + step < len(ids):
                        tap = w[f"{name}.depthwise.weight"][channel, 0, step + half]
                        near[channel] += tap * below[place + step][channel]
            mixed = w[f"{name}.pointwise.weight"] @ near + w[f"{name}.pointwise.bias"]
            bent = F.gelu(torch.from_numpy(mixed)).numpy()
            above.append(norm(below[place] + bent, f"{name}.norm"))
        states.append(above)
    mean = np.mean(states[-1], axis=0)
    return [np.stack(one) for one in states], w["classifier.weight"] @ mean + w["classifier.bias"]


def test_states_and_logits_are_those_of_loops_over_each_row_alone() -> None:
    """So padding, on the left or on the right, has no influence; and the states are there for losses on them."""
    _, student = light(num_layers=2, hidden_size=6, kernel_size=3)
    with torch.no_grad():
        for parameter in student.parameters():  # fresh norms and biases would hide a mix-up
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)), alpha=0.3)
    inputs = tiny_inputs("bert", num_rows=4)
    inputs["input_ids"][inputs["attention_mask"] == 0] = 7
    signals = [Signal("logits"), *(Signal.of("hidden_states", i) for i in range(3))]
    for given in (inputs, {name: tensor.flip(1) for name, tensor in inputs.items()}):
        with torch.no_grad():
            found = capture(student, given, signals)
        start = 0
        for row, mask in enumerate(given["attention_mask"].bool()):
            ids, types = given["input_ids"][row][mask].tolist(), given["token_type_ids"][row][mask].tolist()
            states, logits = by_loops(student, ids, types)
            assert np.allclose(found[Signal("logits")][row], logits, atol=1e-5)
            for i, expected in enumerate(states):
                own = found[Signal.of("hidden_states", i)][start : start + len(ids)]
                assert np.allclose(own, expected, atol=1e-5)
            start += len(ids)
    alone = {name: tensor[:1, : int(inputs["attention_mask"][0].sum())] for name, tensor in inputs.items()}
    with torch.no_grad():
        bare = student(alone["input_ids"], token_type_ids=alone["token_type_ids"])
        assert torch.allclose(bare.logits, student(**inputs).logits[:1], atol=1e-5)


STRANGER = """
import sys, torch
from transformers import AutoModelFor{kind}, AutoTokenizer
folder = sys.argv[1]
model = AutoModelFor{kind}.from_pretrained(folder, trust_remote_code=True).eval()
rows = AutoTokenizer.from_pretrained(folder)(["a good film", "bank money"], padding=True, return_tensors="pt")
with torch.no_grad():
    torch.save(model(**rows).logits, sys.argv[2])
assert "raydistill" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SequenceClassification", "TokenClassification"])
def test_a_stranger_loads_it_with_the_code_in_its_folder(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "teacher", classifier=False)
    head = Head(LABELS, kind=kind)
    student = build_student(load_model(folder, head), ConvStudent(type="conv", hidden_size=16), seed=0)
    save_model(student, folder, tmp_path / "student")
    environment = {"HF_HOME": str(tmp_path / "hub"), "PATH": "", "PYTHONPATH": ""}
    command = [sys.executable, "-I", "-c", STRANGER.format(kind=kind), tmp_path / "student", tmp_path / "logits.pt"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    from transformers import AutoTokenizer

    rows = AutoTokenizer.from_pretrained(folder)(["a good film", "bank money"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = student(**rows).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
    turned = load_model(tmp_path / "student", Head(LABELS[::-1], kind=kind))
    with torch.no_grad():
        assert torch.allclose(turned(**rows).logits.flip(-1), expected, atol=1e-6)


def test_its_own_code_in_a_folder_is_not_run_here(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "teacher", labels=LABELS)
    save_model(light()[1], folder, tmp_path / "student")
    (tmp_path / "student" / "modeling_conv.py").write_text("raise SystemExit('ran')")
    for trusted in (False, True):
        load_model(tmp_path / "student", Head(LABELS), trust_remote_code=trusted)


def test_another_student_can_be_cut_from_it() -> None:
    _, student = light(num_layers=4)
    cut = build_student(student, EncoderStudent(num_layers=2, hidden_size=8), seed=0)
    assert torch.equal(cut.conv.layers[1].pointwise.weight, student.conv.layers[3].pointwise.weight[:8, :8])
    with pytest.raises(ConfigError, match="has none"):
        build_student(student, EncoderStudent(num_heads=2), seed=0)


@pytest.mark.parametrize("loss", ["attention_mse", "attention_kl", "minilm", "minilm_v2"])
def test_losses_on_attention_are_refused_with_the_config(loss: str, tmp_path: Path) -> None:
    stage = {"losses": {"kd": {"type": "forward_kl"}, "relations": {"type": loss}}}
    with pytest.raises(ConfigError, match=rf"losses\.relations: {loss} compares attention, and a student of type conv"):
        load_config(toy_config(tmp_path, student={"type": "conv"}, stages__distill=stage))


def test_settings_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    for student, text in (
        ({"num_heads": 4}, r"student\.num_heads: unknown name"),
        ({"kernel_size": 4}, r"student\.kernel_size: 4 has no token in the middle; write an odd number, 3 or 5"),
        ({"start": "elsewhere"}, r"student\.start: unknown value 'elsewhere'"),
    ):
        with pytest.raises(ConfigError, match=text):
            load_config(toy_config(tmp_path, student={"type": "conv", **student}))
    with pytest.raises(ConfigError, match="unknown type 'cov'; did you mean 'conv'"):
        load_config(toy_config(tmp_path, student={"type": "cov"}))
    with pytest.raises(ConfigError, match=r"student\.type: conv looks at 13 tokens at a time"):
        load_config(toy_config(tmp_path, student={"type": "conv"}, task={"type": "question_answering"}))
    own = load_config(toy_config(tmp_path), ["student={type: conv}", "student.kernel_size=3"]).student
    assert own == ConvStudent(type="conv", kernel_size=3)


def rank_gradients(folder: Path) -> dict[str, torch.Tensor]:
    toy = make_toy(folder)
    model = build_student(toy.teacher(), ConvStudent(type="conv", num_layers=2, hidden_size=16, dropout=0.2), seed=0)
    hidden = {"type": "hidden_mse", "layers": [[0, 0], [2, 4]]}
    losses = toy.losses(model, kd={"type": "forward_kl"}, hidden=hidden, task={"type": "task"})
    stage = StageRun(toy.setup("student.ranks", losses, model, row_ids=np.arange(64)))
    batches = stage.collate(0)
    counts = stage.setup.group.sum([float(count) for count in losses.counts(batches)])
    stage.accumulate(0, batches, counts)
    named = [*model.named_parameters(), *losses.named_parameters(prefix="losses")]
    return {name: parameter.grad.clone() for name, parameter in named}


def test_two_workers_equal_one(tmp_path: Path) -> None:
    """Dropout and the projections of hidden states included."""
    one = rank_gradients(tmp_path / "one")
    make_toy(tmp_path / "two")
    first, second = run_ranks(rank_gradients, 2, tmp_path / "ranks", tmp_path / "two")
    assert any("projections" in name for name in one)
    assert max(relative_difference(one, first).values()) < 2e-5
    assert all(torch.equal(first[name], second[name]) for name in first)
