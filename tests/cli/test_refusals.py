"""What cannot work on a cluster is refused here, with the way out; what can is named as the cluster knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from kit.runs import write_config

from raydistill.cli import main as cli
from raydistill.cli.submit.project import open_project
from raydistill.cli.submit.refusals import Findings, examine, parse_environment
from raydistill.cli.submit.request import Request, parse
from raydistill.config.loading import load_config, to_yaml
from raydistill.errors import ConfigError

COMMANDS: Any = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
SERVER = "http://mlflow.example:5000"
HEAD = "http://head.example:8265"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a config that can work on every cluster, beside a common folder."""
    project, shared = tmp_path / "project", tmp_path / "common"
    for path in (project, shared, tmp_path / "elsewhere"):
        path.mkdir()
    for path in (project, tmp_path / "elsewhere", shared):
        (path / "rows.csv").write_text("text,label\na,b\n")
    good = {
        "storage": "s3://bucket/prefix",
        "data": {"path": "rows.csv"},
        "teacher": {"model": "pkg://package/model"},
        "stages": {"distill": {"losses": {"kd": {"type": "forward_kl"}}}},
    }
    write_config(project, good)
    monkeypatch.chdir(project)
    return tmp_path


def check(
    *words: str, shared: tuple[str, ...] = (), env: dict[str, str] | None = None, address: str = HEAD
) -> tuple[Request, Findings]:
    request = parse(COMMANDS, words or ["config.yaml"])
    variables = {"MLFLOW_TRACKING_URI": SERVER} if env is None else env
    return request, examine(request, open_project(), shared, variables, address)


def test_what_works_is_not_refused(folder: Path) -> None:
    _, found = check()
    assert (found.problems, found.warnings, found.changes) == ([], [], {})
    assert [path.name for path in found.files] == ["config.yaml", "rows.csv"]
    assert found.environment == {"RAY_JOB_STOP_WAIT_TIME_S": "15", "MLFLOW_TRACKING_URI": SERVER}


@pytest.mark.parametrize(
    ("change", "problem", "way_out"),
    [
        ("storage=results", "storage: results is a folder of this machine", "--shared"),
        ("storage=/abs/results", "storage: /abs/results is a folder", "s3://bucket/prefix"),
        ("storage=file:///abs/results", "is a folder of this machine", "s3://"),
        ("storage=memory://x", "storage: memory://x exists in one process only", "s3://"),
        (
            "data.path=../elsewhere/rows.csv",
            "data.path: ../elsewhere/rows.csv lies outside the project",
            "a folder above",
        ),
        ("data.path=missing.csv", "data.path: missing.csv does not exist", "--shared"),
        ("data.unlabeled=/tmp", "data.unlabeled: /tmp lies outside", "behind a URL"),
        ("teacher.model=.", "teacher.model: . is a folder of this machine", "hub name"),
        ("student.start=.", "student.start: . is a folder of this machine", "--shared"),
        ("teacher.model=./missing", "teacher.model: ./missing does not exist", "--shared"),
        ("data.path=https://me:pw@x.example/rows.csv", "holds a password", "where the nodes start"),
        ("tracking.tags.api_key=0123456789", "holds a password or a key", "where the nodes start"),
    ],
)
def test_paths_that_only_this_machine_has(folder: Path, change: str, problem: str, way_out: str) -> None:
    _, found = check("config.yaml", "--set", change)
    (text,) = found.problems
    assert problem in text
    assert way_out in text
    assert ":pw@" not in text
    assert "0123456789" not in text


def test_all_at_once(folder: Path) -> None:
    changes = ("storage=here", "data.path=/nowhere.csv", "teacher.model=.")
    words = [word for change in changes for word in ("--set", change)]
    _, found = check("config.yaml", *words, env={})
    starts = ("storage:", "data.path:", "teacher.model:", "tracking:")
    assert [text.split()[0] for text in found.problems] == list(starts)


