"""The model card of a student: Hugging Face's README.md with metadata, made from ``results.json``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raydistill.config.losses import Schedule
from raydistill.config.metrics import metric
from raydistill.evaluate.decision import decision_line
from raydistill.evaluate.latency import busy_note
from raydistill.evaluate.report.comparison import cost_rows, latency_setting, quality_rows
from raydistill.evaluate.report.naming import (
    Source,
    bullets,
    data_source,
    epoch_metric,
    escape,
    model_source,
    plain,
    source_of,
    start_source,
    table,
    teachers_of,
)
from raydistill.evaluate.report.page import brings_code, loading_code, loading_note, relation_rows, run_contenders
from raydistill.evaluate.report.scales import setting, short_count
from raydistill.evaluate.rules import percent
from raydistill.models.folder import CARD
from raydistill.storage.redaction import redact_tree
from raydistill.storage.storage import Storage
from raydistill.tasks import Task, task_of
from raydistill.tracking.lineage import package_versions

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from raydistill.data.prepare import DataInfo
    from raydistill.storage.artifacts import Artifact

MAX_NAMES = 50
"""Labels that a card lists; all of them are in config.json."""
SHAPE = {
    "num_layers": "layers",
    "hidden_size": "wide",
    "num_heads": "attention heads",
    "intermediate_size": "wide inside a layer",
}
PACKAGES = ("raydistill", "torch", "transformers", "tokenizers", "datasets")


def model_card(results: Mapping[str, Any], info: DataInfo | None = None) -> str:
    """The card's text. ``results``: results.json of a run with its config; ``info``: of its data."""
    from huggingface_hub import ModelCard

    results = redact_tree(results)
    task = task_of(results["task"]["facts"])
    has_pairs = info.has_pairs if info is not None else bool(results["config"]["data"]["columns"]["text_pair"])
    body = [
        f"# {escape(title(results))}",
        summary(results, task),
        "## How to use",
        usage(results, task, has_pairs),
        "## What it reaches",
        *reached(results),
        "## How it was trained",
        trained(results),
        "## Training data",
        *data_section(results),
        "## Limits",
        bullets(limits(results, task)),
        "## Made with",
        made_with(results),
    ]
    head = metadata(results, task).to_yaml()
    return str(ModelCard(f"---\n{head}\n---\n\n" + "\n\n".join(body) + "\n"))


def write_card(text: str, student: Artifact) -> None:
    """Put a card beside the student's config.json, in storage and, where that is remote, in this node's copy.

    It is no part of the artefact: the manifest does not name it, and the newest run with this student writes its own.
    """
    student.storage.write_bytes(text.encode(), student.kind, student.key, "model", CARD)
    if not student.storage.is_local:
        Storage(student.local() / "model").write_bytes(text.encode(), CARD)


def title(results: Mapping[str, Any]) -> str:
    config = results["config"]
    return plain(config["registry"]["name"] or config["tracking"]["run_name"] or "student")


def metadata(results: Mapping[str, Any], task: Task) -> ModelCardData:
    """The front matter. Language and licence are left out: nothing here knows them."""
    from huggingface_hub import ModelCardData

    config, data = results["config"], data_source(results["config"]["data"])
    sources = [*map(model_source, teachers_of(config)), start_source(config)]
    bases = [*dict.fromkeys(source.hub for source in sources if source and source.hub)]
    test = results["student"]["test"]
    known = {name: metric(name).hub for name in results["task"]["metrics"] if test[name]["value"] is not None}
    hub = {name: kind for name, kind in known.items() if kind is not None}
    return ModelCardData(
        library_name=task.library,
        pipeline_tag=task.pipeline_tag,
        base_model=(bases if len(bases) > 1 else bases[0]) if bases else None,
        datasets=[data.repository] if data.repository else None,
        tags=["raydistill", "knowledge-distillation"],
        metrics=list(dict.fromkeys(hub.values())),
        model_name=title(results),
        eval_results=[eval_result(task, name, kind, test[name]["value"], data) for name, kind in hub.items()],
    )


