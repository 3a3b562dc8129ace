"""Feature maps as flat signals: their sizes, one grid for those of two models, and losses on them by plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.pictures import SIZE, save_tiny_pictures, tiny_picture_config
from kit.scenes import tiny_detector_config
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, EfficientNetConfig, PreTrainedConfig

from raydistill.config import losses as settings
from raydistill.data.batches import Batch
from raydistill.errors import ConfigError, ModelError
from raydistill.losses import Loss, Losses, build_losses
from raydistill.models.capture import capture
from raydistill.models.fields import is_staged
from raydistill.models.head import IMAGE, Head
from raydistill.models.load import load_model, new_model
from raydistill.models.pictures import Grid, last_state, look, on_grid, on_one_grid, state_widths
from raydistill.models.signals import Signal, State
from raydistill.models.similarity import layer_similarities, linear_cka
from raydistill.tasks.image_classification import ImageClassification
from raydistill.tasks.targets import Targets
from raydistill.teacher.cached import Column
from raydistill.teacher.pool.signals import PoolSignals
from raydistill.teacher.store import write_shard

LABELS = ("a", "b", "c", "d")
TASK = ImageClassification(LABELS)
HEAD = Head(LABELS, "single_label_classification", kind=IMAGE)
SHAPE = (3, SIZE, SIZE)
RESNET = [State(16, 8), State(16, 16), State(4, 32)]
NUM_ROWS = 3


def pictures(num_rows: int = NUM_ROWS) -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(num_rows, *SHAPE, generator=torch.Generator().manual_seed(0))}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("maps")
    return {
        family: load_model(save_tiny_pictures(folder / family, family), HEAD, dropout=0.0)
        for family in ("vit", "resnet", "mobilenet_v2")
    }


def efficientnet() -> EfficientNetConfig:
    return EfficientNetConfig(image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128)


def test_maps_are_known_before_anything_is_computed(models: dict[str, Any]) -> None:
    assert list(look(tiny_picture_config("resnet"), SHAPE).states) == RESNET
    for name, model in models.items():
        with torch.inference_mode():
            whole = model(**pictures(), output_hidden_states=True).hidden_states
        states = look(model.config, SHAPE).states
        assert last_state(model.config) == len(whole) - 1
        assert state_widths(model.config) == [state.width for state in states]
        for layer, (state, seen) in enumerate(zip(states, whole, strict=True)):
            found = capture(model, pictures(), [Signal.of("hidden_states", layer)]).popitem()[1]
            assert found.shape == (NUM_ROWS * state.positions, state.width)
            flat = (
                [seen[b, :, y, x] for b in range(3) for y in range(seen.shape[2]) for x in range(seen.shape[3])]
                if (name != "vit")
                else [*seen.flatten(0, 1)]
            )
            torch.testing.assert_close(found, torch.stack(flat), atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"There is no hidden_states\[3\].*hidden_states\[0\] to hidden_states\[2\]"):
        capture(models["resnet"], pictures(), ["hidden_states[3]"])


def registers() -> PreTrainedConfig:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4}
    return Dinov2WithRegistersConfig(**shape, image_size=8)


@pytest.mark.parametrize(
    ("config", "size", "grids"),
    [
        (tiny_picture_config("vit", 1), (16, 16), [Grid(1, 4, 4)] * 2),
        (registers(), (8, 8), [Grid(5, 2, 2)] * 2),
        (tiny_detector_config(1), (24, 32), [Grid(1, 3, 4)] * 2),
        (tiny_detector_config(1), (16, 16), [Grid(1, 2, 2)] * 2),
        (tiny_picture_config("resnet"), (16, 32), [Grid(0, 4, 8), Grid(0, 4, 8), Grid(0, 2, 4)]),
        (tiny_picture_config("swin"), (16, 16), [Grid(0, 4, 4), Grid(0, 2, 2), Grid(0, 2, 2)]),
        (tiny_picture_config("swin"), (16, 32), []),
    ],
    ids=lambda one: getattr(one, "model_type", None),
)
def test_it_is_known_where_in_a_picture_positions_lie(
    config: PreTrainedConfig, size: tuple[int, int], grids: list[Grid]
) -> None:
    """Of a picture that is changed at one place the first state differs most at the position that lies there,
    and beside it where what positions see overlaps."""
    assert list(look(config, (3, *size)).grids) == grids
    model = new_model(config, seed=0)
    for grid in grids[:1]:
        for place in np.ndindex(*grid.size):
            changed = torch.zeros(2, 3, *size)
            top, left = (i * side // n for i, side, n in zip(place, size, grid.size, strict=True))
            changed[1, :, top : top + size[0] // grid.height, left : left + size[1] // grid.width] = 3.0
            with torch.inference_mode():
                first = capture(model, {"pixel_values": changed}, ["hidden_states[0]"]).popitem()[1]
            same, other = first.unflatten(0, (2, -1))
            furthest = int((other - same).square().sum(1).argmax())
            found = np.unravel_index(furthest - grid.before, grid.size)
            assert np.abs(np.subtract(found, place)).max() <= (config.model_type == "resnet")


def test_some_networks_have_many_maps() -> None:
    seen = look(efficientnet(), (3, 32, 32))
    assert (is_staged(efficientnet()), seen.is_stack, len(seen.grids)) == (True, False, len(seen.states))
    assert len({state.width for state in seen.states}) > 3


def pooled(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Adaptive average pooling by its definition: (H, W, C) -> (*size, C)."""
    found = np.zeros((*size, grid.shape[2]))
    for place in np.ndindex(*size):
        known = zip(place, grid.shape, size, strict=False)
        (top, bottom), (left, right) = ((i * own // n, math.ceil((i + 1) * own / n)) for i, own, n in known)
        found[place] = grid[top:bottom, left:right].mean((0, 1))
    return found


@pytest.mark.parametrize(
    ("grid", "behind", "size"),
    [
        (Grid(1, 4, 4), 0, (2, 2)),
        (Grid(5, 5, 5), 0, (3, 3)),
        (Grid(0, 3, 3), 0, (1, 1)),
        (Grid(1, 4, 4), 0, (4, 4)),
        (Grid(1, 3, 4), 6, (2, 3)),
    ],
)
def test_the_larger_grid_is_pooled_to_the_smaller_one(grid: Grid, behind: int, size: tuple[int, int]) -> None:
    num_patches = grid.height * grid.width
    states = np.random.default_rng(0).normal(size=(NUM_ROWS, grid.before + num_patches + behind, 6))
    flat = torch.from_numpy(states.reshape(-1, 6))
    found = on_grid(flat, NUM_ROWS, grid, size)
    patches = states[:, grid.before : grid.before + num_patches]
    expected = [pooled(row.reshape(*grid.size, 6), size).reshape(-1, 6) for row in patches]
    np.testing.assert_allclose(found, np.concatenate(expected), atol=1e-12)
    small = torch.zeros(NUM_ROWS * math.prod(size), 2)
    a, b = on_one_grid(small, flat, (Grid(0, *size), grid), NUM_ROWS)
    assert a.shape == small.shape
    torch.testing.assert_close(b, found)


def batch_of(inputs: dict[str, Tensor]) -> Batch:
    num_rows = len(inputs["pixel_values"])
    targets = Targets(np.zeros(num_rows, np.int64), np.ones(num_rows, bool))
    return Batch(np.arange(num_rows), np.full(num_rows, 17), targets, inputs)


def built(student: Any, teacher: Any, **term: Any) -> Losses:
    """One loss between two models, with what it learns drawn anew, so that no part of it is zero."""
    kind = settings.SECTIONS[term["type"]]
    losses = build_losses({"it": kind(**term)}, TASK, student.config, teacher.config, seed=0)
    with torch.no_grad():
        for parameter in losses.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    return losses


def values_of(losses: Losses, student: Any, teacher: Any, parts: list[slice]) -> Tensor:
    (loss,) = losses.terms.values()
    found = []
    for part in parts:
        inputs = {"pixel_values": pictures(8)["pixel_values"][part]}
        own, other = (capture(m, inputs, n) for m, n in ((student, loss.student_needs), (teacher, loss.teacher_needs)))
        batch = batch_of(inputs)
        values = loss(own, other, batch)
        assert len(values) == loss.count(batch)
        found.append(values)
    return torch.cat(found)


def projected(loss: Loss, pair: int, states: np.ndarray) -> np.ndarray:
    linear = loss.projections[pair]  # type: ignore[index]
    if isinstance(linear, torch.nn.Identity):
        return states
    weight, bias = (parameter.detach().double().numpy() for parameter in (linear.weight, linear.bias))
    return states @ weight.T + bias


DISTANCES = {
    "hidden_mse": lambda a, b: ((a - b) ** 2).mean(),
    "hidden_cosine": lambda a, b: 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b),
}


@pytest.mark.parametrize("type_", DISTANCES)
@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ("resnet", "vit", [(0, 0), (1, 2), (2, 4)]),
        ("vit", "resnet", [(2, 1), (4, 2)]),
        ("mobilenet_v2", "resnet", [(3, 1), (15, 2)]),
        ("vit", "vit", [(2, 4)]),
    ],
)
@torch.no_grad()
def test_losses_across_shapes_are_what_loops_say(
    type_: str, student: str, teacher: str, pairs: list[tuple[int, int]], models: dict[str, Any]
) -> None:
    own, other = models[student], models[teacher]
    losses = built(own, other, type=type_, layers=tuple(pairs))
    values = values_of(losses, own, other, [slice(0, 3), slice(3, 8)])
    (loss,) = losses.terms.values()
    states = [
        [state.double().numpy() for state in model(**pictures(8), output_hidden_states=True).hidden_states]
        for model in (own, other)
    ]

    def grid(state: np.ndarray) -> np.ndarray:
        """(C, H, W) or (1 + H², C) -> (H, H, C)."""
        return state.transpose(1, 2, 0) if state.ndim == 3 else state[1:].reshape(4, 4, -1)

    for row in range(8):
        means = []
        for number, (s, t) in enumerate(pairs):
            a, b = states[0][s][row], states[1][t][row]
            if student != teacher:
                side = min(len(grid(a)), len(grid(b)))
                a, b = (pooled(grid(state), (side, side)).reshape(side**2, -1) for state in (a, b))
            a = projected(loss, number, a)
            means.append(np.mean([DISTANCES[type_](x, y) for x, y in zip(a, b, strict=True)]))
        assert float(values[row]) == pytest.approx(np.mean(means), rel=1e-4, abs=1e-6)


