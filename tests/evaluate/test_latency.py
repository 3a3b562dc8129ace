"""Latency and throughput: counts, conditions, order, and ratios of models whose cost is known."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from raydistill.evaluate import latency
from raydistill.evaluate.latency import SHAPE_CALLS, WARMUP_CALLS, measure_models, measure_shapes

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


def measure_one(model: Any, inputs_1: Any, inputs_32: Any, **options: Any) -> dict[str, Any]:
    return measure_models({"model": (model, inputs_1, inputs_32)}, **options)["model"]


def test_known_times_and_conditions() -> None:
    result = measure_one(Sleeper(0.004), ROW, BATCH, repeats=20, seconds=0)
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


def test_time_budget_adds_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it for single rows and half for batches; what all models take is counted together."""
    now = [0.0]

    def call() -> None:
        now[0] += 0.125

    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for names in ("a", "ab"):
        calls = dict.fromkeys(names, (call, call))
        found = latency.time_calls(calls, torch.device("cpu"), repeats=2, seconds=2.0)
        assert found == dict.fromkeys(names, ([0.125] * 8, [0.125] * 8))


def test_summary_by_hand() -> None:
    row_times, picture = [i / 1000 for i in range(101)], {"pixel_values": torch.zeros(4, 3, 2, 2)}
    found = latency.summarize(row_times, [0.5, 1.0, 2.0], ROW, BATCH)
    assert found.pop("latency_ms") == pytest.approx({"p50": 50, "p95": 95})
    assert found == {"throughput": 32.0, "batch_size": 32, "length": 16, "repeats": 101}
    told = latency.summarize([1.0], [2.0, 4.0, 6.0], picture, picture)
    assert (told["throughput"], told["batch_size"], told["length"]) == (1.0, 4, None)


def test_calls_are_in_evaluation_and_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Sleeper(0)
    model.train()
    model.linear.eval()  # a frozen part
    monkeypatch.setattr(latency, "ATTEMPTS", 1)
    measure_one(model, ROW, BATCH, repeats=6, seconds=0)
    assert (model.training, model.linear.training) == (True, False)
    assert len(model.calls) == 2 * WARMUP_CALLS + 6 + 5
    assert all(not training and inference for _, _, training, inference, _ in model.calls)
    assert {dtype for *_, dtype in model.calls} == {torch.float32}


def test_training_mode_comes_back_after_an_error() -> None:
    model = Sleeper(0)
    with pytest.raises(TypeError):
        measure_one(model, {"unknown": ROW["input_ids"]}, BATCH, repeats=1, seconds=0)
    assert model.training
    assert model.linear.training


def test_bfloat16_runs_under_autocast() -> None:
    model = Sleeper(0)
    result = measure_one(model, ROW, BATCH, dtype="bfloat16", repeats=2, seconds=0)
    assert result["dtype"] == "bfloat16"
    assert {dtype for *_, dtype in model.calls} == {torch.bfloat16}
    assert model.linear.weight.dtype == torch.float32


def test_models_take_turns_and_ratios_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "ATTEMPTS", 1)
    calls: list = []
    slow, fast = Sleeper(0.06, calls), Sleeper(0.02, calls)
    result = measure_models({"slow": (slow, ROW, BATCH), "fast": (fast, ROW, BATCH)}, repeats=8, seconds=0)
    order = [model is slow for model, rows, *_ in calls if rows == 1][2 * WARMUP_CALLS :]
    assert order == [True, False] * 8
    assert result["slow"]["latency_ms"]["p50"] / result["fast"]["latency_ms"]["p50"] == pytest.approx(3, rel=0.4)
    assert result["fast"]["throughput"] / result["slow"]["throughput"] == pytest.approx(3, rel=0.4)


@pytest.mark.parametrize(
    ("shares", "measured", "kept"),
    [([0.05], 1, 0.05), ([0.6, 0.02], 2, 0.02), ([0.6, 0.3, 0.5], 3, 0.3)],
)
def test_on_busy_cores_it_measures_again_and_keeps_the_quietest(
    shares: list[float], measured: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = []
    for share in shares:  # before and after each measurement
        clock += [{"1": (5, 5)}, {"1": (5 + round(600 * (1 - share)), 5), "2": (400 * (1 - share), 1000 * share)}]
    reads, done = iter(clock), iter(range(9))
    monkeypatch.setattr(latency, "cpu_times", lambda: next(reads))
    found, waited = latency.quietest(lambda: next(done))
    assert next(done) == measured
    assert (waited, shares[found]) == pytest.approx((kept, kept))
    note = latency.busy_note([None, {"waited": waited}])
    assert (note is not None) == (kept > latency.BUSY)
    assert note is None or "30 % of the CPU time was not there" in note


def test_a_thread_that_finds_no_core_has_waited() -> None:
    if latency.cpu_times() is None:
        pytest.skip("this kernel does not count how long threads wait for a core")
    cores = sorted(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cores[0]}}}); print(flush=True)\nwhile True: pass"
    rival = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert rival.stdout is not None
        rival.stdout.readline()
        os.sched_setaffinity(0, cores[:1])  # this thread and the rival on one core
        before, until = latency.cpu_times(), time.perf_counter() + 0.5
        while time.perf_counter() < until:
            pass
        after = latency.cpu_times()
        assert latency.waited_share(before, after) > latency.BUSY
        assert latency.longest_wait(before, after) > 0.05  # of half a second
    finally:
        os.sched_setaffinity(0, cores)
        rival.kill()
        rival.communicate()


def test_who_waited_longest_is_the_delay_of_all() -> None:
    before, after = {"1": (0, 10**9), "2": (7, 0)}, {"1": (10**9, 3 * 10**9), "2": (10**9, 10**9), "3": (0, 1)}
    assert latency.longest_wait(before, after) == pytest.approx(2.0)
    assert latency.passed(before, after) == [(10**9, 2 * 10**9), (10**9 - 7, 10**9), (0, 1)]
    assert latency.longest_wait(None, None) == latency.waited_share(None, None) == 0  # without a count


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


def test_shapes_that_would_take_too_long_are_not_timed() -> None:
    model = Sleeper(0.02)  # at 1.25 ms a token: a call at 512 tokens would be 0.64 s, and it needs two
    found = measure_shapes({"model": model}, shapes((1, 8), (1, 16), (32, 16), (32, 32)), seconds=1.0)["model"]
    assert [(entry["batch_size"], entry["length"]) for entry in found] == [(1, 8), (1, 16), (32, 16), (32, 32)]
    assert [entry["ms"] is None for entry in found] == [False, False, True, True]
    assert measure_shapes({"model": model}, [], seconds=1.0) == {"model": []}
