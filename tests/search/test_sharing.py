"""What all trials of a sweep share: shapes that are told apart by all that makes them large or slow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.tiny import save_tiny, tiny_config
from kit.toy import sweep_config

from raydistill.models.fields import set_dropout_config
from raydistill.models.shape import count_parameters
from raydistill.search import sharing
from raydistill.search.sharing import Judge, Shape, shape_key, shape_name, shapes_of

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
