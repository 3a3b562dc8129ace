"""Latency of one row and throughput of a batch, measured so that the ratio of two models is fair.

Models take turns call by call: a clock that drops or a neighbour that wakes up hits all of them. On two busy cores the
p50 ratio of two equal models strayed by up to 2 % this way, and by up to 100 % when one was measured after the other.
The figures themselves are too high on busy cores: what part of the CPU time it asked for the process did not get stands
beside them, and where that is much they are measured again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

WARMUP_CALLS = 3
SECONDS_PER_MODEL = 1.0
# A batch has one number, its median; five calls are enough for that where a p95 needs at least twenty.
MIN_BATCH_CALLS = 5
SHAPE_CALLS = 5
SECONDS_FOR_SHAPES = 2.5
BUSY = 0.1
"""Share of the CPU time asked for that was not there, above which latencies are measured again, and then doubted."""
ATTEMPTS = 3

Inputs = Mapping[str, "torch.Tensor"]


def measure_models(
    models: Mapping[str, tuple[nn.Module, Inputs, Inputs]],
    *,
    dtype: str = "float32",
    repeats: int = 20,
    seconds: float = SECONDS_PER_MODEL,
) -> dict[str, dict[str, Any]]:
    """Time forward passes of several models in turn, each with inputs of one row and of one batch (name -> tensor).

    A model is called at least ``repeats`` times with one row, five times with the batch, and for about ``seconds``
    altogether. With dtype ``bfloat16`` a float32 model runs under autocast. Training mode is restored afterwards.

    Returns for each model ``latency_ms`` {p50, p95} (milliseconds, one row), ``throughput`` (rows a second, batch), and
    the conditions ``batch_size``, ``length`` (tokens), ``repeats`` (calls with one row), ``waited`` (share, see
    ``quietest``), ``threads``, ``device``, ``dtype``.
    """
    import torch

    device = next(next(iter(models.values()))[0].parameters()).device
    calls = {
        name: (partial(model, **_on_device(one, device)), partial(model, **_on_device(batch, device)))
        for name, (model, one, batch) in models.items()
    }
    with _evaluating([model for model, _, _ in models.values()], device, dtype):
        times, waited = quietest(lambda: time_calls(calls, device, repeats=repeats, seconds=seconds))
    conditions = {"waited": waited, "threads": torch.get_num_threads(), "device": device.type, "dtype": dtype}
    return {name: summarize(*times[name], one, batch) | conditions for name, (_, one, batch) in models.items()}


def measure_shapes(
    models: Mapping[str, nn.Module],
    shapes: Iterable[Inputs],
    *,
    dtype: str = "float32",
    seconds: float = SECONDS_FOR_SHAPES,
) -> dict[str, list[dict[str, Any]]]:
    """Time forward passes of several models in turn at each shape: inputs (B, L), or pictures, which have no length,
    the fewest tokens first.

    A shape gets a call to warm up and five that count, fewer where time runs out. Once a shape would take more than is
    left of ``seconds``, judged by the best time per token so far, it and the larger ones are not timed.
    Returns for each model a list of {batch_size, length, ms}: median ms of a call, None where it is not timed.
    """
    device = next(next(iter(models.values())).parameters()).device
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in models}
    left, per_token = seconds, 0.0
    is_over = False
    with _evaluating(list(models.values()), device, dtype):
        for shape in sorted(shapes, key=lambda inputs: next(iter(inputs.values())).numel()):
            first = next(iter(shape.values()))
            tokens, batch_size = first.numel(), len(first)
            length = first.shape[1] if first.dim() == 2 else None
            is_over = is_over or 2 * per_token * tokens > left
            if is_over:
                for timed in found.values():
                    timed.append({"batch_size": batch_size, "length": length, "ms": None})
                continue
            inputs = _on_device(shape, device)
            calls = {name: partial(model, **inputs) for name, model in models.items()}
            once = _seconds(take_turns(calls, device, 1, 0.0, warmup_calls=0))
            affordable = max(1, int(left / once) - 1)
            times = take_turns(calls, device, min(SHAPE_CALLS, affordable), 0.0, warmup_calls=0)
            left -= once + _seconds(times)
            medians = {name: float(np.median(taken)) for name, taken in times.items()}
            per_token = min(per_token or math.inf, sum(medians.values()) / tokens)
            for name, median in medians.items():
                found[name].append({"batch_size": batch_size, "length": length, "ms": 1000 * median})
    return found


T = TypeVar("T")


def quietest(measure: Callable[[], T]) -> tuple[T, float]:
    """What ``measure`` returns, and the share of the CPU time it asked for that others had (0 to 1).

    Above BUSY it is done again, up to ATTEMPTS times; the least disturbed counts.
    """
    found: list[tuple[float, T]] = []
    while len(found) < ATTEMPTS and (not found or min(share for share, _ in found) > BUSY):
        before = cpu_times()
        measured = measure()
        found.append((waited_share(before, cpu_times()), measured))
    share, measured = min(found, key=lambda pair: pair[0])
    return measured, share


Times = Mapping[str, tuple[int, int]]


def cpu_times() -> Times | None:
    """Nanoseconds that each thread of this process has run, and that it was ready to run and had no core.

    From Linux's accounting, which looks at this process alone; None where there is none.
    """
    found = {}
    with suppress(OSError, ValueError):
        for thread in os.listdir("/proc/self/task"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                ran, waited, _ = Path("/proc/self/task", thread, "schedstat").read_text().split()
                found[thread] = int(ran), int(waited)
    return found if any(ran for ran, _ in found.values()) else None


def passed(before: Times, after: Times) -> list[tuple[int, int]]:
    """What each thread has run and waited in between."""
    starts = {thread: before.get(thread, (0, 0)) for thread in after}
    return [(ran - starts[thread][0], waited - starts[thread][1]) for thread, (ran, waited) in after.items()]


def waited_share(before: Times | None, after: Times | None) -> float:
    """Share of the CPU time asked for in between that was not there; 0 without a count."""
    if before is None or after is None:
        return 0.0
    ran, waited = (sum(times) for times in zip(*passed(before, after), strict=True))
    return waited / (ran + waited) if ran + waited > 0 else 0.0


def longest_wait(before: Times | None, after: Times | None) -> float:
    """Seconds that the thread waited which waited longest: so much later all of them were done. 0 without a count."""
    if before is None or after is None:
        return 0.0
    return max(waited for _, waited in passed(before, after)) / 1e9


def busy_note(settings: Iterable[Mapping[str, Any] | None]) -> str | None:
    """A sentence where models with these latency settings were measured on busy cores."""
    waited = max((setting.get("waited") or 0.0 for setting in settings if setting), default=0.0)
    if waited <= BUSY:
        return None
    return (
        f"Latencies are too high: other work held the cores while they were measured, {100 * waited:.0f} % of the CPU "
        "time was not there. `raydistill compare` measures them again."
    )


def of_tokens(setting: Mapping[str, Any]) -> str:
    """How long the rows were on which a latency was measured, as it is said behind their number; pictures have no
    length."""
    return f", of {setting['length']} tokens" if setting.get("length") else ""


Call = Callable[[], object]


def time_calls(
    calls: Mapping[str, tuple[Call, Call]],
    device: torch.device,
    *,
    repeats: int = 20,
    seconds: float = SECONDS_PER_MODEL,
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each call with one row, and of each with a batch, by name; the names take turns, call by call."""
    budget = seconds / 2 * len(calls)
    row_times = take_turns({name: row for name, (row, _) in calls.items()}, device, repeats, budget)
    batches = {name: batch for name, (_, batch) in calls.items()}
    batch_times = take_turns(batches, device, min(repeats, MIN_BATCH_CALLS), budget)
    return {name: (row_times[name], batch_times[name]) for name in calls}