def eval_result(task: Task, name: str, kind: str, value: float, data: Source) -> EvalResult:
    """A metric of ours by the hub's name for it, ``kind``."""
    from huggingface_hub import EvalResult

    slug = re.sub(r"[^a-z0-9]+", "-", data.name.lower()).strip("-") or "data"
    return EvalResult(
        task_type=task.pipeline_tag,
        task_name=task.pipeline_tag.replace("-", " ").title(),
        dataset_type=data.repository or slug,
        dataset_name=data.name,
        dataset_split="test",
        dataset_revision=data.revision,
        metric_type=kind,
        metric_name=metric(name).words,
        metric_value=value,
        metric_args=dict(metric(name).hub_args) or None,
    )


def summary(results: Mapping[str, Any], task: Task) -> str:
    """The decision, what it is, and the verdict."""
    what = f"A {task.about.format(count=len(task.plain_names))}, distilled from a larger one."
    return f"{escape(decision_line(results))} {what} {escape(results['verdict'])}"


def usage(results: Mapping[str, Any], task: Task, has_pairs: bool) -> str:
    config = results["config"]
    code = loading_code(task, "FOLDER_OR_REPO", config["data"]["max_length"], has_pairs, brings_code(config))
    note = loading_note(task, config)
    return f"```python\n{code}\n```" + (f"\n\n{note}" if note else "")


def reached(results: Mapping[str, Any]) -> list[str]:
    """The comparison on test rows and its conditions."""
    models = run_contenders(results)
    rows = [
        *quality_rows(models, results["task"]["metrics"]),
        *relation_rows(results, models),
        *cost_rows(models),
    ]
    cells = [[row.label, *(f"{c.text} [{c.detail}]" if c.detail else c.text for c in row.cells)] for row in rows]
    level = round(100 * results["bootstrap"]["level"])
    told = [f"In brackets: {level} % intervals, by bootstrap; of shares of right rows by Wilson's score."]
    told += filter(None, [latency_setting(models)])
    told += (
        ["It was measured on busy cores and is too high."] if busy_note([models[0].model["latency_setting"]]) else []
    )
    told += [f"{model.title[0].upper()}{model.title[1:]}: {model.note}." for model in models if model.note]
    shown = table(["test", *(model.title for model in models)], cells)
    return [shown.replace("\N{NO-BREAK SPACE}", " "), escape(" ".join(told))]


METHODS = {
    "full": ", fine-tuned on the labelled rows",
    "contrastive": ", fine-tuned on pairs of the labelled rows, with a linear head",
    "probe": ", with a linear head fitted to the labelled rows",
}
"""How a teacher was made, by ``teacher.finetune.method``."""


def trained(results: Mapping[str, Any]) -> str:
    """Teacher, start, stages with their losses, steps."""
    config, train = results["config"], results["config"]["train"]
    teachers, size = teachers_of(config), f" ({short_count(results['teacher']['num_parameters'])} parameters)"
    if len(teachers) == 1:
        lines = [f"- Teacher: {teacher_text(teachers[0], size)}."]
    else:
        lines = [f"- Teacher: the weighted mean of what {len(teachers)} models predict{size}:"]
        lines += [f"  - weight {teacher['weight']:g}: {teacher_text(teacher)}" for teacher in teachers]
    lines.append(f"- Student: {start_text(results)}.")
    for name, stage in config["stages"].items():
        terms = ", ".join(loss_text(label, loss) for label, loss in stage["losses"].items())
        line = f"- Stage {escape(name)}: {length_text(stage)}, "
        line += f"learning rate {spelled(stage['learning_rate'])}"
        line += f" ({stage['schedule']}, warm-up {percent(stage['warmup_ratio'])}), losses: {terms}"
        line += f", frozen: {escape(', '.join(stage['freeze']))}" if stage["freeze"] else ""
        line += ", with settings that change on the way" if stage["changes"] else ""
        lines.append(line + ".")
    seed = config["seed"] if train["seed"] is None else train["seed"]
    seeds = results.get("seeds")
    seed = f"{seeds['student']['seed']}, the median of {seeds['num']}" if seeds else seed
    steps = max((point["step"] for point in results["curves"]["student"]), default=None)
    taken = "Optimizer steps" if steps is None else f"{steps:,} optimizer steps"
    picked = metric(epoch_metric(results)).words
    best = f"the best epoch by validation {escape(picked)} was taken"
    lines.append(f"- {taken} of {train['global_batch_size']} rows, seed {seed}; {best}.")
    return "\n".join(lines)


