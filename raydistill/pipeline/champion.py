"""The present champion in a run's table, from the predictions that its own run kept: no model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.results import ModelOutcome
from raydistill.tracking.registry import version_by_alias
from raydistill.tracking.registry.aliases import CHAMPION

if TYPE_CHECKING:
    from raydistill.tasks import Task
    from raydistill.tracking.runs import RunRef


def find_champion(
    name: str | None, ref: RunRef, test: Predictions, task: Task
) -> tuple[ModelOutcome | None, list[str]]:
    """The champion of the registered model ``name`` on the rows of ``test``, its outputs in the order of ``task``.

    None without a champion; None and a sentence where the champion's run has not seen these very rows as its test rows,
    or is of another task or other labels. Its speed is not known here: ``promote`` measures it. Raises TrackingError.
    """
    version = None if name is None else version_by_alias(name, CHAMPION, ref.tracking_uri)
    if version is None or not version.run_id or version.run_id == ref.run_id:
        return None, []
    from raydistill.evaluate.evidence import read_kept_predictions  # it loads torch

    kept = read_kept_predictions(version.run_id, ref.tracking_uri)
    found = None if kept is None else kept.aligned(test.hashes, task)
    if found is None or not {"num_parameters", "bytes"} <= version.tags.keys():
        return None, [
            f"The champion, version {version.version} of {name}, is not in the table: its run does not hold its "
            f"predictions of these test rows and labels. `raydistill promote {name}` measures both on the same rows."
        ]
    outcome = ModelOutcome(
        path=f"models:/{version.name}/{version.version}",
        num_parameters=int(float(version.tags["num_parameters"])),
        num_bytes=int(float(version.tags["bytes"])),
        task=found.tasks["student"],
        test=found.outputs["student"],
        version=version.version,
    )
    return outcome, []
