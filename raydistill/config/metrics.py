"""All that is known of a metric without data: what it is called, its unit, which way is better. One table for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

NOT_DEFINED = "not defined"
"""What is said of a value that is not there."""


@dataclass(frozen=True)
class Metric:
    """The facts of a metric."""

    words: str
    """Its name for people."""
    is_share: bool = False
    """A share from 0 to 1, written in percent; any other is written as it is, with three digits."""
    lower_is_better: bool = False
    bounds: tuple[float, float] | None = None
    """Least and best value of a metric of right and wrong answers; None for one that measures amounts."""
    is_retained: bool = False
    """Higher is better and 0 is worthless, so that "the student keeps x % of its teacher" makes sense; or lower is
    better, and one model has x % more than another. Not so where good ones come near 0, as with the log loss."""
    undefined: str = ""
    """Why rows may not define it, as it is said of them after "because"; empty of one that all rows define."""
    hub: str | None = None
    """The hub's name for it, on a model card; None: cards leave it to the table."""
    hub_args: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_amount(self) -> bool:
        """Lower is better and there is no upper bound: two models differ by a factor, not by points."""
        return self.is_retained and self.lower_is_better

    def retention(self, value: float | None, teacher: float | None) -> float | None:
        """Student ÷ teacher, of an amount teacher ÷ student: 1 is as good, less is worse. None where one of them is not
        defined, or the divisor not above 0."""
        part, whole = (teacher, value) if self.is_amount else (value, teacher)
        if part is None or whole is None:
            return None
        return part / whole if whole > 0 and isfinite(part) else None

    @property
    def title(self) -> str:
        """With its unit, at the head of a row or a column."""
        return f"{self.words}, %" if self.is_share else self.words

    def text(self, value: float | None) -> str:
        """A value, or a difference of values, in the unit of ``title``; never "-0.0"."""
        if value is None or not isfinite(value):
            return NOT_DEFINED
        return f"{round(100 * value, 1) + 0.0:.1f}" if self.is_share else f"{round(value, 3) + 0.0:.3f}"

    def said(self, value: float | None) -> str:
        """A value for a sentence: in percent where the metric is a share."""
        return self._with(self.text(value), " %")

    def around(self, spread: Mapping[str, float | None]) -> str:
        """``87.0 ± 0.6``, of a mean and a standard deviation."""
        mean, sd = spread["mean"], spread["sd"]
        return NOT_DEFINED if mean is None or sd is None else f"{self.text(mean)} ± {self.text(sd)}"

    def said_around(self, spread: Mapping[str, float | None]) -> str:
        """The same for a sentence."""
        return self._with(self.around(spread), " %")

    def amount(self, difference: float | None) -> str:
        """A difference for a sentence: points where the metric is a share."""
        return self._with(self.text(difference), " points")

    def _with(self, text: str, unit: str) -> str:
        return text + unit if self.is_share and text != NOT_DEFINED else text


