"""A gate's verdict in MLflow: a run with its report, and tags on the version that was judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import artifact_location
from raydistill.tracking.listing import KIND
from raydistill.tracking.registry.versions import Version, find_run
from raydistill.tracking.runs import (
    create_run,
    experiment_named,
    log_figures,
    open_client,
    reported,
    set_tags,
    set_version_tags,
)

VERDICT = "raydistill.gate"
MAX_TAG_LENGTH = 5000
EXPERIMENT = "raydistill"
"""Where verdicts on versions without a run of their own go."""


def store_verdict(verdict: Mapping[str, Any], version: Version, files: Path, uri: str, storage: Storage) -> str:
    """Log the verdict with the folder ``files`` as a run beside the version's own, then tag the version; the run's id.

    Raises TrackingError.
    """
    rules = {rule["name"]: [rule["value"], rule["limit"], rule["verdict"]] for rule in verdict["rules"]}
    facts = {
        KIND: "gate",
        "raydistill.verdict": verdict["verdict"],
        "raydistill.model": version.name,
        "raydistill.model_version": str(version.version),
        "raydistill.champion": str(verdict["champion"] or ""),
        "raydistill.challenger_run": version.run_id,
    }
    with reported(uri):
        client = open_client(uri)
        judged = find_run(version.run_id, uri) if version.run_id else None
        if judged is not None:
            experiment = judged.info.experiment_id
        else:
            experiment = experiment_named(client, EXPERIMENT, artifact_location(uri, storage))
        run_id = create_run(client, experiment, f"gate {version.name} {version.version}", facts)
        values = {f"gate/{name}": float(value) for name, (value, _, _) in rules.items() if value is not None}
        log_figures(client, run_id, values)
        client.log_artifacts(run_id, str(files))
        set_tags(client, run_id, {"raydistill.sentence": verdict["sentence"][:MAX_TAG_LENGTH]})
        client.set_terminated(run_id, "FINISHED")
        judged_as = {
            VERDICT: verdict["verdict"],
            f"{VERDICT}_time": verdict["time"],
            f"{VERDICT}_run": run_id,
            f"{VERDICT}_reason": (verdict["reason"] or "")[:MAX_TAG_LENGTH],
            f"{VERDICT}_against": str(verdict["champion"] or ""),
            f"{VERDICT}_rules": json.dumps(rules)[:MAX_TAG_LENGTH],
        }
        set_version_tags(client, version.name, version.version, judged_as)
    return run_id


def amend_verdict(verdict: Mapping[str, Any], files: Path, uri: str) -> str:
    """Put what came of a stored verdict in its place: the folder ``files`` and the sentence. Raises TrackingError."""
    run_id = str(verdict["run_id"])
    with reported(uri):
        client = open_client(uri)
        client.log_artifacts(run_id, str(files))
        set_tags(client, run_id, {"raydistill.sentence": verdict["sentence"][:MAX_TAG_LENGTH]})
    return run_id
