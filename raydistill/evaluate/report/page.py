"""``report.html`` of a distill run: one file for people, made from ``results.json``; see ``render``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydistill.config.metrics import capitalized, metric
from raydistill.evaluate.decision import decision_of
from raydistill.evaluate.figure import Figure
from raydistill.evaluate.report import pictures as run_pictures
from raydistill.evaluate.report.comparison import (
    COLORS,
    TITLES,
    Cell,
    Contender,
    Row,
    answer_pictures,
    cost_rows,
    interval,
    measured,
    pair_matrices,
    quality_rows,
    side_by_side,
)
from raydistill.evaluate.report.figures import Picture
from raydistill.evaluate.report.glossary import glossary
from raydistill.evaluate.report.naming import last_part, teachers_of, teachers_text
from raydistill.evaluate.report.render import clean, render, write_page, yaml_text
from raydistill.evaluate.report.scales import ABSENT, cut, scale
from raydistill.evaluate.robustness import SAME_PART, WORDS, listed, same_sentences
from raydistill.evaluate.rules import signed
from raydistill.evaluate.verdict import BASELINE_STARTS
from raydistill.tasks import Task, task_of
from raydistill.tracking.endpoint import sqlite_path

TIMES = {
    "prepare": "data",
    "teacher": "teacher",
    "layers": "similarity of layers",
    "record": "recording of the teacher",
    "train": "student",
    "baseline": "the same without a teacher",
    "evaluate": "evaluation",
    "tfidf": "linear model on TF-IDF",
    "register": "registry",
    "start": "start: imports, Ray, MLflow",
    "total": "in all",
}
TERMS = (
    *("teacher", "student", "test rows", "validation", "95 % interval", "agreement with the teacher", "retention"),
)
LABEL_TERMS = ("F1", "precision", "recall")
FATES = {
    "entities": {
        "exact": "found",
        "wrong_type": "another type",
        "wrong_border": "other words",
        "overlapped": "another type, other words",
        "missed": "missed",
        "invented": "named where none is",
    },
    "questions": {
        "right": "answered rightly",
        "one_word_off": "off by one word",
        "overlapping": "other words around right ones",
        "elsewhere": "another part of the text",
        "not_answered": "not answered though there is an answer",
        "invented": "answered though there is none",
    },
    "objects": {
        "right": "found",
        "misplaced": "found twice, or with a box that is off",
        "confused": "found as another class",
        "invented": "found where none is",
        "missed": "missed",
    },
}
"""What can become of what a task counts: see ``details`` of its scores."""
FATES_OF = {"entities": "entity_errors", "questions": "answer_errors", "objects": "box_errors"}
CAPTIONS = {
    "entities": "The labelled entities of the test rows: found, with another type, with other words (too many or too "
    "few), with both, or missed; below, what a model names where no entity is.",
    "objects": "What a model gives as an answer on test pictures, the score being high enough: it is an object where "
    "boxes overlap by half of what they cover together (IoU 0.5). Below, objects that no answer is about.",
    "questions": "The questions of the test rows, by the answer that a model gives and the right one that is nearest.",
}
SIDES = ("student", "teacher")
MAX_NAME = 60  # characters of an answer beside a text


def write_run_report(results: Mapping[str, Any], path: Path) -> None:
    """Write the page of a run's results; an older page at that place is replaced at once.

    ConfigError where the place cannot be written.
    """
    write_page(page_text(results), path)


def page_text(results: Mapping[str, Any]) -> str:
    """The page's HTML."""
    shown = clean(results)
    contenders = run_contenders(shown)
    config, student, task = shown["config"], shown["student"], task_of(shown["task"]["facts"])
    max_length = config["data"]["max_length"]
    quality = quality_rows(contenders, shown["task"]["metrics"])
    return render(
        "run.html",
        pictures(shown, contenders),
        results=shown,
        decision=decision_of(shown),
        title=title(shown),
        subtitle=subtitle(shown),
        facts=facts(shown),
        **side_by_side(contenders, shown["labels"]),
        groups=[quality, relation_rows(shown, contenders), cost_rows(contenders)],
        pairs=pair_matrices(contenders, shown["labels"]) if "pairwise_pr_auc" in student else None,
        robustness=robustness_section(shown, contenders),
        perturbed=task.perturbed,
        disagreements=[judged(row) for row in shown["disagreements"]],
        disagreeing=task.disagreeing,
        errors=[judged(row) for row in shown["errors"]],
        layers=layer_rows(shown["layers"]),
        start=config["student"]["start"],
        loading=loading_code(task, student["path"], max_length, shows_pairs(shown), brings_code(config)),
        loading_note=loading_note(task, config),
        registered=registered_code(shown),
        max_length=max_length,
        is_cut=not task.has_units and not task.reads_pictures,
        fates=fates(shown["task"].get("counted", "rows"), contenders),
        counted=shown["task"].get("counted", "rows"),
        num_labeled=shown["data"]["labeled"]["test"],
        notes=shown["notes"],
        config=yaml_text(config),
        times=TIMES,
        colors=COLORS,
        glossary=glossary(terms(shown)),
    )


