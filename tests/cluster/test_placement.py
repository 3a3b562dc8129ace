"""What teachers and workers ask of a cluster: shares, marks of nodes, kinds of GPUs, and what can never fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from kit import clusters as cluster_nodes
from kit.clusters import LocalCluster
from kit.faults import patience
from kit.nodes import head, node, train
from kit.runs import write_config
from kit.tiny import save_tiny
from kit.toy import toy_config

from raydistill.cluster.placement import State, teacher_options, teacher_resources
from raydistill.cluster.resources import (
    check_room,
    device_type,
    groups_at_once,
    teachers_beside,
    wanted_by_workers,
    worker_resources,
)
from raydistill.cluster.room import SHARE, Node, announced_nodes, even_share, mark, place, room
from raydistill.config.loading import load_config
from raydistill.config.teacher import ModelTeacher, Pool
from raydistill.config.training import Train
from raydistill.config.tree import Config
from raydistill.errors import ConfigError
from raydistill.pipeline.plan import make_plan
from raydistill.search.budget import estimate


def cluster(*living: Node) -> list[Node]:
    return [*living, *announced_nodes(living)]


def pool(**settings: Any) -> Pool:
    return Pool.model_validate({"max": settings.get("min", 1), **settings})


GPU_CLUSTER = cluster(head(trainer=(2, 16, 2), teacher=(4, 8, 1), cpu=(4, 16)))


@pytest.mark.parametrize(
    ("nodes", "settings", "asked"),
    [
        ([node(8)], {}, {"CPU": 8}),
        ([node(8)], {"num_workers": 3}, {"CPU": 2}),
        ([node(2)], {"num_workers": 4}, {"CPU": 1}),
        ([node(16, 2)], {}, {"CPU": 8, "GPU": 1}),
        # too few GPUs: on CPUs it would be another run
        ([node(16, 2)], {"num_workers": 3}, {"CPU": 8, "GPU": 1}),
        # by node: 7 CPUs each would fit into the sum, but the second into no node
        ([node(2), node(12)], {"num_workers": 2}, {"CPU": 6}),
        # nodes without GPUs do not raise what a worker asks for beside its GPU
        ([node(4, 1), node(4, 1), node(64)], {"num_workers": 2}, {"CPU": 4, "GPU": 1}),
        ([node(1, 2)], {}, {"CPU": 1, "GPU": 1}),
        # elastic: it may begin with one
        ([node(8, 1)], {"num_workers": 2, "min_workers": 1}, {"CPU": 8, "GPU": 1}),
        ([node(8, 1)], {"num_workers": 2}, {"CPU": 8, "GPU": 1}),
        ([node(), *[node(8, 1, trainer=1)] * 8], {"num_workers": 16}, {"CPU": 8, "GPU": 1}),
        (GPU_CLUSTER, {"num_workers": 16}, {"CPU": 8, "GPU": 1}),
        # GPUs of others do not make it one on GPUs
        ([node(8, trainer=1), node(8, 1)], {"num_workers": 2}, {"CPU": 4, "trainer": SHARE}),
        ([node(8), node(8, 1, teacher=1)], {}, {"CPU": 8}),
        ([node(), node(8, 1, teacher=1)], {}, {"CPU": 8, "GPU": 1}),
        ([node(8)], {"resources_per_worker": {"CPU": 3}}, {"CPU": 3}),
        ([node(8)], {"accelerator_type": "A100"}, {"CPU": 1, "GPU": 1, "accelerator_type:A100": SHARE}),
        (
            [node(8, 1)],
            {"accelerator_type": "A100", "resources_per_worker": {"GPU": 0.5}},
            {"GPU": 0.5, "accelerator_type:A100": SHARE},
        ),
        ([node(8, trainer=1), node(32)], {}, {"CPU": 8, "trainer": SHARE}),
        # too few nodes for training: anywhere, rather than waiting without end
        ([node(8, 1, trainer=1), node(32, 4)], {"num_workers": 2}, {"CPU": 8, "GPU": 1}),
        (GPU_CLUSTER, {"num_workers": 6}, {"CPU": 8, "GPU": 1}),
        ([node(2, trainer=1), node(8)], {"num_workers": 4}, {"CPU": 1}),
        # what needs no GPU takes no node that has some, nor what no such node could hold
        ([node(8, 1, trainer=1)], {"resources_per_worker": {"CPU": 2}}, {"CPU": 2}),
        ([node(8, trainer=1), node(32)], {"resources_per_worker": {"CPU": 16}}, {"CPU": 16}),
        # nothing is there but what may come
        (GPU_CLUSTER, {}, {"CPU": 8, "GPU": 1, "trainer": SHARE}),
        (GPU_CLUSTER, {"num_workers": 4}, {"CPU": 8, "GPU": 1, "trainer": SHARE}),
        (cluster(head(trainer=(1,))), {}, {"CPU": 1, "trainer": SHARE}),
    ],
)
def test_what_a_worker_asks_for(nodes, settings, asked):
    assert wanted_by_workers(train(**settings), nodes) == asked


def test_a_worker_beside_nodes_of_a_running_group():
    living = [head(trainer=(2, 8, 1)), node(8, 1, trainer=1)]
    nodes = cluster(*living)
    assert [(n.count, n.is_there) for n in nodes] == [(1, True), (1, True), (1, False)]
    assert wanted_by_workers(train(num_workers=2), nodes) == {"CPU": 8, "GPU": 1, "trainer": SHARE}
    assert room({"GPU": 1, "trainer": SHARE}, nodes) == 2
    both = cluster(*living, node(8, 1, trainer=1))
    assert len(both) == 3
    assert all(n.is_there for n in both)


@pytest.mark.parametrize(
    ("settings", "address", "nodes", "expected"),
    [
        ({}, "", [node(8)], "here"),
        ({"num_workers": 0, "resources_per_worker": {"GPU": 1}}, "h:6379", [node(8, 1)], "here"),
        ({"resources_per_worker": {"GPU": 0.5}}, "", [node(8)], "cuda"),
        ({"resources_per_worker": {"CPU": 4}}, "h:6379", [node(8, 1)], "cpu"),
        ({"accelerator_type": "L4"}, "", [node(8)], "cuda"),
        ({}, "h:6379", [node(8)], "cpu"),
        ({}, "h:6379", [node(8), node(8, 1)], "cuda"),
        ({"num_workers": 2}, "h:6379", [node(8, 1)], "cuda"),  # a node is missing: no reason to compute otherwise
        ({"num_workers": 2}, "h:6379", [node(8, trainer=1), node(8, 1)], "cpu"),  # the GPU is not theirs
        ({"num_workers": 2}, "h:6379", [head(trainer=(2, 8, 1))], "cuda"),  # nothing is there but the head, without GPU
        ({}, "ray://h:10001", None, "here"),
    ],
)
@pytest.mark.parametrize("here", ["cpu", "cuda"])
def test_what_workers_compute_on(settings, address, nodes, expected, here, monkeypatch):
    """It decides on the dtype, and so on the run: the driver's own machine may have no GPU, or one that is not used."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("torch.cuda.is_available", lambda: here == "cuda")
    found = State(address, tuple(nodes or ()), tuple(nodes or ()))
    monkeypatch.setattr("raydistill.cluster.resources.read_cluster", lambda: found)
    assert device_type(Config.model_construct(train=train(**settings), teacher=ModelTeacher(model="x"))) == (
        here if expected == "here" else expected
    )


