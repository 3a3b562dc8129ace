"""What becomes of models on test rows that are written otherwise, see ``data.perturbations``.

Rows of which only the first words are left are compared on these words, of which models have read all before.

A student is called more fragile than its teacher where a perturbation takes more of the main metric from it, beyond
chance: where the interval of (student's change - teacher's change), all four values from the same resamples of the
rows, lies below 0. As several perturbations are looked at, that interval is one of 1 - 5 % / their number (Bonferroni):
a student that is no more fragile was called so in 1 to 5 of 100 made-up runs, with 10 to 300 rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raydistill.config.metrics import metric
from raydistill.evaluate.bootstrap import LEVEL
from raydistill.evaluate.intervals import gain, interval
from raydistill.evaluate.scoreboard import Scoreboard
from raydistill.tasks.base import Task
from raydistill.tasks.targets import Array, Targets

WORDS = {"lower": "lower-cased", "upper": "upper-cased", "typos": "with typos", "half": "cut to half"}
"""What rows are, by perturbation."""
SAME_PART = "the part that is left, as it was"
"""Of which rows the figure is that a change is against, where it is not all of them."""
UNTOUCHED = {
    "lower": "the texts have no upper-case letter",
    "upper": "the texts have no lower-case letter",
    "typos": "hardly a text has a word in it",
    "half": "no text is long enough",
}
"""Why a perturbation changes no text."""
NO_CASE = "the tokenizer makes no difference between cases"


@dataclass(frozen=True)
class Perturbed:
    """The test rows under one perturbation."""

    name: str
    num_rows: int
    num_texts_changed: int
    num_tokens_changed: int
    """Rows that a model reads otherwise than before."""
    outputs: Mapping[str, Array]
    """Of each model (N, C); empty where no row is changed."""
    targets: Targets | None = None
    """Those of the rows so written; None where they are the same."""

    @property
    def same_because(self) -> str | None:
        """Why every model reads the rows as before; None where it does not."""
        if self.num_tokens_changed:
            return None
        return NO_CASE if self.name in ("lower", "upper") and self.num_texts_changed else UNTOUCHED[self.name]


def robustness(
    tasks: Mapping[str, Task],
    outputs: Mapping[str, Array],
    perturbed: Sequence[Perturbed],
    targets: Targets,
    *,
    example_ids: Array,
    num_samples: int,
    seed: int,
) -> dict[str, Any]:
    """The field ``robustness`` of results.json. ``outputs``: of each model (N, C) on the rows as they are."""
    task = next(iter(tasks.values()))
    main, measured = task.shown_metrics[0], [one for one in perturbed if one.same_because is None]
    every = {(name, ""): found for name, found in outputs.items()}
    own: dict[str, Targets] = {}
    for one in measured:
        written = one.targets or targets
        every |= {(name, one.name): found for name, found in one.outputs.items()}
        own |= {f"{name} {one.name}": written for name in one.outputs}
        if written.num_units < targets.num_units:
            every |= {(name, f"before {one.name}"): found for name, found in outputs.items()}
            own |= {f"{name} before {one.name}": written for name in outputs}
    board = Scoreboard(
        {f"{name} {kind}": tasks[name] for name, kind in every},
        {f"{name} {kind}": found for (name, kind), found in every.items()},
        targets,
        example_ids=example_ids,
        num_samples=num_samples,
        seed=seed,
        wanted={main},
        own=own,
    )
    return {
        "metric": main,
        "perturbations": {one.name: described(one, board, main, len(measured)) for one in perturbed},
        "left_out": dict(task.unperturbed),
    }


def described(one: Perturbed, board: Scoreboard, main: str, num_measured: int) -> dict[str, Any]:
    """One perturbation of ``num_measured``; see ``evaluate.results`` for its fields."""
    found: dict[str, Any] = {
        "rows_changed": one.num_tokens_changed / one.num_rows,
        "same_because": one.same_because,
        "models": None,
        "student_minus_teacher": None,
        "is_more_fragile": False,
    }
    if one.same_because is not None:
        return found
    models: dict[str, Any] = {}
    for name in one.outputs:
        before, after = compared(board, name, one.name)
        models[name] = {**board.intervals(after)[main], "change": board.differences(before, after)[main]}
        models[name]["same_part"] = board.intervals(before)[main] if is_part(before) else None
    (own, own_samples), (others, others_samples) = (change(board, n, one.name, main) for n in ("student", "teacher"))
    value, samples = own - others, own_samples - others_samples
    strict = interval(value, samples, level=1 - (1 - LEVEL) / num_measured)
    found["models"], found["student_minus_teacher"] = models, interval(value, samples)
    high = gain(main, strict)["high"]
    found["is_more_fragile"] = high is not None and high < 0
    return found


def compared(board: Scoreboard, model: str, perturbation: str) -> tuple[str, str]:
    """Of a model on a scoreboard the names of its answers before and after: to what is left of the rows, where that is
    not all."""
    before = f"{model} before {perturbation}"
    return before if before in board.scores else f"{model} ", f"{model} {perturbation}"


def is_part(before: str) -> bool:
    """Whether the first of these names is of a part of the rows."""
    return not before.endswith(" ")


def change(board: Scoreboard, model: str, perturbation: str, main: str) -> tuple[float, Array]:
    """What a perturbation adds to a model's metric: the value, and resamples of it (S,)."""
    before, after = compared(board, model, perturbation)
    value = board.scores[after].values[main] - board.scores[before].values[main]
    return value, board.samples[after][main] - board.samples[before][main]


def fragile_sentence(results: Mapping[str, Any]) -> str:
    """Under what the student loses more than its teacher, from results.json; empty where that is not shown."""
    found = results.get("robustness") or {"perturbations": {}}
    told = []
    for name, one in found["perturbations"].items():
        if one["is_more_fragile"]:
            about, models = metric(found["metric"]), one["models"]
            own, others = (models[model]["change"]["value"] for model in ("student", "teacher"))
            changes = f"its {about.words} changes by {about.amount(own)}, the teacher's by {about.text(others)}"
            told.append(f"on rows {WORDS[name]} {changes}")
    return f"It is more fragile than its teacher: {'; '.join(told)}." if told else ""


def same_sentences(found: Mapping[str, Any]) -> list[str]:
    """Of perturbations that change no row, or are left out, why, from the field ``robustness``."""
    reasons: dict[str, list[str]] = {}
    for name, one in found["perturbations"].items():
        if one["same_because"] is not None:
            reasons.setdefault(one["same_because"], []).append(WORDS[name])
    same = [f"{listed(names)}: every model reads the same as before, as {why}." for why, names in reasons.items()]
    return same + [f"{listed([WORDS[name]])}: left out, as {why}." for name, why in found.get("left_out", {}).items()]


def listed(words: Sequence[str]) -> str:
    """Words at the beginning of a sentence, with commas between."""
    text = ", ".join(words)
    return text[0].upper() + text[1:]
