"""The ``data`` section: where the rows are, what their columns hold, and how they are split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raydistill.config.section import Mistake, OrAuto, Section


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

    def mistakes(self) -> list[Mistake]:
        held = self.validation + self.test
        return [((), f"validation and test take {held:g} of the rows; leave some for training.")] if held >= 1 else []


Way = Literal["words", "masked", "crop", "typos", "lower", "upper"]


class Augment(Section):
    """Copies of the training texts, written otherwise, of which the student learns what the teacher says."""

    copies: int = Field(default=2, ge=1, le=20)
    """Of each training row. They have no label, whatever the row has."""
    ways: tuple[Way, ...] = Field(default=("words", "crop"), min_length=1)
    """How they are written, in turn: ``words`` replaced by others that the teacher's embeddings have nearby, ``masked``
    words guessed anew by ``masked_model``, a ``crop`` of half of the words or more, ``typos``, all in ``lower`` or
    ``upper`` case."""
    masked_model: str | None = Field(default=None, min_length=1)
    """A masked language model: a folder, ``pkg://package/path``, or a name on the Hugging Face hub."""

    def mistakes(self) -> list[Mistake]:
        if ("masked" in self.ways) == (self.masked_model is not None):
            return []
        needs = "ways has masked, so name a model" if self.masked_model is None else "has no effect: ways lacks masked"
        return [(("masked_model",), f"{needs}.")]


class Data(Section):
    """The texts and their labels."""

    path: str = Field(min_length=1)
    """A file, a folder, ``pkg://package/path`` or the name of a data set on the Hugging Face hub."""
    format: Literal["auto", "text_folder", "image_folder", "parquet", "csv", "jsonl", "conll", "datasets", "hub"] = (
        "auto"
    )
    """``text_folder``, ``image_folder``: a folder a class, a file a text or a picture. ``datasets``: a folder that
    ``save_to_disk`` wrote. ``conll``: a word a line, its labels beside it."""
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
    """Training texts written otherwise, beside those that there are; for few texts."""
    split: Split = Split()

    @property
    def num_orders(self) -> int:
        """Labelled training rows that a labelled row of the source becomes."""
        return 2 if self.symmetric else 1

    @property
    def num_copies(self) -> int:
        """Training rows that a row of the source becomes."""
        return self.num_orders * (1 + (self.augment.copies if self.augment else 0))