def fates(counted: str, contenders: Sequence[Any]) -> dict[str, Any] | None:
    """What became of what the task counts, and the number of it, model by model; None where a task does not say."""
    counts = [one.model.get(FATES_OF.get(counted, "")) for one in contenders]
    if not all(counts):
        return None
    rows = [(words, [found[name] for found in counts]) for name, words in FATES[counted].items()]
    least = [f"{one.title} {one.model['threshold']:.2f}" for one in contenders if "threshold" in one.model]
    caption = CAPTIONS[counted] + (f" Scores count from: {', '.join(least)}." if least else "")
    return {"counted": counted, "caption": caption, "rows": rows}


def terms(results: Mapping[str, Any]) -> list[str]:
    """What the glossary tells: the page's terms, those of models and latency where they are there."""
    more = {"baseline": "without teacher", "tfidf": "TF-IDF", "champion": "champion"}
    found = [*TERMS, *(metric(name).words for name in results["task"]["metrics"])]
    found += LABEL_TERMS if results["student"].get("per_class") else ()
    found += [term for name, term in more.items() if results.get(name)]
    return [*found, "latency p50"] if results["student"]["latency_ms"] else found


def loading_code(task: Task, model: str, max_length: int, has_pairs: bool = False, has_code: bool = False) -> str:
    """Three lines that cut texts as in training, or what a task says instead; ``has_code``: of a model that brings
    Python code."""
    name = json.dumps(model, ensure_ascii=False)
    arguments = [*task.pipeline_arguments(max_length), *(["trust_remote_code=True"] if has_code else [])]
    return task.loading_code(name, max_length) or (
        "from transformers import pipeline\n"
        f"model = pipeline({', '.join([json.dumps(task.pipeline_tag), name, *arguments])})\n"
        f"print(model({example_row(task, has_pairs)}))"
    )


def brings_code(config: Mapping[str, Any]) -> bool:
    """Whether the student's class is none of transformers', so that its folder has the code of it."""
    return bool(config["student"].get("type") == "conv" or teachers_of(config)[0].get("trust_remote_code"))


def loading_note(task: Task, config: Mapping[str, Any]) -> str:
    """What else there is to know of the answers of those lines; may be empty."""
    is_symmetric = config["data"].get("symmetric", False)
    order = "It answers for the order that a pair is given in; the mean of both orders is what was measured."
    is_crf = config["student"].get("head", "softmax") != "softmax"
    alone = "It takes each word by itself; raydistill predict and pyfunc read the CRF's transitions, too."
    return " ".join(filter(None, [task.pipeline_note, order if is_symmetric else "", alone if is_crf else ""]))


def example_row(task: Task, has_pairs: bool) -> str:
    if task.reads_pictures:
        return '"picture.jpg"'
    return '{"text": "…", "text_pair": "…"}' if has_pairs else '"…"'


def registered_code(results: Mapping[str, Any]) -> str | None:
    """Lines that load a registered student by its name; None for one that is not."""
    config, version = results["config"], results["model_version"]
    if config["registry"]["name"] is None or version is None:
        return None
    uri, local = os.environ.get("MLFLOW_TRACKING_URI", "").strip(), "://" not in config["storage"]
    beside = Path(config["storage"]).expanduser().absolute() / "mlflow.db"  # the lines are for any folder
    database = sqlite_path(uri) if uri else beside if local else None
    store = json.dumps(f"sqlite:///{database}", ensure_ascii=False)
    begin = ["import mlflow", "", f"mlflow.set_tracking_uri({store})"]
    task = task_of(results["task"]["facts"])
    row = example_row(task, shows_pairs(results))
    row = f'open({row}, "rb").read()' if task.reads_pictures else row
    lines = [
        *(["import mlflow  # set MLFLOW_TRACKING_URI", ""] if database is None else begin),
        f'model = mlflow.pyfunc.load_model("models:/{config["registry"]["name"]}/{version}")',
        f"print(model.predict([{row}]))",
    ]
    return "\n".join(lines)


