"""Commands, their output on stdout and stderr, and how they end."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from kit import ROOT
from rich.console import Console
from rich.table import Table

from raydistill.cli import console, starters
from raydistill.cli import main as cli
from raydistill.cli.console import CommandResult, Progress, describe_progress, to_json
from raydistill.cli.doctor.checks import check_ray
from raydistill.cli.options import with_storage
from raydistill.config.loading import load_config
from raydistill.config.syntax import dump_yaml
from raydistill.errors import ConfigError, DataError, Interrupted, ModelError, RaydistillError
from raydistill.storage.artifacts import Artifact
from raydistill.storage.storage import Storage
from raydistill.tracking.runs import prepare_store

QUICKSTART = str(ROOT / "jobs" / "quickstart.yaml")
HEAVY = "torch", "ray", "mlflow", "transformers", "datasets", "pyarrow", "sklearn"


@pytest.fixture(autouse=True)
def own_temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.delenv("RAYDISTILL_DEBUG", raising=False)
    return folder


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.execute(arguments)
    out, err = capfd.readouterr()
    return code, out, err


def call_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object that stdout holds."""
    code, out, _ = call(capfd, *arguments, "--json")
    assert out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return code, found


def end(capfd: pytest.CaptureFixture[str], command: Any, *arguments: str) -> tuple[int, str, str]:
    code = console.run(command, arguments, ZeroDivisionError)
    out, err = capfd.readouterr()
    return code, out, err


def raising(error: BaseException) -> Any:
    def command(arguments: Any) -> None:
        raise error

    return command