def _averages() -> dict[str, Metric]:
    names = {"precision": "precision", "recall": "recall", "f1": "F1"}
    return {
        f"{average}_{name}": Metric(
            f"{average} {words}",
            is_share=True,
            bounds=(0, 1),
            is_retained=name == "f1",
            hub=name,
            hub_args={"average": average},
        )
        for average in ("macro", "micro", "weighted")
        for name, words in names.items()
    }


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", is_share=True, bounds=(0, 1), is_retained=True, hub="accuracy"),
    **_averages(),
    "entity_precision": Metric("entity precision", is_share=True, bounds=(0, 1), hub="precision"),
    "entity_recall": Metric("entity recall", is_share=True, bounds=(0, 1), hub="recall"),
    "entity_f1": Metric("entity F1", is_share=True, bounds=(0, 1), is_retained=True, hub="f1"),
    "token_accuracy": Metric("token accuracy", is_share=True, bounds=(0, 1), is_retained=True, hub="accuracy"),
    "answer_f1": Metric("answer F1", is_share=True, bounds=(0, 1), is_retained=True, hub="f1"),
    "answer_exact_match": Metric("exact match", is_share=True, bounds=(0, 1), is_retained=True, hub="exact_match"),
    "has_answer_f1": Metric("F1 where there is an answer", is_share=True, bounds=(0, 1), is_retained=True),
    "no_answer_accuracy": Metric("right where there is none", is_share=True, bounds=(0, 1), is_retained=True),
    "exact_match": Metric("all labels right", is_share=True, bounds=(0, 1), is_retained=True, hub="exact_match"),
    "auc": Metric("AUC", bounds=(0, 1), is_retained=True, hub="roc_auc"),
    "mcc": Metric("MCC", bounds=(-1, 1), is_retained=True, hub="matthews_correlation"),
    "pearson": Metric("Pearson correlation", is_retained=True, hub="pearsonr"),
    "spearman": Metric("Spearman correlation", is_retained=True, hub="spearmanr"),
    "similarity_spearman": Metric("Spearman of similarities", is_retained=True),
    "neighbor_recall_1": Metric("recall@1 of neighbours", is_share=True, is_retained=True),
    "neighbor_recall_10": Metric("recall@10 of neighbours", is_share=True, is_retained=True),
    "cosine": Metric("cosine to the teacher", is_retained=True),
    "ndcg_10": Metric("nDCG@10", is_retained=True),
    "recall_1": Metric("recall@1", is_share=True, is_retained=True),
    "recall_10": Metric("recall@10", is_share=True, is_retained=True),
    "teacher_ndcg_10": Metric("nDCG@10, teacher's documents", is_retained=True),
    "teacher_recall_10": Metric("recall@10, teacher's documents", is_share=True, is_retained=True),
    "map": Metric("mAP", is_share=True, bounds=(0, 1), is_retained=True),
    "map_50": Metric("mAP at IoU 0.5", is_share=True, bounds=(0, 1), is_retained=True),
    "map_75": Metric("mAP at IoU 0.75", is_share=True, bounds=(0, 1), is_retained=True),
    "map_small": Metric("mAP of small objects", is_share=True, bounds=(0, 1), is_retained=True),
    "map_medium": Metric("mAP of medium objects", is_share=True, bounds=(0, 1), is_retained=True),
    "map_large": Metric("mAP of large objects", is_share=True, bounds=(0, 1), is_retained=True),
    "mar": Metric("mean recall", is_share=True, bounds=(0, 1), is_retained=True),
    "r2": Metric("R²", is_retained=True, hub="r_squared"),
    "rmse": Metric("RMSE", lower_is_better=True, is_retained=True, hub="mse", hub_args={"squared": "False"}),
    "mae": Metric("mean absolute error", lower_is_better=True, is_retained=True, hub="mae"),
    "masked_accuracy": Metric("masked accuracy", is_share=True, bounds=(0, 1), is_retained=True, hub="accuracy"),
    "perplexity": Metric("perplexity", lower_is_better=True, is_retained=True, hub="perplexity"),
    "log_loss": Metric("log loss", lower_is_better=True),
    "calibration_error": Metric("expected calibration error", lower_is_better=True),
}

_UNDEFINED = {
    "a label stands in all of them, or in none": ("auc",),
    "none of the labels stands in them": ("macro_f1", "macro_precision", "macro_recall"),
    "none of their questions has an answer": ("has_answer_f1",),
    "each of their questions has an answer": ("no_answer_accuracy",),
    "there is no score between their texts": ("pearson", "spearman"),
    "the teacher's vectors of them are not known": (
        *("similarity_spearman", "neighbor_recall_1", "neighbor_recall_10", "cosine"),
        *("teacher_ndcg_10", "teacher_recall_10"),
    ),
    "they are no queries with documents": ("ndcg_10", "recall_1", "recall_10"),
    "no such object is labelled in them": ("map", "map_50", "map_75", "map_small", "map_medium", "map_large", "mar"),
    "their targets are all the same": ("r2",),
}
for _why, _names in _UNDEFINED.items():
    METRICS |= {name: replace(METRICS[name], undefined=_why) for name in _names}


def metric(name: str) -> Metric:
    """The facts of a metric; of a name that is not in the table what its name says."""
    return METRICS.get(name, Metric(name.replace("_", " ")))


def capitalized(words: str) -> str:
    """The beginning of a line; nDCG and mAP stay as they are."""
    return words if words[1:2].isupper() else words[0].upper() + words[1:]


def score(name: str, values: Mapping[str, Any]) -> float:
    """The value of a metric among ``values``, turned so that higher is better."""
    return -float(values[name]) if metric(name).lower_is_better else float(values[name])
