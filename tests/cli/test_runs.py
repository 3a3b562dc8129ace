"""What ran: runs, sweeps and verdicts in a real local store; who is listed, who counted; 80 columns, many trials."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kit.outcomes import outcome
from kit.servers import make_config
from kit.tiny import save_tiny
from mlflow import MlflowClient
from rich.console import Console

from raydistill.cli.main import execute
from raydistill.cli.show.gate import print_versions, version_cells
from raydistill.cli.show.results import print_next_steps
from raydistill.cli.show.runs import listed, main_figure, print_rows, row
from raydistill.errors import TrackingError
from raydistill.evaluate.results import build_results
from raydistill.search.children import adopt, finish_child, log_summary, start_child
from raydistill.storage.locks import lock
from raydistill.storage.storage import Storage
from raydistill.tracking.endpoint import DEFAULTS, tracking_uri
from raydistill.tracking.lineage import headline
from raydistill.tracking.listing import PAGE, Found
from raydistill.tracking.registry.students import register_student
from raydistill.tracking.registry.versions import Version, list_versions
from raydistill.tracking.runs import RunRef, finish_run, open_client, start_run

RESULTS = build_results(outcome())
COUNTS = {"waiting": 0, "running": 0, "completed": 1, "stopped": 1, "failed": 1, "rejected": 4}


@pytest.fixture(scope="module", autouse=True)
def environment():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in DEFAULTS.items():
            patch.setenv(name, value)
        yield


def start(storage: Storage, key: str, kind: str = "distill", **changes: Any) -> RunRef:
    """As ``pipeline.tracked`` begins a run."""
    return start_run(make_config(**changes), storage, key, {"kind": kind, "data": "0" * 64})


def finish_sweep(ref: RunRef, with_winner: bool = True) -> None:
    finalists = [{"trial": 0, "validation": {"accuracy": {"mean": 0.8}}, "test": {"accuracy": {"mean": 0.79}}}]
    log_summary(ref, {"counts": COUNTS, "winner": {"trial": 0} if with_winner else None, "finalists": finalists})
    finish_run(ref)


def add_trials(ref: RunRef, key: str, states: Mapping[str, str]) -> None:
    for name, state in states.items():
        facts = {"num_parameters": 12_000.0, "latency_ms": 1.5}
        child = start_child(ref, make_config(), f"{key}/{name}", name, facts=facts)
        if state != "running":
            values = {"validation/accuracy": 0.75}
            finish_child(child, "FAILED" if state == "failed" else "FINISHED", values=values, tags={"state": state})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A store with, from old to new: a registered distillation, a finished sweep whose winner is registered, one that
    is under way, a verdict, a failed, a stopped and an unfinished run, one of another experiment, a stranger's."""
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    student = save_tiny(tmp_path_factory.mktemp("hf") / "student", "bert", num_layers=1)
    one = start(storage, "one")
    register_student(one, "news", student, RESULTS, run_key="one")
    finish_run(one, RESULTS)
    sweep = start(storage, "swept", "sweep")
    add_trials(sweep, "swept", {"trial-00000": "completed", "trial-00001": "stopped", "trial-00002": "failed"})
    add_trials(sweep, "swept", {"final-00000": "completed"})
    winner = start_run(make_config(), storage, "won", {"sweep": "swept"})
    adopt(sweep, winner, "winner")
    register_student(winner, "news", student, RESULTS, run_key="won")
    finish_run(winner, RESULTS)
    finish_sweep(sweep)
    running = start(storage, "searching", "sweep")
    add_trials(running, "searching", {"trial-00000": "completed", "trial-00001": "running", "final-00000": "running"})
    client = open_client(one.tracking_uri)
    tags = {"raydistill.kind": "gate", "raydistill.verdict": "refused"}
    tags |= {"raydistill.model": "news", "raydistill.model_version": "2"}
    gate = client.create_run(one.experiment_id, tags=tags, run_name="gate news 2")
    client.log_metric(gate.info.run_id, "gate/retention", 0.91)
    client.set_terminated(gate.info.run_id)
    finish_run(start(storage, "bad"), status="FAILED")
    finish_run(start(storage, "ended"), status="KILLED")
    start(storage, "open")
    finish_run(start(storage, "other", tracking={"experiment": "other", "run_name": "mine"}), RESULTS)
    client.create_run(one.experiment_id, run_name="a stranger's")
    return storage


