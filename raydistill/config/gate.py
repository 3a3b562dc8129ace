"""The gate's limits, a file of its own: ``raydistill promote --gate``."""

from __future__ import annotations

from pydantic import Field

from raydistill.config.metrics import METRICS, metric
from raydistill.config.section import Mistake, Section


class Gate(Section):
    """Limits of a promotion; null switches a rule off."""

    metric: str | None = None
    """What retention and non-inferiority compare; by default the task's main metric."""
    min_retention: float | None = Field(default=0.95, gt=0)
    """Challenger ÷ its teacher, on rows for which the teacher's predictions are kept with the run; of perplexity, RMSE
    and mean absolute error, which are better the lower they are, its teacher ÷ challenger."""
    non_inferiority_margin: float | None = Field(default=0.02, ge=0)
    """How far the metric may lie below the champion's: the lower end of the paired 95 % interval of the difference has
    to stay above minus this margin. Perplexity, RMSE and mean absolute error have no upper bound, so it is a share of
    the champion's: the upper end of the interval of challenger ÷ champion has to stay at 1 + margin (0.02: 2 %)."""
    max_latency_ratio: float | None = Field(default=1.25, gt=0)
    """Latency of one row, challenger ÷ champion: the median over rounds in which each has its turn, in one process."""
    max_bytes: int | None = Field(default=None, ge=1)
    """Size on disk of weights and config."""
    min_class_recall: float | None = Field(default=0.5, ge=0, le=1)
    """Share of each class's, or label's, rows that has to be found."""
    min_class_rows: int = Field(default=10, ge=1)
    """Classes, or labels, with fewer rows are not judged by it: of two rows one is missed by chance. Of 10 rows of a
    class of which 70 % are found a model misses more than half in 5 of 100 cases, of 5 rows in 16."""
    max_calibration_error: float | None = Field(default=0.15, ge=0, le=1)
    """Expected calibration error, 15 bins; of tasks that have one."""
    max_leaked_rows: int | None = Field(default=0, ge=0)
    """Test rows whose text stood in the challenger's training or validation rows."""
    above_chance: bool = True
    """Refuse a model that is no better than one that does not look at its input."""
    min_rows: int | None = Field(default=200, ge=1)
    """Labelled rows to judge on. From 190 on a challenger that never differs from the champion is shown to lie within
    the margin of 0.02; one that is worse by the margin passes in 2.5 % of the cases at most."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples behind the intervals of metrics that are no share of right answers."""

    def mistakes(self) -> list[Mistake]:
        known = [name for name, about in METRICS.items() if about.is_retained]
        if self.metric is None or self.metric in known:
            return []
        near = ": good models come near 0, where a ratio of two says nothing" * metric(self.metric).lower_is_better
        return [(("metric",), f"{self.metric!r} is not compared{near}. Known: {', '.join(known)}.")]
