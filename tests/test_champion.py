"""The champion's column in the table of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registered import GOOD
from rich.console import Console
from toy import toy_config

from raydistill.artifacts import Storage
from raydistill.loading import load_config
from raydistill.pipeline import distill
from raydistill.registry.aliases import move_champion
from raydistill.report import results_table
from raydistill.tracking import open_client, tracking_uri

QUICK = GOOD | {"teacher__finetune__num_epochs": 2, "data__max_labeled": 60}


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return distill(load_config(toy_config(folder, **(QUICK | changes))))


def accuracy(model: dict[str, Any]) -> float:
    return float(model["test"]["accuracy"]["value"])


def test_it_is_compared_on_the_same_rows_without_its_model(tmp_path: Path) -> None:
    first = run(tmp_path)
    uri = tracking_uri(Storage(str(tmp_path / "storage")))
    assert first["champion"] is None
    move_champion("toy", 1, None, uri)
    second = run(tmp_path, train__seed=7, stages__distill__num_epochs=2)
    champion = second["champion"]
    assert champion["version"] == 1
    assert champion["path"] == "models:/toy/1"
    assert accuracy(champion) == pytest.approx(accuracy(first["student"]), abs=1e-6)
    assert champion["confusion"] == first["student"]["confusion"]
    assert champion["num_parameters"] == first["student"]["num_parameters"]
    assert champion["latency_ms"] is champion["validation"] is None
    difference = second["differences"]["student_minus_champion"]["accuracy"]
    assert difference["value"] == pytest.approx(accuracy(second["student"]) - accuracy(first["student"]), abs=1e-5)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert "The champion reaches" in second["verdict"]
    console = Console(width=100)
    with console.capture() as shown:
        console.print(results_table(second))
    assert "champion" in shown.get()
    assert open_client(uri).get_run(second["run_id"]).data.metrics["champion/test/accuracy"] == pytest.approx(
        accuracy(champion)
    )
    third = run(tmp_path, seed=3)  # cuts other rows off for the test
    assert third["champion"] is None
    assert any("version 1 of toy, is not in the table" in note for note in third["notes"])
