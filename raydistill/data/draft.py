"""Splits in the making: the steps from what a source holds to the rows of each split, with counts."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.data import Split
from raydistill.config.tree import Config
from raydistill.data.paths import SPLITS
from raydistill.data.sources import read_source, read_unlabeled
from raydistill.data.splits import contradicting, cut, cut_groups, find_duplicates, joined_by, keep_labels
from raydistill.data.spool import LARGE_BYTES, picked, spooled_texts
from raydistill.errors import ConfigError, DataError
from raydistill.tasks import Targets, Task, kind_of
from raydistill.tasks.targets import shown

_VISIBLE = r"[^\s\pZ\x00\x{FEFF}\x{200B}]"  # NUL, byte order mark and zero-width space are no text either
INPUTS = ("text", "text_pair", "image", "name")
"""Columns of a prepared row, beside its target."""
EMPTY = {True: "no picture that can be read", False: "empty text"}
"""Why rows are skipped, by whether they are pictures."""
_REMOVED = {
    "validation_in_test": "{rows} removed from validation: the same {what} is in test.",
    "train_in_held_out": "{rows} removed from training: the same {what} is in validation or test.",
    "train_repeated": "{rows} removed from training: a copy of the same {what} stays.",
    "unlabeled_beside_test": "{rows} removed from training: without a label, and with a {what} that is in test.",
    "unlabeled_beside_validation": (
        "{rows} removed from training: without a label, and with a {what} that is in validation."
    ),
    "train_conflicting": "{rows} removed from training: copies of one {what} with different labels.",
    "unlabeled_in_held_out": "{rows} of data.unlabeled removed: the same {what} is in validation or test.",
    "unlabeled_repeated": "{rows} of data.unlabeled removed: the same {what} is in training already.",
}


@dataclass(frozen=True)
class Part:
    """Rows of one split: columns text[, text_pair] (large_string, one chunk) or image (large_binary) and name, targets,
    hashes (S32)."""

    texts: pa.Table
    targets: Targets
    hashes: npt.NDArray[np.bytes_]

    @classmethod
    def of(cls, table: pa.Table, targets: Targets, *, symmetric: bool = False) -> tuple[Part, int]:
        """The rows of a table whose texts are not empty, or whose pictures can be read, and how many are or cannot.
        ``symmetric``: see ``row_hashes``."""
        names = [name for name in INPUTS if name in table.column_names]
        texts = pa.table({name: whole(table.column(name)) for name in names})
        visible = np.ones(texts.num_rows, bool)
        for name, column in zip(names, texts.columns, strict=True):
            is_text = name in ("text", "text_pair")
            found = pc.fill_null(pc.match_substring_regex(column, _VISIBLE), False) if is_text else column.is_valid()
            visible &= whole(found).to_numpy(zero_copy_only=False)
        texts = texts if visible.all() else picked(texts, visible)
        return cls(texts, targets.take(visible), row_hashes(texts, symmetric=symmetric)), int((~visible).sum())

    @property
    def num_rows(self) -> int:
        return len(self.targets)

    def only(self, rows: npt.NDArray[np.bool_]) -> Part:
        if rows.all():
            return self
        return Part(picked(self.texts, rows), self.targets.take(rows), self.hashes[rows])

    def plus(self, other: Part) -> Part:
        return Part(
            pa.concat_tables([self.texts, other.texts]),
            self.targets.plus(other.targets),
            np.concatenate([self.hashes, other.hashes]),
        )


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; large texts are in a file then."""
    chunks = column.chunks
    if len(chunks) == 1:
        return chunks[0]
    if column.type == pa.large_string() and column.nbytes > LARGE_BYTES:
        return spooled_texts(chunks)
    return pa.concat_arrays(chunks or [pa.array([], column.type)])


