"""Commands for a cluster: parsed as here, sent so that they parse to the same."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer
from kit.runs import write_config
from kit.toy import toy_config

from raydistill.cli import main as cli
from raydistill.cli.submit.request import entry_point, parse
from raydistill.config.loading import load_config
from raydistill.errors import ConfigError

COMMANDS: Any = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("request")
    space = {"space": {"stages.distill.learning_rate": {"choice": [1e-4, 1e-3]}}}
    return str(write_config(folder, toy_config(folder, train__num_workers=1, sweep=space)))


@pytest.mark.parametrize(
    "line",
    [
        "{config}",
        "distill {config} --set 'data.path=a b.csv' --set stages.distill.losses.kd.weight=2",
        "--set train.num_workers=2 {config}",
        "sweep {config} --fresh --retry-failed",
        "evaluate models:/toy@champion --split validation --max-length 7",
        "evaluate a/b --data some/name --set data.max_length=9",
        "promote toy --version 3 --force --reason 'it''s old; rm -rf $HOME' --dry-run --storage s3://b/p",
        "promote toy --data x.csv --set data.columns.text=-t",
        "promote --storage s3://b/p -- -toy",
    ],
)
def test_words_parse_to_the_same_values(line: str, config: str) -> None:
    request = parse(COMMANDS, shlex.split(line.format(config=config)))
    again = parse(COMMANDS, request.words({}))
    assert again.name == request.name
    expected = {**request.params, "json": True, "overrides": request.params.get("overrides") or None}
    assert {**again.params, "overrides": again.params.get("overrides") or None} == expected
    assert (again.config, again.data) == (request.config, request.data)
    assert shlex.split(entry_point(request.words({}))) == ["exec", "python", "-m", "raydistill", *request.words({})]


@pytest.mark.parametrize("path", ["/mnt/a-b_c.d/x", "1e3", "true", "a: b", "'quoted'", "with # mark", "ü/日本", "-x"])
def test_changes_take_the_place_of_what_was_written(config: str, path: str) -> None:
    request = parse(COMMANDS, [config, "--set", "storage=here"])
    words = request.words({"storage": "/mnt/x", "data.path": path})
    made = parse(COMMANDS, words).config
    assert made is not None
    assert (made.storage, made.data.path) == ("/mnt/x", path)
    promote = parse(COMMANDS, ["promote", "toy", "--data", "/abs/rows.csv", "--storage", "/mnt/x"])
    again = parse(COMMANDS, promote.words({"data.path": "rows.csv", "storage": "/mnt/y"}))
    assert (again.params["data"], again.params["storage"]) == ("rows.csv", "/mnt/y")
    assert parse(COMMANDS, request.words({"config": config})).params["config"] == config


def test_the_option_storage_becomes_an_override(config: str) -> None:
    request = parse(COMMANDS, ["distill", config, "--set", "storage=here", "--storage", "s3://bucket/x"])
    assert request.storage().value == "s3://bucket/x"
    again = parse(COMMANDS, request.words({"storage": "s3://bucket/y"}))
    assert again.storage().value == "s3://bucket/y"
    assert parse(COMMANDS, request.words({})).storage().value == "s3://bucket/x"


def test_references_of_a_config(config: str) -> None:
    changes = ["student.start=some/checkpoint", "data.unlabeled=more.txt"]
    words = [word for change in changes for word in ("--set", change)]
    found = {reference.setting: reference.value for reference in parse(COMMANDS, [config, *words]).references()}
    loaded = load_config(config, changes)
    assert found == {
        "config": config,
        "storage": loaded.storage,
        "data.path": loaded.data.path,
        "data.unlabeled": "more.txt",
        "teacher.model": loaded.teacher.model,
        "student.start": "some/checkpoint",
    }


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["plan", "x.yaml"], ConfigError, "plan cannot be submitted; these can: distill, sweep, evaluate, promote"),
        (["no.yaml"], ConfigError, "no.yaml cannot be read"),
        (["distill", "no.yaml", "--sett", "a=b"], Exception, "No such option: --sett"),
        (["promote"], Exception, "Missing parameter: name"),
        (["promote", "toy", "--gate", "no.yaml"], ConfigError, "no.yaml cannot be read"),
        (["evaluate", "m", "--set", "data.max_length=3"], ConfigError, "--data, which is missing"),
        (["sweep", "{config}", "--set", "sweep=null"], ConfigError, "sweep"),
    ],
)
def test_mistakes_are_found_here(words: list[str], error: type[Exception], message: str, config: str) -> None:
    with pytest.raises(error) as caught:
        parse(COMMANDS, [word.format(config=config) for word in words])
    assert message in (str(caught.value) or getattr(caught.value, "message", "")), caught.value


def test_doctor_looks_at_all_nodes_from_there() -> None:
    request = parse(COMMANDS, ["doctor", "--storage", "s3://b/p"])
    assert [reference.value for reference in request.references()] == ["s3://b/p"]
    assert request.words({}) == ["doctor", "--storage", "s3://b/p", "--json", "--address", "auto"]
