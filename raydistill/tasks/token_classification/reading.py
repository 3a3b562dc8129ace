"""Words with labels, or texts with spans of characters, as one form: a text, and for each word its place and label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistill.config.tasks import TokenClassification as Settings
from raydistill.errors import ConfigError, DataError, ModelError, did_you_mean
from raydistill.tasks.mistakes import Wrong, refuse
from raydistill.tasks.targets import Ragged, Targets, decoded, is_string, shown
from raydistill.tasks.token_classification.words import (
    OUTSIDE,
    WORD_TYPE,
    is_prefixed,
    split,
    stray,
    to_iob2,
)

FORM = pa.list_(pa.struct([("start", pa.int32()), ("end", pa.int32()), ("tag", pa.large_string())]))
"""Of a label column: a word each; null where a row has no labels."""
STARTS, ENDS, NAMES = ("start", "start_offset"), ("end", "end_offset"), ("label", "type", "entity")
"""What annotation tools call the parts of a span."""
MASKED = "-100"
"""Of a word that is no unit: nothing is learned or measured of it, and it stays context."""
_WORD = re.compile(r"\S+")
IOB1 = "Mend them or, if the first word of an entity need not have a B-, set task.scheme: iob1."


class Row(NamedTuple):
    """A text with its words, and their labels where it has any."""

    text: str
    places: Sequence[tuple[int, int]] = ()
    tags: Sequence[str] | None = None


def aligned(
    settings: Settings, texts: pa.ChunkedArray, labels: pa.ChunkedArray | None, where: str, names: Sequence[str] | None
) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """The texts, and a column of ``FORM`` for their labels, of words or texts and labels or spans as they come.

    ``names``: of a ClassLabel. Raises DataError for rows whose labels do not fit, by their numbers from 1.
    """
    texts, given = decoded(texts), None if labels is None else decoded(labels).to_pylist()
    if not (is_string(texts.type) or is_list(texts.type) or pa.types.is_null(texts.type)):
        raise DataError(f"The words of {where} are {texts.type}, not texts or lists of words. Name data.columns.text.")
    rows: list[Row] = []
    wrong: dict[str, list[int]] = {}
    lists = [label for label in given or () if isinstance(label, list) and label]
    spans = all(isinstance(label[0], dict) for label in lists)
    for number, text in enumerate(texts.to_pylist(), 1):
        label = None if given is None else given[number - 1]
        try:
            if spans and isinstance(label, list) and isinstance(text, str):
                rows.append(with_spans(text, label))
            else:
                rows.append(read_row(text, label, names))
        except Wrong as error:
            wrong.setdefault(str(error), []).append(number)
    refuse(wrong, where)
    return pa.chunked_array([pa.array([row.text for row in rows], pa.large_string())]), (
        None if given is None else pa.chunked_array([as_form(in_scheme(rows, settings, where))])
    )


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def read_row(text: Any, label: Any, names: Sequence[str] | None) -> Row:
    """One row as it comes. Raises Wrong."""
    if isinstance(text, list):
        words = [word if isinstance(word, str) else "" for word in text]
        if not all(word.strip() for word in words):
            raise Wrong("a word is empty. Leave out such words with their labels.")
        ends = np.cumsum([len(word) + 1 for word in words]) - 1
        places = [(int(end) - len(word), int(end)) for word, end in zip(words, ends, strict=True)]
        text = " ".join(words)
    else:
        text = text or ""
        places = [found.span() for found in _WORD.finditer(text)]
    if label is None or (isinstance(label, str) and not label.strip()):
        return Row(text)
    tags = label.split() if isinstance(label, str) else label
    if not isinstance(tags, list):
        raise Wrong(f"its labels are {type(label).__name__}, not a list with a label for each word.")
    if len(tags) != len(places):
        raise Wrong(f"there are {len(places)} words and {len(tags)} labels. Each word needs one.")
    known = [(place, named(tag, names)) for place, tag in zip(places, tags, strict=True) if str(tag).strip() != MASKED]
    return Row(text, [place for place, _ in known], [tag for _, tag in known])


def named(tag: Any, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(tag, int):
        if not 0 <= tag < len(names):
            raise Wrong(f"the label {tag} is none of the {len(names)} that the data names.")
        return names[tag]
    if tag is None or not str(tag).strip():
        raise Wrong("a word has no label. Use O for words of no entity.")
    return str(tag).strip()


def with_spans(text: str, spans: Sequence[Mapping[str, Any]]) -> Row:
    """A text with spans of characters; its words are cut where spans begin and end."""
    found = sorted(read_span(text, span) for span in spans)
    for (start, end, kind), (begin, until, other) in pairwise(found):
        if begin < end:
            raise Wrong(
                f"the spans {start}–{end} ({kind}) and {begin}–{until} ({other}) overlap. A word can have one label "
                "only: keep one of them."
            )
    places = split(text, borders=[border for start, end, _ in found for border in (start, end)])
    tags = [OUTSIDE] * len(places)
    for start, end, kind in found:
        inside = np.flatnonzero((places[:, 0] >= start) & (places[:, 1] <= end))
        if not len(inside):
            raise Wrong(f"the span {start}–{end} ({kind}) holds no word.")
        for i, word in enumerate(inside):
            tags[word] = f"{'I' if i else 'B'}-{kind}"
    return Row(text, [(int(start), int(end)) for start, end in places], tags)


def read_span(text: str, span: Mapping[str, Any]) -> tuple[int, int, str]:
    start, end, kind = (
        next((span[n] for n in known if span.get(n) is not None), None) for known in (STARTS, ENDS, NAMES)
    )
    if not (isinstance(start, int) and isinstance(end, int) and isinstance(kind, str) and kind.strip()):
        raise Wrong("a span lacks its start, end or label.")
    if not 0 <= start < end <= len(text):
        raise Wrong(f"the span {start}–{end} ({kind}) lies outside the text of {len(text)} characters, or is empty.")
    return start, end, kind.strip()


def in_scheme(rows: Sequence[Row], settings: Settings, where: str) -> list[Row]:
    """The rows with labels in the scheme that models learn: those with prefixes as IOB2."""
    scheme = settings.scheme
    if scheme in ("io", "words"):
        return list(rows)
    tags = {tag for row in rows for tag in row.tags or ()}
    prefixed = is_prefixed(sorted(tags)) if tags - {OUTSIDE} else False
    if prefixed is None or (scheme in ("iob1", "iob2") and not prefixed and tags - {OUTSIDE}):
        bare = sorted(tag for tag in tags if tag != OUTSIDE and not is_prefixed([tag]))
        raise DataError(
            f"Labels of {where} have no prefix (B-, I-), as others have or task.scheme says: {shown(bare)}. Give each "
            "one, or set task.scheme: io or words, which take every label as it is."
        )
    if not prefixed:
        return list(rows)
    made = [row._replace(tags=to_iob2(row.tags, is_iob1=scheme == "iob1")) if row.tags else row for row in rows]
    wrong: dict[str, list[int]] = {}
    for number, row in enumerate(made, 1):
        if row.tags and (word := stray(row.tags)) is not None:
            start, end = row.places[word]
            before = f"after {row.tags[word - 1]}" if word else "at its beginning"
            why = f"{row.tags[word]} {before} (word {word + 1}, {row.text[start:end]!r}) lacks its B-. {IOB1}"
            wrong.setdefault(why, []).append(number)
    refuse(wrong, where)
    return made


def as_form(rows: Sequence[Row]) -> pa.Array:
    places = np.array([place for row in rows for place in row.places], WORD_TYPE).reshape(-1, 2)
    tags = pa.array([tag for row in rows for tag in row.tags or ()], pa.large_string())
    words = pa.StructArray.from_arrays(
        [pa.array(places[:, 0]), pa.array(places[:, 1]), tags], fields=list(FORM.value_type)
    )
    ends = np.cumsum([0, *(len(row.places) for row in rows)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), words, mask=pa.array([row.tags is None for row in rows]))


def tags_of(columns: Mapping[str, pa.ChunkedArray]) -> dict[str, set[str]]:
    """The labels that each split's column has."""
    return {split: set(flat(column).field("tag").unique().to_pylist()) for split, column in columns.items()}


