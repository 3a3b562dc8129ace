"""Which combinations a sweep tries, in which order, and what ends it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from raydistill.config.loading import load_config
from raydistill.config.tree import Config
from raydistill.search.front import pareto_front
from raydistill.search.ledger import Ledger, Params, Trial
from raydistill.search.proposals import Proposals, Verdict, key
from raydistill.search.space import combination, space_size, sweep_of
from raydistill.search.study import sampler_for, violations
from raydistill.storage.storage import Storage

TEMPERATURE = "stages.distill.losses.kd.temperature"
WEIGHT = "stages.distill.losses.kd.weight"
RATE = "stages.distill.learning_rate"
LAYERS = "student.num_layers"
ACCURACY = "validation/accuracy"

CONTINUOUS: dict[str, Any] = {
    TEMPERATURE: {"uniform": [1, 8]},
    WEIGHT: {"loguniform": [0.1, 10]},
    RATE: {"loguniform": [1e-5, 1e-3]},
}
FINITE: dict[str, Any] = {
    LAYERS: {"choice": [2, 3, 4]},
    TEMPERATURE: {"choice": [4.0, 2.0]},
    WEIGHT: {"choice": [1, 2]},
}
SEARCHES = ("grid", "random", "bayesian", "evolution")


def sweeping(space: dict[str, Any], *, seed: int = 0, **sweep: Any) -> Config:
    tree = {
        "seed": seed,
        "data": {"path": "texts.csv"},
        "teacher": {"model": "encoder"},
        "student": {"num_layers": 2},
        "stages": {
            "distill": {"learning_rate": 5e-5, "losses": {"kd": {"type": "forward_kl"}, "task": {"type": "task"}}}
        },
        "sweep": {"space": space, **sweep},
    }
    return load_config(tree)


def grid(config: Config) -> list[Params]:
    sweep = sweep_of(config)
    return [combination(sweep, index) for index in range(space_size(sweep) or 0)]


class Search:
    """A sweep without training: a ledger on disk, and a function that says what a combination reaches."""

    def __init__(self, folder: Path, config: Config, judge: Callable[[Params], Verdict] | None = None) -> None:
        self.folder, self.config = folder, config
        self.judged: list[Params] = []
        self.judge = judge or (lambda params: Verdict())
        self.now = 1000.0
        self.resume()

    def resume(self) -> None:
        """What a new process does after kill -9."""
        self.ledger = Ledger(Storage(str(self.folder)), ("sweeps", "it"))
        self.proposals = Proposals(self.config, self.ledger, self.note, clock=lambda: self.now)

    def note(self, params: Params) -> Verdict:
        self.judged.append(params)
        return self.judge(params)

    def next(self) -> Trial:
        trial = self.proposals.next()
        assert trial is not None
        return trial

    def train(self, reach: Callable[[Params], float] = lambda params: 0.5, most: int = 1000) -> list[Trial]:
        """One trial after another to its end, until the search ends or `most` are done."""
        done: list[Trial] = []
        while len(done) < most and (trial := self.proposals.next()) is not None:
            self.proposals.end(trial.number, "completed", values={ACCURACY: reach(trial.params)})
            done.append(self.ledger[trial.number])
        return done

    @property
    def told(self) -> list[Any]:
        return [trial for trial in self.proposals._study.get_trials() if trial.state != TrialState.FAIL]


def smooth(params: Params) -> float:
    """At most 1, at temperature 5, weight 3.16 and rate 1e-4."""
    temperature, weight, rate = (float(params[name] or 0) for name in (TEMPERATURE, WEIGHT, RATE))
    return 1 - ((temperature - 5) / 7) ** 2 - (math.log10(weight) - 0.5) ** 2 / 4 - (math.log10(rate) + 4) ** 2 / 4


def small(params: Params) -> Verdict:
    """num_parameters is a million a layer, 2.5 million allowed."""
    layers = float(params[LAYERS] or 0)
    reason = f"num_parameters {layers}e6 is above 2.5e6" if layers > 2.5 else None
    return Verdict({"num_parameters": layers * 1e6}, reason)


def test_grid_goes_by_the_list_after_the_default(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(FINITE, search="grid"))
    default = {LAYERS: 2, TEMPERATURE: 2.0, WEIGHT: 1}
    expected = [params for params in grid(search.config) if params != default]
    assert [trial.params for trial in search.train()] == [default, *expected]
    assert [trial.number for trial in search.ledger] == list(range(12))
    assert search.proposals.stopped_by == "grid"
    assert search.proposals.is_exhausted


@pytest.mark.parametrize("search", SEARCHES[1:])
def test_first_trial_is_the_config_itself(tmp_path: Path, search: str) -> None:
    config = sweeping({**CONTINUOUS, LAYERS: {"choice": [4, 2]}}, search=search)
    assert Search(tmp_path, config).next().params == {TEMPERATURE: 2.0, WEIGHT: 1.0, RATE: 5e-5, LAYERS: 2}


def test_config_outside_the_space_is_not_tried(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping({TEMPERATURE: {"choice": [2.0, 4.0]}, LAYERS: {"choice": [3, 4]}}))
    assert all(trial.params[LAYERS] != 2 for trial in search.train())
    assert len(search.ledger) == 4


@pytest.mark.parametrize("kind", SEARCHES)
def test_finite_space_is_looked_at_from_end_to_end_without_repeats(tmp_path: Path, kind: str) -> None:
    search = Search(tmp_path, sweeping(FINITE, search=kind, num_trials=50))
    search.train(lambda params: float(params[LAYERS] or 0) / 4)
    assert sorted(key(trial.params) for trial in search.ledger) == sorted(map(key, grid(search.config)))
    assert search.proposals.stopped_by == "grid"
    assert (search.proposals._repeats > 0) == (kind != "grid")
    assert len(search.told) == 12  # no sampler is told of a repeat


def test_no_repeat_of_an_open_trial(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(FINITE))
    opened = [search.next() for _ in range(12)]
    assert len({key(trial.params) for trial in opened}) == 12
    assert search.proposals.next() is None
    assert search.proposals.is_exhausted  # though all of them still run
    search.proposals.end(opened[0].number, "completed", values={ACCURACY: 0.5})


@pytest.mark.parametrize(
    "space", [{**FINITE, LAYERS: {"choice": [2, 3, 4, 5]}}, {**CONTINUOUS, LAYERS: {"integer": [2, 5]}}]
)
def test_rejected_combinations_are_recorded_once_and_cost_no_trial(tmp_path: Path, space: dict[str, Any]) -> None:
    config = sweeping(space, num_trials=4, constraints={"num_parameters": {"max": 2.5e6}})
    search = Search(tmp_path, config, small)
    trained = search.train()
    rejected = [trial for trial in search.ledger if trial.state == "rejected"]
    assert len(trained) == 4
    assert rejected
    assert len(search.judged) == len(search.ledger) == len({key(trial.params) for trial in search.ledger})
    for trial in rejected:
        assert trial.reason == f"num_parameters {float(trial.params[LAYERS] or 0)}e6 is above 2.5e6"
        assert trial.facts == {"num_parameters": float(trial.params[LAYERS] or 0) * 1e6}
    assert {trial.facts["num_parameters"] for trial in trained} == {2e6}


@pytest.mark.parametrize(
    ("objectives", "has_bound"),
    [({ACCURACY: "max"}, True), ({ACCURACY: "max"}, False), ({ACCURACY: "max", "num_parameters": "min"}, True)],
)
def test_rejected_combinations_steer(tmp_path: Path, objectives: dict[str, str], has_bound: bool) -> None:
    """Cold temperatures are impossible; of the later combinations fewer are than of random ones."""

    def judge(params: Params) -> Verdict:
        size = 8 - float(params[TEMPERATURE] or 0)
        return Verdict({"num_parameters": size}, "too large" if size > 2 else None)

    constraints = {"num_parameters": {"max": 2}} if has_bound else {}
    shares = {}
    for kind in ("random", "bayesian"):
        config = sweeping(
            CONTINUOUS, search=kind, num_trials=30, max_trials=60, objectives=objectives, constraints=constraints
        )
        search = Search(tmp_path / kind, config, judge)
        search.train(lambda params: 0.5)
        shares[kind] = sum(trial.state == "rejected" for trial in search.ledger) / len(search.ledger)
    assert shares["random"] > 0.6  # 5 of 7 on average
    assert shares["bayesian"] < shares["random"] - 0.15


def test_failed_trials_steer_too(tmp_path: Path) -> None:
    config = sweeping(CONTINUOUS, num_trials=40)
    search = Search(tmp_path, config)
    while (trial := search.proposals.next()) is not None:
        if float(trial.params[RATE] or 0) > 1e-4:
            search.proposals.end(trial.number, "failed", reason="the loss is not finite")
        else:
            search.proposals.end(trial.number, "completed", values={ACCURACY: 0.5})
    failed = [trial.state == "failed" for trial in search.ledger]
    assert len(failed) == 40
    assert sum(failed[20:]) < 7  # half of 20 by chance


def test_num_trials_counts_those_that_train_or_failed(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(CONTINUOUS, num_trials=3))
    search.proposals.end(search.next().number, "failed", reason="out of memory")
    assert len(search.train()) == 2
    assert search.proposals.stopped_by == "num_trials"
    assert len(Search(tmp_path / "more", sweeping(CONTINUOUS)).train()) == 20


def test_max_trials_counts_rejected_ones(tmp_path: Path) -> None:
    impossible = Verdict(reason="no such student")
    search = Search(tmp_path, sweeping(CONTINUOUS, num_trials=3), lambda params: impossible)
    assert search.proposals.next() is None
    assert search.proposals.stopped_by == "max_trials"
    assert len(search.ledger) == 30
    search = Search(tmp_path / "few", sweeping(CONTINUOUS, num_trials=3, max_trials=7), lambda params: impossible)
    assert search.proposals.next() is None
    assert len(search.ledger) == 7


def test_max_trials_counts_repeats(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(FINITE, search="random", max_trials=12))
    search.train()
    assert search.proposals.stopped_by == "max_trials"
    assert len(search.ledger) < 12  # 12 draws out of 12 without a repeat: once in 19,000


def test_max_hours_by_the_clock_and_anew_after_a_resume(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(CONTINUOUS, max_hours=2))
    search.next()
    search.now += 7199
    search.next()
    assert not search.proposals.is_exhausted
    search.now += 1
    assert search.proposals.is_exhausted
    assert search.proposals.next() is None
    assert search.proposals.stopped_by == "max_hours"
    search.resume()
    assert [search.next().number, search.next().number, search.next().number] == [0, 1, 2]
    search.resume()
    search.next()
    search.now += 7200
    assert search.proposals.next() is None  # trial 1 waits in the ledger for the next resume
    assert (search.proposals.stopped_by, search.ledger[1].state) == ("max_hours", "waiting")


def test_patience_counts_trials_in_a_row_that_changed_nothing(tmp_path: Path) -> None:
    values = iter([0.5, 0.4, 0.5, 0.6, 0.6, 0.1, 0.2, 0.9])
    search = Search(tmp_path, sweeping(CONTINUOUS, patience=3))
    assert len(search.train(lambda params: next(values), most=6)) == 6
    assert search.proposals.stopped_by is None
    search.resume()  # the count goes on
    search.train(lambda params: next(values))
    assert search.proposals.stopped_by == "patience"
    assert len(search.ledger) == 7


def test_patience_looks_at_the_front_and_not_at_failed_trials(tmp_path: Path) -> None:
    objectives = {ACCURACY: "max", "latency_ms": "min"}
    ends: list[tuple[str, float, float]] = [
        *(("completed", 0.9, 9.0), ("completed", 0.8, 5.0), ("completed", 0.7, 6.0)),
        *(("failed", 0.0, 0.0), ("completed", 0.7, 1.0), ("stopped", 0.95, 1.0), ("failed", 0.0, 0.0)),
    ]
    search = Search(tmp_path, sweeping(CONTINUOUS, patience=2, objectives=objectives))
    for state, accuracy, latency in ends:
        trial = search.next()
        search.proposals.end(trial.number, state, values={ACCURACY: accuracy}, facts={"latency_ms": latency})  # type: ignore[arg-type]
        assert search.proposals.stopped_by is None
    search.proposals.end(search.next().number, "completed", values={ACCURACY: 0.6}, facts={"latency_ms": 2.0})
    assert search.proposals.stopped_by == "patience"


@pytest.mark.parametrize("kind", SEARCHES)
def test_resumed_search_goes_on_where_it_was(tmp_path: Path, kind: str) -> None:
    config = sweeping(FINITE, search=kind, num_trials=50)
    search = Search(tmp_path, config, small)
    done = search.train(most=1)
    stopped, running, waiting = search.next(), search.next(), search.next()
    search.proposals.end(stopped.number, "stopped", values={ACCURACY: 0.25}, history=({ACCURACY: 0.25},))
    search.ledger.update(running.number, state="running", seconds=3.0)
    before = {trial.number: trial for trial in search.ledger}
    search.resume()
    assert search.proposals.replayed == [done[0], before[stopped.number]]
    assert search.next() == before[running.number]
    assert search.next() == before[waiting.number]
    search.proposals.end(running.number, "completed", values={ACCURACY: 0.5})
    search.proposals.end(waiting.number, "completed", values={ACCURACY: 0.5})
    search.train()
    assert sorted(key(trial.params) for trial in search.ledger) == sorted(map(key, grid(config)))
    assert sum(trial.state == "rejected" for trial in search.ledger) == 8
    assert len(search.judged) == 12


def memory(search: Search) -> list[Any]:
    told = search.told
    return [(t.state, t.values, t.params, t.intermediate_values, t.constraints) for t in told]


@pytest.mark.parametrize("kind", SEARCHES[1:])
@pytest.mark.parametrize("objectives", [{ACCURACY: "max"}, {ACCURACY: "max", "num_parameters": "min"}])
def test_resumed_sampler_knows_what_it_knew(tmp_path: Path, kind: str, objectives: dict[str, str]) -> None:
    constraints = {"num_parameters": {"max": 2.5e6}, ACCURACY: {"min": 0.4}}
    space = {**CONTINUOUS, LAYERS: {"choice": [2, 4]}}
    config = sweeping(space, search=kind, num_trials=20, objectives=objectives, constraints=constraints)
    search = Search(tmp_path, config, small)
    search.train(smooth, most=8)
    for value in (0.2, 0.3):
        stopped = search.next()
        history = tuple({"step": step, ACCURACY: value + step / 10} for step in (1, 2))
        search.proposals.end(stopped.number, "stopped", values={ACCURACY: value + 0.2}, history=history)
    search.proposals.end(search.next().number, "failed", reason="killed")
    knew = memory(search)
    search.resume()
    assert memory(search) == knew
    assert len(knew) == len(search.ledger)
    assert search.next().params not in [params for _, _, params, _, _ in knew]


def test_resumed_evolution_has_parents(tmp_path: Path) -> None:
    """Children take most of their values from the generation before the resume."""
    space = {**CONTINUOUS, "train.seed": {"integer": [0, 10**6]}, "stages.distill.weight_decay": {"uniform": [0, 1]}}
    search = Search(tmp_path, sweeping(space, search="evolution", num_trials=40))
    parents = search.train(smooth, most=10)  # a population of 10
    search.resume()
    children = [search.next().params for _ in range(10)]
    known = {name: {parent.params[name] for parent in parents} for name in space}
    shares = [sum(child[name] in known[name] for name in space) / len(space) for child in children]
    assert sum(shares) / len(shares) > 0.6


@pytest.mark.parametrize(("num_trials", "startup", "population"), [(8, 5, 4), (40, 10, 10), (400, 100, 50)])
def test_a_quarter_of_the_trials_is_the_first_generation(
    monkeypatch: pytest.MonkeyPatch, num_trials: int, startup: int, population: int
) -> None:
    told: dict[str, Any] = {}
    for name in ("TPESampler", "NSGAIISampler", "RandomSampler"):
        monkeypatch.setattr(f"optuna.samplers.{name}", lambda name=name, **given: told.update({name: given}))
    for search in SEARCHES[1:]:
        sampler_for(sweep_of(sweeping(CONTINUOUS, search=search)), num_trials, 3)
    # trials run at once: without the liar the next one would be drawn beside one that is not told yet
    assert told == {
        "TPESampler": {"n_startup_trials": startup, "multivariate": True, "constant_liar": True, "seed": 3},
        "NSGAIISampler": {"population_size": population, "seed": 3},
        "RandomSampler": {"seed": 3},
    }


def test_same_seed_same_proposals(tmp_path: Path) -> None:
    for kind in SEARCHES[1:]:
        runs = [
            [trial.params for trial in Search(tmp_path / f"{kind}{i}", config).train(smooth)]
            for i, config in enumerate(
                sweeping(CONTINUOUS, search=kind, seed=seed, num_trials=10) for seed in (3, 3, 4)
            )
        ]
        assert runs[0] == runs[1]
        assert runs[0][0] == runs[2][0]  # the config itself
        assert all(one != other for one, other in zip(runs[0][1:], runs[2][1:], strict=True))


def test_resumed_search_does_not_draw_the_same_again(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(CONTINUOUS, search="random"))
    first = [trial.params for trial in search.train(most=5)]
    search.resume()
    assert all(trial.params[RATE] not in [params[RATE] for params in first] for trial in search.train(most=5))
    assert search.proposals._repeats == 0


def test_bayesian_search_beats_random_on_a_smooth_function(tmp_path: Path) -> None:
    """Distance to the optimum, geometric mean over 3 seeds: 30 trials of TPE halve that of random search."""
    lost = {}
    for kind in ("random", "bayesian"):
        logs = []
        for seed in range(3):
            config = sweeping(CONTINUOUS, seed=seed, search=kind, num_trials=30)
            trained = Search(tmp_path / f"{kind}{seed}", config).train(smooth)
            logs.append(math.log(1 - max(trial.values[ACCURACY] for trial in trained)))
        lost[kind] = math.exp(sum(logs) / len(logs))
    assert lost["bayesian"] < lost["random"] / 2


def test_several_objectives_find_the_front(tmp_path: Path) -> None:
    """Accuracy grows with temperature and size does too; weight and rate decide who is on the front."""
    objectives: dict[str, Any] = {ACCURACY: "max", "num_parameters": "min"}
    area = {}
    for kind in ("random", "bayesian", "evolution"):
        config = sweeping(CONTINUOUS, search=kind, num_trials=40, objectives=objectives)
        search = Search(tmp_path / kind, config, lambda params: Verdict({"num_parameters": float(params[TEMPERATURE])}))  # type: ignore[arg-type]
        trained = search.train(lambda params: float(params[TEMPERATURE]) / 8 + smooth({**params, TEMPERATURE: 5}) - 1)  # type: ignore[arg-type]
        assert len(trained) == 40
        front = pareto_front(trained, objectives)
        assert len(front) > 2
        # what the front dominates, seen from accuracy -1 and size 8
        points = sorted(trial.measures["num_parameters"] for trial in front)
        reach = [trial.values[ACCURACY] + 1 for trial in sorted(front, key=lambda t: t.measures["num_parameters"])]
        area[kind] = sum(r * (b - a) for r, a, b in zip(reach, points, [*points[1:], 8.0], strict=True))
    assert area["bayesian"] > area["random"]


def test_stopped_trials_are_pruned_or_complete(tmp_path: Path) -> None:
    two = {ACCURACY: "max", "num_parameters": "min"}
    for kind, objectives, state in (
        ("bayesian", {ACCURACY: "max"}, TrialState.PRUNED),
        ("evolution", {ACCURACY: "max"}, TrialState.COMPLETE),
        ("bayesian", two, TrialState.COMPLETE),
    ):
        config = sweeping(CONTINUOUS, search=kind, objectives=objectives)
        search = Search(tmp_path / f"{kind}{len(objectives)}", config, lambda params: Verdict({"num_parameters": 7.0}))
        trial = search.next()
        history = ({ACCURACY: 0.6}, {ACCURACY: 0.5})
        search.proposals.end(trial.number, "stopped", values={ACCURACY: 0.6}, history=history)
        assert search.told[0].state == state
        assert search.told[0].values == [0.6, 7.0][: len(objectives)]
        assert search.told[0].intermediate_values == ({2: 0.6} if state == TrialState.PRUNED else {})


def test_completed_without_its_objective_is_no_success(tmp_path: Path) -> None:
    search = Search(tmp_path, sweeping(CONTINUOUS))
    search.proposals.end(search.next().number, "completed", values={"validation/log_loss": 0.1})
    (told,) = search.told
    assert (told.state, told.constraints) == (TrialState.PRUNED, {"possible": 1.0})


def test_violations_are_shares_of_the_bounds() -> None:
    bounds = sweep_of(
        sweeping(
            CONTINUOUS,
            constraints={"num_parameters": {"max": 2e6}, ACCURACY: {"min": 0.8, "max": 1}, "latency_ms": {"max": 1}},
        )
    ).constraints
    found = violations({"num_parameters": 3e6, ACCURACY: 0.6, "latency_ms": math.nan}, bounds)
    assert found == pytest.approx({"num_parameters max": 0.5, f"{ACCURACY} min": 0.25, f"{ACCURACY} max": -0.4})


def test_a_trial_that_is_not_to_blame_counts_and_steers_nowhere(tmp_path: Path) -> None:
    config = sweeping(CONTINUOUS, num_trials=2)
    search = Search(tmp_path, config)
    search.proposals.end(search.next().number, "failed", reason="a bad disk", is_blameless=True)
    assert not search.told
    assert len(search.train()) == 2  # it took nobody's place
    search.resume()
    assert len(search.told) == 2
