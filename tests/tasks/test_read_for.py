"""Targets of other data than a finished model's own, in the order of its outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydistill.config.tasks import SECTIONS
from raydistill.errors import ModelError
from raydistill.tasks import Targets, Task, TextClassification, TextRegression
from raydistill.tasks.multi_label import MultiLabelClassification
from raydistill.tasks.text_classification.reading import known_classes, means_none

LABELS = ("art", "sport", "tax")


def read_for(task: Task, cells: list[Any], names: tuple[str, ...] | None = None) -> tuple[Any, list[str]]:
    """Values, None where there is no label, and notices."""
    raw = pa.chunked_array([pa.array(cells)])
    targets, notices = task.read_for(task.column(SECTIONS[task.type](), raw, "the column", None), names)
    known = zip(targets.values.tolist(), targets.labeled, strict=True)
    return [value if labeled else None for value, labeled in known], notices


def test_classes_by_name_case_and_number() -> None:
    assert read_for(TextClassification(LABELS), ["tax", "art"]) == ([2, 0], [])
    assert read_for(TextClassification(LABELS), ["TAX", "Art", None], ("Art", "SPORT", "TAX")) == ([2, 0, None], [])
    found, notices = read_for(TextClassification(("LABEL_0", "LABEL_1", "LABEL_2")), ["2", "0"], ("0", "1", "2"))
    assert found == [2, 0]
    assert notices
    found, notices = read_for(TextClassification(("neg", "pos")), [1, 1])
    assert found == [1, 1]
    assert "neg, pos" in notices[0]
    for labels, own in ((["2"], ("neg", "pos")), (["0"], ("1", "2")), (["pop"], ("neg", "poz"))):
        with pytest.raises(ModelError, match="labels the model does not know") as error:
            read_for(TextClassification(own), labels)
        assert "task.labels" not in str(error.value)


def test_minus_one_is_none_where_it_is_no_class() -> None:
    assert read_for(TextClassification(("0", "1")), [0, -1, 1]) == ([0, None, 1], ["The label -1 counts as none."])
    assert read_for(TextClassification(("-1", "1")), [1, -1]) == ([1, 0], [])
    assert means_none(["-1", "0"], None)
    assert not means_none(["-1", "0"], ("-1", "0"))
    assert not means_none(["-1", "1", None], None)
    assert known_classes({"10", "9", "-1"}) == ("-1", "9", "10")
    assert known_classes({"b", "a"}) == ("a", "b")


def test_several_labels_by_name_and_number() -> None:
    task = MultiLabelClassification(LABELS)
    assert read_for(task, ["tax, art", "sport", None]) == ([[1, 0, 1], [0, 1, 0], None], [])
    assert read_for(task, [["tax"], []])[0] == [[0, 0, 1], [0, 0, 0]]
    found, notices = read_for(task, [[0, 2], [1]])
    assert found == [[1, 0, 1], [0, 1, 0]]
    assert "art, sport, tax" in notices[0]
    with pytest.raises(ModelError, match="labels the model does not know: war"):
        read_for(task, [["tax", "war"]])


def test_numbers_are_taken_as_they_are() -> None:
    assert read_for(TextRegression(), ["1.5", "", "-2"]) == ([1.5, None, -2.0], [])


def test_targets_of_a_run_in_another_order() -> None:
    labeled = np.array([True, True, False])
    own = TextClassification(LABELS)
    targets, notices = TextClassification(("tax", "art", "sport")).translate(Targets(np.array([0, 2, 0]), labeled), own)
    assert (targets.values[:2].tolist(), targets.labeled.tolist(), notices) == ([1, 0], labeled.tolist(), [])
    few, _ = TextClassification(("tax", "art")).translate(Targets(np.array([0, 2, 0]), labeled), own)
    assert few.values[:2].tolist() == [1, 0]  # no row is of the class that the model lacks
    with pytest.raises(ModelError, match="labels the model does not know: sport"):
        TextClassification(("tax", "art")).translate(Targets(np.array([0, 1, 0]), labeled), own)

    rows = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], np.int8)
    several = MultiLabelClassification(LABELS)
    found, notices = MultiLabelClassification(("tax", "more", "art", "sport")).translate(
        Targets(rows, labeled), several
    )
    assert (found.values.tolist(), notices) == ([[1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]], [])
    with pytest.raises(ModelError, match="labels the model does not know: sport"):
        MultiLabelClassification(("tax", "art")).translate(Targets(rows, labeled), several)

    numbers = Targets(np.array([1.0, 2.0, 0.0]), labeled)
    assert TextRegression().translate(numbers, TextRegression(3.0, 2.0)) == (numbers, [])