def test_common_folders_need_no_sending(folder: Path) -> None:
    common = folder / "common"
    changes = ("storage=../common/made", "data.path=../common/rows.csv", "teacher.model=../common/not-mounted-here")
    words = [word for change in changes for word in ("--set", change)]
    request, found = check("config.yaml", *words, shared=("../common",), env={})
    assert found.problems == []
    (warning,) = found.warnings
    assert f"{common}/made/mlflow.db is sqlite on a common folder" in warning
    made = parse(COMMANDS, request.words(found.changes)).config
    assert made is not None
    expected = (f"{common}/made", f"{common}/rows.csv", f"{common}/not-mounted-here")
    assert (made.storage, made.data.path, made.teacher.model) == expected
    assert [path.name for path in found.files] == ["config.yaml"]
    assert "all nodes are one machine" in check("config.yaml", shared=("/",))[1].problems[0]


def test_absolute_names_inside_the_project_become_relative(folder: Path) -> None:
    project = folder / "project"
    (project / "texts" / "a").mkdir(parents=True)
    (project / "texts" / "a" / "1.txt").write_text("one")
    (project / "latest.yaml").symlink_to(project / "config.yaml")
    words = ("--set", f"data.path={project}/texts", str(project / "latest.yaml"))
    request, found = check(*words)
    assert found.problems == []
    assert found.changes == {"config": "latest.yaml", "data.path": "texts"}
    assert parse(COMMANDS, request.words(found.changes)).params["config"] == "latest.yaml"
    assert [path.name for path in found.files] == ["latest.yaml", "1.txt"]


def test_every_named_file_that_must_not_travel_is_a_problem(folder: Path) -> None:
    (texts := folder / "project" / "texts").mkdir()
    (texts / "credentials.txt").write_text("text")
    (texts / "out.txt").symlink_to(folder / "elsewhere" / "rows.csv")
    secret, leads_out = check("config.yaml", "--set", "data.path=texts")[1].problems
    assert secret.startswith("data.path: texts/credentials.txt is called like a secret")
    assert leads_out.startswith(f"data.path: {texts}/out.txt leads out of the project")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("", "MLFLOW_TRACKING_URI is not set"),
        ("sqlite:///mlflow.db", "is a file or folder of this machine"),
        ("sqlite:////abs/mlflow.db", "is a file or folder of this machine"),
        ("mlruns", "is a file or folder of this machine"),
        ("file:///abs/mlruns", "is a file or folder of this machine"),
        ("http://localhost:5000", "means each node itself"),
        ("http://127.0.0.1:5000", "means each node itself"),
        ("https://me:pw@mlflow.example", "holds a password"),
        ("https://0123456789abcdef@mlflow.example", "holds a password"),
        ("postgresql://me:pw@db/mlflow", "holds a password"),
        ("databricks", None),
        ("https://mlflow.example/path", None),
    ],
)
def test_tracking(folder: Path, uri: str, problem: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = check(env={})[1]
    assert len(found.problems) == (problem is not None), found.problems
    assert problem is None or problem in found.problems[0]
    assert "pw" not in str(found.problems)


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_travels_unless_it_is_of_this_machine(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "https://minio.example:9000")
    found = check()[1]
    assert (found.problems, found.environment[name]) == ([], "https://minio.example:9000")
    monkeypatch.setenv(name, "http://localhost:9000")
    (text,) = check()[1].problems
    assert text.startswith(f"{name}: http://localhost:9000 means each node itself")
    assert check("config.yaml", "--set", "storage=gs://bucket/prefix")[1].problems == []  # S3 is not used
    monkeypatch.setenv(name, "http://[bad]")
    assert "is no address" in check()[1].problems[0]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://minio.example:9000")
    assert check()[1].problems == []  # it comes first


def test_a_common_folder_may_be_reached_through_a_link(folder: Path) -> None:
    """What is sent is spelt as --shared spells it: the link is only here."""
    (folder / "link").symlink_to(folder / "common")
    words = [word for change in ("storage=../link/made", "data.path=../link/rows.csv") for word in ("--set", change)]
    found = check("config.yaml", *words, shared=("../common",))[1]
    assert found.problems == []
    assert found.changes == {"storage": f"{folder}/common/made", "data.path": f"{folder}/common/rows.csv"}
    words = ["--set", "storage=../common/made"]
    found = check("config.yaml", *words, shared=("../link",), env={"MLFLOW_TRACKING_URI": "sqlite:///../link/m.db"})[1]
    assert found.changes["storage"] == f"{folder}/link/made"
    assert found.environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{folder}/link/m.db"
    found = check("config.yaml", *words, shared=("../link",), env={"MLFLOW_TRACKING_URI": "../common/runs"})[1]
    assert "is a file or folder of this machine" in found.problems[0]


def test_a_loopback_server_may_be_the_only_node(folder: Path) -> None:
    found = check(env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}, address="http://127.0.0.1:8265")[1]
    assert found.problems == []
    assert "means each node itself" in found.warnings[0]


