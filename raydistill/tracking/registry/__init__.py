"""The model registry, which is MLflow's: students, their versions, aliases and verdicts."""

from __future__ import annotations

from raydistill.tracking.registry.students import (
    CHALLENGER,
    COMPLETE,
    DIGEST,
    log_student,
    name_challenger,
    register_student,
    write_model,
)
from raydistill.tracking.registry.versions import (
    Version,
    existing_store,
    known_versions,
    list_versions,
    model_names,
    open_store,
    resolve_model_uri,
    run_file,
    run_tags,
    version_by_alias,
    version_named,
)

__all__ = [
    "CHALLENGER",
    "COMPLETE",
    "DIGEST",
    "Version",
    "existing_store",
    "known_versions",
    "list_versions",
    "log_student",
    "model_names",
    "name_challenger",
    "open_store",
    "register_student",
    "resolve_model_uri",
    "run_file",
    "run_tags",
    "version_by_alias",
    "version_named",
    "write_model",
]