def test_maps_of_other_sizes_need_the_pictures(models: dict[str, Any]) -> None:
    losses = built(models["resnet"], models["vit"], type="hidden_mse")
    with pytest.raises(ModelError, match=r"the batch has no pictures. Give it the models' inputs"):
        losses["it"].grids(replace(batch_of(pictures()), inputs={}))


@pytest.mark.parametrize(
    "term",
    [
        {"type": "hidden_kl", "temperature": 2.0},
        {"type": "pooled_cosine", "layers": ((2, 4), (1, 2))},
        {"type": "rkd_distance", "group_size": 4},
        {"type": "rkd_angle", "group_size": 4},
        {"type": "crd", "group_size": 4},
        {"type": "graph_attention", "group_size": 4},
    ],
    ids=lambda term: term["type"],
)
def test_other_losses_take_maps_and_know_nothing_of_micro_batches(term: dict[str, Any], models: dict[str, Any]) -> None:
    student, teacher = models["resnet"], models["vit"]
    losses = built(student, teacher, **term)
    student.zero_grad()
    whole = values_of(losses, student, teacher, [slice(0, 8)])
    cut = values_of(losses, student, teacher, [slice(0, 4), slice(4, 8)])
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=1e-4)
    whole.sum().backward()
    gradients = [p.grad for p in student.resnet.embedder.parameters() if p.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_mean_states_of_rows_are_those_of_their_positions(models: dict[str, Any]) -> None:
    student, teacher = models["resnet"], models["vit"]
    losses = built(student, teacher, type="pooled_cosine", layers=((2, 4),))
    with torch.no_grad():
        values = values_of(losses, student, teacher, [slice(0, 8)])
        a = student(**pictures(8), output_hidden_states=True).hidden_states[2].double().mean((2, 3))
        b = teacher(**pictures(8), output_hidden_states=True).hidden_states[4].double().mean(1)
    cosines = torch.cosine_similarity(a, b)  # both have a width of 32
    torch.testing.assert_close(values.double(), 1 - cosines, atol=1e-6, rtol=1e-5)


def test_maps_are_kept_by_row_and_take_what_is_foretold(tmp_path: Path, models: dict[str, Any]) -> None:
    signal = Signal("hidden_states[2]")
    with torch.inference_mode():
        values = capture(models["resnet"], pictures(), [signal])[signal].float()
    write_shard(tmp_path / "0.arrow", np.array([2, 0, 1]), np.full(3, 17), values, signal)
    read = Column(tmp_path, ["0.arrow"], 3, 1).read(np.array([1, 2]))
    np.testing.assert_allclose(read, torch.cat([values[8:], values[:4]]).numpy(), atol=2e-3)
    config = models["resnet"].config
    assert signal.width(config, RESNET) == 32
    assert signal.num_bytes(config, 100, 1700, RESNET) == 2 * 100 * 4 * 32
    needs, lengths = {Signal("logits"): 4, signal: 32}, np.full(9, 17)
    asked = PoolSignals(None, needs, lengths, max_ahead_bytes=0, rank=0, states=RESNET)
    assert asked._bytes(np.arange(3)) == 4 * 3 * (4 + 4 * 32)
    assert Signal("logits").num_bytes(config, 100, 1700, RESNET) == 4 * 100 * 4
    with pytest.raises(ConfigError, match=r"hidden_states\[0\] to hidden_states\[2\]"):
        Signal("hidden_states[3]").width(config, RESNET)


def test_layers_are_compared_on_the_coarsest_grid(models: dict[str, Any]) -> None:
    student, teacher = models["resnet"], models["vit"]
    found = layer_similarities(student, teacher, [pictures(8), pictures(5)])
    assert (len(found), len(found[0])) == (3, 5)
    with torch.no_grad():
        own, other = (
            [
                torch.cat([capture(model, pictures(n), [s])[s] for n in (8, 5)])
                for s in (Signal.of("hidden_states", i) for i in range(last_state(model.config) + 1))
            ]
            for model in (student, teacher)
        )
        sides = [
            [on_grid(x, 13, grid, (2, 2)) for x, grid in zip(side, look(model.config, SHAPE).grids, strict=True)]
            for side, model in ((own, student), (other, teacher))
        ]
        expected = linear_cka(*sides)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