def row_hashes(texts: pa.Table, *, symmetric: bool = False) -> npt.NDArray[np.bytes_]:
    """32 hex characters a row: the first half of SHA-256 over text, and NUL and text_pair where there is one, or over
    the bytes of a picture.

    ``symmetric``: of a pair's two orders the one whose first text sorts first, so that both have one hash.
    """
    columns = []
    for column in texts.drop_columns(["name"] if "name" in texts.column_names else []).columns:
        array = whole(column)
        _, offsets, values = array.buffers()
        ends = np.frombuffer(offsets or b"", np.int64)[array.offset : array.offset + len(array) + 1]
        columns.append((ends.tolist(), memoryview(values or b"")))
    out = np.zeros(texts.num_rows, "S32")
    for row in range(texts.num_rows):
        parts = [values[ends[row] : ends[row + 1]] for ends, values in columns]
        if symmetric:
            parts.sort(key=bytes)
        digest = hashlib.sha256()
        for i, part in enumerate(parts):
            if i:
                digest.update(b"\0")
            digest.update(part)
        out[row] = digest.hexdigest()[:32].encode()
    return out


@dataclass
class Draft:
    """The task as the data describes it; parts by split; what was removed and skipped, by reason; sentences."""

    task: Task
    parts: dict[str, Part] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    """Those of the notes that doubt the labels."""

    def skip(self, count: int, reason: str, where: str) -> None:
        if count:
            self.skipped[reason] = self.skipped.get(reason, 0) + count
            self.notes.append(f"{_rows(count, where)} skipped: {reason}.")

    def remove(self, counts: Mapping[str, int]) -> None:
        self.removed |= counts
        what = "picture" if self.task.reads_pictures else "text"
        self.notes += [_REMOVED[reason].format(rows=_rows(n), what=what) for reason, n in counts.items() if n]


def make_draft(config: Config) -> Draft:
    """All splits of a config's data, ready to be written. Raises DataError or ConfigError."""
    draft = read_draft(config)
    drop_duplicates(draft)
    cut_missing(draft, config.data.split, config.seed)
    if config.data.max_labeled is not None:
        hide_targets(draft, config.data.max_labeled, config.seed)
    if config.data.unlabeled is not None:
        join_unlabeled(draft, config)
    train = draft.parts["train"].targets  # neither the labels of held-out rows nor hidden ones are known to a model
    draft.task.check(train, draft.notes)
    draft.task = draft.task.scaled(train)
    return draft


def read_draft(config: Config) -> Draft:
    """The source's own splits without empty texts, and without unlabelled rows in validation and test."""
    source = read_source(config.data, config.task)
    kind = kind_of(config.task)
    columns = {
        split: table.column("label")
        if "label" in table.column_names
        else kind.column(config.task, pa.chunked_array([pa.nulls(table.num_rows)]), split, None)
        for split, table in source.tables.items()
    }
    read = kind.read(config.task, columns, source.label_names)
    notes = source.notes + read.notes + read.doubts
    draft = Draft(read.task, notes=notes, doubts=read.doubts, skipped=dict(source.skipped))
    with_pair = {split for split, table in source.tables.items() if "text_pair" in table.column_names}
    if with_pair and with_pair != source.tables.keys():
        raise DataError(f"Only {', '.join(sorted(with_pair))} has a second text. Name the columns in data.columns.")
    symmetric = config.data.symmetric
    if symmetric and not with_pair:
        raise ConfigError(
            "data.symmetric says that the order of a pair's texts means nothing, but the rows have one text each. Name "
            "the column of the second one in data.columns.text_pair (and that of the first in data.columns.text), or "
            "leave data.symmetric out."
        )
    for split in (name for name in SPLITS if name in source.tables):
        part, empty = Part.of(source.tables[split], read.targets[split], symmetric=symmetric)
        draft.skip(empty, EMPTY[config.task.reads_pictures], split)
        if split != "train":
            labeled = part.targets.labeled
            draft.skip(int((~labeled).sum()), "no label", split)
            part = part.only(labeled)
        draft.parts[split] = part
    return draft


def drop_duplicates(draft: Draft) -> None:
    """Remove what ``find_duplicates`` says, and held-out splits without a row."""
    join_copies(draft)
    parts = draft.parts
    found = find_duplicates({s: p.hashes for s, p in parts.items()}, {s: p.targets.ids() for s, p in parts.items()})
    draft.parts = {split: part.only(found.keep[split]) for split, part in parts.items()}
    draft.remove(found.removed)
    for split, count in found.repeated.items():
        if count:
            disagree = found.conflicting[split]
            more = f"; the labels of {disagree:,} such rows disagree" if disagree else ""
            draft.notes.append(f"{_rows(count, split)} kept although an equal row comes before{more}.")
    for split in ("validation", "test"):
        if split in parts and not draft.parts[split].num_rows:
            del draft.parts[split]
            draft.notes.append(f"The {split} split of the source has no row that can be used.")
    draft.task.check(draft.parts["train"].targets, draft.notes)


