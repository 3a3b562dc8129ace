"""Object detection: any number of objects in a picture, the class of each and the box around it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from raydistill.config import tasks as config
from raydistill.errors import DataError
from raydistill.models.head import FOCAL, OBJECTS, SIDES, is_focal
from raydistill.tasks.base import Read, Task
from raydistill.tasks.object_detection import crops, reading
from raydistill.tasks.object_detection.detections import Detections, corners, ious, of_targets
from raydistill.tasks.object_detection.reading import BOX, CLASS, CROWD, NOTHING, SIZE, crowds, objects
from raydistill.tasks.object_detection.scoring import ANSWER_IOU, BoxScores, in_crowds, partners
from raydistill.tasks.targets import Array, Ragged, Targets, are_objects, shown
from raydistill.tasks.text_classification.classes import class_summary
from raydistill.tasks.text_classification.reading import known_places

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from raydistill.models.detection import Problem

__all__ = ["ObjectDetection"]

USUAL = 0.5
"""Threshold of a model for which none was chosen."""
SETTINGS = "object_detection"
"""Of a model's config.json: what its answers depend on beside its outputs."""


class ObjectDetection(Task):
    """Targets are objects, Ragged (M, 8), see ``reading``; outputs of all queries of a picture, (N, Q · (S + 4)), see
    ``models.detection``.

    ``mean_objects``: of a training picture; ``picture_size``: as in ``config.tasks``; ``threshold``: the score from
    which on a detection is an answer, one for all classes, as ``transformers.pipeline`` takes it; None: ``USUAL``,
    until it is ``fitted``; ``focal``: what the models' outputs are.
    """

    type = "object_detection"
    kind = "boxes"
    Settings = config.ObjectDetection
    problem_type = None
    head_kind = OBJECTS
    label_columns = ("objects", "annotations", "boxes")
    pipeline_tag = "object-detection"
    about = "detector of objects of {count} classes in pictures"
    limit = "It finds objects of these classes alone: {names}."
    guessing = "no better than finding nothing"
    strata_words = "groups of pictures by their rarest class"
    counted = "objects"
    is_fitted = True
    has_plain_outputs = False

    def __init__(
        self,
        outputs: Sequence[str],
        mean_objects: float = 1.0,
        threshold: float | None = None,
        picture_size: Sequence[int] | None = None,
        focal: bool = False,
    ) -> None:
        self.outputs = tuple(outputs)
        self.picture_size = None if picture_size is None else (picture_size[0], picture_size[1])
        self.mean_objects, self.threshold, self.focal = mean_objects, threshold, focal
        self._sizes: Array | None = None

    # reading

    @classmethod
    def column(cls, settings: Any, column: pa.ChunkedArray, what: str, names: Sequence[str] | None) -> pa.ChunkedArray:
        return reading.given(column, what, names)

    @classmethod
    def placed(cls, table: pa.Table, where: str) -> pa.Table:
        return reading.placed(table, where)

    @classmethod
    def is_target(cls, cells: Sequence[Any]) -> bool:
        """Objects with boxes."""
        return are_objects(cells, "bbox")

    @classmethod
    def is_told_by(cls, chosen: Mapping[str, str], cells: Mapping[str, Sequence[Any]]) -> bool:
        return cls.is_target(cells[chosen["label"]])

    @classmethod
    def read(
        cls, settings: config.ObjectDetection, columns: Mapping[str, pa.ChunkedArray], names: tuple[str, ...] | None
    ) -> Read:
        order = reading.classes_of(columns, names, settings.labels)
        place = {name: i for i, name in enumerate(order)}
        targets = {split: reading.targets_of(column, place) for split, column in columns.items()}
        task = cls(order, threshold=settings.threshold, picture_size=settings.picture_size)
        task.check(targets["train"], ())
        task, counts = task.scaled(targets["train"]), task.counts(targets["train"])
        notes = []
        if absent := [name for name, count in counts.items() if not count]:
            notes.append(f"No training picture has an object of the class {shown(absent)}.")
        if bare := int((objects(targets["train"].values).lengths[targets["train"].labeled] == 0).sum()):
            notes.append(f"{bare:,} training pictures have no objects.")
        if found := sum(len(crowds(own.values).flat) for own in targets.values()):
            notes.append(f"{found:,} crowds are no objects: what is found in them is neither right nor wrong.")
        return Read(task, targets, notes)

    def read_for(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> tuple[Targets, list[str]]:
        seen = reading.names_in(column)
        place, notes = known_places(seen, self.outputs, names or sorted(seen))
        return reading.targets_of(column, place), notes

    def translate(self, targets: Targets, other: Self) -> tuple[Targets, list[str]]:
        place, notes = known_places(other.names_in(targets), self.outputs, other.outputs)
        order = np.array([place.get(name, 0) for name in other.outputs] + [NOTHING], np.float32)
        flat = targets.values.flat.copy()
        classes = flat[:, CLASS].astype(int)
        is_crowd = classes <= CROWD
        own = order[np.where(is_crowd, CROWD - classes, classes)]
        flat[:, CLASS] = np.where(is_crowd, CROWD - own, own)
        return Targets(Ragged(flat, targets.values.lengths), targets.labeled), notes

    @classmethod
    def of_model(cls, outputs: tuple[str, ...], settings: Mapping[str, Any]) -> Self:
        return cls(outputs, **(dict(settings.get(SETTINGS) or {}) | {"focal": settings.get("model_type") in FOCAL}))

    def answered_by(self, config: PreTrainedConfig) -> Self:
        return type(self)(self.outputs, **(self._more | {"focal": is_focal(config)}))

    def facts(self) -> dict[str, Any]:
        return {"type": self.type, "outputs": list(self.outputs), **self._more}

    @property
    def _more(self) -> dict[str, Any]:
        size = {} if self.picture_size is None else {"picture_size": list(self.picture_size)}
        chosen = {} if self.threshold is None else {"threshold": self.threshold}
        return {"mean_objects": self.mean_objects, "focal": self.focal, **chosen, **size}

    @property
    def least(self) -> float:
        """Score from which on a detection is an answer."""
        return USUAL if self.threshold is None else self.threshold

    def model_settings(self) -> dict[str, Any]:
        return {SETTINGS: self._more}

    def reordered(self, order: Sequence[int]) -> Self:
        return type(self)([self.outputs[i] for i in order], **self._more)

    def reordered_outputs(self, outputs: Array, order: Sequence[int]) -> Array:
        units = self._detections(outputs).units
        others = range(len(order), units.shape[-1])
        return np.ascontiguousarray(units[..., [*order, *others]]).reshape(len(outputs), -1)

    def strata(self, targets: Targets) -> Array:
        """The rarest class of each picture, so that rare ones come into every split; one more group of those without
        objects."""
        there = objects(targets.values)
        frequency = np.bincount(there.flat[:, CLASS].astype(int), minlength=len(self.outputs))
        ranks = np.argsort(np.argsort(frequency, kind="stable"))
        rarest = np.full(len(targets), len(ranks))
        np.minimum.at(rarest, there.rows, ranks[there.flat[:, CLASS].astype(int)])
        return np.where(targets.labeled, rarest, -1)

    def scaled(self, train: Targets) -> Self:
        made = copy.copy(self)
        made.mean_objects = sum(self.counts(train).values()) / int(train.labeled.sum())
        return made

    def check(self, train: Targets, notes: Sequence[str]) -> None:
        if not self.names_in(train):
            raise DataError(
                "No training picture has an object, so there is nothing to learn. Name the column of the objects with "
                "data.columns.label. " + " ".join(notes)
            )

    def counts(self, targets: Targets) -> dict[str, int]:
        """Objects of each class."""
        classes = objects(targets.values[targets.labeled]).flat[:, CLASS].astype(int)
        return dict(zip(self.outputs, np.bincount(classes, minlength=len(self.outputs)).tolist(), strict=True))

    def seen(self, targets: Targets, parts: Array, is_mirrored: Array) -> Targets:
        return Targets(crops.seen(targets.values, parts, is_mirrored), targets.labeled)

    def blank(self, num_rows: int) -> Targets:
        """An object in the middle of each."""
        unit = np.array([[0, 0.5, 0.5, 0.5, 0.5, 25, 10, 10]], np.float32)
        return Targets(Ragged(np.repeat(unit, num_rows, 0), np.ones(num_rows, np.int64)), np.ones(num_rows, bool))

    def undefined_by(self, values: Ragged, wanted: Collection[str] | None) -> frozenset[str]:
        one_query = np.zeros((len(values), len(self.outputs) + (not self.focal) + 4), np.float32)
        return self.undefined_for(one_query, values, wanted)

    def summary(self, train: Targets) -> str:
        counts = self.counts(train)
        mean = sum(counts.values()) / max(int(train.labeled.sum()), 1)
        return f"{class_summary(counts)}; {mean:.1f} objects a picture"

    # learning

    def count(self, targets: Targets) -> int:
        """Pictures, also those without objects: see ``models.detection.detection_losses``."""
        return int(targets.labeled.sum())

    def batch_loss(self, outputs: Tensor, targets: Targets, **more: Any) -> Tensor:
        import torch

        from raydistill.models.boxes import FILLING, as_block
        from raydistill.models.detection import detection_losses

        labeled = np.flatnonzero(targets.labeled)
        there = objects(targets.values[labeled])
        block = torch.as_tensor(as_block(there.flat[:, :5], there.lengths, (0.0, *FILLING)), device=outputs.device)
        known = outputs[torch.as_tensor(labeled, device=outputs.device)]
        return detection_losses(known, block[..., 0].long(), block[..., 1:], there.lengths, self.problem)

    @property
    def problem(self) -> Problem:
        """What losses on boxes know of the training pictures."""
        from raydistill.models.detection import problem_of

        return problem_of(len(self.outputs), self.mean_objects, self.focal)

    def loss_values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError("the loss of objects needs to know which are of one picture: see batch_loss")

    # scoring

    def scores(self, outputs: Array, targets: Ragged) -> BoxScores:
        return BoxScores(outputs, targets, self.outputs, self.least, self.focal)

    def fitted(self, outputs: Array, targets: Ragged) -> Self:
        """With the threshold that has the best F1 on these rows, where none was given by hand."""
        if self.threshold is not None:
            return self
        made = copy.copy(self)
        made.threshold = self.scores(outputs, targets).best_threshold()
        return made

    def _detections(self, outputs: Array) -> Detections:
        return Detections(outputs, len(self.outputs), self.focal)

    def _found(self, outputs: Array) -> list[tuple[Array, Array, Array]]:
        """Classes, scores and boxes of what is given as an answer."""
        found = self._detections(outputs)
        return [found.found(row, self.least) for row in range(len(outputs))]

    def agreement(self, a: Array, b: Array, other: Task | None = None) -> float:
        """Of the objects that either model finds the share that both do, at an IoU of 0.5 and of one class; 1 where
        there are none."""
        total, both = 0, 0
        second: Any = other or self
        for (own, _, boxes), (its, _, places) in zip(self._found(a), second._found(b), strict=True):
            total += len(own) + len(its)
            both += 2 * int((alike(own, boxes, its, places) >= 0).sum())
        return both / total if total else 1.0

    def disagreements(self, a: Array, b: Array, other: Task | None = None) -> Array:
        """The sum of the scores of objects that one model finds and the other does not."""
        second: Any = other or self
        found = np.zeros(len(a))
        known = zip(self._found(a), second._found(b), strict=True)
        for row, ((own, sure, boxes), (its, as_sure, places)) in enumerate(known):
            partner = alike(own, boxes, its, places)
            alone = np.setdiff1d(np.arange(len(its)), partner)
            found[row] = sure[partner < 0].sum() + as_sure[alone].sum()
        return found

    def errors(self, outputs: Array, targets: Ragged) -> Array:
        """The sum of the scores of answers that are wrong, and 1 for each object that is missed."""
        found = np.zeros(len(outputs))
        known = zip(self._found(outputs), of_targets(targets), of_targets(crowds(targets)), strict=True)
        for row, ((own, sure, boxes), (its, places), others) in enumerate(known):
            is_right = alike(own, boxes, its, places) >= 0
            is_wrong = ~is_right & ~in_crowds(own, boxes, *others)
            found[row] = sure[is_wrong].sum() + len(its) - is_right.sum()
        return found

    # answering

    def pipeline_arguments(self, max_length: int) -> list[str]:
        """None but the threshold: the folder's image processor says how pictures are read."""
        return [f"threshold={self.least}"]

    def of_rows(self, texts: Sequence[Any], values: Ragged | None) -> Self:
        """With the sizes of these pictures: of labelled ones as targets have them, else of the pictures themselves."""
        bound = copy.copy(self)
        if values is not None and values.lengths.all():
            bound._sizes = values.flat[values.starts, SIZE]
        else:
            bound._sizes = np.array([reading.size_of(picture.content) for picture in texts]).reshape(-1, 2)
        return bound

    def answers(self, outputs: Array) -> list[dict[str, Any]]:
        """``objects``: a list of {label, score, box {xmin, ymin, xmax, ymax}} in pixels, the surest first."""
        sizes = np.ones((len(outputs), 2)) if self._sizes is None else self._sizes
        told = []
        for (classes, scores, boxes), size in zip(self._found(outputs), sizes, strict=True):
            sides = (corners(boxes) * np.tile(size, 2)).tolist()
            one = zip(classes.tolist(), scores.tolist(), sides, strict=True)
            told.append({"objects": [self._named(*found) for found in one]})
        return told

    def _named(self, label: int, score: float, sides: Iterable[float]) -> dict[str, Any]:
        return {
            "label": self.outputs[label],
            "score": score,
            "box": dict(zip(SIDES, sides, strict=True)),
        }

    @property
    def answer_columns(self) -> tuple[str, ...]:
        return ("objects",)

    def spoken(self, outputs: Array) -> list[tuple[str, float | None]]:
        return [(self._counted(classes), None) for classes, *_ in self._found(outputs)]

    def marked(self, outputs: Array) -> list[list[dict[str, Any]]]:
        return [
            [self._mark(*one) for one in zip(classes, corners(boxes), scores, strict=True)]
            for classes, scores, boxes in self._found(outputs)
        ]

    def marked_target(self, target: Any) -> list[dict[str, Any]]:
        there = target[target[:, CLASS] >= 0]
        return [self._mark(*one) for one in zip(there[:, CLASS].astype(int), corners(there[:, BOX]), strict=True)]

    def _mark(self, label: int, sides: Array, score: float | None = None) -> dict[str, Any]:
        box = np.clip(sides, 0, 1, dtype=np.float64).round(4).tolist()
        return {"label": self.outputs[label], "score": None if score is None else float(score), "box": box}

    def spoken_target(self, target: Any) -> str:
        classes = target[:, CLASS].astype(int)
        return self._counted(classes[classes >= 0])

    def _counted(self, classes: Array) -> str:
        """``2 cat, 1 dog``."""
        counts = Counter(classes.tolist())
        return ", ".join(f"{count} {self.outputs[one]}" for one, count in sorted(counts.items())) or "nothing"


def alike(own: Array, boxes: Array, its: Array, places: Array) -> Array:
    """For each of some objects (D,), the first one first, which other one (G,) is the same; -1 for none."""
    return partners(np.where(own[:, None] == its, ious(boxes, places), 0.0), ANSWER_IOU)
