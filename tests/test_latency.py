"""Latency and throughput: counts, conditions, order, and ratios of models whose cost is known."""

import time

import pytest
import torch
from torch import nn

from raydistill.evaluate.latency import SHAPE_CALLS, WARMUP_CALLS, measure_latency, measure_models, measure_shapes

ROW = {"input_ids": torch.zeros(1, 16, dtype=torch.long)}
BATCH = {"input_ids": torch.zeros(32, 16, dtype=torch.long)}


class Sleeper(nn.Module):
    """Takes a known time, and notes how it was called."""

    def __init__(self, seconds: float, calls: list | None = None) -> None:
        super().__init__()
        self.linear, self.seconds, self.calls = nn.Linear(4, 2), seconds, calls if calls is not None else []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        logits = self.linear(torch.ones(len(input_ids), 4))
        self.calls.append((self, len(input_ids), self.training, torch.is_inference_mode_enabled(), logits.dtype))
        return logits


def test_known_times_and_conditions() -> None:
    result = measure_latency(Sleeper(0.004), ROW, BATCH, repeats=20, seconds=0)
    assert 4.0 <= result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
    assert result["latency_ms"]["p50"] < 40
    assert 32 / 0.040 < result["throughput"] <= 32 / 0.004
    assert {k: result[k] for k in ("batch_size", "length", "repeats", "device", "dtype", "threads")} == {
        "batch_size": 32,
        "length": 16,
        "repeats": 20,
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
    }


def test_time_budget_adds_calls() -> None:
    model = Sleeper(0.001)
    result = measure_latency(model, ROW, BATCH, repeats=2, seconds=0.3)
    assert result["repeats"] > 2


def test_calls_are_in_evaluation_and_inference_mode() -> None:
    model = Sleeper(0)
    model.train()
    model.linear.eval()  # a frozen part
    measure_latency(model, ROW, BATCH, repeats=6, seconds=0)
    assert (model.training, model.linear.training) == (True, False)
    assert len(model.calls) == 2 * WARMUP_CALLS + 6 + 5
    assert all(not training and inference for _, _, training, inference, _ in model.calls)
    assert {dtype for *_, dtype in model.calls} == {torch.float32}


def test_training_mode_comes_back_after_an_error() -> None:
    model = Sleeper(0)
    with pytest.raises(TypeError):
        measure_latency(model, {"unknown": ROW["input_ids"]}, BATCH, repeats=1, seconds=0)
    assert model.training
    assert model.linear.training


def test_bfloat16_runs_under_autocast() -> None:
    model = Sleeper(0)
    result = measure_latency(model, ROW, BATCH, dtype="bfloat16", repeats=2, seconds=0)
    assert result["dtype"] == "bfloat16"
    assert {dtype for *_, dtype in model.calls} == {torch.bfloat16}
    assert model.linear.weight.dtype == torch.float32


def test_models_take_turns_and_ratios_are_right() -> None:
    calls: list = []
    slow, fast = Sleeper(0.009, calls), Sleeper(0.003, calls)
    result = measure_models({"slow": (slow, ROW, BATCH), "fast": (fast, ROW, BATCH)}, repeats=8, seconds=0)
    order = [model is slow for model, rows, *_ in calls if rows == 1][2 * WARMUP_CALLS :]
    assert order == [True, False] * 8
    assert result["slow"]["latency_ms"]["p50"] / result["fast"]["latency_ms"]["p50"] == pytest.approx(3, rel=0.4)
    assert result["fast"]["throughput"] / result["slow"]["throughput"] == pytest.approx(3, rel=0.4)


def shapes(*sizes: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.zeros(size, dtype=torch.long)} for size in sizes]


def test_shapes_are_timed_in_turns_the_smallest_first() -> None:
    calls: list = []
    models = {"slow": Sleeper(0.004, calls), "fast": Sleeper(0.001, calls)}
    models["slow"].train()
    found = measure_shapes(models, shapes((32, 8), (1, 8), (4, 16)), seconds=60)
    for name in models:
        assert [(entry["batch_size"], entry["length"]) for entry in found[name]] == [(1, 8), (4, 16), (32, 8)]
    assert all(entry["ms"] >= 4 for entry in found["slow"])
    assert all(entry["ms"] >= 1 for entry in found["fast"])
    assert [size for _, size, *_ in calls] == [n for n in (1, 4, 32) for _ in range(2 * (1 + SHAPE_CALLS))]
    assert [model for model, *_ in calls] == [models["slow"], models["fast"]] * (3 * (1 + SHAPE_CALLS))
    assert all(not training and inference for _, _, training, inference, _ in calls)
    assert models["slow"].training


def test_shapes_that_would_take_too_long_are_left_out() -> None:
    model = Sleeper(0.02)  # at 1.25 ms a token: a call at 512 tokens would be 0.64 s, and it needs two
    found = measure_shapes({"model": model}, shapes((1, 8), (1, 16), (32, 16)), seconds=1.0)
    assert [entry["length"] for entry in found["model"]] == [8, 16]
    assert measure_shapes({"model": model}, [], seconds=1.0) == {"model": []}
