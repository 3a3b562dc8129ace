"""The present champion in a run's table, from the predictions that its own run kept: no model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydistill.evaluate.compare import Predictions
from raydistill.evaluate.results import ModelOutcome
from raydistill.tracking.registry import version_by_alias
from raydistill.tracking.registry.aliases import CHAMPION

if TYPE_CHECKING:
    from raydistill.tracking.runs import RunRef


def find_champion(
    name: str | None, ref: RunRef, test: Predictions, labels: tuple[str, ...]
) -> tuple[ModelOutcome | None, list[str]]:
    """The champion of the registered model ``name`` on the rows of ``test``, its classes in the order of ``labels``.

    None without a champion; None and a sentence where the champion's run has not seen these very rows as its test rows,
    or has other labels. Its speed is not known here: ``promote`` measures it. Raises TrackingError.
    """
    version = None if name is None else version_by_alias(name, CHAMPION, ref.tracking_uri)
    if version is None or not version.run_id or version.run_id == ref.run_id:
        return None, []
    from raydistill.evaluate.evidence import read_kept_predictions  # it loads torch

    kept = read_kept_predictions(version.run_id, ref.tracking_uri)
    logits = None
    if kept is not None and set(kept.class_names) == set(labels):
        logits = kept.of_rows("student", test.hashes, labels)
    if logits is None or not {"num_parameters", "bytes"} <= version.tags.keys():
        return None, [
            f"The champion, version {version.version} of {name}, is not in the table: its run does not hold its "
            f"predictions of these test rows and labels. `raydistill promote {name}` measures both on the same rows."
        ]
    outcome = ModelOutcome(
        path=f"models:/{version.name}/{version.version}",
        num_parameters=int(float(version.tags["num_parameters"])),
        num_bytes=int(float(version.tags["bytes"])),
        test=logits,
        version=version.version,
    )
    return outcome, []
