"""The ``data`` section: where the rows are, what their columns hold, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from raydistill.config.section import Mistake, OrAuto, Section, word_or_value
from raydistill.config.tasks import TaskSection


class Columns(Section):
    """Which columns of the source hold what; unset ones are recognised by their usual names."""

    text: str | None = None
    """Column of the (first) text; recognised names: text, sentence, sentence1, review, content, premise, question."""
    text_pair: str | None = None
    """Column of the second text of a pair."""
    image: str | None = None
    """Column of the picture, its bytes or its path from the table on; recognised names: image, picture, photo, img,
    image_path, file_name, path."""
    label: str | None = None
    """Column of the label, string or integer; recognised names: label, labels, class, category, target."""

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        if self.text_pair is not None and self.text is None:
            text = f"is missing: with text_pair ({self.text_pair!r}) the first text's column is needed too."
            found.append((("text",), text))
        named = [name for name in (self.text, self.text_pair, self.image, self.label) if name is not None]
        if len(named) != len(set(named)):
            found.append(((), f"one column has two roles ({', '.join(named)}); name a column once."))
        return found


class Split(Section):
    """Share of the rows that are held out where the source has no such split of its own."""

    validation: float = Field(default=0.1, gt=0, lt=1)
    """Rows that pick the best epoch."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Rows that only the results look at."""
    by: Literal["auto", "rows", "text", "text_pair", "texts"] = "auto"
    """Which rows of pairs stay in one split: those with one ``text``, one ``text_pair``, or a common text in either
    column (``texts``); ``rows``: each for itself. ``auto``: embeddings by ``texts``, or where one text leads to nearly
    all others by ``text``; questions by their context; others by ``rows``, and a note counts common texts."""

    def mistakes(self) -> list[Mistake]:
        held = self.validation + self.test
        return [((), f"validation and test take {held:g} of the rows; leave some for training.")] if held >= 1 else []


Way = Literal["words", "masked", "crop", "flip", "typos", "lower", "upper"]
TEXT_WAYS: tuple[Way, ...] = ("words", "masked", "crop", "typos", "lower", "upper")
PICTURE_WAYS: tuple[Way, ...] = ("crop", "flip")
EACH_EPOCH = "each_epoch"


OF_OBJECTS = ("coco", "yolo")
"""Formats that say which objects are in pictures, and where."""

Copies = Annotated[
    Annotated[int, Field(ge=1, le=20), Tag("value")] | Annotated[Literal["each_epoch"], Tag(EACH_EPOCH)],
    Discriminator(word_or_value(EACH_EPOCH)),
]


class Augment(Section):
    """Training texts written otherwise, pictures seen otherwise: the student learns what the teacher says of them."""

    copies: Copies = 2
    """Of each training row, beside it. They have no label, whatever the row has, but the boxes of objects that they
    show. ``each_epoch``, of pictures: none; instead of the pictures themselves all models see others of their crops at
    every epoch, with their labels, the student the same as its teacher, which is not recorded (``teacher.mode:
    online``)."""
    ways: tuple[Way, ...] = Field(default=("words", "crop"), min_length=1)
    """How texts are written, in turn: ``words`` replaced by others that the teacher's embeddings have nearby,
    ``masked`` words guessed anew by ``masked_model``, a ``crop`` of half of the words or more, ``typos``, all in
    ``lower`` or ``upper`` case. Of pictures (by default both, at once): ``crop``, a part of any size from ``crop_area``
    on, brought to the size of the whole; ``flip``, every second one turned left to right."""
    crop_area: float | None = Field(default=None, gt=0, le=1)
    """Share of a picture's area that a crop has at least, by default 0.08; the ratio of its sides is 4 : 3 at most."""
    masked_model: str | None = Field(default=None, min_length=1)
    """A masked language model: a folder, ``pkg://package/path``, or a name on the Hugging Face hub."""

    @property
    def is_each_epoch(self) -> bool:
        return self.copies == EACH_EPOCH

    @property
    def num_copies(self) -> int:
        """Rows beside each one."""
        return self.copies if isinstance(self.copies, int) else 0

    def mistakes(self) -> list[Mistake]:
        found: list[Mistake] = []
        if ("masked" in self.ways) != (self.masked_model is not None):
            lacks = self.masked_model is None
            needs = "ways has masked, so name a model" if lacks else "has no effect: ways lacks masked"
            found.append((("masked_model",), f"{needs}."))
        if self.crop_area is not None and "crop" not in self.ways:
            found.append((("crop_area",), "has no effect: ways lacks crop."))
        if set(self.ways) == {"flip"} and self.num_copies > 1:
            why = f"{self.copies} copies would be the same, turned left to right. Write 1, or add crop to ways."
            found.append((("copies",), why))
        return found


class Data(Section):
    """The texts and their labels."""

    path: str = Field(min_length=1)
    """A file, a folder, ``pkg://package/path`` or the name of a data set on the Hugging Face hub."""
    format: Literal[
        "auto", "text_folder", "image_folder", "coco", "yolo", "parquet", "csv", "jsonl", "conll", "datasets", "hub"
    ] = "auto"
    """``text_folder``, ``image_folder``: a folder a class, a file a text or a picture. ``coco``, ``yolo``: a folder of
    pictures beside files that say what is in them. ``datasets``: a folder that ``save_to_disk`` wrote. ``conll``: a
    word a line, its labels beside it."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set."""
    columns: Columns = Columns()
    symmetric: bool = False
    """The order of a pair's texts means nothing: models are trained on both orders of each pair, as rows of their own,
    and answer with the mean of both. For paraphrases and similarity, not for premise and hypothesis."""
    max_length: OrAuto[Annotated[int, Field(ge=4)]] = "auto"
    """Tokens a row is cut to. ``auto``: what 99 % of the training rows need, as far as the models take so many.
    Pictures are brought to the size that the teacher reads; it is then the number of patches that they have."""
    max_labeled: int | None = Field(default=None, ge=2)
    """Keep the labels of this many training rows, stratified by class, and treat the rest as unlabelled."""
    unlabeled: str | None = None
    """Another file or folder whose texts join the distillation without labels."""
    augment: Augment | None = None
    """Training rows written otherwise, beside those that there are; for few texts or pictures."""
    split: Split = Split()

    @property
    def num_orders(self) -> int:
        """Training rows that a row of the source becomes, without its copies."""
        return 2 if self.symmetric else 1

    @property
    def num_copies(self) -> int:
        """Training rows that a row of the source becomes."""
        return self.num_orders * (1 + (self.augment.num_copies if self.augment else 0))

    def num_labeled_copies(self, task: type[TaskSection]) -> int:
        """Those of them with a label, where the row has one."""
        return self.num_copies if task.sees_whole_pictures else self.num_orders
