"""The champion's column in the table of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.registered import GOOD, NUM_ROWS, WORSE
from kit.toy import toy_config, write_toy_csv
from rich.console import Console

from raydistill.cli.show.results import registered, results_table
from raydistill.config.loading import load_config
from raydistill.evaluate import evidence
from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.figure import Figure
from raydistill.pipeline import rivals
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage
from raydistill.tasks import Targets
from raydistill.tasks.masked_language_modeling import MaskedLanguageModeling
from raydistill.tasks.targets import Ragged
from raydistill.tasks.text_classification import TextClassification
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion
from raydistill.tracking.registry.versions import Version
from raydistill.tracking.runs import RunRef, open_client

QUICK = GOOD | {"teacher__finetune__num_epochs": 2, "data__max_labeled": 60}


def run(folder: Path, **changes: Any) -> dict[str, Any]:
    return distill(load_config(toy_config(folder, **(QUICK | changes))))


def accuracy(model: dict[str, Any]) -> float:
    return float(model["test"]["accuracy"]["value"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_version_that_is_worse_is_registered_and_leaves_the_alias(tmp_path: Path) -> None:
    free: dict[str, Any] = {**GOOD, "registry__challenger": False}
    toy_config(tmp_path)
    write_toy_csv(tmp_path / "toy.csv", NUM_ROWS)
    uri = tracking_uri(Storage(str(tmp_path / "storage")))

    def holder() -> int:
        return int(open_client(uri).get_registered_model("toy").aliases["challenger"])

    first = run(tmp_path, **free)
    assert first["challenger"] == {"taken": True, "why": None}
    guessing = run(tmp_path, **(free | WORSE))
    assert (guessing["model_version"], guessing["challenger"]["taken"], holder()) == (2, False, 1)
    assert "no better than guessing" in guessing["challenger"]["why"]
    assert any("--challenger gives it the alias" in note for note in guessing["notes"])
    assert "version 2, without the alias challenger" in registered("toy", guessing)
    again = run(tmp_path, **(free | WORSE | {"registry__challenger": True}))
    assert (again["reused"], again["challenger"]["taken"], holder()) == (["run"], True, 2)


def test_a_challenger_is_compared_on_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(200) % 2
    hashes = tuple(f"{i:04x}" for i in range(200))
    tags: dict[str, dict[str, str]] = {"old": {}, "new": {}}

    def kept(wrong: int) -> Predictions:
        logits = {"student": np.eye(2)[np.where(np.arange(200) < wrong, 1 - labels, labels)]}
        task = TextClassification(("a", "b"))
        return Predictions(hashes, Targets(labels, np.ones(200, bool)), np.arange(200), logits, {"student": task})

    present = Version("toy", 4, "old", "", {}, ("challenger",), 0)
    monkeypatch.setattr(rivals, "version_by_alias", lambda *_: present)
    monkeypatch.setattr(rivals, "run_tags", lambda run_id, uri: tags[run_id])
    monkeypatch.setattr(evidence, "read_kept_predictions", lambda *_: kept(10))
    results = {"student": {"chance": {"reason": None}}, "task": {"main_metric": "accuracy"}}
    ref = RunRef("uri", "0", "new")

    def why(wrong: int) -> str | None:
        return rivals.why_not_challenger("toy", ref, results, kept(wrong))

    assert why(5) is why(10) is why(12) is None  # one point worse: not measurable
    assert "version 4, which has it, has the better accuracy, by 10.0 points" in str(why(30))
    tags["old"][rivals.SWEEP] = "key"
    assert "version 4, which won a sweep, has the better accuracy, by 1.0 points" in str(why(12))
    tags["new"][rivals.SWEEP] = "key"
    assert why(12) is None


def test_a_rival_that_guessed_other_tokens_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked language models of the same documents, by another tokenizer or length of rows."""
    task = MaskedLanguageModeling()

    def kept(places: list[list[int]], nats: float = 1.0) -> Predictions:
        hidden = Ragged(np.array(places, np.int32), np.array([1, len(places) - 1]))
        said = Ragged(np.tile([-nats, 9, -nats], (len(places), 1)).astype(np.float32), hidden.lengths)
        labeled = Targets(hidden, np.ones(2, bool))
        return Predictions(("a", "b"), labeled, np.arange(2), {"student": said}, {"student": task})

    own = kept([[0, 3, 5], [4, 7, 6], [9, 12, 7]])
    version = Version("toy", 4, "old", "", {}, ("champion",), 0)
    for places in ([[0, 3, 5], [4, 7, 8], [9, 12, 7]], [[0, 3, 5], [4, 7, 6]]):
        monkeypatch.setattr(evidence, "read_kept_predictions", lambda *_, p=places: kept(p))
        assert rivals.kept_predictions(version, RunRef("uri", "0", "new"), own, task) is None
    monkeypatch.setattr(evidence, "read_kept_predictions", lambda *_: kept([[0, 3, 5], [4, 7, 6], [9, 12, 7]], 2.0))
    found = rivals.kept_predictions(version, RunRef("uri", "0", "new"), own, task)
    assert found is not None
    assert found.outputs["student"].flat[:, 0].tolist() == [-2.0] * 3


