"""A metric as it was measured, or what two models differ by in it: value and interval, or a sentence on why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raydistill.config.metrics import Metric, metric
from raydistill.evaluate.intervals import gain

ABSENT = "-"


@dataclass(frozen=True)
class Figure:
    """{value, low, high} of a metric on some rows, each of which may be missing; comparisons with what is not known are
    false."""

    name: str
    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, name: str, found: Mapping[str, float | None] | None) -> Figure:
        """``found``: as results and comparisons have it; None: of a model that was not measured."""
        known = found or {}
        return cls(name, known.get("value"), known.get("low"), known.get("high"))

    @property
    def about(self) -> Metric:
        return metric(self.name)

    @property
    def has_interval(self) -> bool:
        return self.value is not None and self.low is not None and self.high is not None

    @property
    def why(self) -> str:
        """Which part of it is not defined, and why: ``AUC is not defined on these rows, because …``; empty where all is
        known."""
        if self.value is None:
            because = self.about.undefined or "they do not determine it"
            return f"{self.about.words} is not defined on these rows, because {because}"
        if not self.has_interval:
            return f"{self.about.words} has no interval, because hardly any resample of these rows defines it"
        return ""

    @property
    def text(self) -> str:
        """The value in a column with the metric's title."""
        return ABSENT if self.value is None else self.about.text(self.value)

    @property
    def said(self) -> str:
        """The value in a sentence."""
        return self.about.said(self.value)

    def bounds(self, between: str = " to ") -> str:
        """Both ends; empty where they are not known."""
        if self.low is None or self.high is None:
            return ""
        return f"{self.about.text(self.low)}{between}{self.about.text(self.high)}"

    # of a difference

    @property
    def gained(self) -> Figure:
        """The same, so that above 0 is better."""
        return Figure.of(self.name, gain(self.name, vars(self)))

    @property
    def is_better(self) -> bool:
        """Whether the second model is better beyond chance."""
        low = self.gained.low
        return low is not None and low > 0

    @property
    def is_worse(self) -> bool:
        high = self.gained.high
        return high is not None and high < 0

    @property
    def difference(self) -> str:
        """What two models differ by, in words for brackets, or why that is not known."""
        if not self.has_interval:
            return self.why
        return f"difference {self.about.amount(self.value)}, 95 % interval {self.bounds()}"
