"""Image classification: one of two or more classes a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydistill.config import tasks as config
from raydistill.models.head import IMAGE
from raydistill.tasks.text_classification import Classification

__all__ = ["ImageClassification"]


class ImageClassification(Classification):
    """One class a picture; all else is as of texts."""

    type = "image_classification"
    Settings = config.ImageClassification
    head_kind = IMAGE
    pipeline_tag = "image-classification"
    about = "classifier of pictures with {count} classes"

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        return cls.is_target(cells[chosen["label"]])

    def pipeline_arguments(self, max_length: int) -> list[str]:
        """None: the folder's image processor says how pictures are read."""
        return []