def test_nothing_heavy_is_loaded() -> None:
    """By importing the package or what prints results, by help, by what only reads a config, and by what is refused."""
    lines = "--help; distill --help; report --help; cache --help; submit --help; losses; schema; distill no.yaml; "
    lines += "plan no.yaml; sweep no.yaml; sweep jobs/quickstart.yaml; init nothing; submit no.yaml --address h:1"
    check = f"""
import raydistill, sys
raydistill.load_config, raydistill.Config, raydistill.__version__
import raydistill.config.schema, raydistill.cli.main
for line in {lines.split("; ")}:
    code = raydistill.cli.main.execute(line.split())
    loaded = [name for name in {HEAVY} if name in sys.modules]
    assert not loaded and code == (2 if set(line.split()) & {{"no.yaml", "jobs/quickstart.yaml", "nothing"}} else 0), (
        line, code, loaded
    )
import raydistill.cli.show.results, raydistill.evaluate.latency
assert not {{"torch", "ray", "mlflow", "transformers", "sklearn"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_shell_completes_commands() -> None:
    asked = {"_RAYDISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "raydistill ca", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'raydistill'; from raydistill.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == ["cache"]


def test_the_option_storage_counts_more_than_the_config() -> None:
    config, place = str(ROOT / "jobs" / "quickstart.yaml"), 'a: "b" #'
    assert load_config(config, with_storage(["storage=other", "seed=3"], place)).storage == place
    assert load_config(config, with_storage(["storage=other"], None)).storage == "other"
    assert load_config(config, with_storage(None, None, challenger=True)).registry.challenger
    for name in ("distill", "sweep", "plan"):
        command: Any = typer.main.get_command(cli.app)
        assert "--storage" in {option for param in command.commands[name].params for option in param.opts}


def test_unknown_attribute_of_the_package() -> None:
    import raydistill

    assert {"distill", "sweep", "plan", "losses", "load_config"} <= set(dir(raydistill))
    assert raydistill.losses.__name__ == "raydistill.losses"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        raydistill.nonsense  # noqa: B018


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capfd, "--help")
    assert (code, "distill" in out, "cache" in out) == (0, True, True)
    assert call(capfd) == (0, out, "")  # no arguments: the same
    code, out, _ = call(capfd, "--version")
    assert (code, out.startswith("raydistill ")) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dstill"], "No such command 'dstill'"),
        (["plan"], "Missing argument 'CONFIG'. See: raydistill plan --help"),
        (["plan", "a", "--sett", "b"], "No such option"),
        (["predict", "m", "--max-length", "x"], "--max-length"),
        (["cache"], "See: raydistill cache --help"),
        (["distill", "no.yaml"], "no.yaml cannot be read"),
        (["distill", QUICKSTART, "--set", "sed=1"], "did you mean seed?"),
        (["init", "quikstart"], "There is nothing called 'quikstart' to start from. Did you mean 'quickstart'"),
        (["evaluate", "m", "--data", "x.csv", "--set", "seed=1"], "only names of data are used here"),
        (["evaluate", "m", "--data", "x.csv", "--set", "storage=s3://b"], "reads no config; write --storage s3://b"),
        (["plan", "a.yaml", "--set", "seed", "3"], 'an "=" stands between name and value: --set seed=3'),
        (["plan", QUICKSTART, "--set", "train.num_workers"], "for example --set train.num_workers=VALUE"),
        (["plan", QUICKSTART, "--set", "registry.name=a/b"], "a name has letters of A to Z, digits, dots, _ and -"),
        (["sweep", "tickets.csv"], "tickets.csv is a table, not a config. Write one for it (raydistill init --data"),
        (["distill", "tickets.csv.gz"], "is a table, not a config. Name the model to distil on it: --teacher"),
        (["promote", "m", "--set", "storage=there"], "this command reads no config; write --storage there"),
        (["predict", "m", "--text", "a", "--file", "b"], "--text and --file were both given"),
        (["predict", "m", "--file", "no-such-file"], "--file no-such-file cannot be read: No such file"),
    ],
)
def test_wrong_use_exits_2_in_both_forms(
    capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    code, out, err = call(capfd, *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert out == "" or arguments == ["cache"]  # a bare group prints its help
    if arguments != ["cache"]:
        code, found = call_json(capfd, *arguments)
        assert code == 2
        assert expected in found["error"]["message"]
        assert found["error"]["type"] in ("UsageError", "ConfigError")


class Refused(RaydistillError):
    exit_code = 3


@pytest.mark.parametrize(
    ("error", "kind", "message", "code"),
    [
        (RaydistillError("it broke"), "RaydistillError", "it broke", 1),
        (ModelError("it broke"), "ModelError", "it broke", 2),
        (DataError("it broke"), "DataError", "it broke", 2),
        (ConfigError("it broke"), "ConfigError", "it broke", 2),
        (Refused("no"), "Refused", "no", 3),
        (Interrupted("it broke"), "Interrupted", "it broke", 130),
        (KeyboardInterrupt(), "Interrupted", "interrupted", 130),
    ],
)
def test_errors_end_without_a_traceback(
    capfd: pytest.CaptureFixture[str], error: BaseException, kind: str, message: str, code: int
) -> None:
    assert end(capfd, raising(error)) == (code, "", f"error: {message}\n")
    found_code, out, err = end(capfd, raising(error), "--json")
    assert (found_code, err) == (code, "")
    assert json.loads(out) == {"error": {"type": kind, "message": message}}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")
def test_ctrl_c_in_a_command_exits_130(tmp_path: Path) -> None:
    fifo = tmp_path / "job.yaml"
    os.mkfifo(fifo)
    code = "import sys; from raydistill.cli.main import execute; sys.exit(execute(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "distill", str(fifo), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        writer = os.open(fifo, os.O_WRONLY)  # returns once the command reads; it then waits for what is written
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        os.close(writer)
    assert process.returncode == 130
    assert json.loads(out)["error"]["message"] == "interrupted"
    assert "Traceback" not in err


def test_crash_leaves_a_log_and_one_line(capfd: pytest.CaptureFixture[str], own_temp: Path) -> None:
    secret = "s3://key:geheim@bucket"
    code, out, err = end(capfd, raising(ValueError(f"odd thing at {secret}\nsecond line")), "distill")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: unexpected ValueError: odd thing at s3://")
    (log,) = own_temp.glob("raydistill-crash-*.log")
    assert str(log) in err
    text = log.read_text()
    assert "raydistill distill\n" in text
    assert "Traceback" in text
    assert "geheim" not in text + err
    code, out, _ = end(capfd, raising(ValueError("odd")), "--json")
    assert (code, json.loads(out)["error"]["type"]) == (1, "ValueError")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDISTILL_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        console.run(raising(ValueError("odd")), [], ZeroDivisionError)


def test_json_is_alone_on_stdout_whatever_else_prints(capfd: pytest.CaptureFixture[str]) -> None:
    def command(arguments: Any) -> CommandResult:
        print("from python")
        os.write(1, b"from a library\n")
        subprocess.run(["echo", "from a child"], check=True)
        return CommandResult(lambda: {"value": float("nan"), "nested": [float("inf"), 1.5]}, lambda console: None)

    code, out, err = end(capfd, command, "--json")
    assert (code, json.loads(out)) == (0, {"value": None, "nested": [None, 1.5]})
    assert all(f"from {source}" in err for source in ("python", "a library", "a child"))
    os.write(1, b"given back\n")
    assert capfd.readouterr().out == "given back\n"


def test_closed_pipe_is_quiet() -> None:
    code = "import sys; from raydistill.cli.main import execute; sys.exit(execute(['schema']))"
    command = f'{sys.executable} -c "{code}" | head -c 1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_to_json_is_standard() -> None:
    assert to_json({"a": Path("b"), 1: (float("-inf"),)}) == '{"a": "b", "1": [null]}'


def test_init_lists_copies_and_does_not_overwrite(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = call_json(capfd, "init")
    assert code == 0
    assert {"quickstart"} <= {recipe["name"] for recipe in found["recipes"]}
    assert {other["name"] for other in found["others"]} == {"cluster", "gate", "raycluster", "rayjob", "serve"}
    assert all(starter["about"].endswith(".") for starter in found["recipes"] + found["others"])
    shown = call(capfd, "init")[1]
    assert "quickstart" in shown
    assert "raydistill init --data FILE" in shown
    target = tmp_path / "new" / "job.yaml"
    written = {"written": str(target), "command": f"raydistill distill {target}"}
    assert call_json(capfd, "init", "quickstart", "--out", str(target)) == (0, written)
    assert target.read_text() == (ROOT / "jobs" / "quickstart.yaml").read_text()
    target.write_text("mine")
    code, _, err = call(capfd, "init", "quickstart", "--out", str(target))
    assert (code, target.read_text()) == (2, "mine")
    assert "exists already" in err
    assert call(capfd, "init", "quickstart", "--out", str(target), "--force")[0] == 0
    assert target.read_text() != "mine"


def test_recipes_are_found_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raydistill" / "jobs").mkdir(parents=True)
    (tmp_path / "raydistill" / "jobs" / "quickstart.yaml").write_text("# First line.\n")
    monkeypatch.setattr(starters, "__file__", str(tmp_path / "raydistill" / "cli" / "starters.py"))
    recipes = {name: found.about for name, found in starters.list_starters().items() if found.is_recipe}
    assert recipes == {"quickstart": "First line."}


LOCAL_STORE = "MLFLOW_TRACKING_URI=sqlite:///raydistill-storage/mlflow.db"


@pytest.mark.parametrize(
    ("arguments", "file", "command"),
    [
        (["gate"], "gate.yaml", "raydistill promote NAME --gate gate.yaml"),
        (["sweep"], "sweep.yaml", "raydistill sweep sweep.yaml"),
        (["cluster"], "cluster.yaml", "ray up cluster.yaml"),
        (["serve"], "serve.py", f"{LOCAL_STORE} serve run serve:app name=NAME"),
        (["serve", "--out", "a b/my.py"], "a b/my.py", "serve run --app-dir 'a b' my:app name=NAME"),
    ],
)
def test_init_says_what_comes_next(
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    file: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if LOCAL_STORE not in command:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert call(capfd, "init", *arguments) == (0, f"{file} written. Next: {command}\n", "")
    assert (tmp_path / file).read_bytes() == (ROOT / "jobs" / f"{arguments[0]}{Path(file).suffix}").read_bytes()


def test_wheel_holds_every_package_and_the_recipes() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "raydistill").rglob("*.py")}
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(tool["packages"]) == packages | {"raydistill.jobs"}
    assert tool["package-dir"]["raydistill.jobs"] == "jobs"
    assert tool["package-data"]["raydistill.jobs"] == ["*.yaml", "kubernetes/*.yaml"]


def test_schema_and_losses(capfd: pytest.CaptureFixture[str]) -> None:
    assert json.loads(call(capfd, "schema")[1])["properties"]["student"]
    assert call_json(capfd, "schema")[1]["properties"]["student"]
    code, found = call_json(capfd, "losses")
    assert code == 0
    assert found["losses"]["forward_kl"]["settings"]["temperature"]["default"] == 2.0
    shown = call(capfd, "losses")[1]
    assert "forward_kl  Soft targets" in shown
    table = [line.split() for line in shown.splitlines()]
    assert ["dist", "logits", "text", "classification,"] in [line[:4] for line in table]
    assert ["hidden_mse", "hidden", "states", "all", "tasks"] in table
    assert ["gradient_match", "gradients", "all", "but"] in [line[:4] for line in table]


def test_cache_lists_frees_and_refuses(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from raydistill.storage.storage import Storage

    storage = Storage(tmp_path)
    artifact = Artifact(storage, "data", "a" * 20, {"x": 1})
    with artifact.write() as folder:
        (folder / "rows").write_bytes(b"12345")
    place = ("--storage", str(tmp_path))
    code, found = call_json(capfd, "cache", "ls", *place)
    assert code == 0
    (row,) = found["artifacts"]
    assert (row["name"], row["bytes"], row["used_by"], row["whole"]) == (f"data/{'a' * 20}", 5, [], True)
    assert row["name"] in call(capfd, "cache", "ls", *place)[1]
    code, kept = call_json(capfd, "cache", "gc", *place)
    assert (code, kept["removed"]) == (0, [])
    assert kept["why_nothing"].startswith("1 unused artefacts (5 bytes) are younger than 24 hours: --older-than 0")
    storage.write_json({"artifacts": [row["name"]]}, "runs", "one", "run.json")
    said = call(capfd, "cache", "gc", "--older-than", "0", *place)[1]
    assert "1 artefacts (5 bytes) belong to 1 runs: `raydistill runs` lists them" in said
    storage.delete("runs", "one")
    gone = call_json(capfd, "cache", "gc", "--dry-run", "--older-than", "0", *place)[1]
    assert [entry["name"] for entry in gone["would_remove"]] == [row["name"]]
    assert gone["why_nothing"] is None
    assert artifact.exists()
    assert call_json(capfd, "cache", "rm", "data/nothing", *place)[0] == 2
    assert call_json(capfd, "cache", "rm", row["name"], *place)[0] == 0
    assert not artifact.exists()


def test_doctor_passes_here_and_fails_where_storage_does(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code, found = call_json(capfd, "doctor", "--storage", str(tmp_path / "new"))
    states = {check["name"]: check["state"] for check in found["checks"]}
    names = ("versions", "packages", "storage", "tracking", "disk", "shared memory", "threads", "gpu", "ray")
    assert list(states) == list(names)
    assert (code, found["ok"]) == (int("fail" in states.values()), "fail" not in states.values())
    assert (states["storage"], states["tracking"]) == ("ok", "ok")
    (tmp_path / "file").write_text("")
    code, out, _ = call(capfd, "doctor", "--storage", str(tmp_path / "file"))
    assert code == 1
    assert f"fail storage: {tmp_path / 'file'} cannot be used on this machine: " in out
    assert "→" in out
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_doctor_wants_a_tracking_server_for_url_storage(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, message in (("", "Set MLFLOW_TRACKING_URI"), ("http://user:geheim@127.0.0.1:9", "cannot be reached")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        code, found = call_json(capfd, "doctor", "--storage", "memory://bucket")
        (check,) = (check for check in found["checks"] if check["name"] == "tracking")
        assert (code, check["state"]) == (1, "fail")
        assert message in check["detail"]
        assert "geheim" not in str(found)


@pytest.mark.parametrize(
    ("variables", "state"),
    [
        ({}, "ok"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "warn"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token"}, "fail"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "ok"),
    ],
)
def test_doctor_on_ray(variables: dict[str, str], state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check = check_ray()
    assert check.state == state
    assert bool(check.hint) == (state != "ok")
    assert "RAY_AUTH_TOKEN=x" not in check.detail


def test_progress_lines_come_at_a_new_phase_and_now_and_then(capfd: pytest.CaptureFixture[str]) -> None:
    entry = {"phase": "train", "done": 5, "total": 20, "unit": "steps", "rate": 5.0, "note": "loss 0.5"}
    with Progress() as progress:
        for done in range(5, 15):
            progress({**entry, "done": done})
        progress({**entry, "phase": "evaluate", "total": 0})
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split("s  ", 1)[1].split()[0] for line in err.splitlines()] == ["train", "evaluate"]
    assert describe_progress(entry) == "train      ━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌ 5/20 steps  5/s, 0:03 left  loss 0.5"
    assert describe_progress({**entry, "rate": 0.4}).endswith("5/20 steps  2.5 s each, 0:37 left  loss 0.5")


def test_names_that_are_not_there_exit_2(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = ["--storage", str(tmp_path)]
    for line in (["cache", "rm", "data/1"], ["promote", "m"], ["runs"], ["evaluate", "models:/m/1"]):
        code, found = call_json(capfd, *line, *place)
        assert (code, found["error"]["type"]) == (2, "UnknownName"), line
    prepare_store(f"sqlite:///{tmp_path}/mlflow.db")
    for line, said in (
        (["promote", "m"], "There is no registered model 'm': none is registered at"),
        (["runs", "--experiment", "raydistil"], "no experiment 'raydistil'"),
        (["evaluate", "runs:/abcdef/model"], "there is no such run"),
    ):
        code, found = call_json(capfd, *line, *place)
        assert (code, said in found["error"]["message"]) == (2, True), found


def test_plan_refuses_a_storage_that_distill_refuses_and_leaves_nothing(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    config = {"data": {"path": "nowhere.csv"}, "teacher": {"model": "nowhere"}}
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    for command in ("plan", "distill"):
        code, found = call_json(capfd, command, str(tmp_path / "c.yaml"), "--storage", str(tmp_path / "file"))
        assert (code, "a file lies where a folder is needed" in found["error"]["message"]) == (2, True), found
    place = tmp_path / "a" / "b"
    Storage(str(place)).check(leave_nothing=True)
    assert not place.parent.exists()
    place.mkdir(parents=True)
    Storage(str(place)).check(leave_nothing=True)
    assert list(place.iterdir()) == []


def test_piped_output_is_not_wrapped(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said, row = "word " * 60 + "end", ["cell " * 20, "cell " * 20]

    def show(console: Console) -> None:
        console.print(said)
        table = Table("one", "two")
        table.add_row(*row)
        console.print(table)

    def print_it(_: Sequence[str]) -> CommandResult:
        return CommandResult(dict, show)

    monkeypatch.delenv("COLUMNS", raising=False)
    assert console.run(print_it, [], ValueError) == 0
    lines = capfd.readouterr().out.splitlines()
    assert said in lines
    assert sum("cell" in line for line in lines) == 1
    monkeypatch.setenv("COLUMNS", "60")
    console.run(print_it, [], ValueError)
    assert max(map(len, capfd.readouterr().out.splitlines())) <= 60


def test_sweep_wants_a_sweep_section(capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capfd, "sweep", str(ROOT / "jobs" / "quickstart.yaml"))
    assert (code, out) == (2, "")
    assert "sweep: is missing. Write what to search, for example sweep: {space: " in err
    wrong = "sweep={space: {student.num_layer: {choice: [1, 2]}}}"
    code, found = call_json(capfd, "sweep", str(ROOT / "jobs" / "quickstart.yaml"), "--set", wrong)
    assert code == 2
    assert "did you mean student.num_layers?" in found["error"]["message"]


def test_report_writes_pages_of_sweeps_and_runs(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from kit.results import make_results
    from kit.summaries import make_summary

    from raydistill.storage.storage import Storage

    storage, place, page = Storage(tmp_path / "storage"), ("--storage", str(tmp_path / "storage")), tmp_path / "a" / "b"
    assert "There is no finished run or sweep" in call(capfd, "report", *place)[2]
    summary, results = make_summary(), make_results()
    storage.write_json(summary, "runs", summary["sweep_key"], "sweep.json")
    assert call(capfd, "report", *place, "--out", str(page))[:2] == (0, f"{page}: {summary['verdict']}\n")
    assert "<html" in page.read_text()
    page.unlink()
    table = tmp_path / "tables" / "trials.csv"
    assert call(capfd, "report", *place, "--csv", str(table))[0] == 0
    assert not page.exists()
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [trial["number"] for trial in summary["trials"]]
    measured = [trial["measures"]["latency_ms"] for trial in summary["trials"]]
    assert [float(row["latency_ms"]) for row in rows] == measured
    assert set(summary["space"]) <= set(rows[0])
    storage.write_json(results, "runs", "abc123", "results.json")
    code, found = call_json(capfd, "report", "abc", *place, "--out", str(page))
    assert (code, found["key"], found["results"]["labels"]) == (0, "abc123", results["labels"])
    assert "<title>movies version 4</title>" in page.read_text()
    code, _, err = call(capfd, "report", "abc", *place, "--csv", str(table))
    assert (code, "for the trials of a sweep" in err) == (2, True)
    code, found = call_json(capfd, "report", summary["sweep_key"][:4], *place, "--out", str(page))
    assert (code, found["written"], found["summary"]["front"]) == (0, str(page), summary["front"])
