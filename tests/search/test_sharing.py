"""What all trials of a sweep share: shapes that are told apart by all that makes them large or slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.processes import KEY, fill
from kit.tiny import save_tiny, tiny_config
from kit.toy import sweep_config

from raydistill.models.fields import set_dropout_config
from raydistill.models.shape import count_parameters
from raydistill.models.signals import Signal
from raydistill.search import sharing
from raydistill.search.sharing import (
    Judge,
    Shape,
    Shared,
    load_shared,
    save_shared,
    shape_key,
    shape_name,
    shapes_of,
)
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage

FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert")


def test_students_of_other_families_are_other_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders of one size by layers, width and heads differ in parameters and in time."""
    folders = {family: str(save_tiny(tmp_path / family, family)) for family in FAMILIES}
    config = sweep_config(tmp_path, {"student.start": {"choice": [*folders.values()]}}, student__num_layers=2)
    teacher = tiny_config("bert")
    shapes = shapes_of(config, teacher)
    sizes = {key: count_parameters(shaped) for key, shaped in shapes.items()}
    assert len(shapes) == len(set(sizes.values())) == len(FAMILIES)
    assert len({shape_name(shaped) for shaped in shapes.values()}) == len(FAMILIES)

    timed = [
        Shape(shape_name(shapes[key]), key, size, {"latency_ms": {"p50": float(size)}}) for key, size in sizes.items()
    ]
    shared: Any = SimpleNamespace(shapes=timed, job=None, teacher=SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(sharing, "driver_context", lambda job: SimpleNamespace(read_config=lambda folder: teacher))
    judge = Judge(config, shared)
    facts = [judge({"student.start": folder}).facts for folder in folders.values()]
    assert sorted(fact["latency_ms"] for fact in facts) == sorted(map(float, sizes.values()))
    assert all(fact["latency_ms"] == fact["num_parameters"] for fact in facts)


@pytest.mark.parametrize(
    ("change", "is_another"),
    [
        ({"num_attention_heads": 2}, True),
        ({"num_hidden_layers": 3}, True),
        ({"vocab_size": 99}, True),
        ({"intermediate_size": 32}, True),
        ({"_name_or_path": "elsewhere"}, False),
    ],
)
def test_what_makes_another_shape(change: dict[str, Any], is_another: bool) -> None:
    config, other = tiny_config("bert"), tiny_config("bert")
    for name, value in change.items():
        setattr(other, name, value)
    set_dropout_config(other, 0.4)  # takes no time where a model answers
    assert (shape_key(config) != shape_key(other)) == is_another
    assert (shape_name(config) != shape_name(other)) == (is_another and "vocab_size" not in change)


def test_a_resumed_sweep_does_not_take_damaged_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not loaded, they are looked through, and recorded again where they are damaged, with all that is missing."""
    storage = Storage(str(tmp_path))
    signals = fill(Artifact(storage, "signals", KEY), "signals")
    job = StandIn(storage)
    teacher: Any = SimpleNamespace(artifact=None, members=())
    monkeypatch.setattr(sharing.recipes, "identify_teachers", lambda config, artifacts: teacher)
    save_shared(Shared(job, teacher, {Signal("logits"): signals}, (), 10, {}, (), ()))  # type: ignore[arg-type]
    assert load_shared(job) is not None  # type: ignore[arg-type]
    name, info = next(iter(signals.manifest().files.items()))
    path = Path(storage.path("signals", KEY, name))
    path.write_bytes(bytes(info.bytes))  # of the same size
    assert load_shared(job) is None  # type: ignore[arg-type]


def test_what_all_trials_share_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several teachers those that were fine-tuned are named; one whose shape is told by its name alone is old."""
    storage = Storage(str(tmp_path))
    tuned, signals = fill(Artifact(storage, "teacher", KEY)), fill(Artifact(storage, "signals", KEY), "signals")
    job, asked = StandIn(storage), list[Any]()
    members = (SimpleNamespace(artifact=tuned), SimpleNamespace(artifact=None))
    teacher: Any = SimpleNamespace(artifact=None, members=members)
    monkeypatch.setattr(sharing.recipes, "identify_teachers", lambda config, made: asked.append(made) or teacher)
    shapes = (Shape("2 layers", "a", 5, None), Shape("3 layers", "b", 7, {"latency_ms": {"p50": 1.5}}))
    shared: Any = Shared(job, teacher, {Signal("logits"): signals}, shapes, 10, {"record": 3.0}, ("teacher",), ("so",))  # type: ignore[arg-type]
    save_shared(shared)
    found = load_shared(job)  # type: ignore[arg-type]
    assert found is not None
    assert asked == [[tuned, None]]
    assert (found.signals, found.shapes, found.rows) == (shared.signals, shapes, 10)
    assert (found.seconds, found.reused, found.notes) == ({}, ("teacher", "teacher", "signals"), ("so",))
    content = storage.read_json(*job.run_parts, "shared.json")
    del content["shapes"][1]["key"]
    storage.write_json(content, *job.run_parts, "shared.json")
    assert load_shared(job) is None  # type: ignore[arg-type]
    save_shared(shared)
    tuned.delete()
    assert load_shared(job) is None  # type: ignore[arg-type]


@dataclass
class StandIn:
    """Of a job what is looked at."""

    storage: Storage
    run_parts: tuple[str, ...] = ("runs", "key")
    config: Any = None
    run: Any = None