def teacher_text(teacher: Mapping[str, Any], size: str = "") -> str:
    """Which model a teacher is, and how it was made; ``size``: how large it is."""
    told, finetune = model_source(teacher).link(), teacher["finetune"]
    if finetune is not None:
        told += METHODS[finetune["method"]]
        told += "" if finetune["method"] == "probe" else f" for {length_text(finetune)}"
    return told + size + (", with Python code of its own (trust_remote_code)" if teacher["trust_remote_code"] else "")


def length_text(settings: Mapping[str, Any]) -> str:
    """How many epochs a training lasts."""
    least, most = settings.get("min_epochs"), spelled(settings["num_epochs"])
    return f"{most} epochs" if least is None else f"{spelled(least)} to {most} epochs, as long as validation gained"


def start_text(results: Mapping[str, Any]) -> str:
    student, start = results["config"]["student"], start_source(results["config"])
    shape = ", ".join(f"{student[key]} {unit}" for key, unit in SHAPE.items() if student.get(key) is not None)
    if start is not None:
        return f"{shape}{', ' if shape else ''}started from {start.link()}"
    shape = shape or "of the teacher's size"
    if student.get("type") == "conv":
        shape = f"a convolutional network of {shape}, kernel {student['kernel_size']}"
    if student["start"] == "teacher_embeddings":
        return f"{shape}, started from the teacher's embeddings"
    shared = student.get("share_layers")
    kept = "" if shared is None else f"; its embeddings and first {shared} layers are the teacher's, and did not learn"
    if student["start"] == "random":
        return f"{shape}, started at random{kept}"
    taken = [str(layer) for _, layer in (results.get("layers") or {}).get("start", ()) if layer > 0]
    which = f"layers {', '.join(taken)} of {results['layers']['teacher']}" if taken else "layers"
    return f"{shape}, started from the teacher's {which}{kept}"


def loss_text(name: str, loss: Mapping[str, Any]) -> str:
    kind = loss["type"]
    text = f"{kind} (weight {spelled(loss['weight'])}"
    text += f", temperature {spelled(loss['temperature'])}" if "temperature" in loss else ""
    if weights := loss.get("class_weights"):
        listed = ", ".join(f"{label} {weight:g}" for label, weight in weights.items()) if weights != "balanced" else ""
        text += f", class weights {listed or weights}"
    text += f", label smoothing {spelled(loss['label_smoothing'])}" if loss.get("label_smoothing") else ""
    if "layers" in loss:
        layers = loss["layers"]
        is_map = isinstance(layers, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in layers)
        text += ", layers " + (" ".join(f"{s}:{t}" for s, t in layers) if is_map else spelled(layers))
    return escape(f"{text})" if name == kind else f"{name}: {text})")