def take_turns(
    calls: Mapping[str, Call],
    device: torch.device,
    min_calls: int,
    budget: float,
    *,
    warmup_calls: int = WARMUP_CALLS,
) -> dict[str, list[float]]:
    """Seconds of each call, name by name in turn, until both min_calls and the budget (seconds) are reached."""
    for call in calls.values():
        for _ in range(warmup_calls):
            call()
    _synchronize(device)
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent, rounds = 0.0, 0
    while rounds < min_calls or spent < budget:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            _synchronize(device)
            times[name].append(time.perf_counter() - start)
            spent += times[name][-1]
        rounds += 1
    return times


def _seconds(times: Mapping[str, list[float]]) -> float:
    return sum(map(sum, times.values()))


def summarize(row_times: list[float], batch_times: list[float], row: Inputs, batch: Inputs) -> dict[str, Any]:
    """``latency_ms``, ``throughput`` and the shapes they belong to, from seconds of each call."""
    p50, p95 = np.percentile(row_times, [50, 95]) * 1000
    batch_size = len(next(iter(batch.values())))
    shape = next(iter(row.values())).shape
    return {
        "latency_ms": {"p50": float(p50), "p95": float(p95)},
        "throughput": batch_size / float(np.median(batch_times)),
        "batch_size": batch_size,
        "length": shape[1] if len(shape) == 2 else None,
        "repeats": len(row_times),
    }


def _on_device(inputs: Inputs, device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def _synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU has."""
    import torch

    if device.type != "cpu":
        module = torch.accelerator if hasattr(torch, "accelerator") else getattr(torch, device.type)
        module.synchronize()


@contextmanager
def _evaluating(models: list[nn.Module], device: torch.device, dtype: str) -> Iterator[None]:
    """Evaluation and inference mode inside, in ``dtype``; afterwards every submodule is as it was (a frozen part may
    be in another mode)."""
    import torch

    bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    training = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode(), bfloat16:
            yield
    finally:
        for module, mode in training:
            module.training = mode
