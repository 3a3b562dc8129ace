"""The ``evaluate`` section: what is measured at the end of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.section import Section, form_of


class Baseline(Section):
    """The same student trained without a teacher."""

    start: Literal["same", "pretrained"] = "same"
    """``same``: cut from the fine-tuned teacher like the student; ``pretrained``: from the encoder before that."""


class Evaluate(Section):
    """What is measured of the student and its rivals."""

    baseline: Annotated[Annotated[bool, Tag("value")] | Annotated[Baseline, Tag("section")], Discriminator(form_of)] = (
        False
    )
    """Also train the student without a teacher: labels only, the same number of steps."""
    seeds: int = Field(default=1, ge=1, le=100)
    """So many times student and baseline are trained, each time with the next seed: tables show the mean and the
    spread, and the median student by the validation metric is the one that counts."""
    tfidf: bool = True
    """Also fit a linear model on TF-IDF of one and two words to the labelled rows, in seconds, where the task has one:
    what a transformer has to be better than."""
    metric: str | None = None
    """Validation metric that picks the best epoch; by default the task's first, or macro F1 where most rows are of one
    class."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the test rows behind each 95 % interval."""
    latency: bool = True
    """Measure latency and throughput of teacher and student."""
    robustness: bool = False
    """Also measure all models on the test rows lower-cased, upper-cased, with typos, and cut to half of their tokens.
    Labelled words are rewritten one by one, and cut to half of them; typos are in questions, not in the texts that
    answer them, which stay whole. Takes up to four more passes over the rows for each model, the teacher too."""