def spelled(value: Any) -> str:
    """A setting in words, whichever of its forms it has: a number, a schedule, a word; a loss of a user's own may have
    any other."""
    if isinstance(value, Mapping) and value.keys() == Schedule.model_fields.keys():
        text = f"from {value['start']:g} to {value['end']:g}" + (" by a cosine" if value["type"] == "cosine" else "")
        return text + (f" over the first {percent(value['over'])} of the steps" if value["over"] < 1 else "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else setting(value)


def data_section(results: Mapping[str, Any]) -> list[str]:
    """Where the rows come from, how many there are, and with which targets."""
    data, counts = results["config"]["data"], results["data"]
    told = f"Source: {data_source(data).link('datasets/')}."
    task = task_of(results["task"]["facts"])
    reads_pictures = task.reads_pictures
    if data["unlabeled"]:
        what, source = "Pictures" if reads_pictures else "Texts", source_of(data["unlabeled"]).link("datasets/")
        told += f" {what} without labels from {source} joined the training rows."
    counted = results["task"].get("counted")
    cut = "Longer texts are read in windows of" if counted else "Rows are cut to"
    if not reads_pictures:
        told += f" {cut} {data['max_length']} tokens."
    splits = list(counts["num_rows"])
    rows = [[s, f"{counts['num_rows'][s]:,}", f"{counts['labeled'].get(s, 0):,}"] for s in splits]
    parts = [told, table(["split", "rows", "labelled"], rows)]
    if any(counts["per_class"].values()):
        names, more = shown_names(task.plain_names)
        found = {s: Counter[str]() for s in splits}
        for split, name, count in ((s, n, c) for s in splits for n, c in counts["per_class"][s].items()):
            found[split][task.plain_name(name)] += count
        cells = [[escape(n), *(f"{found[s][n]:,}" for s in splits)] for n in names]
        return [
            *parts,
            f"Labelled {'objects' if counted == 'objects' else 'words' if counted else 'rows'} by label:",
            table(["label", *splits], cells),
            *([more] if more else []),
        ]
    return [*parts, *([f"Targets of the training rows: {escape(counts['summary'])}."] if counts["summary"] else [])]


def limits(results: Mapping[str, Any], task: Task) -> list[str]:
    """What a user of the model should not expect of it."""
    student, data = results["student"], results["config"]["data"]
    names, more = shown_names(task.plain_names)
    listed = f"{', '.join(map(escape, names))}{', …' if more else ''}"
    support = results["data"]["labeled"]["test"]
    what = "pictures" if task.reads_pictures else "texts"
    cut = f"It reads the first {data['max_length']} tokens of a row; what comes after plays no part."
    found = [
        *([] if task.has_units or task.reads_pictures else [cut]),
        task.limit.format(names=listed),
        f"All figures are of {support:,} labelled test rows from the source above. On other {what} they are not known.",
    ]
    found += [escape(note) for note in results.get("notes", ()) if "teacher.model: " in note]
    for name in ("student", "teacher"):
        if results[name]["chance"]["at_chance"]:
            found.append(f"**The {name} is {results['task']['guessing']}**, as far as the test rows can tell.")
    error = student["test"].get("calibration_error", {}).get("value")
    if error is not None:
        found.append(f"Its scores are off by {100 * error:.1f} points on average (expected calibration error on test).")
    found += label_limits(student.get("per_class", ()))
    return [*found, "Language and licence are not stated here; the licence depends on those of teacher and data."]


def label_limits(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is to be said of single labels: ``per_class`` of a model."""
    found, judged = [], [entry for entry in entries if entry["support"] and entry["recall"] is not None]
    if judged:
        weak = min(judged, key=lambda entry: entry["recall"])
        found.append(
            f"Its weakest label is {escape(weak['name'])}: it finds {percent(weak['recall'])} of its "
            f"{weak['support']:,} test rows."
        )
    unseen = [entry["name"] for entry in entries if not entry["support"]]
    if unseen:
        found.append(f"Not measured, as no test row has them: {', '.join(map(escape, shown_names(unseen)[0]))}.")
    return found


def made_with(results: Mapping[str, Any]) -> str:
    versions = package_versions()
    named = ", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions)
    run = f" MLflow run {escape(results['run_id'])}." if results["run_id"] else ""
    return f"{named}.{run}"


def shown_names(names: Sequence[str]) -> tuple[list[str], str]:
    """The first names, and a sentence on the rest."""
    left = len(names) - MAX_NAMES
    return list(names[:MAX_NAMES]), f"And {left:,} more; config.json has them all." if left > 0 else ""