def join_copies(draft: Draft) -> None:
    """Give training rows with one text what their targets say together, where the task knows: of several ratings of a
    text none is wrong."""
    train, words = draft.parts["train"], draft.task.joined_words
    _, group = np.unique(train.hashes, return_inverse=True)
    differ = contradicting(group, train.targets.ids()) if words else np.zeros(0, bool)
    if not differ.any():
        return
    targets = draft.task.joined(train.targets, group)
    rows = differ & ~contradicting(group, targets.ids()) & targets.labeled
    draft.parts["train"] = replace(train, targets=targets)
    if ratings := list(filter(None, np.bincount(group[rows]).tolist())):
        what = "picture" if draft.task.reads_pictures else "text"
        draft.notes.append(
            f"{len(ratings):,} training {what}s have several labels, {min(ratings)} to {max(ratings)} each, that "
            f"differ: {words}."
        )


def cut_missing(draft: Draft, split: Split, seed: int) -> None:
    """Cut the held-out splits that the source lacks from the labelled training rows, stratified."""
    by = grouping(draft, split)
    missing = [name for name in ("test", "validation") if name not in draft.parts]
    if len(missing) == 2 and split.validation + split.test >= 1:
        raise ConfigError(
            f"data.split.validation {split.validation} and data.split.test {split.test} leave nothing for training. "
            f"Their sum must be below 1."
        )
    left = 1.0
    for name in missing:
        train, share = draft.parts["train"], getattr(split, name)
        # both shares are of all rows, so the second is larger in relation to what the first has left
        chosen, beside = cut_rows(draft.task, train, by, share / left, seed, name)
        left -= share
        if not chosen.any():
            raise DataError(
                f"There are too few labelled training rows to cut a {name} split from: none of the "
                f"{draft.task.strata_words} has two of them. Add rows, or a file of its own for {name}."
            )
        draft.parts |= {name: train.only(chosen), "train": train.only(~chosen & ~beside)}
        draft.remove({f"unlabeled_beside_{name}": int(beside.sum())} if beside.any() else {})
        draft.notes.append(f"The {name} split, {int(chosen.sum()):,} rows, was cut from the training rows.")
        there, known = (
            {draft.task.plain_name(output) for output in draft.task.names_in(targets)}
            for targets in (train.targets.take(chosen), train.targets)
        )
        if rare := [name for name in draft.task.plain_names if name in known - there]:
            draft.notes.append(f"Too rare to be in the {name} split: {shown(rare)}.")
    for name in ("test", "validation"):
        tell_shared_texts(draft, name, split, was_cut=name in missing)


def grouping(draft: Draft, split: Split) -> tuple[str, ...]:
    """Which rows stay in one split, as ``data.split.by`` has it, the best way first. Raises ConfigError."""
    is_pair = "text_pair" in draft.parts["train"].texts.column_names
    if split.by not in ("auto", "rows") and not is_pair:
        raise ConfigError(
            f"data.split.by is {split.by}, but the rows have one text each, and none is in two splits. Leave it out, "
            "or name the second column in data.columns.text_pair."
        )
    return ("rows",) if not is_pair else draft.task.split_by if split.by == "auto" else (split.by,)