def run_contenders(results: Mapping[str, Any]) -> list[Contender]:
    """The models that are there, the teacher first."""
    names = [name for name in TITLES if results.get(name)]
    return [
        Contender(
            name,
            TITLES[name],
            note(name, results[name], results["task"]["guessing"]),
            results[name],
            results[name]["test"],
            is_main=name == "student",
        )
        for name in names
    ]


def note(name: str, model: Mapping[str, Any], guessing: str) -> str:
    said = []
    if name == "baseline":
        said += [f"{model['steps']:,} steps", f"starts from {BASELINE_STARTS[model['start']]}"]
    if name == "tfidf":
        said.append(f"{model['model']} on {model['num_rows']:,} labelled rows")
    if name == "champion":
        said.append(f"version {model['version']}")
    if model["chance"]["at_chance"]:
        said.append(guessing)
    return ", ".join(said)


def title(results: Mapping[str, Any]) -> str:
    """The registered version, or whose student it is."""
    config, version = results["config"], results["model_version"]
    if name := config["registry"]["name"]:
        return f"{name} version {version}" if version is not None else str(name)
    return f"A student of {' and '.join(last_part(teacher['model']) for teacher in teachers_of(config))}"


def subtitle(results: Mapping[str, Any]) -> str:
    """From which teacher, to what, on which data."""
    config, depth = results["config"], results["layers"]["student"]
    student = f"a student of {depth} layer{'s' * (depth != 1)}" if depth else "a student"
    return f"{teachers_text(config)} → {student}, on {config['data']['path']}"


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know first: name and value."""
    student, teacher, ratios = results["student"], results["teacher"], results["ratios"]
    main = results["task"]["main_metric"]
    reached = Figure.of(main, student["test"][main])
    text = reached.said + (f" ({bounds})" if (bounds := reached.bounds()) else "")
    found = [(f"{capitalized(reached.about.words)} on test", text)]
    for name, heading in (("num_parameters", "Parameters"), ("bytes", "Size on disk")):
        unit = scale(name)
        text = f"{unit.amount(student[name])} of the teacher's {unit.amount(teacher[name])}"
        found.append((heading, f"{text} ({100 * ratios[name]:.0f} %)"))
    if student["latency_ms"] and teacher["latency_ms"]:
        times = [scale("p50").amount(model["latency_ms"]["p50"]) for model in (student, teacher)]
        text = f"{times[0]}, the teacher's {times[1]} ({1 / ratios['latency_p50']:.1f}×)"
        found.append(("Latency of a row", text))
    rows, labeled = (results["data"][name] for name in ("num_rows", "labeled"))
    text = f"{rows['train']:,} to train on, {labeled['train']:,} of them labelled; {rows['test']:,} of test"
    found.append(("Rows", text))
    if results["reused"]:
        reused = ", ".join(results["reused"]).replace("signals of", "teacher outputs of")
        found.append(("Was in storage already", reused))
    return found


def relation_rows(results: Mapping[str, Any], contenders: Sequence[Contender]) -> list[Row]:
    """What is said of a model and its teacher, or its student."""
    main = results["task"]["main_metric"]
    about, teacher = metric(main), results["teacher"]["test"][main]["value"]
    agreement, kept, lead = [], [], []
    for contender in contenders:
        is_teacher, value = contender.name == "teacher", contender.figures[main]["value"]
        agreement.append(Cell("" if is_teacher else scale("agreement").text(contender.model["agreement"])))
        kept.append(Cell("" if is_teacher else scale("retention").text(about.retention(value, teacher))))
        difference = (results["differences"].get(f"student_minus_{contender.name}") or {}).get(main)
        lead.append(Cell("") if contender.is_main else ahead(main, difference))
    rows = [Row("agreement with the teacher, %", agreement)]
    if seeds := results.get("seeds"):
        spreads = {name: about.around(seeds[name]["test"][main]) for name in ("student", "baseline") if seeds[name]}
        cells = [Cell(spreads.get(contender.name, "")) for contender in contenders]
        rows.append(Row(f"mean {scale(main).label} of {seeds['num']} seeds ± deviation", cells))
    rows += [Row(f"retention of {about.words}, %", kept)] if about.is_retained else []
    points = ", points" if about.is_share else ""
    return [*rows, Row(f"the student's {about.words} minus this model's{points}", lead)]


def ahead(name: str, difference: Mapping[str, float | None] | None) -> Cell:
    if difference is None or difference["value"] is None:
        return Cell(ABSENT)
    return Cell(signed(metric(name), difference["value"]), interval(name, difference))


def robustness_section(results: Mapping[str, Any], contenders: Sequence[Contender]) -> dict[str, Any] | None:
    """The main metric on test rows written otherwise, and how it changes; None where it was not measured."""
    found = results.get("robustness")
    if not found:
        return None
    main, groups, told = found["metric"], [], same_sentences(found)
    own = [replace(one, note="") for one in contenders if one.name in ("teacher", "student", "baseline")]
    for name, one in found["perturbations"].items():
        if one["models"] is None:
            continue
        known = [one["models"][contender.name] for contender in own]
        rows = [Row(f"{WORDS[name]}: {scale(main).label}", [measured(main, figure) for figure in known])]
        if all(figure.get("same_part") for figure in known):
            rows.append(Row(SAME_PART, [measured(main, figure["same_part"]) for figure in known]))
        groups.append([*rows, Row("its change", [ahead(main, figure["change"]) for figure in known])])
        extra = ahead(main, one["student_minus_teacher"])
        beyond = "more" if one["is_more_fragile"] else "not measurably more"
        compared = f"the student is {beyond} fragile than its teacher (its change minus the teacher's: {extra.text}, "
        compared += f"95 % interval {extra.detail})"
        if why := Figure.of(main, one["student_minus_teacher"]).why:
            compared = f"whether the student is more fragile than its teacher is not known: {why}"
        told.append(
            f"{listed([WORDS[name]])}: {100 * one['rows_changed']:.0f} % of the rows read otherwise; {compared}."
        )
    return {"contenders": own, "groups": groups, "told": told}


def layer_rows(layers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the student's layers start as, and which pairs each loss compares: ``student ← teacher``."""
    groups = {"starts as": layers["start"]}
    groups |= {name.removeprefix("stages."): pairs for name, pairs in layers["losses"].items()}
    return [(name, ", ".join(f"{s} ← {t}" for s, t in pairs)) for name, pairs in groups.items() if pairs]


