"""What `plan --cluster` says: where each part goes, what an autoscaler has to bring, what waits, what is missing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from kit.nodes import head, node
from rich.console import Console

from raydistill.cli.show.plan import print_forecast
from raydistill.cluster.forecast import forecast
from raydistill.cluster.placement import State, read_cluster
from raydistill.cluster.room import SHARE, Node
from raydistill.config.tree import Config
from raydistill.errors import ConfigError, RaydistillError


def config(**sections: Any) -> Config:
    losses = {"kd": {"type": "forward_kl"}}
    least = {"data": {"path": "x.csv"}, "teacher": {"model": "m"}, "stages": {"distill": {"losses": losses}}}
    return Config.model_validate({**least, **sections, "teacher": {"model": "m", **sections.get("teacher", {})}})


def state(*nodes: Node, taken: dict[str, dict[str, float]] | None = None) -> State:
    """A cluster of these nodes; ``taken``: what is in use, by the node's address."""
    free = []
    for one in nodes:
        used = (taken or {}).get(one.name, {})
        free.append(Node(one.name, {name: amount - used.get(name, 0.0) for name, amount in one.total.items()}))
    return State("10.0.0.9:6379", nodes, tuple(free))


def roles(found: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    names = ("count", "least", "now", "new", "waiting", "missing")
    return {role["name"]: tuple(role[name] for name in names) for role in found["roles"]}


def printed(found: dict[str, Any]) -> str:
    out = io.StringIO()
    print_forecast(Console(file=out, width=200), found)
    return out.getvalue()


A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
HEAD = head(trainer=(2, 8, 1), teacher=(4, 8, 1), cpu=(4, 16))


def test_an_empty_cluster_that_can_grow():
    found = forecast(
        config(train={"num_workers": 2}, teacher={"mode": "pool", "pool": {"min": 1, "max": 4}}), "pool", state(HEAD)
    )
    assert roles(found) == {
        "training workers": (2, 2, {}, {"trainer": 2}, 0, 0),
        "teachers": (4, 1, {}, {"teacher": 4}, 0, 0),
    }
    assert found["roles"][0]["resources"] == {"CPU": 8, "GPU": 1, "trainer": SHARE}
    assert found["findings"] == []
    assert [(entry["name"], entry["there"], entry["count"]) for entry in found["nodes"]] == [
        ("10.0.0.9", True, 1),
        ("cpu", False, 4),
        ("teacher", False, 4),
        ("trainer", False, 2),
    ]
    text = printed(found)
    assert "up to 2 more × trainer: 8 CPU, 1 GPU" in text
    assert "1 × no CPU" in text
    assert "teachers (training) 1 to 4 1 CPU, 1 GPU 4 on new teacher nodes" in " ".join(text.split())


def test_what_is_there_is_used_first_and_what_is_busy_is_not():
    trainer, teacher = node(8, 1, A, trainer=1), node(8, 1, B, teacher=1)
    job = config(train={"num_workers": 2}, teacher={"mode": "pool", "pool": {"min": 1, "max": 2}})
    found = forecast(job, "pool", state(HEAD, trainer, teacher))
    assert roles(found) == {
        "training workers": (2, 2, {A: 1}, {"trainer": 1}, 0, 0),
        "teachers": (2, 1, {B: 1}, {"teacher": 1}, 0, 0),
    }
    found = forecast(job, "pool", state(HEAD, trainer, teacher, taken={A: {"CPU": 8, "GPU": 1}}))
    assert roles(found)["training workers"] == (2, 2, {}, {"trainer": 1}, 1, 0)
    assert found["findings"] == ["1 of 2 training workers wait until others on the cluster make room."]


def test_what_runs_at_the_same_time_shares_the_nodes_and_what_does_not_does_not():
    only = node(4, 0, A)
    pool = {"pool": {"min": 1, "max": 2, "resources": {"CPU": 2}}}
    train = {"resources_per_worker": {"CPU": 3}}
    found = forecast(config(train=train, teacher={"mode": "pool", **pool}), "pool", state(only))
    assert roles(found) == {"training workers": (1, 1, {A: 1}, {}, 0, 0), "teachers": (2, 1, {}, {}, 0, 2)}
    found = forecast(config(train=train, teacher=pool), "cached", state(only))
    assert roles(found) == {"training workers": (1, 1, {A: 1}, {}, 0, 0), "teachers": (2, 1, {A: 2}, {}, 0, 0)}
    assert found["roles"][1]["phase"] == "recording"
    assert roles(forecast(config(teacher=pool), "online", state(only))).keys() == {"training workers"}


@pytest.mark.parametrize(
    ("train", "nodes", "finding"),
    [
        (
            {"num_workers": 2, "resources_per_worker": {"CPU": 4, "GPU": 1}},
            [node(4, 1, A), node(8, 0, B)],
            "1 of 2 training workers with 4 CPU, 1 GPU each find no place on 1 node with 4 CPU, 1 GPU and 1 node with "
            "8 CPU; the run waits for them, up to train.max_wait_minutes. Add nodes, or lower train.num_workers or "
            "train.resources_per_worker.",
        ),
        (
            {"num_workers": 2, "min_workers": 1, "resources_per_worker": {"GPU": 1}},
            [node(4, 1, A)],
            "1 of 2 training workers with 1 GPU each find no place on 1 node with 4 CPU, 1 GPU; the others begin "
            "without them. Add nodes, or lower train.num_workers or train.resources_per_worker.",
        ),
        (
            {"num_workers": 2},
            [node(4, 1, A), node(4, 0, B)],
            "1 of 2 training workers with 4 CPU, 1 GPU each find no place on 1 node with 4 CPU, 1 GPU and 1 node with "
            "4 CPU; the run waits for them, up to train.max_wait_minutes. Add nodes, or lower train.num_workers or "
            "train.resources_per_worker.",
        ),
        (
            {"resources_per_worker": {"CPU": 2}},
            [node(4, 1, A, trainer=1), node(4, 0, B)],
            "The trainer nodes are kept for what needs a GPU, or too small: training workers go to any nodes.",
        ),
        (
            {"num_workers": 2, "resources_per_worker": {"GPU": 1}},
            [node(4, 1, A, trainer=1), node(4, 1, B, teacher=1)],
            "The trainer nodes hold 1 of 2: training workers go to any nodes.",
        ),
        (
            {"accelerator_type": "L40S"},
            [HEAD],
            "No node that is there has a GPU of the kind L40S; see that new nodes have one.",
        ),
        (
            {"num_workers": 0},
            [node(4)],
            "train.num_workers: 0 runs everything in the calling process; nothing goes to a",
        ),
    ],
)
def test_what_to_know_is_said(train, nodes, finding):
    found = forecast(config(train=train), "cached", state(*nodes))
    assert any(text.startswith(finding) for text in found["findings"]), found["findings"]
    assert finding in " ".join(printed(found).split())


def test_trials_go_anywhere_as_many_as_fit():
    space = {"stages.distill.learning_rate": {"choice": [1e-3, 1e-4]}}
    job = config(train={"resources_per_worker": {"CPU": 4}}, sweep={"space": space})
    nodes = (HEAD, node(8, 1, A, trainer=1), node(16, 0, B))
    found = forecast(job, "cached", state(*nodes), num_trials=20)
    # like Ray: nodes with GPUs last
    assert roles(found)["trials"] == (20, 1, {B: 4, A: 2}, {"cpu": 14}, 0, 0)
    job = config(train={"resources_per_worker": {"CPU": 4}}, sweep={"space": space, "max_concurrent_trials": 3})
    assert roles(forecast(job, "cached", state(*nodes), num_trials=20))["trials"][:3] == (3, 1, {B: 3})
    assert roles(forecast(job, "cached", state(*nodes), num_trials=2))["trials"][:3] == (2, 1, {B: 2})
    assert roles(forecast(job, "cached", state(*nodes), num_trials=2))["training workers"][2] == {B: 1}
    pairs = config(train={"num_workers": 2, "resources_per_worker": {"CPU": 4}}, sweep={"space": space})
    assert roles(forecast(pairs, "cached", state(node(12, 0, A)), num_trials=9))["trials"] == (2, 2, {A: 2}, {}, 0, 0)


def test_an_address_that_is_none(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="set RAY_ADDRESS or give --address HOST:6379"):
        read_cluster()
    with pytest.raises(ConfigError, match="is no address of a cluster's nodes"):
        read_cluster("http://127.0.0.1:8265")


@pytest.mark.parametrize(
    ("address", "way_out"),
    [
        ("127.0.0.1:9", "Check that the head runs"),
        ("no-such-host.invalid:6379", "Check that the head runs"),
        ("junk", "RAY_AUTH_TOKEN"),
    ],
)
def test_a_cluster_that_does_not_answer(address, way_out):
    with pytest.raises(RaydistillError, match=way_out) as caught:
        read_cluster(address)
    assert caught.value.exit_code == 1
