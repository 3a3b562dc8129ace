"""The ``registry`` and ``tracking`` sections: where runs and their models are kept."""

from __future__ import annotations

from pydantic import Field

from raydistill.config.section import MODEL_NAME_PATTERN, Section


class Registry(Section):
    """MLflow's model registry."""

    name: str | None = Field(default=None, pattern=MODEL_NAME_PATTERN, max_length=200)
    """Registered model that the student becomes a version of; none: the student is not registered."""
    challenger: bool = False
    """Give the new version the alias ``challenger`` also where it only guesses or is worse than the one that has it."""
    allow_diverged: bool = False
    """Register also a student whose training diverged."""


class Tracking(Section):
    """How the run appears in MLflow."""

    experiment: str = Field(default="raydistill", min_length=1, max_length=200)
    """MLflow experiment that the run belongs to."""
    run_name: str | None = None
    """Name of the run; by default it says what the run is: ``mood 2 layers kd+task``."""
    tags: dict[str, str] = Field(default={})
    """Tags of the run, to find it by."""
    system_metrics: bool = True
    """Also log the load of CPUs, memory, disk and GPUs."""