def judged(disagreement: Mapping[str, Any]) -> dict[str, Any]:
    """A disagreement and who of the two is right, where answers are right or wrong: a model is sure of those."""
    label = disagreement["label"]
    sides = {name: {**disagreement[name], "answer": cut(disagreement[name]["answer"], MAX_NAME)} for name in SIDES}
    right = [name for name in SIDES if disagreement[name]["answer"] == label]
    verdict = "no label" if label is None else f"{right[0]} right" if right else "both wrong"
    verdict = verdict if label is None or any(side["sure"] is not None for side in sides.values()) else ""
    texts = {name: without_gaps(disagreement[name]) for name in ("text", "text_pair")}
    label = None if label is None else cut(label, MAX_NAME)
    return {
        "image": None,
        "marks": None,
        **disagreement,
        **texts,
        **sides,
        "label": label,
        "verdict": verdict,
        "right": right[0] if right else None,
    }


def without_gaps(text: str | None) -> str | None:
    """The text without its empty lines: twenty texts lie below each other."""
    return None if text is None else "\n".join(line for line in text.splitlines() if line.strip())


def shows_pairs(results: Mapping[str, Any]) -> bool:
    """Whether a row is two texts, by the config or by a row that is shown."""
    if task_of(results["task"]["facts"]).reads_apart:
        return False
    return bool(results["config"]["data"]["columns"]["text_pair"]) or any(
        row["text_pair"] is not None for row in results["disagreements"]
    )


def pictures(results: Mapping[str, Any], contenders: Sequence[Contender]) -> dict[str, list[Picture]]:
    """By section of the page; sections without a picture are empty."""
    return {
        "losses": run_pictures.loss_picture(results),
        "validation": run_pictures.validation_picture(results),
        "answers": answer_pictures(contenders, len(results["labels"])),
        "speed": run_pictures.speed_pictures(results),
    }
