"""The model registry, which is MLflow's: students, their versions, aliases and verdicts."""

from __future__ import annotations

from raydistill.registry.students import CHALLENGER, COMPLETE, DIGEST, log_student, register_student, write_model
from raydistill.registry.versions import Version, list_versions, resolve_model_uri, version_by_alias

__all__ = [
    "CHALLENGER",
    "COMPLETE",
    "DIGEST",
    "Version",
    "list_versions",
    "log_student",
    "register_student",
    "resolve_model_uri",
    "version_by_alias",
    "write_model",
]
