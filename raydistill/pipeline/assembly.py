"""From what the phases left in storage to the content of ``results.json``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raydistill.config.tree import Config
from raydistill.data.encoding import load_tokenizer
from raydistill.data.perturbations import perturbed_counts, split_of
from raydistill.evaluate.compare import Predictions, read_predictions
from raydistill.evaluate.disagreements import describe_rows, find_disagreements, find_errors
from raydistill.evaluate.divergence import Divergence
from raydistill.evaluate.latency import busy_note
from raydistill.evaluate.results import ModelOutcome, RunMeasurements, SplitRows, build_results
from raydistill.models.fields import is_staged
from raydistill.models.layer_map import layer_maps
from raydistill.models.load import read_config
from raydistill.models.pictures import last_state
from raydistill.models.shape import start_layers
from raydistill.pipeline.defaults import few_rows, told
from raydistill.pipeline.layers import known_layers
from raydistill.pipeline.layers import told as told_layers
from raydistill.pipeline.recipes import baseline_settings
from raydistill.pipeline.rivals import find_champion
from raydistill.pipeline.seeds import seeds_section
from raydistill.pipeline.stages import read_history, risen
from raydistill.tasks import task_of
from raydistill.train.probe import sees_nothing

if TYPE_CHECKING:
    from raydistill.pipeline.phases import PhaseResults
    from raydistill.pipeline.prepare import Clock, Prepared
    from raydistill.tracking.runs import RunRef


BOTH_ORDERS = (
    "The order of a pair means nothing (data.symmetric): all models were trained on both orders, and answer with the "
    "mean of both, which takes two calls; latencies and rows a second are those of one."
)


def assemble(
    prepared: Prepared, ref: RunRef, outcome: PhaseResults, tfidf: ModelOutcome | None, clock: Clock
) -> dict[str, Any]:
    """Turn the stored predictions and measurements into ``results.json``; ``tfidf``: of ``tfidf_outcome``."""
    config, folder = prepared.config, outcome.evaluation.local()
    validation, test = (read_predictions(folder, split) for split in ("validation", "test"))
    if config.task.over_vocabulary:
        tokenizer = load_tokenizer(outcome.student.local() / "model")
        validation, test = (kept.with_words(tokenizer) for kept in (validation, test))
    about = json.loads((folder / "models.json").read_text())
    trained = {"student": outcome.student, "baseline": outcome.baseline, "teacher": outcome.teacher.artifact}
    history = {name: read_history(artifact) for name, artifact in trained.items() if artifact is not None}
    paths = {"teacher": outcome.teacher.folder, "student": outcome.student.local() / "model"}
    more: dict[str, dict[str, Any]] = {}
    if members := about["teacher"].get("members"):
        more["teacher"] = {"path": None, "members": members}
    if outcome.baseline is not None:
        paths["baseline"] = outcome.baseline.local() / "model"
        settings = baseline_settings(config)
        assert settings is not None
        more["baseline"] = {"steps": history["baseline"][-1]["step"], "start": settings.start}
    counts = perturbed_counts(prepared.perturbed) if prepared.perturbed is not None else {}
    changed = [name for name, rows in counts.items() if rows["tokens"]]
    at = outcome.robustness.local() if outcome.robustness is not None else None
    kept = {name: read_predictions(at, split_of(name)) for name in changed} if at is not None else {}
    models = {
        name: ModelOutcome(
            path=str(path),
            num_parameters=about[name]["num_parameters"],
            num_bytes=about[name]["bytes"],
            task=test.tasks[name],
            test=test.outputs[name],
            validation=validation.outputs[name],
            latency=about[name]["latency"],
            latency_by_shape=about[name]["latency_by_shape"],
            perturbed={kind: found.outputs[name] for kind, found in kept.items()},
            diverged=diverged(config, name, history.get(name, []), validation),
            more=more.get(name, {}),
        )
        for name, path in paths.items()
    }
    task = task_of(prepared.info.task)
    settled, similarities = known_layers(config, prepared.storage, outcome.teacher, prepared.tokens.digest)
    layers = describe_layers(settled, outcome) | {"similarities": similarities}
    champion, notes = find_champion(config.registry.name, ref, test, task)
    if similarities is not None:
        notes = [told_layers(config, similarities), *notes]
    splits, texts = prepared.info.counts, prepared.data.local() / "test.arrow"
    measured = RunMeasurements(
        task=task,
        validation=SplitRows(validation.targets, validation.example_ids),
        test=SplitRows(test.targets, test.example_ids),
        teacher=models["teacher"],
        student=models["student"],
        baseline=models.get("baseline"),
        tfidf=tfidf,
        champion=champion,
        run_id=ref.run_id,
        num_rows={split: counts.rows for split, counts in splits.items()},
        labeled={split: counts.labeled for split, counts in splits.items()},
        per_class={split: counts.per_class for split, counts in splits.items()},
        summary=prepared.info.summary,
        seconds={**clock.seconds, **outcome.seconds},
        reused=[*prepared.reused, *outcome.reused],
        curves={name: curve(entries) for name, entries in history.items()},
        disagreements=describe_rows(find_disagreements(test), test, texts),
        errors=describe_rows(find_errors(test), test, texts),
        layers=layers,
        perturbed=counts,
        perturbed_targets={name: found.targets for name, found in kept.items()},
        seeds=seeds_section(list(outcome.seeds), outcome.student, outcome.baseline),
        config=config.model_dump(mode="json"),
        num_samples=config.evaluate.bootstrap_samples,
        seed=config.seed,
    )
    if seeds := measured.seeds:
        taken = [f"the {name} of seed {seeds[name]['seed']}" for name in ("student", "baseline") if seeds[name]]
        notes = [*notes, f"Of {seeds['num']} seeds, shown by the median validation metric: {', '.join(taken)}."]
    busy = busy_note(model.latency for model in models.values())
    chosen = [*told(prepared.choices), *few_rows(prepared.info.counts["validation"].labeled)]
    if config.data.symmetric:
        notes.append(BOTH_ORDERS)
    notes = [*prepared.info.notes, *chosen, *outcome.notes, *notes, *([busy] if busy else [])]
    return build_results(measured) | {"notes": notes, "choices": [vars(choice) for choice in prepared.choices]}


def diverged(config: Config, name: str, history: list[dict[str, Any]], kept: Predictions) -> Divergence | None:
    """How a model's training diverged, if it did; ``kept``: predictions of the validation rows."""
    known, task = kept.targets.labeled, kept.tasks[name]
    found = risen(config, name, history)
    if found is None or task.is_taught or not known.any():
        return None
    return found if sees_nothing(task, kept.outputs[name][known], kept.targets.values[known]) else None


def describe_layers(config: Config, outcome: PhaseResults) -> dict[str, Any]:
    """Which layers of the teacher those of the student start from and are compared with, as in ``results.json``."""
    folders = {"student": outcome.student.local() / "model", "teacher": outcome.teacher.folder}
    configs = {name: read_config(folder, config.lead.trust_remote_code) for name, folder in folders.items()}
    depths = {name: last_state(made) for name, made in configs.items()}
    start: list[list[int]] = []
    if config.student.start == "teacher_layers" and not is_staged(configs["teacher"]):
        chosen = start_layers(configs["teacher"], config.student)
        start = [[0, 0], *([i, layer + 1] for i, layer in enumerate(chosen, 1))]
    elif config.student.start == "teacher_embeddings":
        start = [[0, 0]]
    return {**depths, "start": start, "losses": layer_maps(config, depths["student"], depths["teacher"])}


def curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a model's history in the form of ``results.json``."""
    return [{"step": entry["step"], "metrics": {k: v for k, v in entry.items() if "/" in k}} for entry in history]