def test_the_cluster_that_a_plan_names_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr("raydistill.cluster.resources.read_cluster", lambda: 1 / 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_config(toy_config(tmp_path, train__num_workers=1, train__dtype="auto"))
    state = State("h:6379", (node(8, 1),), (node(8, 1),))
    assert device_type(config, state) == "cuda"
    assert make_plan(config, state=state)["teacher"]["dtype"] == "bfloat16"  # on a GPU; those of today are fast at it
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")  # which nothing may ask
    sweep = {"space": {"stages.distill.learning_rate": {"choice": [1e-4, 1e-3]}}, "search": "grid", "num_trials": 2}
    config = load_config(toy_config(tmp_path, train__num_workers=1, train__dtype="float32", sweep=sweep))
    assert make_plan(config, state=state, estimate=estimate)["sweep"]["trials"] == 2


@pytest.mark.parametrize(
    ("nodes", "num_workers", "asked"),
    [
        ([node(16)], 1, {"CPU": 4}),
        ([node(2)], 1, {"CPU": 1}),
        ([node(16)], 2, {"CPU": 2}),
        ([node(16, 1, trainer=1), node(8)], 1, {"CPU": 16, "GPU": 1}),
        ([node(16, trainer=1)], 1, {"CPU": 4}),  # a trial goes anywhere
        (cluster(head(cpu=(4, 16))), 1, {"CPU": 4}),  # four on each of the nodes that may come
    ],
)
def test_what_a_trial_asks_for(nodes, num_workers, asked):
    assert wanted_by_workers(train(num_workers=num_workers), nodes, groups=4, is_trial=True) == asked


@pytest.mark.parametrize(
    ("nodes", "settings", "workers", "asked"),
    [
        ([node(8)], {}, train(), {"CPU": 1}),
        ([node(8, 2)], {}, train(), {"CPU": 1, "GPU": 1}),
        ([node(8, 1)], {}, train(), {"CPU": 1}),  # the worker has the only GPU
        ([node(8, 1)], {}, None, {"CPU": 1, "GPU": 1}),  # while recording there is no worker
        ([node(8, 3)], {"min": 2}, train(), {"CPU": 1, "GPU": 1}),
        ([node(8, 3)], {"min": 3}, train(), {"CPU": 1}),
        ([node(8, 2)], {}, train(resources_per_worker={"GPU": 2}), {"CPU": 1}),
        ([node(8, 1)], {"resources": {"GPU": 0.25}}, train(), {"GPU": 0.25}),
        ([node(8), node(4, teacher=1)], {}, train(), {"CPU": 1, "teacher": SHARE}),
        ([node(8, 1), node(4, 1, teacher=1)], {}, train(), {"CPU": 1, "GPU": 1, "teacher": SHARE}),
        ([node(8), node(4, 1, teacher=1)], {"resources": {"CPU": 2}}, train(), {"CPU": 2}),
        (GPU_CLUSTER, {"min": 2, "max": 4}, train(num_workers=4), {"CPU": 1, "GPU": 1, "teacher": SHARE}),
        (
            GPU_CLUSTER,
            {"accelerator_type": "L4"},
            train(),
            {"CPU": 1, "GPU": 1, "teacher": SHARE, "accelerator_type:L4": SHARE},
        ),
        (
            [node(8, 1, teacher=1), node(8, 1, **{"accelerator_type:L4": 1})],
            {"accelerator_type": "L4"},
            None,
            {"CPU": 1, "GPU": 1, "accelerator_type:L4": SHARE},  # the nodes for teachers have another kind
        ),
    ],
)
def test_what_a_teacher_asks_for(nodes, settings, workers, asked):
    assert teacher_resources(pool(**settings), workers, nodes) == asked


def test_teachers_are_spread_over_nodes_and_ask_by_rays_names(monkeypatch):
    monkeypatch.setattr("raydistill.cluster.placement.known_nodes", lambda: [node(8, teacher=1)] * 2)
    options = teacher_options(pool(min=2, resources={"CPU": 2, "memory": 1e9}))
    assert options == {
        "num_cpus": 2,
        "num_gpus": 0,
        "memory": 1e9,
        "scheduling_strategy": "SPREAD",  # a node that is lost takes few with it
        "resources": options["resources"],
    }
    assert options["resources"].keys() <= {"teacher"}


def test_workers_leave_room_for_teachers_at_their_side():
    assert wanted_by_workers(train(), [node(8)], pool=pool(min=1, max=4)) == {"CPU": 4}
    assert wanted_by_workers(train(num_workers=2), [node(4)], pool=pool(min=1, max=8)) == {"CPU": 1}
    assert wanted_by_workers(train(), [node(2)], pool=pool()) == {"CPU": 1}
    assert wanted_by_workers(train(), [node(16, 2)], pool=pool()) == {"CPU": 15, "GPU": 1}
    # so many teachers as there may be would take the workers' GPUs
    assert wanted_by_workers(train(num_workers=2), [node(16, 4)], pool=pool(max=4)) == {"CPU": 7, "GPU": 1}
    shared = pool(max=8, resources={"GPU": 0.5})
    assert wanted_by_workers(train(), [node(8, 2)], pool=shared) == {"CPU": 8, "GPU": 1}
    half = {"CPU": 1, "GPU": 1}  # the teacher has half of the only GPU, so that there is no room: they are refused
    assert wanted_by_workers(train(), [node(8, 1)], pool=shared) == half
    apart = [node(8, trainer=1), node(8, teacher=1)]
    assert wanted_by_workers(train(), apart, pool=pool(max=4)) == {"CPU": 8, "trainer": SHARE}


@pytest.mark.parametrize(
    ("nodes", "workers", "pool", "expected"),
    [
        ([node(4)], 2, Pool(max=8), 2),
        ([node(2)], 1, Pool(max=2), 1),
        ([node(8)], 1, Pool(max=2), 2),
        ([node(4)], 3, Pool(max=4), 1),
        ([node(16, 4)], 2, Pool(max=4), 2),
        ([node(8, 2, "10.0.0.1"), node(8, 2, "10.0.0.2")], 1, Pool(max=8), 3),
        ([node(16, 4)], 3, Pool(max=4, resources={"GPU": 0.25}), 4),
        (cluster(head(teacher=(6, 8, 1), trainer=(2, 16, 1))), 2, Pool(max=4), 4),
    ],
)
@pytest.mark.parametrize("address", ["", "10.0.0.9:6379"])
def test_teachers_leave_every_worker_its_place(nodes, workers, pool, expected, address, monkeypatch):
    """They come first: as many as are asked for would leave the workers none, where no more nodes come."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    train = Train(num_workers=workers)
    assert teachers_beside(train, pool, nodes) == expected
    wanted = wanted_by_workers(train, nodes, pool=pool)
    rest = place(teacher_resources(pool, train, nodes), expected, nodes).rest
    assert place(wanted, workers, rest).num == workers
    assert wanted.get("GPU", 0) == any(node.total.get("GPU") for node in nodes)


@pytest.mark.parametrize(
    ("nodes", "settings", "pool_settings", "message"),
    [
        (
            [node(2)],
            {"num_workers": 4},
            None,
            "workers need 4 × (1 CPU); 1 node with 2 CPU hold 2 of them. Lower train.num_workers or",
        ),
        (
            [node(2)],
            {"resources_per_worker": {"GPU": 1}},
            None,
            "train.num_workers: workers need 1 × (1 GPU); 1 node with 2 CPU hold 0 of them.",
        ),
        (
            [node(16, 8)],
            {"num_workers": 16},
            None,
            "workers need 16 × (2 CPU, 1 GPU); 1 node with 16 CPU, 8 GPU hold 8 of them. Lower train.num_workers or "
            "train.resources_per_worker "
            "({GPU: 0.5} shares GPUs, {CPU: 4} computes without).",
        ),
        (
            [node(2)],
            {"accelerator_type": "A100"},
            None,
            "need 1 × (1 CPU, 1 GPU, A100); 1 node with 2 CPU hold 0 of them. Lower",
        ),
        (
            [node(4, 1, **{"accelerator_type:L4": 1})],
            {"accelerator_type": "A100"},
            {"accelerator_type": "T4"},
            "({GPU: 0.5} shares GPUs, {CPU: 4} computes without), or change accelerator_type.",
        ),
        (
            [node(4), node(2)],
            {"num_workers": 2, "resources_per_worker": {"CPU": 3}},
            None,
            "need 2 × (3 CPU); 1 node with 4 CPU and 1 node with 2 CPU hold 1 of them. Lower",
        ),
        (
            [node(1)],
            {},
            {},
            "no room for teachers, 1 × (1 CPU), beside training workers, 1 × (1 CPU), on 1 node with 1 CPU.",
        ),
        (
            [node(4)],
            {},
            {"min": 8},
            "teacher.pool: teachers need 8 × (1 CPU); 1 node with 4 CPU hold 4 of them. Lower teacher.pool.min",
        ),
        (
            [node(4, 1)],
            {"resources_per_worker": {"GPU": 1}},
            {"resources": {"GPU": 0.5}},
            "no room for teachers, 1 × (0.5 GPU), beside training workers, 1 × (1 GPU), on",
        ),
    ],
)
def test_what_can_never_fit_is_refused(nodes, settings, pool_settings, message):
    beside = None if pool_settings is None else pool(**pool_settings)
    wanted = wanted_by_workers(train(**settings), nodes, pool=beside)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_room(train(**settings), wanted, beside, nodes)


@pytest.mark.parametrize(
    ("nodes", "settings", "pool_settings"),
    [
        ([node(2)], {}, {}),
        ([node(1)], {"resources_per_worker": {"CPU": 0.5}}, {"resources": {"CPU": 0.5}}),
        ([node(4, 1)], {"resources_per_worker": {"GPU": 0.5}}, {"resources": {"GPU": 0.5}}),
        ([node(2)], {"num_workers": 3, "min_workers": 1, "resources_per_worker": {"CPU": 1}}, {}),
    ],
)
def test_what_just_fits_is_taken(nodes, settings, pool_settings):
    wanted = wanted_by_workers(train(**settings), nodes, pool=pool(**pool_settings))
    check_room(train(**settings), wanted, pool(**pool_settings), nodes)


def test_what_does_not_fit_yet_is_refused_only_where_no_nodes_come(monkeypatch):
    monkeypatch.setattr("raydistill.cluster.resources.known_nodes", lambda: [node(2)])
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert worker_resources(train(num_workers=4)) == {"CPU": 1}
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(ConfigError, match="workers need 4"):
        worker_resources(train(num_workers=4))


def test_workers_of_a_trial_go_anywhere_others_to_nodes_for_training(monkeypatch):
    monkeypatch.setattr("raydistill.cluster.resources.known_nodes", lambda: [node(8, trainer=1), node(32)])
    assert worker_resources(train()) == {"CPU": 8, "trainer": SHARE}
    assert worker_resources(train(), is_trial=True) == {"CPU": 32}


@pytest.mark.parametrize(
    ("living", "num_workers", "expected"),
    [
        ([head(cpu=(4, 16))], 2, 16),  # scaled to zero: what is announced counts
        ([head(cpu=(4,))], 2, 1),  # of unknown size
        ([node(8)], 2, 2),
        ([node(8)], 1, None),
    ],
)
def test_how_many_groups_at_once(living, num_workers, expected, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.setattr("raydistill.cluster.resources.living_nodes", lambda: living)
    monkeypatch.setattr("raydistill.cluster.resources.known_nodes", lambda: cluster(*living))
    assert groups_at_once(train(num_workers=num_workers), {"CPU": 2.0}) == expected


def test_things_are_laid_on_nodes_that_are_there_first():
    nodes = [Node("group", {"g": 1.0, "CPU": 4.0}, 3, is_there=False), node(3), node(1, name="small")]
    placed = place({"CPU": 2}, 6, nodes)
    assert [(n.name, num) for n, num in placed.on] == [("10.0.0.1", 1), ("group", 5)]
    assert [(n.name, n.count, n.total["CPU"]) for n in placed.rest] == [
        ("10.0.0.1", 1, 1.0),
        ("small", 1, 1.0),
        ("group", 3, 0.0),
    ]
    assert place({"CPU": 2}, 9, nodes).num == 7
    assert place({}, 5, [node(1)]).num == 5


def test_rounding_does_not_lose_a_place():
    assert room({"GPU": 0.1}, [node(0, 0.3)]) == 3
    assert mark("teacher", {"GPU": 1 / 3}, 3, [node(1, 1, teacher=1)]) == {"teacher": SHARE}
    assert even_share(3, [node(2.5)]) == 1


def make_config(folder: Path, **changes: Any) -> Path:
    """Two teachers ahead of one worker; the teacher is a classifier already."""
    folder.mkdir()
    config = toy_config(
        folder,
        teacher__mode="pool",
        teacher__pool={"min": 2, "max": 2, "resources": {"CPU": 0.5}},
        evaluate__baseline=False,
        train__num_workers=1,
        **changes,
    )
    save_tiny(folder / "classifier", "bert", num_layers=4, seed=3, labels=("film", "money", "sport"))
    config["teacher"] |= {"model": str(folder / "classifier")}
    del config["teacher"]["finetune"]
    return write_config(folder, config)


def plan_on(
    cluster: LocalCluster, config: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["raydistill", "plan", str(config), *arguments, "--json"],
        env={**os.environ, **cluster.environment, **environment},
        capture_output=True,
        text=True,
        timeout=patience(90.0),
        check=False,
    )


def run_on(cluster: LocalCluster, nodes: dict[str, cluster_nodes.Node], config: Path) -> dict[str, set[str]]:
    """Distil, and watch on which nodes the student's steps and the teachers' micro-batches are computed."""
    found: dict[str, set[str]] = {"step": set(), "signals": set()}
    placed: dict[int, str] = {}
    before = len(cluster.lines())
    command = cluster.start(config, config.parent)
    deadline = time.monotonic() + patience(180.0)
    while command.process.poll() is None:
        assert time.monotonic() < deadline, command.err.read_text()
        for line in cluster.lines()[before:]:
            kind, pid = line.split()[0], int(line.split()[-1])
            if pid not in placed:  # while the process is there to be asked for its parent
                placed.update((pid, name) for name, node in nodes.items() if node.runs(pid))
            if kind in found and pid in placed:
                found[kind].add(placed[pid])
        time.sleep(0.1)
    command.results(10.0)
    return found


@pytest.mark.slow
def test_parts_of_a_run_go_to_their_nodes_and_anywhere_where_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDISTILL_STEP_SECONDS", "0.05")
    cluster = LocalCluster(tmp_path, RAYDISTILL_STEP_SECONDS="0.05")
    try:
        nodes = {"other": cluster.add(4)}
        nodes["trainer"] = cluster.add(1, resources={"trainer": 1})
        nodes["teacher"] = cluster.add(1, resources={"teacher": 1})
        config = make_config(tmp_path / "marked")

        wrong = plan_on(cluster, config, "--cluster", RAY_AUTH_TOKEN="0" * 64)
        assert wrong.returncode == 1
        assert "Could not reach the Ray cluster at" in json.loads(wrong.stdout)["error"]["message"]
        plan = json.loads(plan_on(cluster, config, "--cluster").stdout)["cluster"]
        workers, teachers = plan["roles"]
        assert workers["resources"] == {"CPU": 1, "trainer": SHARE}
        assert teachers["resources"] == {"CPU": 0.5, "teacher": SHARE}
        assert [sum(role["now"].values()) for role in plan["roles"]] == [1, 2]
        assert plan["findings"] == []

        assert run_on(cluster, nodes, config) == {"step": {"trainer"}, "signals": {"teacher"}}

        for name in ("trainer", "teacher"):
            cluster.kill(nodes.pop(name))
        deadline = time.monotonic() + patience(60.0)
        while len(cluster.alive()) > 2:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        config = make_config(tmp_path / "plain")
        assert run_on(cluster, nodes, config) == {"step": {"other"}, "signals": {"other"}}
    finally:
        cluster.stop()