def flat(column: pa.ChunkedArray) -> pa.Array:
    whole = column.cast(FORM).combine_chunks()
    return (whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole).flatten()


def order(tags: set[str], own: Sequence[str] | None, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The labels in the order of the logits: task.labels, else the data's own, else O, then by type, B- before I-."""
    if wanted is not None and (unknown := sorted(tags - set(wanted))):
        raise ConfigError(f"task.labels lacks {shown(unknown)}. {did_you_mean(unknown[0], wanted)}")
    for listed in (wanted, own):
        if listed is not None and tags <= set(listed):
            return tuple(listed)
    return tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag[2:] if is_prefixed([tag]) else tag, tag)))


def targets_of(column: pa.ChunkedArray, outputs: Sequence[str]) -> Targets:
    """Targets of a column of ``FORM``. Raises ModelError for a label that is none of the outputs."""
    units = flat(column)
    labeled = column.is_valid().to_numpy().astype(bool)
    lengths = np.array([size or 0 for size in pc.list_value_length(column).to_pylist()], np.int64)
    place = {tag: i for i, tag in enumerate(outputs)}
    tags = units.field("tag").to_pylist()
    if unknown := sorted(set(tags) - place.keys()):
        raise ModelError(f"Labels that the model does not know: {shown(unknown)}. It knows {shown(list(outputs), 20)}.")
    ends = [units.field(name).to_numpy() for name in ("start", "end")]
    values = np.stack([*ends, np.array([place[tag] for tag in tags], WORD_TYPE)], axis=1).astype(WORD_TYPE)
    return Targets(Ragged(values, lengths), labeled & (lengths > 0))


def touching(targets: Targets) -> bool:
    """Whether some word begins where another ends, as it is where a text was split and not its words given."""
    ends, rows = targets.values.flat, targets.values.rows
    return bool(((ends[1:, 0] == ends[:-1, 1]) & (rows[1:] == rows[:-1])).any())