def rows_of(storage: Storage, **options: Any) -> list[dict[str, Any]]:
    return listed(storage.url, **options)


def keyed(rows: list[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    return {row["key"]: row for row in rows}


def test_own_runs_are_listed_newest_first_and_trials_are_counted(storage: Storage) -> None:
    rows = rows_of(storage)
    assert [row["key"] for row in rows] == ["other", "open", "ended", "bad", None, "searching", "swept", "one"]
    assert [row["kind"] for row in rows] == [*["distill"] * 4, "gate", "sweep", "sweep", "distill"]
    found = keyed(rows)
    assert found["swept"]["trials"] == {"completed": 1, "stopped": 1, "failed": 1, "rejected": 4}
    assert found["searching"]["trials"] == {"completed": 1, "running": 1}
    statuses = {key: row["status"] for key, row in found.items()}
    assert (statuses["bad"], statuses["ended"]) == ("failed", "killed")
    assert statuses["one"] == statuses["swept"] == "finished"
    assert found["other"]["name"] == "mine"


def test_figures_are_those_of_results_and_of_a_sweep_its_winners(storage: Storage) -> None:
    found = keyed(rows_of(storage))
    for key, version in (("one", 1), ("swept", 2)):
        row = found[key]
        assert (row["model"], row["model_version"]) == ("news", version)
        assert row["figures"].items() >= headline(RESULTS).items()
        assert row["seconds"] > 0
    assert found["searching"]["figures"] == {}
    assert found["searching"]["model"] is None
    assert (found[None]["verdict"], found[None]["model_version"]) == ("refused", 2)
    assert found[None]["figures"] == {"gate/retention": 0.91}


def test_the_printed_link_opens_mlflow_at_the_runs(storage: Storage) -> None:
    run_id, stream = rows_of(storage)[-1]["run_id"], io.StringIO()
    results = dict(RESULTS) | {"run_id": run_id, "model_version": None, "report": None}
    print_next_steps(Console(file=stream), results, make_config(storage=storage.url))
    experiment = open_client(tracking_uri(storage)).get_run(run_id).info.experiment_id
    assert f"5000/#/experiments/{experiment}?workflowType=machine_learning" in stream.getvalue()


def test_trials_are_listed_when_asked_for(storage: Storage) -> None:
    rows = rows_of(storage, trials=True)
    sweeps = {row["key"]: row for row in rows if row["kind"] == "sweep"}
    trials = [row for row in rows if row["kind"] == "trial"]
    below = {key: [row["name"] for row in trials if row["parent"] == sweep["run_id"]] for key, sweep in sweeps.items()}
    assert below["swept"] == ["final-00000", "trial-00002", "trial-00001", "trial-00000"]
    assert len(below["searching"]) == 3
    assert [row["key"] for row in rows].index("swept/final-00000") == [row["key"] for row in rows].index("swept") + 1
    figures = next(row["figures"] for row in trials if row["key"] == "swept/trial-00000")
    assert figures == {"latency_ms/p50": 1.5, "num_parameters": 12_000, "best_validation/accuracy": 0.75}


def test_limit_and_experiment(storage: Storage) -> None:
    assert [row["key"] for row in rows_of(storage, limit=2)] == ["other", "open"]
    assert [row["key"] for row in rows_of(storage, experiment="other")] == ["other"]
    assert rows_of(storage, experiment="Default") == []
    with pytest.raises(TrackingError, match=r"no experiment 'raydistil'. Did you mean 'raydistill'\?"):
        rows_of(storage, experiment="raydistil")


def test_a_winner_that_is_older_than_its_sweep_belongs_to_it(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "storage"))
    before = start(storage, "won")
    finish_run(before, RESULTS)
    sweep = start(storage, "swept", "sweep")
    again = start_run(make_config(), storage, "won", {"sweep": "swept"})
    assert again.run_id == before.run_id
    adopt(sweep, again, "winner")
    finish_run(again, RESULTS)
    finish_sweep(sweep)
    nothing = start(storage, "nothing", "sweep")
    finish_sweep(nothing, with_winner=False)
    for limit in (1, 2, 5):
        rows = rows_of(storage, limit=limit)
        assert [row["key"] for row in rows] == ["nothing", "swept"][:limit]
        assert rows[0]["figures"] == {}
        if limit > 1:
            assert rows[1]["figures"].items() >= headline(RESULTS).items()


def test_a_run_whose_process_is_gone_is_told_by_the_lock(storage: Storage) -> None:
    def status() -> str:
        return str(keyed(rows_of(storage))["open"]["status"])

    assert status() == "running"  # its folder is in another storage
    storage.write_bytes(b"{}", "runs", "open", "owner.json")
    assert status() == "lost"
    with lock(storage, "runs", "open", "driver.lock"):
        assert status() == "running"
    assert status() == "lost"
    assert "running?" in shown(rows_of(storage))
    storage.delete("runs", "open")


def shown(rows: list[dict[str, Any]], width: int = 80) -> str:
    stream = io.StringIO()
    print_rows(Console(file=stream, width=width, no_color=True), rows)
    return stream.getvalue()


def test_the_table_fits_80_columns_and_names_give_way(storage: Storage) -> None:
    rows = rows_of(storage, trials=True)
    wide = {"num_parameters": 335_100_000, "bytes": 1_340_000_000, "latency_ms/p50": 1234.5, "test/accuracy": 1.0}
    wide |= {"retention/accuracy": 1.0123}
    for name in ("[red]bold[/red]", "x" * 200, "日本語の名前" * 9, "line\nbreak\x1b[31m\u202e"):
        rows.append({**rows[-1], "model": name, "model_version": 17, "figures": wide, "seconds": 400_000.0})
    rows[-1] |= {"kind": "sweep", "trials": {"completed": 1200}, "status": "finished"}
    text = shown(rows)
    console = Console(width=200)
    lines = text.splitlines()
    assert max(console.render_str(line, markup=False).cell_len for line in lines) <= 80
    assert len([line for line in lines if "335 M" in line]) == 4
    assert "[red]bold" in text
    assert not {"\x1b", "\u202e"} & set(text)
    assert "111:06:40" in text
    assert "sweep 1200" in text
    assert "x" * 100 in shown(rows, 300)


def test_the_table_shows_what_counts(storage: Storage) -> None:
    table = [f"{'-' if line[0] == ' ' else ''}{line}" for line in shown(rows_of(storage)).splitlines()[2:10]]
    lines = {" ".join(line.split()[3:5]) + f" {line.split()[0]}": line for line in table}
    student = RESULTS["student"]
    accuracy = f"{100 * student['test']['accuracy']['value']:.1f}"
    assert lines["distill news one"].split()[3:7] == ["distill", "news", "1", accuracy]
    assert lines["sweep 3 swep"].split()[5:8] == ["news", "2", accuracy]
    assert lines["gate news -"].endswith("refused")
    assert lines["distill reviews bad"].split()[-1] == "failed"
    assert lines["distill reviews ende"].split()[-1] == "stopped"
    assert lines["distill reviews open"].split()[-1] == "running"


def test_a_run_of_numbers_shows_its_own_score(storage: Storage) -> None:
    """In the metric's unit, and the legend says which metrics there are."""
    rows = rows_of(storage)
    numbers = next(row for row in rows if row["figures"].get("test/accuracy"))
    found = {"test/pearson": 0.91234, "test/rmse": 0.4, "retention/pearson": 0.987}
    labels = {"test/micro_f1": 0.8, "test/auc": 0.9, "retention/micro_f1": 0.95}
    said = shown([numbers, {**numbers, "figures": found}, {**numbers, "figures": labels}], 100)
    assert [cell for cell in said.splitlines()[3].split() if "." in cell][:2] == ["0.912", "98.7"]
    assert [cell for cell in said.splitlines()[4].split() if "." in cell][:2] == ["80.0", "95.0"]
    legend = " ".join(said.split())
    assert "score: accuracy, % or Pearson correlation or micro F1, %, on test." in legend
    assert main_figure({"best_validation/accuracy": 0.5, "test/pearson": 1}, "best_validation/") == ("accuracy", 0.5)
    assert main_figure({"num_parameters": 1}, "test/") is None
    assert main_figure({"test/similarity_spearman": 0.8, "test/ndcg_10": 0.9}, "test/") == ("ndcg_10", 0.9)


def test_versions_show_their_task_s_score() -> None:
    tags = [
        {"test/accuracy": "0.875", "retention/accuracy": "0.97"},
        {"test/pearson": "0.91234", "test/r2": "0.8", "retention/pearson": "0.987"},
        {},
    ]
    versions = [Version("news", i, "", "", own, (), 0) for i, own in enumerate(tags)]
    assert [version_cells(version)[2:4] for version in versions] == [["87.5", "97.0"], ["0.912", "98.7"], ["-", "-"]]
    stream = io.StringIO()
    print_versions(Console(file=stream, width=80), "news", versions)
    assert "score (accuracy, % or Pearson correlation)" in " ".join(stream.getvalue().split())


def test_a_run_without_an_end_or_with_a_strange_version_does_not_end_the_list(storage: Storage) -> None:
    rows = rows_of(storage)
    for version in ("", "two", "²", "9" * 5000):
        tags = {"raydistill.model": "news", "raydistill.model_version": version}
        rows.append(row(Found("id", "e", "odd", "FINISHED", 1, None, tags, {}, False), storage))
        assert (rows[-1]["model_version"], rows[-1]["ended"], rows[-1]["seconds"]) == (None, None, None)
    assert len([line for line in shown(rows).splitlines() if " odd " in f"{line} "]) == 4


def test_the_command(storage: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["runs", "--storage", storage.url, "--json", "--limit", "3"]) == 0
    assert [row["key"] for row in json.loads(capfd.readouterr().out)["runs"]] == ["other", "open", "ended"]
    assert execute(["runs", "--storage", storage.url]) == 0
    assert "news 1" in capfd.readouterr().out
    assert execute(["runs", "--storage", storage.url, "--experiment", "Default"]) == 0
    assert "No runs yet" in capfd.readouterr().out
    assert execute(["runs", "--storage", storage.url, "--limit", "0"]) == 2


@pytest.fixture
def own(storage: Storage, tmp_path: Path) -> Storage:
    """A store of its own, with folders for the runs of ``storage``; ``one`` is registered as version 1 of news."""
    copy = Storage(str(tmp_path / "storage"))
    Path(copy.root).mkdir()
    shutil.copyfile(Path(storage.root) / "mlflow.db", Path(copy.root) / "mlflow.db")
    for found in rows_of(storage):
        if found["key"] is not None:
            copy.write_json({"artifacts": [], "run_id": found["run_id"]}, "runs", found["key"], "run.json")
    return copy


def keys(storage: Storage) -> list[str | None]:
    return [row["key"] for row in rows_of(storage)]


def call(*words: str, storage: Storage, capfd: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = execute(["runs", *words, "--storage", storage.url, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_a_removed_run_is_gone_from_storage_and_list(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    before, (ended,) = keys(own), [row for row in rows_of(own) if row["key"] == "ended"]
    code, told = call("rm", "end", storage=own, capfd=capfd)
    assert (code, told["removed"]) == (0, {"key": "ended", "run_ids": [ended["run_id"]], "versions": []})
    assert keys(own) == [key for key in before if key != "ended"]
    assert "ended" not in own.list("runs")
    assert call("rm", "ended", storage=own, capfd=capfd)[0] == 2
    by_id = next(row["run_id"] for row in rows_of(own) if row["key"] == "bad")
    assert execute(["runs", "rm", by_id[:8], "--storage", own.url]) == 0
    assert "cache gc" in capfd.readouterr().out
    assert "bad" not in keys(own)


def test_what_only_begins_like_a_removed_run_stays(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    """A sweep that ``--fresh`` began beside it, and what another storage has at the same server."""
    uri, before = tracking_uri(own), keys(own)
    beside = start(own, "swept-2", "sweep")
    own.write_json({"artifacts": [], "run_id": beside.run_id}, "runs", "swept-2", "run.json")
    client = open_client(uri)
    client.create_model_version("news", "elsewhere", run_id=beside.run_id)
    other = Storage(f"{own.root}-2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        elsewhere = start(other, "swept", "sweep")
    code, told = call("rm", "swept", storage=own, capfd=capfd)
    assert (code, told["removed"]["versions"]) == (0, [])
    assert sorted(map(str, keys(own))) == sorted(map(str, [*before, "swept-2", "won"]))
    assert rows_of(own)[0]["run_id"] == elsewhere.run_id
    assert call("diff", "swept", "swept-2", storage=own, capfd=capfd)[0] == 0
    assert client.search_model_versions(f"run_id = '{beside.run_id}'")
    assert "swept-2" in own.list("runs")


def test_a_name_that_fits_several_runs_or_none_is_refused(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    for name, message in (("o", "3 runs begin with 'o': one, open, other"), ("x", "No run 'x'"), ("", "No run ''")):
        code, told = call("rm", name, storage=own, capfd=capfd)
        assert (code, told["error"]["type"]) == (2, "ConfigError")
        assert message in told["error"]["message"]
    assert len(keys(own)) == 8


def test_a_running_run_stays_also_by_force(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    with lock(own, "runs", "open", "driver.lock"):
        for force in ([], ["--force"]):
            code, told = call("rm", "open", *force, storage=own, capfd=capfd)
            assert (code, told["error"]["type"]) == (1, "ArtifactError")
            assert "is running" in told["error"]["message"]
    assert "open" in keys(own)
    assert call("rm", "open", storage=own, capfd=capfd)[0] == 0  # lost: its process is gone


def test_a_registered_run_stays_and_by_force_goes_with_its_version(
    own: Storage, capfd: pytest.CaptureFixture[str]
) -> None:
    client = open_client(tracking_uri(own))
    code, told = call("rm", "one", storage=own, capfd=capfd)
    assert (code, "version 1 of news" in told["error"]["message"]) == (1, True)
    client.set_registered_model_alias("news", "champion", "1")
    code, told = call("rm", "one", "--force", storage=own, capfd=capfd)
    assert (code, "is the champion" in told["error"]["message"]) == (1, True)
    assert own.exists("runs", "one", "run.json")
    client.delete_registered_model_alias("news", "champion")
    assert call("rm", "one", "--force", storage=own, capfd=capfd)[1]["removed"]["versions"] == ["news 1"]
    assert [version.version for version in list_versions("news", tracking_uri(own))] == [2]
    assert "one" not in keys(own)


def test_of_a_removed_sweep_the_trials_go_and_the_winner_stays(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    code, told = call("rm", "swept", storage=own, capfd=capfd)
    assert (code, len(told["removed"]["run_ids"])) == (0, 5)
    found = keyed(rows_of(own, trials=True))
    assert "swept" not in found
    assert not [key for key in found if str(key).startswith("swept/")]
    assert (found["won"]["kind"], found["won"]["model_version"]) == ("distill", 2)


def test_runs_are_compared_by_config_and_figures(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    finish_run(
        start(own, "warm", stages={"distill": {"losses": {"kd": {"type": "forward_kl", "temperature": 4.0}}}}), RESULTS
    )
    code, told = call("diff", "one", "warm", storage=own, capfd=capfd)
    assert code == 0
    different = {"stages.distill.losses.kd.temperature", "storage"} & set(told["config"])
    assert set(told["config"]) == different
    assert told["config"]["stages.distill.losses.kd.temperature"][1] == 4.0
    assert [run["key"] for run in told["runs"]] == ["one", "warm"]
    assert told["same_data"] is True
    for name, value in headline(RESULTS).items():
        assert told["figures"][name] == pytest.approx([value, value])
    code, told = call("diff", "swept/trial-00000", "swept", storage=own, capfd=capfd)
    assert told["figures"]["num_parameters"][0] == 12_000
    assert told["figures"]["test/accuracy"] == [None, headline(RESULTS)["test/accuracy"]]
    assert told["differences"] == {"num_parameters": told["figures"]["num_parameters"][1] - 12_000} | {
        name: pytest.approx(second - first)
        for name, (first, second) in told["figures"].items()
        if None not in (first, second) and name != "num_parameters"
    }
    listed_keys = [line.split()[0] for line in shown(rows_of(own, trials=True)).splitlines() if " trial " in line]
    assert listed_keys == ["/f0", "/1", "/0", "/f0", "/2", "/1", "/0"]
    code, told = call("diff", "swept/f0", "swep/2", storage=own, capfd=capfd)
    assert [run["key"] for run in told["runs"]] == ["swept/final-00000", "swept/trial-00002"]
    assert execute(["runs", "diff", "swept/0", "swept", "--storage", own.url]) == 0
    table = capfd.readouterr().out
    assert "swept/0" in table
    assert next(line for line in table.splitlines() if "num_parameters" in line).split()[-1][0] in "+-"
    assert execute(["runs", "diff", "one", "warm", "--storage", own.url]) == 0
    assert "stages.distill.losses.kd.temperature" in capfd.readouterr().out
    assert execute(["runs", "diff", "one", "won", "--storage", own.url]) == 0
    assert "Nothing was set differently." in capfd.readouterr().out
    assert call("diff", "one", "o", storage=own, capfd=capfd)[0] == 2
    assert call("diff", "one", "nobody", storage=own, capfd=capfd)[0] == 2


def test_options_before_a_command_of_runs_are_not_lost(own: Storage, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(["runs", "--storage", own.url, "rm", "ended"]) == 2
    assert "write it behind" in capfd.readouterr().err
    assert "ended" in keys(own)


def test_a_store_that_is_missing_or_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrackingError, match=r"no MLflow store at .*/nothing/mlflow.db"):
        listed(str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"cannot be reached.*Start the server") as caught:
        listed(str(tmp_path / "nothing"))
    assert "hunter2" not in str(caught.value)


def test_many_trials_are_counted_without_being_read(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a trial are copied in the database: hundreds of runs through MLflow would take minutes."""
    root = tmp_path / "storage"
    root.mkdir()
    shutil.copyfile(Path(storage.root) / "mlflow.db", root / "mlflow.db")
    sweep = keyed(rows_of(storage))["swept"]
    with sqlite3.connect(root / "mlflow.db") as database:
        child = database.execute("SELECT run_uuid FROM tags WHERE value = 'swept/trial-00000'").fetchone()[0]
        for table in ("runs", "tags", "params", "latest_metrics"):
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            copied = ", ".join("?" if name == "run_uuid" else f'"{name}"' for name in columns)
            names = ", ".join(f'"{name}"' for name in columns)
            ids = [(uuid.uuid5(uuid.NAMESPACE_OID, str(number)).hex, child) for number in range(200)]
            database.executemany(f"INSERT INTO {table} ({names}) SELECT {copied} FROM {table} WHERE run_uuid = ?", ids)
    found: list[int] = []
    search = MlflowClient.search_runs

    def counted(self: MlflowClient, *arguments: Any, **named: Any) -> Any:
        page = search(self, *arguments, **named)
        found.append(len(page))
        return page

    monkeypatch.setattr(MlflowClient, "search_runs", counted)
    rows = listed(str(root))
    assert keyed(rows)["swept"] == sweep
    assert len(rows) == 8
    assert sum(found) < 20
    children = [row for row in listed(str(root), trials=True) if row["parent"] == sweep["run_id"]]
    assert len({row["run_id"] for row in children}) == 204
    assert max(found) <= PAGE
