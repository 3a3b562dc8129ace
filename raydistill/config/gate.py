"""The gate's limits, a file of its own: ``raydistill promote --gate``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raydistill.config.section import Section


class Gate(Section):
    """Limits of a promotion; null switches a rule off."""

    metric: Literal["accuracy", "macro_f1", "weighted_f1", "mcc"] = "accuracy"
    """What retention and non-inferiority compare."""
    min_retention: float | None = Field(default=0.95, gt=0)
    """Challenger ÷ its teacher, on rows for which the teacher's predictions are kept with the run."""
    non_inferiority_margin: float | None = Field(default=0.02, ge=0)
    """How far the metric may lie below the champion's: the lower end of the paired 95 % interval of the difference has
    to stay above minus this margin."""
    max_latency_ratio: float | None = Field(default=1.25, gt=0)
    """Latency of one row, challenger ÷ champion: the median over rounds in which each has its turn, in one process."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Size on disk of weights and config."""
    min_class_recall: float | None = Field(default=0.5, ge=0, le=1)
    """Share of each class's rows that has to be found; classes without a row are not judged."""
    max_calibration_error: float | None = Field(default=0.15, ge=0, le=1)
    """Expected calibration error, 15 bins."""
    max_leaked_rows: int | None = Field(default=0, ge=0)
    """Test rows whose text stood in the challenger's training or validation rows."""
    above_chance: bool = True
    """Refuse a model that is no better than always giving the most frequent label."""
    min_rows: int | None = Field(default=200, ge=1)
    """Labelled rows to judge on. From 190 on a challenger that never differs from the champion is shown to lie within
    the margin of 0.02; one that is worse by the margin passes in 2.5 % of the cases at most."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples behind the intervals of metrics other than accuracy."""
