"""Latency and throughput: counts, conditions, order, and ratios of models whose cost is known."""

import time

import pytest
import torch
from torch import nn

from raydistill.evaluate.latency import WARMUP_CALLS, measure_latency, measure_models

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
    start = time.perf_counter()
    result = measure_latency(model, ROW, BATCH, repeats=2, seconds=0.3)
    assert result["repeats"] > 20
    assert 0.3 <= time.perf_counter() - start < 10


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