@pytest.mark.parametrize(
    ("own", "other", "ahead", "won", "stays"),
    [
        ((0.8,) * 3, (0.8,) * 3, (0.0, -0.01, 0.01), False, False),
        ((0.8,) * 3, (0.8,) * 3, (0.0, -0.01, 0.01), True, False),  # as good as a sweep's winner: it is reached
        ((0.7,) * 3, (0.8,) * 3, (0.1, -0.01, 0.2), True, True),
        ((0.7,) * 3, (0.8,) * 3, (0.1, -0.01, 0.2), False, False),
        ((0.7,) * 3, (0.8,) * 3, (0.1, 0.0, 0.2), False, False),  # 0 is within: it may be chance
        ((0.7,) * 3, (0.8,) * 3, (0.1, 0.01, 0.2), False, True),
        ((None,) * 3, (0.8,) * 3, (None,) * 3, False, True),
        ((0.8,) * 3, (None,) * 3, (None,) * 3, True, False),
        ((None,) * 3, (None,) * 3, (None,) * 3, True, False),
        ((0.7,) * 3, (0.8,) * 3, (0.1, None, None), False, False),
        ((0.7,) * 3, (0.8,) * 3, (0.1, None, None), True, True),
    ],
)
def test_who_stays_behind_a_challenger(own: Any, other: Any, ahead: Any, won: bool, stays: bool) -> None:
    figures = (Figure("accuracy", *values) for values in (own, other, ahead))
    assert (rivals.why_behind("version 4, which has it,", *figures, won) is not None) == stays


@pytest.mark.slow
def test_a_finished_run_goes_into_an_mlflow_store_that_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {"teacher__finetune__num_epochs": 0.5, "stages__distill__num_epochs": 0.5, "evaluate__baseline": False}
    free: dict[str, Any] = {**quick, "registry__challenger": False}
    toy_config(tmp_path)
    first = distill(load_config(toy_config(tmp_path, **free)))
    assert not first["challenger"]["taken"]  # its student guesses
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = open_client(uri)
    client.create_registered_model("toy")
    stranger = client.create_model_version("toy", (tmp_path / "theirs").as_uri())  # version 1, as the run's own is

    said: list[str] = []
    show: Any = lambda entry: said.append(entry.get("note", ""))  # noqa: E731
    config = load_config(toy_config(tmp_path, **quick))
    moved = distill(config, progress=show)
    assert any("does not have this run's version of toy" in note for note in said)
    assert {"student", "teacher"} <= set(moved["reused"])
    version = client.get_model_version_by_alias("toy", "challenger")
    assert (version.version, version.run_id) == (moved["model_version"], moved["run_id"])
    assert version.version != stranger.version
    assert client.get_run(moved["run_id"]).data.metrics["test/accuracy"] == pytest.approx(accuracy(first["student"]))
    kept = {file.path for file in client.list_artifacts(moved["run_id"])}
    assert {"student", "results.json", "report.html"} <= kept
    again = distill(config)
    assert (again["reused"], again["run_id"]) == (["run"], moved["run_id"])