def cut_rows(
    task: Task, part: Part, by: Sequence[str], share: float, seed: int, name: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Rows that form a held-out split: stratified, or whole groups of rows, ``by`` the first of several ways that gives
    such a split; and rows without a label that belong to these groups."""
    strata = task.strata(part.targets)
    for way in by:
        if way == "rows":
            break
        chosen = cut_groups(text_groups(part.texts, way), strata, part.hashes, share, seed, name)
        if chosen.any():
            return chosen & (strata >= 0), chosen & (strata < 0)
    else:
        raise DataError(
            f"No {name} split can be cut off whose rows share no text with others (data.split.by: {by[-1]}): nearly "
            f"all training rows belong together. Set data.split.by: rows, or add a file of its own for {name}."
        )
    return cut(strata, part.hashes, share, seed, name), np.zeros(len(strata), bool)


def text_groups(texts: pa.Table, by: str) -> npt.NDArray[np.int64]:
    """A number for each row, equal for rows that stay together, see ``grouping``."""
    names = ["text", "text_pair"] if by == "texts" else [by]
    hashes = np.concatenate([row_hashes(texts.select([name])) for name in names])
    ids = np.unique(hashes, return_inverse=True)[1]
    return joined_by(*np.split(ids, len(names)))


def tell_shared_texts(draft: Draft, name: str, split: Split, *, was_cut: bool) -> None:
    """A note on rows of a held-out split of which one text is in a training row, too, with another beside it."""
    train, part = draft.parts["train"].texts, draft.parts[name].texts
    if "text_pair" not in train.column_names:
        return
    whole_texts = {"text": ["text"], "text_pair": ["text_pair"]}
    watched = whole_texts.get(draft.task.split_by[0] if split.by == "auto" else split.by, ["text", "text_pair"])
    known = pa.chunked_array([whole(train.column(other)) for other in watched])
    seen = [pc.is_in(whole(part.column(own)), value_set=known) for own in watched]
    if count := int(pc.sum(reduce(pc.or_, seen)).as_py() or 0):
        way_out = " data.split.by: texts keeps rows with a common text in one split." if was_cut else ""
        draft.notes.append(
            f"{count:,} of {part.num_rows:,} {name} rows have a text that is in training, too, beside another, which "
            f"may flatter the figures.{way_out}"
        )


def hide_targets(draft: Draft, max_labeled: int, seed: int) -> None:
    """Keep the labels of ``max_labeled`` training rows, stratified. Raises ConfigError outside strata … rows."""
    train = draft.parts["train"]
    strata = draft.task.strata(train.targets)
    rows, least = int(train.targets.labeled.sum()), len(np.unique(strata[strata >= 0]))
    if not least <= max_labeled <= rows:
        raise ConfigError(
            f"data.max_labeled is {max_labeled}, but there are {rows:,} labelled training rows of {least} "
            f"{draft.task.strata_words}. Set it to a number from {least} to {rows}."
        )
    kept = keep_labels(strata, train.hashes, max_labeled, seed)
    draft.parts["train"] = replace(train, targets=train.targets.only(kept))
    if rows > max_labeled:
        draft.notes.append(f"The labels of {rows - max_labeled:,} training rows are hidden (data.max_labeled).")


def join_unlabeled(draft: Draft, config: Config) -> None:
    """Add the rows of ``data.unlabeled`` whose text is in no split yet to training, without a label."""
    extra = read_unlabeled(config.data, config.task)
    train = draft.parts["train"]
    if extra is None:
        return
    table: Any = extra.tables["train"]
    if not set(train.texts.column_names) <= set(table.column_names):
        raise DataError(
            "data.unlabeled lacks the second text that the labelled rows have. Name data.columns.text_pair."
        )
    table = table.select(train.texts.column_names)
    draft.notes += extra.notes
    for reason, count in extra.skipped.items():
        draft.skipped[reason] = draft.skipped.get(reason, 0) + count
    part, empty = Part.of(table, Targets.none(table.num_rows, train.targets), symmetric=config.data.symmetric)
    draft.skip(empty, EMPTY[config.task.reads_pictures], "data.unlabeled")
    held_out = np.concatenate([draft.parts["validation"].hashes, draft.parts["test"].hashes])
    leaked = np.isin(part.hashes, held_out)
    first = np.zeros(part.num_rows, bool)
    first[np.unique(part.hashes, return_index=True)[1]] = True
    new = first & ~leaked & ~np.isin(part.hashes, train.hashes)
    draft.remove({"unlabeled_in_held_out": int(leaked.sum()), "unlabeled_repeated": int((~new & ~leaked).sum())})
    draft.parts["train"] = train.plus(part.only(new))
    draft.notes.append(f"{int(new.sum()):,} unlabelled rows joined the training split (data.unlabeled).")


def _rows(count: int, where: str = "") -> str:
    return f"{count:,} {where + ' ' if where else ''}row{'s were' if count != 1 else ' was'}"
