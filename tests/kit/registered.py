"""A registry with three versions of a toy student, a look at its aliases, and what a gate says of a version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from kit.toy import toy_config, write_toy_csv
from raydistill.config.gate import Gate
from raydistill.config.loading import load_config
from raydistill.deploy.gate.promotion import promote
from raydistill.pipeline.distill import distill
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import tracking_uri
from raydistill.tracking.registry.aliases import move_champion

# 48 test rows: intervals are wide, and tiny models are slow or fast by chance
LENIENT = Gate(non_inferiority_margin=0.2, max_latency_ratio=20.0, max_calibration_error=0.5, min_rows=48)


GOOD = {
    "data__max_labeled": 240,
    "teacher__finetune__num_epochs": 10,
    "student__num_layers": 3,
    "stages__distill__num_epochs": 5,
    "evaluate__baseline": False,
}
WORSE = {"stages__distill__num_epochs": 0.1, "stages__distill__learning_rate": 1e-6, "student__start": "random"}
NUM_ROWS, NUM_TEST = 480, 48


def make_life(folder: Path, **more: str) -> Path:
    """A storage with three versions of ``toy``: 1 and 3 have learned (77 and 79 % right), 2 has not (25 %)."""
    toy_config(folder)
    write_toy_csv(folder / "toy.csv", NUM_ROWS)
    for changes in ({}, WORSE, {"train__seed": 7}):
        distill(load_config(toy_config(folder, **(GOOD | changes | more))))
    return folder


def client(place: Storage) -> MlflowClient:
    return MlflowClient(tracking_uri=tracking_uri(place))


def aliases(place: Storage, name: str = "toy") -> dict[str, int]:
    found = client(place).get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def judge_version(storage: Path, gate: Gate, version: int, champion: int | None, **more: Any) -> Any:
    """What the gate says of a version of ``toy`` against another, which is the champion for as long."""
    place = Storage(str(storage))
    if champion is not None:
        move_champion("toy", champion, None, tracking_uri(place))
    try:
        return promote("toy", version=version, gate=gate, storage=str(storage), dry_run=True, **more)
    finally:
        if champion is not None:
            client(place).delete_registered_model_alias("toy", "champion")


def verdicts(found: dict[str, Any]) -> dict[str, str]:
    return {rule["name"]: rule["verdict"] for rule in found["rules"]}