def test_other_commands(folder: Path) -> None:
    (folder / "project" / "gate.yaml").write_text("min_retention: 0.5\n")
    _, found = check("promote", "toy")
    assert [text.split()[0] for text in found.problems] == ["storage:"]
    request, found = check("promote", "toy", "--storage", "s3://b/p", "--gate", str(folder / "project" / "gate.yaml"))
    assert found.problems == []
    assert [path.name for path in found.files] == ["gate.yaml"]
    assert parse(COMMANDS, request.words(found.changes)).params["gate"] == "gate.yaml"
    _, found = check("evaluate", "owner/model", "--data", "rows.csv", env={})
    assert found.problems == []
    _, found = check("evaluate", "models:/toy@champion", "--data", "rows.csv", env={})
    assert [text.split()[0] for text in found.problems] == ["tracking:"]
    _, found = check("evaluate", ".", "--data", "../elsewhere/rows.csv")
    assert [text.split()[0] for text in found.problems] == ["model:", "data.path:"]


def test_secrets_are_not_sent(folder: Path) -> None:
    """Neither what is called so, nor what looks so."""
    called = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_PASSWORD", "api_key", "MY_PAT")
    look = ("hf_0123456789abcdef", "postgresql://me:pw@db/x", "AKIA0123456789ABCDEF", "postgresql://me:it's@db")
    for name, value in [*((name, "x-value") for name in called), *(("SETTING", value) for value in look)]:
        (text,) = check(env={"MLFLOW_TRACKING_URI": SERVER, name: value})[1].problems
        assert name in text
        assert value not in text
    for name in ("TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "HF_HOME", "MLFLOW_TRACKING_USERNAME"):
        assert check(env={"MLFLOW_TRACKING_URI": SERVER, name: "1"})[1].environment[name] == "1"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.path", "https://ann:hunter22@host/rows.csv"),
        ("data.path", "https://host/rows.csv?X-Amz-Signature=hunter22"),
        ("storage", "s3://AKIA0123456789ABCDEF:hunter22@bucket/prefix"),
        ("tracking.tags.api_key", "hunter22"),
        ("tracking.tags.note", "glpat-hunter22hunter22hunter22"),
        ("student.start", "https://hunter22hunter22@host/model"),
    ],
)
def test_a_config_with_a_secret_is_not_sent(setting: str, value: str, folder: Path) -> None:
    """Whatever the setting, and in the file as well as on the command line."""
    path = folder / "project" / "config.yaml"
    config = load_config(str(path), [f'{setting}="{value}"'])
    path.write_text(to_yaml(config))
    problems = check()[1].problems
    assert [text for text in problems if text.startswith(f"{setting}: holds a password or a key.")]
    assert "hunter22" not in " ".join(problems)
    assert "hunter22" not in f"{config!r} {config} {[config]}"


def test_only_addresses_are_taken_from_this_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example:9000")
    assert check()[1].environment == {
        "RAY_JOB_STOP_WAIT_TIME_S": "15",
        "MLFLOW_TRACKING_URI": SERVER,
        "AWS_ENDPOINT_URL": "http://minio.example:9000",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:pw@minio.example:9000")
    assert "AWS_ENDPOINT_URL: holds a password" in check()[1].problems[0]


def test_variables_have_names_and_values() -> None:
    for text in ("NAME", "=x", "1A=x", "A B=x", "A=\0"):
        with pytest.raises(ConfigError, match="expected NAME=VALUE"):
            parse_environment([text])


def test_in_process_training_is_mentioned(folder: Path) -> None:
    assert "runs everything on the head node" in check("config.yaml", "--set", "train.num_workers=0")[1].warnings[0]
